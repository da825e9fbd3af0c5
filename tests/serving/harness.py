"""A whole server on a free port, in a thread of the test process, with a fake engine process."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hashlib
import http.client
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import sqlalchemy as sa
from fastapi import APIRouter

from lmloop.records import Turn
from lmloop.sections import ServeConfig
from lmloop.serving.process import EngineSpec
from lmloop.serving.prompts import Texts
from lmloop.serving.server import Signals, listen, run_server
from lmloop.serving.watcher import MakeSpec
from lmloop.store.database import open_database, ratings_table, requests_table
from lmloop.store.registry import Registry

FAKE_ENGINE = Path(__file__).with_name("fake_engine.py")
MODEL = "tiny/chat"


class ByteTokenizer:
    """Ids are the UTF-8 bytes."""

    def encode_document(self, text: str) -> list[int]:
        return list(text.encode())


class PlainTemplate:
    """`role: content`, a line each."""

    def encode(self, turns: Sequence[Turn], *, add_generation_prompt: bool = True) -> list[int]:
        lines = [f"{turn.role}: {turn.content}\n" for turn in turns]
        return list("".join(lines).encode())


def open_fake_texts() -> Texts:
    return Texts(ByteTokenizer(), PlainTemplate(), fingerprint="f" * 64)


def fake_spec(folder: Path, *arguments: str, capacity: int = 12, **limits: float) -> EngineSpec:
    ids = ("--process-ids", str(folder / "process-ids"))
    return EngineSpec(
        command=(sys.executable, str(FAKE_ENGINE), *ids, *arguments),
        open_texts=open_fake_texts,
        capacity=capacity,
        **limits,
    )


def fingerprint_of(version: str) -> str:
    """What stands for the fingerprint of the weights called so."""
    return hashlib.sha256(version.encode()).hexdigest()


def version_spec(
    folder: Path, version: str, *arguments: str, capacity: int = 12, **limits: float
) -> EngineSpec:
    """A fake engine that says nothing but its version."""
    fingerprint = fingerprint_of(version)
    said = ("--fingerprint", fingerprint, "--word", f"{version} ")
    spec = fake_spec(folder, *said, *arguments, capacity=capacity, **limits)
    return dataclasses.replace(spec, fingerprint=fingerprint)


def wait_until(condition: Callable[[], Any], *, seconds: float = 10.0) -> Any:
    """Poll until the condition gives something true; fail after so long."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if result := condition():
            return result
        time.sleep(0.01)
    raise AssertionError(f"nothing came of {condition} within {seconds} s")


@dataclass
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """The error object, after a check that it is whole."""
        assert self.headers["content-type"] == "application/json", self.body
        error = self.json["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert isinstance(error["message"], str)
        assert error["message"]
        assert isinstance(error["type"], str)
        assert error["code"] is None or isinstance(error["code"], str)
        assert error["param"] is None or isinstance(error["param"], str)
        return error


@dataclass
class Server:
    """A running server and how to talk to it over a real socket."""

    url: str
    database: sa.Engine
    folder: Path
    leave: Callable[[], None]
    ended: threading.Event
    failure: list[BaseException] = field(default_factory=list)

    @property
    def port(self) -> int:
        return int(urlsplit(self.url).port or 0)

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)

    def request(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        headers: dict[str, str] | None = None,
        raw: bytes | None = None,
    ) -> Reply:
        """One request on a connection of its own."""
        data = raw if raw is not None or body is None else json.dumps(body).encode()
        sent = {"Content-Type": "application/json"} if data is not None else {}
        with contextlib.closing(self.connect()) as connection:
            connection.request(method, path, data, {**sent, **(headers or {})})
            response = connection.getresponse()
            found = {name.lower(): value for name, value in response.getheaders()}
            return Reply(response.status, found, response.read())

    def get(self, path: str, **options: Any) -> Reply:
        return self.request("GET", path, **options)

    def post(self, path: str, body: Any = None, **options: Any) -> Reply:
        return self.request("POST", path, body, **options)

    def chat(self, content: str = "hi", **fields: Any) -> Reply:
        headers = fields.pop("headers", None)
        return self.post("/v1/chat/completions", chat_body(content, **fields), headers=headers)

    @property
    def process_ids(self) -> list[int]:
        """Of all engine processes that were started, oldest first."""
        return [int(line) for line in (self.folder / "process-ids").read_text().split()]

    def kill_engine(self) -> None:
        os.kill(self.process_ids[-1], signal.SIGKILL)

    def is_ready(self) -> bool:
        return self.get("/ready").status == 200

    def metric(self, name: str, **labels: str) -> float:
        """A sample's value; 0 where there is none."""
        wanted = {f'{key}="{value}"' for key, value in labels.items()}
        for line in self.get("/metrics").body.decode().splitlines():
            head, _, value = line.rpartition(" ")
            found, _, rest = head.partition("{")
            if found == name and wanted <= set(rest.rstrip("}").split(",")):
                return float(value)
        return 0.0

    def rows(self, table: sa.Table = requests_table) -> list[dict[str, Any]]:
        with self.database.connect() as connection:
            return [dict(row) for row in connection.execute(sa.select(table)).mappings()]

    def ratings(self) -> list[dict[str, Any]]:
        return self.rows(ratings_table)


def chat_body(content: str = "hi", **fields: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": [{"role": "user", "content": content}], **fields}


def read_events(text: str) -> list[Any]:
    """Data of a stream's events; `[DONE]` as it stands."""
    blocks = text.split("\n\n")
    assert blocks.pop() == "", "the last event ends with a blank line as well"
    data = [block.removeprefix("data: ") for block in blocks if not block.startswith(":")]
    return [each if each == "[DONE]" else json.loads(each) for each in data]


@contextlib.contextmanager
def running_server(
    folder: Path,
    spec: EngineSpec | None = None,
    *,
    config: ServeConfig | None = None,
    database: sa.Engine | None = None,
    registry: Registry | None = None,
    make_spec: MakeSpec | None = None,
    pages: Callable[[], Sequence[APIRouter]] = tuple,
    wait: bool = True,
) -> Iterator[Server]:
    """Run a server in a thread until the block ends; with `wait`, from when it is ready."""
    config = config or ServeConfig(port=0, max_running=4, max_waiting=8)
    database = database or open_database(f"sqlite:///{folder / 'events.db'}")
    signals = Signals()
    loop = asyncio.new_event_loop()
    listener = listen(config.host, 0)
    ready = threading.Event()
    server = Server(
        url=f"http://127.0.0.1:{listener.getsockname()[1]}",
        database=database,
        folder=folder,
        leave=lambda: loop.call_soon_threadsafe(signals.receive),
        ended=threading.Event(),
    )

    def run() -> None:
        try:
            with asyncio.Runner(loop_factory=lambda: loop) as runner:
                runner.run(
                    run_server(
                        listener,
                        spec=spec or fake_spec(folder),
                        config=config,
                        model_name=MODEL,
                        model_created=1_700_000_000,
                        database=database,
                        on_ready=lambda _url: ready.set(),
                        registry=registry,
                        make_spec=make_spec,
                        pages=pages,
                        signals=signals,
                    )
                )
        except BaseException as error:
            server.failure.append(error)
        finally:
            listener.close()
            server.ended.set()
            ready.set()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        if wait:
            assert ready.wait(20)
            assert not server.failure, server.failure
        yield server
    finally:
        for _ in range(2):
            if not server.ended.is_set():
                server.leave()
        thread.join(20)
        database.dispose()
    assert not thread.is_alive()
