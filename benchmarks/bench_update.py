"""Whether an update gets better at what it was corrected in, and what it forgets and costs.

Fifty corrections about a workshop that never was (`data/corrections.jsonl`) update the live chat
model of `--home`, once a seed, with the recipe's defaults. Two paraphrases of each
(`data/paraphrases.jsonl`), which share no 13 words in a row with them, tell what was learnt; the
held-out text of the model's corpus tells what was forgotten. Seconds are those of a whole update:
mixture, training, validation, checkpoint.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import lmloop
from harness import make_parser, make_row, report
from lmloop.config import calm_threads
from lmloop.corpus.read import read_sources
from lmloop.corpus.splits import read_split
from lmloop.errors import ArtifactError
from lmloop.evaluation.perplexity import bits_per_byte_of
from lmloop.inference.load import LoadedModel, load
from lmloop.model.hardware import tune_process
from lmloop.progress import Silent
from lmloop.records import Record
from lmloop.rounds import Parents, find_parents
from lmloop.stages import VALIDATION_TOKENS
from lmloop.store.artifact import ArtifactStore
from lmloop.tokens.shards import Shards
from lmloop.tokens.tokenizer import Tokenizer
from lmloop.updating.mixture import write_mixture
from lmloop.updating.refresh import refresh
from lmloop.updating.scores import Scores, score_sets
from lmloop.updating.statistics import Change, relative_change
from lmloop.upkeep import UpdateConfig

DATA = Path(__file__).parent / "data"
LARGEST_LOSS = 0.01
LONGEST_SECONDS = 180.0


@dataclass(frozen=True)
class Updated:
    """One seed's update."""

    seed: int
    steps: int
    seconds: float
    scores: dict[str, Scores]

    def change(self, name: str) -> Change:
        """Of bits per byte on one set, with its 95 % interval."""
        each = self.scores[name]
        return relative_change(each.candidate, each.live, confidence=0.95, seed=0)


def main() -> None:
    """Update and measure once a seed."""
    parser = make_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="seeds")
    parser.add_argument("--home", type=Path, default=Path(".lmloop"), help="of a live chat model")
    parser.add_argument("--keep", type=Path, help="a new folder for the updated checkpoints")
    arguments = parser.parse_args()
    calm_threads()
    tune_process()
    try:
        live = lmloop.find(home=arguments.home)
        parents = find_parents(live, ArtifactStore(arguments.home))
    except ArtifactError as error:
        sys.exit(f"{error}\nmake one: lmloop run recipes/chat.toml --home {arguments.home}")
    sets = {
        "paraphrases": read_data("paraphrases.jsonl"),
        "general": list(read_split(parents.corpus.path, "heldout")),
    }
    before = load(parents.base.path)
    found = [
        update(parents, before, sets, seed=seed, keep=arguments.keep)
        for seed in range(arguments.rounds)
    ]
    report("bench_update", [row for each in found for row in make_rows(each)], arguments)
    if not arguments.json:
        print(render(found))


def read_data(name: str) -> list[Record]:
    """The conversations of a file beside this benchmark."""
    return [each.record for each in read_sources((str(DATA / name),))]


def update(
    parents: Parents,
    before: LoadedModel,
    sets: dict[str, list[Record]],
    *,
    seed: int,
    keep: Path | None,
) -> Updated:
    """Train on the corrections with one seed; score both models on all sets."""
    config = UpdateConfig()
    tokenizer = Tokenizer.open(parents.base.path)
    with tempfile.TemporaryDirectory() as place:
        shards, run, folder = (Path(place) / name for name in ("shards", "run", "model"))
        folder.mkdir()
        begin = time.monotonic()
        write_mixture(
            read_data("corrections.jsonl"),
            partial(read_split, parents.corpus.path, "train"),
            tokenizer=tokenizer,
            folder=shards,
            passes=config.passes,
            replay_share=config.replay_share,
            seed=seed,
        )
        counts = refresh(
            config,
            base=parents.base.path,
            shards=shards,
            folder=folder,
            run=run,
            seed=seed,
            validate=partial(
                bits_per_byte_of,
                shards=Shards.open(parents.shards.path, "validation"),
                document_id=tokenizer.document_id,
                context_length=before.config.context_length,
                max_tokens=VALIDATION_TOKENS,
            ),
            clock=time.monotonic,
            progress=Silent(),
        )
        seconds = time.monotonic() - begin
        scores = score_sets(sets, candidate=load(folder), live=before, progress=Silent())
        if keep is not None:
            shutil.copytree(folder, keep / f"seed-{seed}")
    return Updated(seed, counts["steps"], seconds, scores)


def make_rows(each: Updated) -> list[dict[str, Any]]:
    """A row a set, before as the peer, and one of the time."""
    rows = []
    for name, scores in each.scores.items():
        bits, change = scores.bits(), each.change(name)
        row = make_row(
            f"update.{name}.seed_{each.seed}",
            "bits/byte",
            bits["candidate"],
            peer_name="before",
            peer=bits["live"],
            limit=bits["live"] * (1 + LARGEST_LOSS) if name == "general" else None,
            smaller_is_better=True,
        )
        interval = [round(end, 5) for end in (change.low, change.high)]
        rows.append({**row, "change": round(change.value, 5), "interval": interval})
    seconds = make_row(
        f"update.seconds.seed_{each.seed}",
        "s",
        each.seconds,
        limit=LONGEST_SECONDS,
        smaller_is_better=True,
    )
    return [*rows, {**seconds, "steps": each.steps}]


def render(found: Sequence[Updated]) -> str:
    """All seeds as a table."""
    names = list(found[0].scores)
    head = ["seed", "steps", "seconds", *(f"{name}, bits per byte" for name in names)]
    lines = ["", f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for each in found:
        cells = [str(each.seed), str(each.steps), f"{each.seconds:.0f}"]
        for name in names:
            bits, change = each.scores[name].bits(), each.change(name)
            cells.append(
                f"{bits['live']:.4f} → {bits['candidate']:.4f}, {change.value:+.2%} "
                f"({change.low:+.2%} to {change.high:+.2%})"
            )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
