"""`kill -9` of the new engine, the old engine and the server at every step of a rollout."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from lmloop.store.artifact import Artifact

from ..serving.harness import wait_until
from ..serving.home import NAME, Home

ROOT = Path(__file__).resolve().parents[2]
PHASES = ("starting", "shadow", "canary 5", "canary 20", "promoted")
CLIENTS = 4


@dataclass
class Traffic:
    """Answers of clients that never stop asking."""

    versions: list[str] = field(default_factory=list)
    """Which version gave each answer."""
    refused: list[str] = field(default_factory=list)
    """Codes of errors that came in place of an answer or at its end."""
    strange: list[str] = field(default_factory=list)
    """Answers that no version alone gave."""

    def note(self, text: str, weights: set[str]) -> None:
        words = set(text.split())
        if len(words) == 1 and len(weights) == 1:
            self.versions.append(words.pop())
        else:
            self.strange.append(f"{weights} {text!r}")

    def mark(self) -> int:
        return len(self.versions)


def ask(url: str, session: str, traffic: Traffic) -> None:
    """Stream one answer of 8 words."""
    body = {
        "model": NAME,
        "messages": [{"role": "user", "content": "endless slow"}],
        "max_tokens": 8,
        "stream": True,
    }
    headers = {"Content-Type": "application/json", "X-Lmloop-Session": session}
    place = urlsplit(url)
    connection = http.client.HTTPConnection("127.0.0.1", place.port or 0, timeout=20)
    with contextlib.closing(connection), contextlib.ExitStack() as stack:
        connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
        # A stream has its own hold on the socket: an answer that is left early closes it itself.
        response = stack.enter_context(connection.getresponse())
        if response.status != 200:
            traffic.refused.append(json.loads(response.read())["error"]["code"])
            return
        text, weights = "", set()
        for line in response:
            if not line.startswith(b"data: {"):
                continue
            chunk = json.loads(line[6:])
            if "error" in chunk:
                traffic.refused.append(chunk["error"]["code"])
                return
            weights.add(chunk["system_fingerprint"])
            text += chunk["choices"][0]["delta"].get("content", "")
        traffic.note(text, weights)


def is_ready(url: str) -> bool:
    with contextlib.closing(http.client.HTTPConnection(urlsplit(url).netloc)) as connection:
        connection.request("GET", "/ready")
        with connection.getresponse() as response:
            return response.status == 200


@contextlib.contextmanager
def asking(url: str) -> Iterator[Traffic]:
    """Clients that ask, each time as another session, until the block ends or the server does."""
    traffic, end = Traffic(), threading.Event()

    def run(number: int) -> None:
        for turn in range(100_000):
            if end.is_set():
                return
            try:
                ask(url, f"{number}-{turn}", traffic)
            except (OSError, http.client.HTTPException):
                end.wait(0.02)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(CLIENTS)]
    for thread in threads:
        thread.start()
    try:
        yield traffic
    finally:
        end.set()
        for thread in threads:
            thread.join(30)


@contextlib.contextmanager
def served(home: Home, *, swap: str = "beside") -> Iterator[tuple[str, subprocess.Popen[str]]]:
    command = [sys.executable, "-m", "tests.faults.served", str(home.folder), swap]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().strip(), process
        finally:
            process.kill()


@dataclass(frozen=True)
class Stage:
    """A home whose live weights are A and whose candidate is B."""

    home: Home
    a: Artifact
    b: Artifact

    def enter(self, phase: str) -> None:
        """Bring the registry to a phase of B's rollout, from the beginning."""
        registry = self.home.registry
        if phase == "starting":
            self.home.close_gate("B")
            registry.set_candidate(self.b, phase="shadow", share=0)
            return
        registry.set_candidate(self.b, phase="shadow", share=0)
        for share in (5, 20):
            if phase in (f"canary {share}", "canary 20", "promoted"):
                self.until(candidate_state="ready")
                registry.set_candidate(self.b, phase="canary", share=share)
        if phase == "promoted":
            registry.promote()
            self.until(live=self.b.fingerprint[:12])
        elif phase != "starting":
            self.until(candidate_state="ready")

    def until(self, **wanted: Any) -> None:
        """Wait for what the one server says."""

        def holds() -> bool:
            rows = [row for row in self.home.servers() if row["heard"] > self.born]
            return any(wanted.items() <= row.items() for row in rows)

        wait_until(holds, seconds=20)

    @property
    def born(self) -> float:
        """When the newest server started."""
        return max((row["started"] for row in self.home.servers()), default=0.0)

    def follows(self) -> Callable[[], bool]:
        """Whether the newest server has applied the newest generation, everything ready."""
        generation = self.home.registry.generation()
        candidate = "candidate" in self.home.registry.read()

        def holds() -> bool:
            rows = [row for row in self.home.servers() if row["started"] == self.born]
            state = "ready" if candidate else "absent"
            return any(
                (row["generation"], row["candidate_state"]) == (generation, state) for row in rows
            )

        return holds


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    home = Home(tmp_path)
    made = Stage(home, home.make("A"), home.make("B"))
    home.registry.set_live(made.a)
    yield made
    home.database.dispose()


def engines(home: Home) -> list[int]:
    """All engine processes that were started, oldest first."""
    return [int(line) for line in (home.folder / "process-ids").read_text().split()]


def speaks_only(traffic: Traffic, version: str) -> Callable[[], bool]:
    """Whether ten answers in a row, from now on, are all of one version."""
    mark = traffic.mark()

    def holds() -> bool:
        recent = traffic.versions[mark:][-10:]
        return recent == [version] * 10

    return holds


@pytest.mark.slow
@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("victim", ["new", "old"])
def test_a_killed_engine_is_replaced_and_the_rollout_goes_on(
    stage: Stage, phase: str, victim: str
) -> None:
    home = stage.home
    with served(home) as (url, _), asking(url) as traffic:
        stage.enter(phase)
        wait_until(lambda: len(engines(home)) == 2)
        wait_until(lambda: traffic.mark() > 5)
        if phase == "promoted":
            wait_until(speaks_only(traffic, "B"))
        old, new = engines(home)
        os.kill(new if victim == "new" else old, signal.SIGKILL)
        wait_until(lambda: len(engines(home)) == 3)
        home.open_gate("B")
        wait_until(stage.follows(), seconds=20)
        wait_until(lambda: is_ready(url))
        # What was refused before is noted once every client has asked again.
        seen = traffic.mark()
        wait_until(lambda: traffic.mark() > seen + 2 * CLIENTS)
        lost = len(traffic.refused)
        if phase != "promoted":
            stage.until(candidate_state="ready")
            home.registry.set_candidate(stage.b, phase="canary", share=20)
            home.registry.promote()
        wait_until(speaks_only(traffic, "B"))
        home.registry.roll_back()
        wait_until(speaks_only(traffic, "A"))
    assert traffic.strange == []
    # Only what the dead engine was working on, or what came while nothing was live, was lost.
    assert set(traffic.refused) <= {"engine_lost", "loading"}
    assert len(traffic.refused) == lost
    serves = "old" if phase != "promoted" else "new"
    if victim != serves and "canary" not in phase:
        assert lost == 0
    assert len(engines(home)) == 3


@pytest.mark.slow
@pytest.mark.parametrize("phase", PHASES)
def test_a_server_that_was_killed_goes_on_as_the_registry_says(stage: Stage, phase: str) -> None:
    home = stage.home
    with served(home) as (url, process), asking(url) as before:
        stage.enter(phase)
        wait_until(lambda: len(engines(home)) == 2)
        wait_until(lambda: before.mark() > 5)
        process.kill()
        process.wait()
    assert before.strange == []
    home.open_gate("B")
    with served(home) as (url, _), asking(url) as traffic:
        wait_until(lambda: len(home.servers()) == 2)
        wait_until(stage.follows(), seconds=20)
        wait_until(lambda: traffic.mark() > 20)
        if phase == "canary 20":
            wait_until(lambda: set(traffic.versions) == {"A", "B"}, seconds=20)
        elif phase != "canary 5":
            assert set(traffic.versions) == {"B" if phase == "promoted" else "A"}
        if phase != "promoted":
            home.registry.promote()
        wait_until(speaks_only(traffic, "B"))
        home.registry.roll_back()
        wait_until(speaks_only(traffic, "A"))
    assert (traffic.strange, traffic.refused) == ([], [])


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["drains", "starts"])
def test_a_server_killed_in_a_pause_starts_with_the_new_weights(stage: Stage, moment: str) -> None:
    home, chance = stage.home, random.Random(0)
    home.close_gate("B")
    with served(home, swap="pause") as (url, process), asking(url) as before:
        wait_until(lambda: before.mark() > 5)
        home.registry.set_live(stage.b)
        if moment == "starts":
            wait_until(lambda: len(engines(home)) == 2)
        time.sleep(chance.uniform(0, 0.1))
        process.kill()
        process.wait()
    assert (before.strange, set(before.versions)) == ([], {"A"})
    home.open_gate("B")
    with served(home, swap="pause") as (url, _), asking(url) as traffic:
        wait_until(speaks_only(traffic, "B"))
        home.registry.roll_back()
        wait_until(speaks_only(traffic, "A"))
    assert (traffic.strange, traffic.refused) == ([], [])


@pytest.mark.slow
def test_a_pause_under_load_fails_nobody(stage: Stage) -> None:
    with served(stage.home, swap="pause") as (url, _), asking(url) as traffic:
        wait_until(lambda: traffic.mark() > 5)
        for _ in range(2):
            stage.home.registry.set_live(stage.b)
            wait_until(speaks_only(traffic, "B"))
            stage.home.registry.roll_back()
            wait_until(speaks_only(traffic, "A"))
    assert (traffic.strange, traffic.refused) == ([], [])
