"""The circle from end to end: a tiny recipe, a real server, traffic, and what comes of it."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

import lmloop
from lmloop import care
from lmloop.circle import Circle
from lmloop.config import load_recipe
from lmloop.errors import ArtifactError, BusyError, UpdateError
from lmloop.progress import Silent
from lmloop.store.database import database_url, open_database
from lmloop.store.events import Event, read_events

from .conftest import Walked, make_conversations, write_jsonl
from .serving.harness import wait_until

RECIPE = """
name = "tiny"

[prepare]
sources = ["{source}"]
near_duplicate_similarity = "none"
validation_share = 0.1
heldout_share = 0.1

[tokenize]
vocab_size = 360

[model]
num_layers = 2
hidden_size = 64
num_heads = 2
num_kv_heads = 2
head_dim = 32
intermediate_size = 128
context_length = 128

[pretrain]
steps = 200
batch_tokens = 1024
row_tokens = 128

[finetune]
steps = 80
batch_tokens = 1024
row_tokens = 128

[evaluate]
candidates = 3
ranking_questions = 4
openers = 4
max_tokens = 8

[compress]
max_loss = 0.1

[serve]
port = 0
max_tokens = 64

[monitor]
window_requests = 30
reference_requests = 100

[collect]
review = false
min_exchanges = 20
max_per_user = 100
max_user_share = 1.0

[update]
steps = 200
replay_share = 0.5
batch_tokens = 1024
row_tokens = 128

[gate]
openers = 8
max_loss = 0.05
max_slowdown = 2.0
min_answer_share = 0.2

[rollout]
shadow_requests = 10
canary_shares = [20, 50]
step_requests = 12
step_timeout = "60s"
watch_requests = 15
max_slowdown = 5.0
false_alarms = 1e-6

[loop]
on_alarm = true
"""
DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
THINGS = ("observatory", "dome", "library", "telescope", "planetarium", "museum", "garden", "roof")


def correct(number: int) -> tuple[str, str]:
    """A question that the model has not seen, and what the answer should have been."""
    day, thing = DAYS[number % 7], THINGS[number % 8]
    question = f"when does the {thing} open on {day} evening?"
    return question, f"The {thing} opens at nine on {day}."


@dataclass
class Client:
    """Speaks to the server as users do."""

    address: str
    http: httpx.Client = field(default_factory=lambda: httpx.Client(timeout=60, trust_env=False))

    def ask(self, text: str, *, user: str) -> dict[str, Any]:
        answer = self.http.post(
            f"{self.address}/v1/chat/completions",
            json={
                "model": "tiny",
                "messages": [{"role": "user", "content": text}],
                "user": user,
                "temperature": 0.5,
            },
            headers={"X-Lmloop-Consent": "full", "X-Lmloop-Session": user},
        )
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def rate(self, answer: dict[str, Any], rating: int, correction: str | None = None) -> None:
        body = {"response_id": answer["id"], "rating": rating, "correction": correction}
        taken = self.http.post(
            f"{self.address}/v1/feedback", json=body, headers={"X-Lmloop-Consent": "full"}
        )
        assert taken.status_code == 200, taken.text

    def weights(self) -> str:
        return str(self.http.get(f"{self.address}/info").json()["weights"])


@contextmanager
def served(recipe: Path, home: Path) -> Iterator[Client]:
    """`lmloop serve` as a process, on a free port."""
    process = subprocess.Popen(
        [sys.executable, "-m", "lmloop", "serve", str(recipe), "--home", str(home)],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        line = next(line for line in process.stdout if "Ready" in line)
        client = Client(line.split(" at ")[1].split()[0])
        yield client
        client.http.close()
    finally:
        process.terminate()
        process.wait(timeout=30)
        assert process.stdout is not None
        process.stdout.close()


@contextmanager
def traffic(client: Client) -> Iterator[list[str]]:
    """People who talk on while something else happens; every answer's weights."""
    over = threading.Event()
    heard: list[str] = []

    def talk(number: int) -> None:
        deadline = time.monotonic() + 240
        turn = 0
        while not over.is_set() and time.monotonic() < deadline:
            turn += 1
            own = Client(client.address)
            heard.append(own.ask(correct(turn)[0], user=f"u{number}-{turn}")["model"])
            own.http.close()

    threads = [threading.Thread(target=talk, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    try:
        yield heard
    finally:
        over.set()
        for thread in threads:
            thread.join(60)


@dataclass
class Home:
    """A recipe that was walked, and its database."""

    recipe: Path
    folder: Path

    def events(self, *kinds: str, after: int = 0) -> list[Event]:
        engine = open_database(database_url(self.folder))
        try:
            return read_events(engine, name="tiny", kinds=kinds, after=after)
        finally:
            engine.dispose()


@pytest.fixture
def home(tmp_path: Path) -> Home:
    source = write_jsonl(tmp_path / "talks.jsonl", make_conversations(600, seed=3))
    recipe = tmp_path / "tiny.toml"
    recipe.write_text(RECIPE.format(source=source), encoding="utf-8")
    command = [sys.executable, "-m", "lmloop", "run", str(recipe), "--no-serve"]
    subprocess.run([*command, "--home", str(tmp_path / "home")], check=True, timeout=300)
    return Home(recipe, tmp_path / "home")


@pytest.mark.slow
def test_traffic_becomes_a_better_model_and_a_rollback_undoes_it(home: Home) -> None:
    draw = random.Random(0)
    old = make_conversations(200, seed=77)
    with served(home.recipe, home.folder) as client:
        before = client.weights()
        for number in range(100):  # what the model knows: the reference
            answer = client.ask(old[number].turns[0].content, user=f"user-{number % 20}")
            if draw.random() < 0.3:
                client.rate(answer, draw.choice([1, 1, -1]))
        for number in range(100):  # something else, and people say what they wanted to hear
            question, wanted = correct(number)
            answer = client.ask(question, user=f"user-{number % 20}")
            client.rate(answer, -1, wanted)
        with traffic(client):
            command = [sys.executable, "-m", "lmloop", "loop", str(home.recipe), "--once"]
            subprocess.run([*command, "--home", str(home.folder)], check=True, timeout=400)

        kinds = [event.kind for event in home.events()]
        alarm = kinds.index("alarm")
        started = next(e for e in home.events("round") if e.kind == "round.started")
        assert started.data["cause"] == "alarm"
        wanted_order = ["round.started", "gate.passed", "rollout.started", "rollout.promoted"]
        assert [kind for kind in kinds[alarm:] if kind in wanted_order] == wanted_order
        finished = home.events("round.finished")[-1].data
        assert finished["result"] == "promoted", finished
        after = client.weights()
        assert after != before
        assert finished["candidate"].startswith(after)
        verdict = json.loads((Path(finished["verdict"]) / "verdict.json").read_text())
        assert verdict["passed"]

        begun = time.monotonic()
        rolled = care.rollback("tiny", home=home.folder)
        assert rolled.waiting == 0 and rolled.servers == 1
        assert client.weights() == before
        assert time.monotonic() - begun < 5  # the figure itself is a benchmark's
    tree = str(lmloop.show("tiny/previous", home=home.folder))
    assert all(word in tree for word in ("by update", "by collect", "by pledge", "exchanges"))


def make_circle(walked: Walked) -> Circle:
    return Circle(load_recipe(walked.recipe), home=walked.home, progress=Silent())


def test_the_reference_of_training_text_is_measured_once_a_version(walked: Walked) -> None:
    circle = make_circle(walked)
    try:
        first = circle._text_reference()
        (cache,) = (walked.home / "cache").glob("reference-*.json")
        written = cache.stat().st_mtime_ns
        assert circle._text_reference().to_json() == first.to_json()
        assert cache.stat().st_mtime_ns == written
        cache.write_text("{", encoding="utf-8")
        assert circle._text_reference().to_json() == first.to_json()
    finally:
        circle.close()


def test_nothing_to_learn_from_opens_no_round_and_says_so(walked: Walked) -> None:
    circle = make_circle(walked)
    try:
        with pytest.raises(UpdateError, match="0"):
            circle.turn(cause="hand")
    finally:
        circle.close()


def test_a_second_round_of_a_model_is_refused_while_one_is_under_way(walked: Walked) -> None:
    first, second = make_circle(walked), make_circle(walked)
    try:
        with first._alone(), pytest.raises(BusyError, match="update-of-tiny"):
            second.turn(cause="hand")
    finally:
        first.close()
        second.close()


def test_without_a_live_model_the_circle_says_what_to_do(walked: Walked, tmp_path: Path) -> None:
    circle = Circle(load_recipe(walked.recipe), home=tmp_path, progress=Silent())
    try:
        with pytest.raises(ArtifactError, match="no live model yet"):
            circle.turn(cause="hand")
    finally:
        circle.close()


@pytest.mark.slow
def test_a_round_killed_at_any_step_is_finished_by_the_next(home: Home) -> None:
    moments = ("round.started", "gate.passed", "rollout.step", "rollout.promoted")
    with served(home.recipe, home.folder) as client:
        before = client.weights()
        for number in range(100):
            question, wanted = correct(number)
            client.rate(client.ask(question, user=f"user-{number % 20}"), -1, wanted)
        command = [sys.executable, "-m", "lmloop", "loop", str(home.recipe), "--once"]
        command += ["--home", str(home.folder)]
        with traffic(client) as heard:
            for moment in moments:
                last = max((event.number for event in home.events()), default=0)
                killed = subprocess.Popen(command)
                wait_until(partial(home.events, moment, after=last), seconds=200)
                killed.kill()
                assert killed.wait(30) == -9, moment
                assert client.ask("hello there", user="somebody")["choices"]
            events = home.events("rollout.promoted")
            subprocess.run(command, check=True, timeout=400)
        candidate = events[0].data["candidate"]
        assert client.weights() == candidate != before
        # Nobody was answered by anything but one of the two, and what was made was made once.
        assert len(heard) > 20
    for stage in ("collect", "update", "gate"):
        assert len(list((home.folder / "artifacts").glob(f"{stage}-*"))) == 1, stage
