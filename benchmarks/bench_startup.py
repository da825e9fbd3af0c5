"""How long a person waits: `lmloop --help`, a server from start to ready, its first token."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

from harness import make_row, median, parse_arguments, report

LMLOOP = [sys.executable, "-m", "lmloop"]


def time_help() -> float:
    """Seconds of `lmloop --help`."""
    start = time.perf_counter()
    subprocess.run([*LMLOOP, "--help"], check=True, capture_output=True)
    return time.perf_counter() - start


def time_server(folder: Path, home: Path) -> tuple[float, float]:
    """Seconds from the start of `lmloop serve` to its ready line, and of a first token then."""
    start = time.perf_counter()
    command = [*LMLOOP, "serve", str(folder), "--home", str(home), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        lines = (re.search(r"^Ready.*(http://\S+)", line) for line in server.stdout)
        ready = next((line for line in lines if line), None)
        seconds = time.perf_counter() - start
        first = median([time_first_token(ready[1]) for _ in range(9)]) if ready else 0.0
        server.send_signal(signal.SIGTERM)
    if not ready:
        raise SystemExit("the server did not become ready")
    return seconds, first


def time_first_token(address: str) -> float:
    """Seconds from sending a streamed chat request to the first text of its answer."""
    messages = [{"role": "user", "content": "hello there, how is your day going?"}]
    body = {"model": "model", "messages": messages, "max_tokens": 16, "stream": True}
    request = urllib.request.Request(
        f"{address.rstrip('/')}/v1/chat/completions",
        data=json.dumps(body).encode(),
        headers={"content-type": "application/json"},
    )
    start = time.perf_counter()
    with urllib.request.urlopen(request, timeout=60) as answer:
        texts = (line for line in answer if re.search(rb'"content":"[^"]', line))
        if next(texts, None) is None:
            raise SystemExit("the answer has no text")
        seconds = time.perf_counter() - start
        answer.read()
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
        served = [
            time_server(Path(folder) / "model", Path(folder) / "home")
            for _ in range(arguments.rounds)
        ]
    ready, first = (median(values) for values in zip(*served, strict=True))
    rows.append(make_row("startup.ready", "s", ready, limit=4.0, smaller_is_better=True))
    rows.append(make_row("startup.first_token", "s", first, limit=0.1, smaller_is_better=True))
    report("bench_startup", rows, arguments)


if __name__ == "__main__":
    main()
