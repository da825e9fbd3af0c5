"""The server process: its port, its engine, its signals, and a whole life with real weights."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import openai
import pytest
from fastapi import APIRouter
from fastapi.responses import PlainTextResponse

from lmloop.errors import ArtifactError, ServingError
from lmloop.sections import ServeConfig
from lmloop.serving import server as server_module
from lmloop.serving.server import Signals, engine_spec, listen, serve, url_of
from lmloop.store.database import open_database

from .harness import Server, fake_spec, read_events, running_server, wait_until
from .home import Home

SCRIPT = """
import sys
from pathlib import Path
from lmloop.errors import LmloopError
from lmloop.sections import ServeConfig
from lmloop.serving.server import serve
from lmloop.store.database import open_database
try:
    serve(
        Path(sys.argv[1]),
        ServeConfig(port=int(sys.argv[3]), max_tokens=64),
        model_name="tiny/chat",
        database=open_database("sqlite:///" + sys.argv[2] + "/events.db"),
        on_ready=lambda url: print(url, flush=True),
    )
except LmloopError as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(error.exit_code)
"""


def test_a_port_that_is_taken_is_told_in_one_line_and_starts_no_engine(tmp_path: Path) -> None:
    with listen("127.0.0.1", 0) as taken, pytest.raises(ServingError) as caught:
        port = taken.getsockname()[1]
        # The folder does not even exist: nobody looked.
        serve(
            tmp_path / "nothing",
            ServeConfig(port=port),
            model_name="m",
            database=open_database(f"sqlite:///{tmp_path / 'a.db'}"),
            on_ready=lambda _url: None,
        )
    assert caught.value.exit_code == 2
    assert str(port) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_address_that_is_not_ours_is_told_too() -> None:
    for host in ("192.0.2.1", "no such host"):
        with pytest.raises(ServingError, match="cannot listen"):
            listen(host, 0)


@pytest.mark.parametrize(
    ("host", "start"),
    [
        ("127.0.0.1", "http://127.0.0.1:"),
        ("0.0.0.0", "http://127.0.0.1:"),
        ("::1", "http://[::1]:"),
    ],
)
def test_the_url_is_one_that_a_browser_on_this_machine_can_open(host: str, start: str) -> None:
    with listen(host, 0) as listener:
        assert url_of(listener).startswith(start)
        assert url_of(listener).endswith(str(listener.getsockname()[1]))


def test_the_worker_is_started_without_the_current_folder_on_its_path(tmp_path: Path) -> None:
    spec = engine_spec(tmp_path, ServeConfig(max_running=3, max_waiting=4))
    assert spec.command[:3] == (sys.executable, "-P", "-m")
    assert spec.command[-2:] == ("--max-running", "3")
    assert spec.capacity == 7


def test_an_engine_is_told_what_it_need_not_measure(tmp_path: Path) -> None:
    spec = engine_spec(tmp_path, ServeConfig(signals=False), fingerprint="f" * 64)
    assert spec.command[-1] == "--no-signals"
    assert spec.fingerprint == "f" * 64


def test_the_first_signal_says_leave_and_the_second_at_once() -> None:
    signals = Signals()
    assert not signals.leave.is_set()
    signals.receive()
    assert (signals.leave.is_set(), signals.leave_now.is_set()) == (True, False)
    signals.receive()
    assert signals.leave_now.is_set()


@contextmanager
def streaming(server: Server, content: str, **fields: Any) -> Iterator[list[str]]:
    """A stream that is being read in the background; its text is there at the end."""
    body = {"model": "tiny/chat", "messages": [{"role": "user", "content": content}]}
    data = json.dumps({**body, "stream": True, **fields})
    begun, text = threading.Event(), [""]

    def read() -> None:
        connection = server.connect()
        connection.request(
            "POST", "/v1/chat/completions", data, {"Content-Type": "application/json"}
        )
        response = connection.getresponse()
        while line := response.readline():
            text[0] += line.decode()
            begun.set()
        connection.close()

    thread = threading.Thread(target=read)
    thread.start()
    assert begun.wait(10)
    yield text
    thread.join(20)
    assert not thread.is_alive()


def test_a_leaving_server_stops_being_ready_first_and_lets_answers_finish(tmp_path: Path) -> None:
    with (
        running_server(tmp_path) as server,
        streaming(server, "slow endless", max_tokens=60) as text,
    ):
        server.leave()
        wait_until(lambda: server.get("/ready").json["status"] == "draining")
        refused = server.chat()
        assert (refused.status, refused.error["code"]) == (503, "draining")
        assert server.get("/health").status == 200
    assert server.ended.wait(10)
    assert not server.failure
    events = read_events(text[0])
    assert events[-1] == "[DONE]"
    assert events[-2]["choices"][0]["finish_reason"] == "length"
    assert [row["finish_reason"] for row in server.rows()] == ["length"]


@pytest.mark.parametrize("hurry", [False, True])
def test_an_answer_that_takes_too_long_ends_with_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hurry: bool
) -> None:
    monkeypatch.setattr(server_module, "DRAIN_SECONDS", 60.0 if hurry else 0.3)
    started = time.monotonic()
    with (
        running_server(tmp_path) as server,
        streaming(server, "slow endless", max_tokens=10**6) as text,
    ):
        server.leave()
        if hurry:
            wait_until(lambda: server.get("/ready").status == 503)
            server.leave()
        assert server.ended.wait(15)
    assert time.monotonic() - started < 20
    events = read_events(text[0])
    assert events[-1]["error"]["code"] == "draining"
    assert "[DONE]" not in events
    with pytest.raises(OSError, match="refused"):
        server.get("/health")


def test_an_engine_that_cannot_start_ends_the_server_with_its_reason(tmp_path: Path) -> None:
    spec = fake_spec(tmp_path, "--fail", "refuse")
    with running_server(tmp_path, spec, wait=False) as server:
        assert server.ended.wait(15)
    (failure,) = server.failure
    assert isinstance(failure, ServingError)
    assert "weights.bin changed on disk" in str(failure)


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    made = Home(tmp_path)
    yield made
    made.database.dispose()


@contextmanager
def following(home: Home, *, config: ServeConfig | None = None) -> Iterator[Server]:
    """A server that follows a home's registry."""
    with running_server(
        home.folder,
        config=config,
        database=open_database(str(home.database.url)),
        registry=home.registry,
        make_spec=home.make_spec,
    ) as server:
        yield server


def words(server: Server, session: str = "s") -> set[str]:
    reply = server.chat("endless", max_tokens=4, headers={"X-Lmloop-Session": session})
    assert reply.status == 200, reply.body
    return set(reply.json["choices"][0]["message"]["content"].split())


def test_a_server_of_a_registry_serves_what_its_rows_say(home: Home) -> None:
    a, b = home.make("A"), home.make("B")
    home.registry.set_live(a)
    home.registry.set_candidate(b, phase="canary", share=50)
    with following(home) as server:
        wait_until(lambda: home.servers() and home.server()["candidate_state"] == "ready")
        assert home.server()["address"] == server.url
        heard = {str(number): words(server, str(number)) for number in range(20)}
        assert set.union(*heard.values()) == {"A", "B"}
        assert {name: words(server, name) for name in heard} == heard
        home.registry.promote()
        wait_until(lambda: words(server) == {"B"})
        home.registry.roll_back()
        wait_until(lambda: words(server) == {"A"})
    assert home.servers() == []


def test_a_server_with_room_for_one_engine_lets_requests_wait_for_a_swap(home: Home) -> None:
    a, b = home.make("A"), home.make("B")
    home.registry.set_live(a)
    home.close_gate("B")
    config = ServeConfig(port=0, max_running=4, max_waiting=8, swap="pause")
    with following(home, config=config) as server:
        assert words(server) == {"A"}
        home.registry.set_live(b)
        wait_until(lambda: not server.is_ready())
        answers: list[set[str]] = []
        asking = threading.Thread(target=lambda: answers.append(words(server)))
        asking.start()
        wait_until(lambda: server.metric("llm_requests_waiting") == 1)
        home.open_gate("B")
        asking.join(10)
        assert answers == [{"B"}]


def test_a_server_does_not_start_with_weights_that_are_not_what_their_row_says(home: Home) -> None:
    a = home.make("A")
    home.registry.set_live(a)
    (a.path / "weights.bin").write_text("other")
    with running_server(
        home.folder, registry=home.registry, make_spec=home.make_spec, wait=False
    ) as server:
        assert server.ended.wait(15)
    (failure,) = server.failure
    assert isinstance(failure, ArtifactError)
    assert not (home.folder / "process-ids").exists()


def test_pages_of_other_stages_are_served(tmp_path: Path) -> None:
    page = APIRouter()

    @page.get("/monitor")
    async def monitor() -> PlainTextResponse:
        return PlainTextResponse("all is well")

    with running_server(tmp_path, pages=lambda: [page]) as server:
        reply = server.get("/monitor")
        assert (reply.status, reply.body) == (200, b"all is well")
        assert "content-security-policy" in reply.headers
        assert server.get("/").status == 200


@dataclass
class RealServer:
    """`serve` in a process of its own."""

    process: subprocess.Popen[str]
    url: str
    ready_seconds: float
    folder: Path

    def ask(self, path: str, body: Any = None) -> Any:
        return self.server.request("GET" if body is None else "POST", path, body)

    @property
    def server(self) -> Server:
        database = open_database(f"sqlite:///{self.folder / 'events.db'}")
        return Server(self.url, database, self.folder, lambda: None, threading.Event())

    @property
    def engine(self) -> int:
        """Process id of the engine."""
        name = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        children = [int(each) for each in name.read_text().split()]
        return children[-1]


def start(checkpoint: Path, folder: Path, *, port: int = 0) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", SCRIPT, str(checkpoint), str(folder), str(port)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=folder
    )


def first_line(stream: IO[str] | None, *, seconds: float = 60.0) -> str:
    lines: list[str] = []
    assert stream is not None
    reader = threading.Thread(target=lambda: lines.append(stream.readline()), daemon=True)
    reader.start()
    reader.join(seconds)
    assert lines
    assert lines[0]
    return lines[0].strip()


@contextmanager
def real_server(checkpoint: Path, folder: Path) -> Iterator[RealServer]:
    started = time.monotonic()
    with start(checkpoint, folder) as process:
        try:
            url = first_line(process.stdout)
            yield RealServer(process, url, time.monotonic() - started, folder)
        finally:
            process.kill()


@pytest.fixture(scope="module")
def real(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealServer]:
    with real_server(checkpoint, tmp_path_factory.mktemp("real")) as running:
        yield running


def real_parity(real: RealServer, body: dict[str, Any]) -> None:
    whole = real.ask("/v1/completions", body).json
    options = {"stream": True, "stream_options": {"include_usage": True}}
    events = read_events(real.ask("/v1/completions", {**body, **options}).body.decode())
    assert events.pop() == "[DONE]"
    assert events.pop()["usage"] == whole["usage"]
    for choice in whole["choices"]:
        mine = [e["choices"][0] for e in events if e["choices"][0]["index"] == choice["index"]]
        assert "".join(each["text"] for each in mine) == choice["text"]
        assert mine[-1]["finish_reason"] == choice["finish_reason"]


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [0, 1, 2])
@pytest.mark.parametrize("stop", [None, ["e", "he", "\ufffd", "好"]])
@pytest.mark.parametrize("max_tokens", [1, 40])
def test_real_weights_stream_what_they_say_whole(
    real: RealServer, temperature: float, stop: Any, max_tokens: int
) -> None:
    for seed in range(3):
        sampling = {"temperature": temperature, "seed": seed, "stop": stop, "n": 2}
        body = {"model": "tiny/chat", "prompt": ["the cat", "你"], "max_tokens": max_tokens}
        real_parity(real, {**body, **sampling})


@pytest.mark.slow
def test_openais_client_talks_to_real_weights(real: RealServer) -> None:
    with openai.OpenAI(base_url=f"{real.url}/v1", api_key="any", max_retries=0) as client:
        messages: Any = [{"role": "user", "content": "hello"}]
        ask = client.chat.completions.create
        whole = ask(model="tiny/chat", messages=messages, seed=1, max_tokens=30)
        stream = ask(model="tiny/chat", messages=messages, seed=1, max_tokens=30, stream=True)
        text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
        assert text == whole.choices[0].message.content
        with pytest.raises(openai.BadRequestError) as caught:
            ask(model="tiny/chat", messages=[{"role": "user", "content": "zq" * 100}])
        assert caught.value.code == "context_length_exceeded"


@pytest.mark.slow
def test_a_killed_engine_of_real_weights_is_replaced(real: RealServer) -> None:
    first = real.engine
    os.kill(first, signal.SIGKILL)
    killed = time.monotonic()
    wait_until(lambda: real.ask("/ready").status == 503, seconds=1)
    assert time.monotonic() - killed < 1
    wait_until(lambda: real.ask("/ready").status == 200, seconds=60)
    assert real.engine != first
    body = {"model": "tiny/chat", "prompt": "the", "temperature": 0}
    assert real.ask("/v1/completions", body).status == 200


@pytest.mark.slow
def test_a_terminated_server_leaves_cleanly_and_takes_its_engine_along(
    checkpoint: Path, tmp_path: Path
) -> None:
    with real_server(checkpoint, tmp_path) as real:
        engine = real.engine
        assert real.ask("/v1/completions", {"model": "tiny/chat", "prompt": "the"}).status == 200
        real.process.send_signal(signal.SIGTERM)
        assert real.process.wait(20) == 0
        assert real.process.stderr is not None
        assert real.process.stderr.read() == ""
        with pytest.raises(ProcessLookupError):
            os.kill(engine, 0)
        assert len(real.server.rows()) == 1


@pytest.mark.slow
def test_an_engine_does_not_outlive_a_killed_server(checkpoint: Path, tmp_path: Path) -> None:
    with real_server(checkpoint, tmp_path) as real:
        engine = Path(f"/proc/{real.engine}")
        real.process.kill()
        wait_until(lambda: not engine.exists() or "Z" in state_of(engine), seconds=20)


def state_of(process: Path) -> str:
    return (process / "stat").read_text().rpartition(")")[2].split()[0]


@pytest.mark.slow
def test_a_second_server_on_the_same_port_ends_with_code_2(
    real: RealServer, checkpoint: Path, tmp_path: Path
) -> None:
    with start(checkpoint, tmp_path, port=real.server.port) as process:
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 2
    assert errors.count("\n") == 1
    assert errors.startswith("error: cannot listen on 127.0.0.1")


@pytest.mark.slow
def test_a_folder_without_weights_ends_with_code_2(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with start(tmp_path / "empty", tmp_path) as process:
        out, errors = process.communicate(timeout=60)
    assert (process.returncode, out) == (2, "")
    assert errors.startswith("error: the engine cannot be started: ")
    assert errors.count("\n") == 1


def test_no_token_of_a_stream_is_held_back_by_the_network() -> None:
    """asyncio switches Nagle's algorithm off only where the listener names its protocol."""

    async def scenario() -> int:
        answered = asyncio.get_running_loop().create_future()

        def note(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            option = writer.get_extra_info("socket").getsockopt
            answered.set_result(option(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            writer.close()

        with listen("127.0.0.1", 0) as listener:
            async with await asyncio.start_server(note, sock=listener):
                _, writer = await asyncio.open_connection(*listener.getsockname())
                async with asyncio.timeout(10):
                    no_delay = await answered
                writer.close()
                await writer.wait_closed()
        return int(no_delay)

    assert asyncio.run(scenario()) != 0


def test_early_clients_wait_instead_of_being_refused() -> None:
    with listen("127.0.0.1", 0) as listener:
        address = listener.getsockname()
        with socket.create_connection(address, timeout=1) as connection:
            assert connection.getpeername() == address
