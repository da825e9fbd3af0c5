"""Whether an update gets better at what it was corrected in, and what it forgets and costs.

Fifty corrections about a workshop that never was (`data/corrections.jsonl`) update the live chat
model of `--home`, once a seed, with the recipe's defaults. Two paraphrases of each
(`data/paraphrases.jsonl`), which share no 13 words in a row with them, tell what was learnt; the
held-out text of the model's corpus tells what was forgotten. Seconds are those of a whole update:
mixture, training, validation, checkpoint.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lmloop
from harness import make_row, report, run_script
from lmloop.config import calm_threads
from lmloop.errors import ArtifactError

STEP = Path(__file__).parent / "update_step.py"
LARGEST_LOSS = 0.01
LONGEST_SECONDS = 180.0


def main() -> None:
    """Update and measure once a seed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON object a line, nothing else")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/")
    parser.add_argument("--rounds", type=int, default=3, help="seeds")
    parser.add_argument("--home", type=Path, default=Path(".lmloop"), help="of a live chat model")
    parser.add_argument("--keep", type=Path, help="a folder for the updated checkpoints")
    arguments = parser.parse_args()
    home = arguments.home.resolve()
    try:
        lmloop.find(home=home)
    except ArtifactError as error:
        sys.exit(f"{error}\nmake one: lmloop run recipes/chat.toml --home {home}")
    calm_threads()
    found = []
    for seed in range(arguments.rounds):
        keep = [] if arguments.keep is None else [str(arguments.keep.resolve() / f"seed-{seed}")]
        found.append(run_script(sys.executable, STEP, str(home), str(seed), *keep))
    report("bench_update", [row for each in found for row in make_rows(each)], arguments)
    if not arguments.json:
        print(render(found))


def make_rows(found: dict[str, Any]) -> list[dict[str, Any]]:
    """A row a set, before as the peer, and one of the time."""
    seed, rows = found["seed"], []
    for name, each in found["sets"].items():
        row = make_row(
            f"update.{name}.seed_{seed}",
            "bits/byte",
            each["after"],
            peer_name="before",
            peer=each["before"],
            limit=each["before"] * (1 + LARGEST_LOSS) if name == "general" else None,
            smaller_is_better=True,
        )
        interval = [round(end, 5) for end in each["interval"]]
        rows.append({**row, "change": round(each["change"], 5), "interval": interval})
    seconds = make_row(
        f"update.seconds.seed_{seed}",
        "s",
        found["seconds"],
        limit=LONGEST_SECONDS,
        smaller_is_better=True,
    )
    return [*rows, {**seconds, "steps": found["steps"]}]


def render(found: Sequence[dict[str, Any]]) -> str:
    """All seeds as a table."""
    names = list(found[0]["sets"])
    head = ["seed", "steps", "seconds", *(f"{name}, bits per byte" for name in names)]
    lines = ["", f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for each in found:
        cells = [str(each["seed"]), str(each["steps"]), f"{each['seconds']:.0f}"]
        for one in (each["sets"][name] for name in names):
            low, high = one["interval"]
            cells.append(
                f"{one['before']:.4f} → {one['after']:.4f}, {one['change']:+.2%} "
                f"({low:+.2%} to {high:+.2%})"
            )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
