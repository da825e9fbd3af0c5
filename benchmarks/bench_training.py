"""Training speed on the 14M reference decoder, beside transformers and litgpt in one run.

Model arithmetic counts 6·N + 12·L·d·T a token, whole steps, optimizer included. The limit is the
bfloat16 matrix rate measured in the same run. With --isa all products are held to older
instructions: `--isa AVX512_CORE_BF16` shows a processor without AMX, with whole steps alone.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from harness import make_parser, make_row, median, peer_python, report, run_script

HERE = Path(__file__).parent
PEERS = {
    "transformers": ["transformers>=5,<6"],
    "litgpt": ["litgpt==0.5.12"],
}
DTYPES = ("float32", "bfloat16")


def main() -> None:
    """Measure in rounds, ours and each peer in turn."""
    parser = make_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="repetitions; medians are shown")
    parser.add_argument("--isa", help="most that products may use (ONEDNN_MAX_CPU_ISA)")
    arguments = parser.parse_args()
    held = arguments.isa is not None
    if held:
        os.environ["ONEDNN_MAX_CPU_ISA"] = arguments.isa
    pythons = {name: peer_python(name, packages) for name, packages in PEERS.items()}
    ours = {name: (sys.executable, HERE / "train_step.py", name) for name in ("muon", "adamw")}
    peers = {
        name: (str(python), HERE / "peers" / f"train_{name}.py", "step")
        for name, python in pythons.items()
    }
    scripts = ours | peers | {"matrix": (sys.executable, HERE / "train_step.py", "matrix")}
    # The gradient alone, all weights in one type: what the model itself costs.
    for dtype in () if held else DTYPES:
        scripts[f"gradient {dtype}"] = (*ours["adamw"][:2], "gradient", dtype)
        scripts |= {
            f"{name} {dtype}": (*script[:2], "gradient", dtype) for name, script in peers.items()
        }
    rates: dict[str, list[float]] = {name: [] for name in scripts}
    for _ in range(arguments.rounds):
        for name, (python, script, *mode) in scripts.items():
            rates[name].append(run_script(python, script, *mode)["gflops"])
    middle = {name: median(values) for name, values in rates.items()}
    compared = [(f"train.{name}", name, peer, peer) for name in ("adamw", "muon") for peer in PEERS]
    compared += [
        (f"train.gradient_{dtype}", f"gradient {dtype}", peer, f"{peer} {dtype}")
        for dtype in (() if held else DTYPES)
        for peer in PEERS
    ]
    rows = [
        make_row(
            what,
            "GFLOP/s",
            middle[own],
            peer_name=peer,
            peer=middle[other],
            limit=None if own == "gradient float32" else middle["matrix"],
        )
        for what, own, peer, other in compared
    ]
    report("bench_training", rows, arguments, of=arguments.isa)


if __name__ == "__main__":
    main()
