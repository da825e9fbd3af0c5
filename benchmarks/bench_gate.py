"""Whether the gate refuses what is bad, for the right reason, and seldom takes what is no better.

Planted candidates are judged in full: a better one, a copy, and one for each way of being bad. Then
the error rate: models of the same data and budget but other seeds, each judged against another of
them, are no better on average; what passes the comparisons of the target and of general text is a
false promotion (the gate's other checks could only refuse more). With `--home` a live chat model is
what is judged against; without one, a smaller one is trained first.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from gate_candidates import Workbench, plant, shorten
from numpy.typing import NDArray

import lmloop
from harness import ROOT, make_parser, make_row, median, report
from lmloop.corpus.splits import read_split
from lmloop.inference.load import load
from lmloop.learning import FinetuneConfig
from lmloop.model.hardware import tune_process
from lmloop.progress import Silent
from lmloop.records import Record
from lmloop.store.artifact import Artifact, ArtifactStore
from lmloop.tokens.shards import Shards
from lmloop.training.recipes import finetune
from lmloop.updating.gate import judge
from lmloop.updating.scores import Scores, check_guard, check_target, encode_set, score
from lmloop.updating.verdict import Verdict
from lmloop.upkeep import GateConfig

FIRST_REASONS = {
    "better": None,
    "identical copy": "target",
    "random weights": "general",
    "over-trained on 50 lines": "general",
    "trained on the test": "overlap",
    "trained on the test, bare": "memorised",
    "wrong tokenizer": "tokenizer",
    "NaN layer": "finite",
    "answers cut short": "answers",
    "slower": "speed",
}
"""The check that has to fail first; None: all have to pass."""
SMALL = {"model.num_layers": 3, "model.hidden_size": 192, "model.num_heads": 3}
SMALL |= {"model.num_kv_heads": 3, "model.intermediate_size": 512, "tokenize.vocab_size": 2048}
SMALL |= {"pretrain.budget": "45s", "finetune.budget": "15s"}
SEED_STEPS = 8
TURNS = 6
"""Turns of the conversations that the error rate is measured on: short, so that a hundred fit."""
TARGETS = {"40 conversations": (40, TURNS), "10 exchanges": (10, 2)}
"""Documents, and turns of each: the second is as small and noisy as a target may be."""
GENERAL = 80


def parse() -> argparse.Namespace:
    """The arguments."""
    parser = make_parser(__doc__)
    parser.add_argument("--home", type=Path, help="of a live chat model; it stays as it is")
    parser.add_argument("--candidates", type=int, default=100, help="of the error rate")
    return parser.parse_args()


def make_home(given: Path | None, folder: Path) -> ArtifactStore:
    """A home to work in: a copy of the given one's artifacts, or a small model's."""
    home = folder / "home"
    if given is not None:
        shutil.copytree(given / "artifacts", home / "artifacts")
    else:
        print("training a small chat model, about a minute", file=sys.stderr)
        lmloop.finetune(ROOT / "recipes" / "chat.toml", home=home, **SMALL)
    return ArtifactStore(home)


@dataclass(frozen=True)
class Judged:
    """One planted candidate and what became of it."""

    name: str
    verdict: Verdict
    made_seconds: float
    seconds: float

    @property
    def first(self) -> str | None:
        """The check that failed first."""
        failed = [check.name for check in self.verdict.checks if check.passed is False]
        return failed[0] if failed else None

    @property
    def is_complete(self) -> bool:
        """Whether every check could be asked."""
        return all(check.passed is not None for check in self.verdict.checks)

    @property
    def is_right(self) -> bool:
        """Whether it was refused for its own reason, or passed as it should."""
        return self.first == FIRST_REASONS[self.name]


def judge_planted(bench: Workbench, folder: Path) -> list[Judged]:
    """Every planted candidate, judged in full."""
    loose = bench.config.model_copy(update={"require_lineage": False})
    pledges = {True: (bench.config, bench.pledge), False: (loose, bench.seal(loose))}
    found = []
    for name, make in plant(bench).items():
        start = time.perf_counter()
        candidate = make()
        made = time.perf_counter()
        config, pledge = pledges[bool(candidate.made_from)]
        (folder / name).mkdir(parents=True)
        verdict = judge(
            config,
            pledge=pledge,
            candidate=candidate,
            live=bench.live,
            store=bench.store,
            folder=folder / name,
            seed=0,
            progress=Silent(),
        )
        found.append(Judged(name, verdict, made - start, time.perf_counter() - made))
        _tell(found[-1])
    return found


def _tell(judged: Judged) -> None:
    sign = "right" if judged.is_right else "WRONG"
    print(
        f"{judged.name:<26} {sign}  made {judged.made_seconds:5.1f} s, judged "
        f"{judged.seconds:5.1f} s  {judged.verdict.headline[:240]}",
        file=sys.stderr,
    )


def train_seed(base: Artifact, shards: Artifact, folder: Path, *, seed: int) -> Path:
    """The parent of the live model fine-tuned for a moment on the old data with a seed."""
    made = folder / str(seed)
    made.mkdir(parents=True)
    row_tokens = min(256, load(base.path, verify=False).config.context_length)
    finetune(
        FinetuneConfig(
            steps=SEED_STEPS,
            batch_tokens=8 * row_tokens,
            row_tokens=row_tokens,
            # Higher than an update's, so that seeds come to differ in so few steps.
            learning_rate=0.004,
            matrix_learning_rate=0.02,
            decay_share=0.8,
        ),
        base=base.path,
        shards=shards.path,
        folder=made,
        run=folder / "runs" / str(seed),
        seed=seed,
        validate=lambda model: 0.0,
        clock=time.monotonic,
        progress=Silent(),
    )
    shutil.rmtree(folder / "runs" / str(seed))
    return made


Nats = dict[str, NDArray[np.float64]]


def score_seeds(
    bench: Workbench, folder: Path, *, count: int
) -> tuple[list[Nats], dict[str, Shards]]:
    """Train `count` models of the same data, and score each on the same sets."""
    by_stage = {each.stage: each for each in bench.store.all()}
    base, shards = by_stage["pretrain"], by_stage["tokenize"]
    sets = {name: encode_set(each, load(base.path)) for name, each in _cut_sets(bench).items()}
    nats: list[Nats] = []
    start = time.perf_counter()
    for seed in range(count):
        made = train_seed(base, shards, folder, seed=1000 + seed)
        model = load(made, verify=False)
        nats.append(
            {name: score(model, each, name=name, progress=Silent()) for name, each in sets.items()}
        )
        shutil.rmtree(made)
        if (seed + 1) % 10 == 0:
            spent = time.perf_counter() - start
            print(f"{seed + 1} of {count} seeds, {spent:.0f} s", file=sys.stderr)
    return nats, sets


def _cut_sets(bench: Workbench) -> dict[str, list[Record]]:
    """Text that no model was trained on: two targets of different sizes, and general text."""
    heldout = [
        record
        for split in ("heldout", "validation")
        for record in read_split(bench.corpus.path, split)
    ]
    targets = {
        name: shorten(heldout[GENERAL : GENERAL + size], turns=turns)
        for name, (size, turns) in TARGETS.items()
    }
    return {"general": shorten(heldout[:GENERAL], turns=TURNS), **targets}


@dataclass(frozen=True)
class Promoted:
    """How many models without a gain are promoted, on one target."""

    of_neighbours: int
    """Model i judged against model i − 1: each is candidate once and live once."""
    of_all: float
    """The share of all ordered pairs."""
    any_gain: float
    """The same if any certain gain were enough (gate.min_gain = 0)."""


def count_promoted(
    config: GateConfig, nats: Sequence[Nats], sets: dict[str, Shards], target: str
) -> Promoted:
    """Judge every model against every other by the target and by general text."""
    any_gain = config.model_copy(update={"min_gain": 0.0})
    neighbours = promoted = certain = 0
    pairs = [(i, j) for i in range(len(nats)) for j in range(len(nats)) if i != j]
    for candidate, live in pairs:
        scores = {
            name: Scores(
                name=name,
                candidate=nats[candidate][name],
                live=nats[live][name],
                raw_bytes=sets[name].document_bytes,
            )
            for name in (target, "general")
        }
        if scores[target].candidate.sum() >= scores[target].live.sum():
            continue  # no gain at all: no interval is needed
        if not check_target(any_gain, scores[target], seed=candidate).passed:
            continue
        certain += 1
        if check_target(config, scores[target], seed=candidate).passed:
            good = bool(check_guard(config, scores["general"], seed=candidate).passed)
            promoted += good
            neighbours += good and live == (candidate - 1) % len(nats)
    return Promoted(neighbours, promoted / len(pairs), certain / len(pairs))


def spread(nats: Sequence[Nats], name: str) -> float:
    """Standard deviation of the bits per byte over the models, relative to their mean."""
    totals = np.asarray([each[name].sum() for each in nats])
    return float(totals.std(ddof=1) / totals.mean())


def main() -> None:
    """Judge what was planted, then count false promotions."""
    arguments = parse()
    tune_process()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        store = make_home(arguments.home, folder)
        by_stage = {each.stage: each for each in store.all()}
        bench = Workbench(
            store=store,
            live=by_stage["finetune"],
            corpus=by_stage["prepare"],
            config=GateConfig(golden=("hi, how are you?",)),
        )
        planted = judge_planted(bench, folder / "verdicts")
        start = time.perf_counter()
        nats, sets = score_seeds(bench, folder / "seeds", count=arguments.candidates)
        counts = {name: count_promoted(bench.config, nats, sets, name) for name in TARGETS}
        seconds = time.perf_counter() - start
    for target, promoted in counts.items():
        print(
            f"{arguments.candidates} models without a gain, target of {target}: "
            f"{promoted.of_neighbours} promoted; of all pairs {promoted.of_all:.2%}, and "
            f"{promoted.any_gain:.2%} if any certain gain were enough; they differ by "
            f"{spread(nats, target):.2%} (standard deviation)",
            file=sys.stderr,
        )
    bad = [each for each in planted if FIRST_REASONS[each.name] is not None]
    good = [each for each in planted if FIRST_REASONS[each.name] is None]
    worst = max(each.of_neighbours for each in counts.values()) / arguments.candidates
    rows = [
        make_row(
            "gate.refused_rightly",
            "candidates",
            sum(each.is_right for each in bad),
            limit=len(bad),
        ),
        make_row("gate.better_passed", "candidates", sum(each.is_right for each in good), limit=1),
        make_row("gate.no_gain_promoted", "share", worst, limit=0.05, smaller_is_better=True),
        make_row(
            "gate.judge",
            "s",
            median([each.seconds for each in planted if each.is_complete]),
            limit=30,
            smaller_is_better=True,
        ),
        make_row("gate.no_gain_study", "s", seconds, limit=600, smaller_is_better=True),
    ]
    print(f"{torch.get_num_threads()} threads", file=sys.stderr)
    report("bench_gate", rows, arguments)


if __name__ == "__main__":
    main()
