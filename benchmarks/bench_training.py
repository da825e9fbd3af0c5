"""Training speed on the 14M reference decoder, beside transformers and litgpt in one run.

Model arithmetic counts 6·N + 12·L·d·T a token, whole steps, optimizer included. The limit is the
bfloat16 matrix rate measured in the same run.
"""

from __future__ import annotations

import sys
from pathlib import Path

from harness import make_row, median, parse_arguments, peer_python, report, run_script

HERE = Path(__file__).parent
PEERS = {
    "transformers": ["transformers>=5,<6"],
    "litgpt": ["litgpt==0.5.12"],
}


def main() -> None:
    """Measure in rounds, ours and each peer in turn."""
    arguments = parse_arguments(__doc__ or "")
    pythons = {name: peer_python(name, packages) for name, packages in PEERS.items()}
    scripts = {
        "muon": (sys.executable, HERE / "train_step.py", "muon"),
        "adamw": (sys.executable, HERE / "train_step.py", "adamw"),
        "matrix": (sys.executable, HERE / "train_step.py", "matrix"),
    }
    scripts |= {
        name: (str(python), HERE / "peers" / f"train_{name}.py", "bfloat16")
        for name, python in pythons.items()
    }
    rates: dict[str, list[float]] = {name: [] for name in scripts}
    for _ in range(arguments.rounds):
        for name, (python, script, mode) in scripts.items():
            rates[name].append(run_script(python, script, mode)["gflops"])
    middle = {name: median(values) for name, values in rates.items()}
    rows = [
        make_row(
            f"train.{ours}",
            "GFLOP/s",
            middle[ours],
            peer_name=peer,
            peer=middle[peer],
            limit=middle["matrix"],
        )
        for ours in ("adamw", "muon")
        for peer in PEERS
    ]
    report("bench_training", rows, arguments)


if __name__ == "__main__":
    main()
