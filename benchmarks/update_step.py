"""One update of a home's live model on the corrections, measured before and after: a child script.

Arguments: the home, the seed, and a folder for the updated checkpoint if it is to be kept.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import lmloop
from lmloop.corpus.read import read_sources
from lmloop.corpus.splits import read_split
from lmloop.evaluation.perplexity import bits_per_byte_of
from lmloop.inference.load import load
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
from lmloop.updating.scores import score_sets
from lmloop.updating.statistics import relative_change
from lmloop.upkeep import UpdateConfig

DATA = Path(__file__).parent / "data"


def main() -> None:
    """Update and measure; print one JSON object."""
    tune_process()
    home, seed, *keep = sys.argv[1:]
    parents = find_parents(lmloop.find(home=home), ArtifactStore(Path(home)))
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "model"
        folder.mkdir()
        begin = time.monotonic()
        steps = update(parents, Path(place), folder, seed=int(seed))
        seconds = time.monotonic() - begin
        sets = measure(parents, folder)
        if keep:
            shutil.copytree(folder, keep[0])
    print(json.dumps({"seed": int(seed), "steps": steps, "seconds": seconds, "sets": sets}))


def update(parents: Parents, place: Path, folder: Path, *, seed: int) -> int:
    """What the stage `update` does, with the defaults of a recipe; gives the steps."""
    config = UpdateConfig()
    tokenizer = Tokenizer.open(parents.base.path)
    write_mixture(
        read_data("corrections.jsonl"),
        partial(read_split, parents.corpus.path, "train"),
        tokenizer=tokenizer,
        folder=place / "mixture",
        passes=config.passes,
        replay_share=config.replay_share,
        seed=seed,
    )
    counts = refresh(
        config,
        base=parents.base.path,
        shards=place / "mixture",
        folder=folder,
        run=place / "run",
        seed=seed,
        validate=partial(
            bits_per_byte_of,
            shards=Shards.open(parents.shards.path, "validation"),
            document_id=tokenizer.document_id,
            context_length=load(parents.base.path, verify=False).config.context_length,
            max_tokens=VALIDATION_TOKENS,
        ),
        clock=time.monotonic,
        progress=Silent(),
    )
    steps: int = counts["steps"]
    return steps


def measure(parents: Parents, folder: Path) -> dict[str, dict[str, Any]]:
    """Bits per byte before and after on each set, and the relative change with its interval."""
    records = {
        "paraphrases": read_data("paraphrases.jsonl"),
        "general": list(read_split(parents.corpus.path, "heldout")),
    }
    before, after = load(parents.base.path), load(folder)
    found = {}
    for name, scores in score_sets(
        records, candidate=after, live=before, progress=Silent()
    ).items():
        change = relative_change(scores.candidate, scores.live, confidence=0.95, seed=0)
        bits = scores.bits()
        found[name] = {
            "before": bits["live"],
            "after": bits["candidate"],
            "change": change.value,
            "interval": [change.low, change.high],
        }
    return found


def read_data(name: str) -> list[Record]:
    """The conversations of a file of the benchmark."""
    return [each.record for each in read_sources((str(DATA / name),))]


if __name__ == "__main__":
    main()
