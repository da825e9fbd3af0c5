"""What clients notice of new weights: a server under load through two swaps and one rollback.

16 clients stream without a pause. Two candidates come in one after the other (shadow, 20 % of the
sessions, all), then the last one is called back. Every version speaks in letters of its own, so the
text of an answer shows whether one version alone gave it.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import sqlalchemy as sa
from versions import NAME, speaker

from harness import ROOT, make_parser, make_row, median, report
from lmloop.store.artifact import Artifact, open_artifact
from lmloop.store.database import database_url, open_database, servers_table
from lmloop.store.registry import Registry

CLIENTS = 16
ANSWER_TOKENS = (48, 96)
"""Answers are of many lengths, so that clients do not march in step."""
POLL_SECONDS = 0.05
LONGEST_WAIT_SECONDS = 60.0
CANARY_SHARE = 20
STEPS = ("starting", "shadow", "canary", "promoted")
AFTERMATH_SECONDS = 2.0
"""So long after a change is counted to its swap."""


@dataclass
class Load:
    """What the clients saw; times are those of `time.perf_counter`."""

    gaps: list[tuple[float, float]] = field(default_factory=list)
    """When a token came, and seconds since the one before of the same answer."""
    firsts: list[tuple[float, str | None]] = field(default_factory=list)
    """When an answer's first token came, and which version gave it."""
    answers: int = 0
    """That came to their end, from one version."""
    mixed: int = 0
    failures: list[str] = field(default_factory=list)


async def ask(address: tuple[str, int], session: str, load: Load, *, max_tokens: int) -> None:
    """Stream one answer."""
    body = json.dumps(
        {
            "model": NAME,
            "messages": [{"role": "user", "content": f"hello {session}"}],
            "max_tokens": max_tokens,
            "temperature": 0,
            "stream": True,
        }
    ).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: {address[0]}\r\nConnection: close\r\n"
        f"Content-Type: application/json\r\nX-Lmloop-Session: {session}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    reader, writer = await asyncio.open_connection(*address)
    try:
        writer.write(head.encode() + body)
        await read_answer(reader, load)
    finally:
        writer.close()


async def read_answer(reader: asyncio.StreamReader, load: Load) -> None:
    """Take the events of one answer as they come."""
    status = (await reader.readline()).decode().strip()
    text, weights, last, done = "", set(), 0.0, False
    async for line in reader:
        if not line.startswith(b"data: "):
            continue
        now = time.perf_counter()
        if line.startswith(b"data: [DONE]"):
            done = True
            break
        chunk = json.loads(line[6:])
        if "error" in chunk:
            break
        weights.add(chunk["system_fingerprint"])
        if piece := chunk["choices"][0]["delta"].get("content", ""):
            text += piece
            if last:
                load.gaps.append((now, now - last))
            else:
                load.firsts.append((now, speaker(piece)))
            last = now
    if not done or "200" not in status:
        load.failures.append(status)
    elif len(weights) != 1 or speaker(text) is None:
        load.mixed += 1
    else:
        load.answers += 1


async def run_client(number: int, address: tuple[str, int], load: Load, end: asyncio.Event) -> None:
    """Ask again and again, each time as another session."""
    draw, turn = random.Random(number), 0
    while not end.is_set():
        turn += 1
        try:
            tokens = draw.randint(*ANSWER_TOKENS)
            await ask(address, f"{number}-{turn}", load, max_tokens=tokens)
        except OSError as error:
            load.failures.append(repr(error))


class Operator:
    """Changes the registry, and reads what the server says of itself."""

    def __init__(self, home: Path) -> None:
        self._database = open_database(database_url(home))
        self.registry = Registry(self._database, NAME)

    def close(self) -> None:
        """Close the database."""
        self._database.dispose()

    async def reach(self, **wanted: Any) -> None:
        """Wait until the server's row says this."""
        deadline = time.perf_counter() + LONGEST_WAIT_SECONDS
        while not wanted.items() <= self._read().items():
            if time.perf_counter() > deadline:
                raise SystemExit(f"the server never said {wanted}, but {self._read()}")
            await asyncio.sleep(POLL_SECONDS)

    def _read(self) -> Mapping[str, Any]:
        with self._database.connect() as connection:
            return dict(connection.execute(sa.select(servers_table)).mappings().one())

    async def swap(self, candidate: Artifact, *, seconds: float) -> list[float]:
        """Bring a candidate in over about so many seconds; when each of `STEPS` began, and the end.

        The engine's start comes on top.
        """
        moments = [time.perf_counter()]
        self.registry.set_candidate(candidate, phase="shadow", share=0)
        await self.reach(candidate=candidate.fingerprint[:12], candidate_state="ready")
        moments.append(time.perf_counter())
        await asyncio.sleep(seconds / 2)
        moments.append(time.perf_counter())
        self.registry.set_candidate(candidate, phase="canary", share=CANARY_SHARE)
        await asyncio.sleep(seconds / 2)
        moments.append(time.perf_counter())
        generation = self.registry.promote()
        await self.reach(live=candidate.fingerprint[:12], generation=generation)
        await asyncio.sleep(AFTERMATH_SECONDS)
        return [*moments, time.perf_counter()]


def serve_command(home: Path) -> list[str]:
    """What an operator would write."""
    return [sys.executable, "-m", "lmloop", "serve", NAME, "--home", str(home), "--port", "0"]


@contextmanager
def served(home: Path) -> Iterator[tuple[str, int]]:
    """A server of the home's live model: its address and its process id."""
    with subprocess.Popen(serve_command(home), stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        lines = (re.search(r"^Ready.*(http://\S+)", line) for line in server.stdout)
        ready = next((line for line in lines if line), None)
        if ready is None:
            raise SystemExit("the server did not become ready")
        try:
            yield ready[1], server.pid
        finally:
            server.send_signal(signal.SIGTERM)


def processor_seconds(process: int) -> float:
    """Processor time of a process and its children so far."""
    children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    ticks = 0
    for each in (str(process), *children):
        fields = Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


async def measure_idle(process: int, *, seconds: float) -> float:
    """Share of one core that a server takes while nobody asks it anything."""
    await asyncio.sleep(2)
    before = processor_seconds(process)
    await asyncio.sleep(seconds)
    return (processor_seconds(process) - before) / seconds


def percentile_99(gaps: list[tuple[float, float]], spans: list[tuple[float, float]]) -> float:
    """Of the gaps that ended within one of these spans, in seconds."""
    chosen = [gap for when, gap in gaps if any(begin <= when < end for begin, end in spans)]
    return float(np.percentile(chosen, 99))


async def first_word(address: tuple[str, int], version: str) -> float:
    """When a version first answers somebody who asks and asks."""
    load, deadline = Load(), time.perf_counter() + LONGEST_WAIT_SECONDS
    while time.perf_counter() < deadline:
        await ask(address, f"again {len(load.firsts)}", load, max_tokens=2)
        when, who = load.firsts[-1]
        if who == version:
            return when
    raise SystemExit(f"{version} did not speak again")


async def run(
    address: tuple[str, int], operator: Operator, versions: Mapping[str, Artifact], seconds: float
) -> list[dict[str, Any]]:
    """Load the server for so many seconds, change its weights meanwhile; the rows."""
    load, end = Load(), asyncio.Event()
    clients = [
        asyncio.create_task(run_client(number, address, load, end)) for number in range(CLIENTS)
    ]
    part = seconds / 6
    await asyncio.sleep(part / 2)
    quiet = [(time.perf_counter(), time.perf_counter() + part)]
    await asyncio.sleep(part)
    swaps = [await operator.swap(versions[each], seconds=part) for each in "BC"]
    called = time.perf_counter()
    operator.registry.roll_back()
    rollback = await first_word(address, "B") - called
    await asyncio.sleep(AFTERMATH_SECONDS)
    begin = time.perf_counter()
    spans = {"rolled_back": [(called, begin)]}
    for step, when in enumerate(STEPS):
        spans[when] = [(moments[step], moments[step + 1]) for moments in swaps]
    await asyncio.sleep(part / 2)
    quiet.append((begin, time.perf_counter()))
    end.set()
    await asyncio.gather(*clients)
    usual = percentile_99(load.gaps, quiet)
    swapping = percentile_99(load.gaps, [each for found in spans.values() for each in found])
    times = partial(make_row, unit="times the usual", limit=3.0, smaller_is_better=True)
    if load.failures:
        print(load.failures[:3], file=sys.stderr)
    return [
        make_row("swap.failed", "requests", len(load.failures)),
        make_row("swap.mixed", "answers", load.mixed),
        make_row("swap.answers", "answers", load.answers),
        make_row("swap.usual_p99_gap", "s", usual),
        times("swap.p99_gap", ours=swapping / usual),
        *(
            times(f"swap.p99_gap.{when}", ours=percentile_99(load.gaps, found) / usual)
            for when, found in spans.items()
        ),
        make_row("swap.rollback", "s", rollback, limit=1.0, smaller_is_better=True),
        make_row("swap.start", "s", median([each[1] - each[0] for each in swaps])),
    ]


async def measure(home: Path, versions: Mapping[str, Artifact], seconds: float) -> list[Any]:
    """All rows of one server's life."""
    operator = Operator(home)
    operator.registry.set_live(versions["A"])
    try:
        with served(home) as (url, process):
            place = urlsplit(url)
            address = (str(place.hostname), int(place.port or 0))
            rows = await run(address, operator, versions, seconds)
            idle = await measure_idle(process, seconds=max(5.0, seconds / 3))
    finally:
        operator.close()
    return [*rows, make_row("swap.idle", "cores", idle, limit=0.01, smaller_is_better=True)]


def main() -> None:
    """Measure on three random models of the chat recipe's shape."""
    parser = make_parser(__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="how long the load lasts")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        script = ROOT / "benchmarks" / "versions.py"
        made = subprocess.run(
            [sys.executable, str(script), folder], check=True, capture_output=True, text=True
        )
        found = json.loads(made.stdout.splitlines()[-1])
        versions = {name: open_artifact(path) for name, path in found.items()}
        rows = asyncio.run(measure(Path(folder), versions, arguments.seconds))
    report("bench_swap", rows, arguments)


if __name__ == "__main__":
    main()
