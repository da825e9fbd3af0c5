"""How long a person waits: `lmloop --help`, and a server from start to ready."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from harness import make_row, median, parse_arguments, report

LMLOOP = [sys.executable, "-m", "lmloop"]


def time_help() -> float:
    """Seconds of `lmloop --help`."""
    start = time.perf_counter()
    subprocess.run([*LMLOOP, "--help"], check=True, capture_output=True)
    return time.perf_counter() - start


def time_ready(folder: Path, home: Path) -> float:
    """Seconds from the start of `lmloop serve` to its ready line."""
    start = time.perf_counter()
    command = [*LMLOOP, "serve", str(folder), "--home", str(home), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        ready = any(re.search(r"^Ready", line) for line in server.stdout)
        seconds = time.perf_counter() - start
        server.send_signal(signal.SIGTERM)
    if not ready:
        raise SystemExit("the server did not become ready")
    return seconds


def main() -> None:
    """Measure in rounds on a random model of the chat recipe's shape."""
    arguments = parse_arguments(__doc__ or "")
    rows = [
        make_row(
            "startup.help",
            "s",
            median([time_help() for _ in range(max(5, arguments.rounds))]),
            limit=0.25,
            smaller_is_better=True,
        )
    ]
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            [sys.executable, str(Path(__file__).with_name("random_model.py")), folder], check=True
        )
        ready = [
            time_ready(Path(folder) / "model", Path(folder) / "home")
            for _ in range(arguments.rounds)
        ]
    rows.append(make_row("startup.ready", "s", median(ready), limit=4.0, smaller_is_better=True))
    report("bench_startup", rows, arguments)


if __name__ == "__main__":
    main()
