"""Opening a checkpoint of 135M parameters: seconds, and memory beyond the model's own bytes.

The file is in the page cache. Opened means that every weight has been read once: a map alone would
cost nothing. Ours and the peer run in turn, each time in a process of its own.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from harness import make_row, median, parse_arguments, peer_python, report, run_script

HERE = Path(__file__).parent
DTYPES = ("float32", "bfloat16")


def main() -> None:
    """Measure in rounds on random models of SmolLM2's shape."""
    arguments = parse_arguments(__doc__ or "")
    peer = str(peer_python("transformers", ["transformers>=5,<6"]))
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(HERE / "open_step.py"), "make", folder]
        subprocess.run(command, check=True)
        for dtype in DTYPES:
            model, ours, theirs = f"{folder}/{dtype}", [], []
            for _ in range(arguments.rounds):
                ours.append(run_script(sys.executable, HERE / "open_step.py", "open", model))
                theirs.append(run_script(peer, HERE / "peers" / "open_transformers.py", model))
            rows += [
                make_row(
                    f"open.{what}_{dtype}",
                    unit,
                    median([each[what] for each in ours]),
                    peer_name="transformers",
                    peer=median([each[what] for each in theirs]),
                    limit=0.5 if what == "load" else None,
                    smaller_is_better=True,
                )
                for what, unit in {"load": "s", "load_and_read": "s", "beyond": "MB"}.items()
            ]
    report("bench_open", rows, arguments)


if __name__ == "__main__":
    main()
