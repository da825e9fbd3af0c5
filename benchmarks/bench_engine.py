"""Generation speed of the engine on the chat recipe's shape, beside transformers' `generate`."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from harness import make_row, median, parse_arguments, peer_python, report, run_script

HERE = Path(__file__).parent


def main() -> None:
    """Measure in rounds, ours and the peer in turn, on one random model."""
    arguments = parse_arguments(__doc__ or "")
    peer = str(peer_python("transformers", ["transformers>=5,<6"]))
    results: dict[str, list[dict[str, float]]] = {"ours": [], "transformers": []}
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, str(HERE / "random_model.py"), folder], check=True)
        model = f"{folder}/model"
        for _ in range(arguments.rounds):
            results["ours"].append(run_script(sys.executable, HERE / "generate_step.py", model))
            script = HERE / "peers" / "generate_transformers.py"
            results["transformers"].append(run_script(peer, script, model))
    units = {"decode_1": "tok/s", "decode_16": "tok/s", "prefill_256": "tok/s", "first_token": "s"}
    rows = [
        make_row(
            f"engine.{what}",
            unit,
            median([each[what] for each in results["ours"]]),
            peer_name="transformers",
            peer=median([each[what] for each in results["transformers"]]),
            smaller_is_better=unit == "s",
        )
        for what, unit in units.items()
    ]
    report("bench_engine", rows, arguments)


if __name__ == "__main__":
    main()
