"""What signals and events cost: the engine's speed with and without, and a whole server's.

The engine answers greedily, where measuring is the largest share of its work; the server as its
chat page asks, temperature 0.7 and nucleus 0.9.
"""

from __future__ import annotations

import http.client
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from harness import make_row, median, parse_arguments, report, run_script

HERE = Path(__file__).parent
CLIENTS, REQUESTS, TURNS = 16, 64, 5
"""Clients at once, their requests in one turn, and turns with and without in one round."""
ALLOWED_SHARE = 0.97
"""Signals and logging may cost 3 % of a server's throughput."""


def main() -> None:
    """Measure in turns on one random model of the chat recipe's shape."""
    arguments = parse_arguments(__doc__ or "")
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, str(HERE / "random_model.py"), folder], check=True)
        model = Path(folder) / "model"
        engine = [
            run_script(sys.executable, HERE / "signals_step.py", str(model))
            for _ in range(arguments.rounds)
        ]
        server = measure_server(model, Path(folder), turns=TURNS * arguments.rounds)
    rows = [
        make_row(
            f"signals.engine_{streams}",
            "tok/s",
            median([each[streams]["on"] for each in engine]),
            peer_name="without signals",
            peer=median([each[streams]["off"] for each in engine]),
        )
        for streams in ("1", "16")
    ]
    on, off = server
    rows.append(
        make_row(
            f"signals.server_{CLIENTS}",
            "tok/s",
            on,
            peer_name="without signals and events",
            peer=off,
            limit=off * ALLOWED_SHARE,
        )
    )
    report("bench_signals", rows, arguments)


def measure_server(model: Path, folder: Path, *, turns: int) -> tuple[float, float]:
    """Median tokens a second of a server with signals and events, and of one with neither.

    Both are up all the while, and asked in turns.
    """
    with ExitStack() as stack:
        on, off = (
            stack.enter_context(running_server(model, folder / mode, mode))
            for mode in ("on", "off")
        )
        for url in (on, off):
            ask_together(url)
        rates: dict[str, list[float]] = {on: [], off: []}
        for turn in range(turns):
            for url in (on, off) if turn % 2 else (off, on):
                rates[url].append(ask_together(url))
    return median(rates[on]), median(rates[off])


@contextmanager
def running_server(model: Path, home: Path, mode: str) -> Iterator[str]:
    """The URL of a server in a process of its own."""
    command = [sys.executable, str(HERE / "signals_server.py"), str(model), str(home), mode]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        url = server.stdout.readline().strip()
        if not url:
            raise SystemExit("the server did not become ready")
        try:
            yield url
        finally:
            server.send_signal(signal.SIGTERM)


def ask_together(url: str) -> float:
    """Tokens a second of clients that ask one request after the other, answers whole."""
    # What the turn before left to the writer's thread is not this turn's.
    time.sleep(0.2)
    with ThreadPoolExecutor(CLIENTS) as clients:
        start = time.perf_counter()
        tokens = sum(clients.map(lambda client: ask(url, seed=client), range(CLIENTS)))
        return tokens / (time.perf_counter() - start)


def ask(url: str, *, seed: int) -> int:
    """Tokens that one client gets for its share of a turn's requests."""
    draw = random.Random(seed)
    address = urlsplit(url)
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=60)
    tokens = 0
    for _ in range(REQUESTS // CLIENTS):
        words = ["".join(draw.choices("abcdefghij", k=draw.randint(2, 9))) for _ in range(12)]
        body = {
            "model": "model",
            "messages": [{"role": "user", "content": " ".join(words)}],
            "max_tokens": draw.randint(40, 80),
            "temperature": 0.7,
            "top_p": 0.9,
        }
        headers = {"content-type": "application/json"}
        connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
        tokens += json.loads(connection.getresponse().read())["usage"]["completion_tokens"]
    connection.close()
    return tokens


if __name__ == "__main__":
    main()
