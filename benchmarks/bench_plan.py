"""How near `lmloop plan` comes: foretold against real time, loss and memory of one run.

The run is a recipe's pre-training with a step budget, in a process of its own; the loss is
foretold from runs of at most half its width. A ratio is foretold over real: the nearer to 1, the
better.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import lmloop
from harness import ROOT, make_parser, make_row, report
from lmloop.planning import FIT_SECONDS

TRAIN = """
import json
import sys
from pathlib import Path

import lmloop

made = lmloop.pretrain(sys.argv[1], home=sys.argv[2], **json.loads(sys.argv[3]))
lines = Path("/proc/self/status").read_text().splitlines()
held = next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
print(json.dumps({"counts": made.counts, "held": held}))
"""


def main() -> None:
    """Plan, then do it."""
    parser = make_parser(__doc__)
    parser.add_argument("--recipe", type=Path, default=ROOT / "recipes" / "chat.toml")
    parser.add_argument("--home", type=Path, default=None, help="keeps what is made there")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--fit-seconds", type=float, default=FIT_SECONDS)
    arguments = parser.parse_args()
    change = {"pretrain.steps": arguments.steps}
    with tempfile.TemporaryDirectory() as folder:
        home = arguments.home or Path(folder)
        plan = lmloop.plan(
            arguments.recipe, home=home, fit=True, fit_seconds=arguments.fit_seconds, **change
        )
        given = [str(arguments.recipe), str(home), json.dumps(change)]
        # Text was tokenized for the fit: this process trains and does nothing else.
        done = subprocess.run(
            [sys.executable, "-c", TRAIN, *given], stdout=subprocess.PIPE, text=True, check=True
        )
    told = json.loads(done.stdout.splitlines()[-1])
    counts = told["counts"]
    assert plan.expected is not None
    low, high = plan.expected.low, plan.expected.high
    print(f"90 % range of the loss: {low:.3f} to {high:.3f}", file=sys.stderr)
    real = counts["seconds"], counts["validation_bits_per_byte"]
    foretold = plan.stages[0].memory.resident
    rows = [
        make_row("plan.memory", "MB", foretold / 1e6, peer_name="real", peer=told["held"] / 1e6),
        make_row("plan.time", "s", plan.stages[0].seconds, peer_name="real", peer=real[0]),
        make_row("plan.loss", "bits/byte", plan.expected.loss, peer_name="real", peer=real[1]),
    ]
    report("bench_plan", rows, arguments)


if __name__ == "__main__":
    main()
