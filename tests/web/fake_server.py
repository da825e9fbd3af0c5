"""A server that speaks lmloop's chat API from a script, so that faults can be injected at will.

Takes: the folder of the page and, per test, a script of answers. Gives: a URL, and what was asked.
Run it by hand to work on the page: `python tests/web/fake_server.py [port]`.
"""

from __future__ import annotations

import json
import select
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal

PAGE = Path(__file__).parents[2] / "src" / "lmloop" / "serving" / "web"
MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
POLICY = "default-src 'self'; base-uri 'none'; frame-ancestors 'none'; form-action 'none'"
LONGEST_WAIT_S = 20.0


@dataclass(frozen=True)
class Answer:
    """One scripted answer: pieces of text, and events to wait for between them."""

    pieces: Sequence[str | threading.Event]
    end: Literal["done", "length", "drop", "error"] = "done"
    message: str = "The engine stopped."
    pause_s: float = 0.0


@dataclass(frozen=True)
class Refusal:
    """One scripted refusal: an HTTP status with OpenAI's error object."""

    status: int
    message: str
    code: str | None = None


@dataclass(frozen=True)
class Asked:
    """One request as the server saw it."""

    path: str
    headers: Mapping[str, str]
    body: dict[str, Any]


@dataclass
class FakeServer:
    """Serves the page's files and a scripted chat API on 127.0.0.1."""

    context_length: int = 512
    characters_per_token: int = 4
    weights: str = "3f9c1a7e52d04b8896ab"
    port: int = 0
    ready: bool = True
    asked: list[Asked] = field(default_factory=list)
    script: deque[Answer | Refusal] = field(default_factory=deque)
    feedback_script: deque[Refusal] = field(default_factory=deque)
    client_left: threading.Event = field(default_factory=threading.Event)
    default: Answer = Answer(("A fine ", "day ", "to you."))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    def start(self) -> FakeServer:
        """Listens on `port` (0 takes a free one, kept for the next start)."""
        handler = type("Handler", (_Handler,), {"fake": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        )
        self._thread.start()
        return self

    def stop(self) -> None:
        """Stops listening: the next request finds nobody at the port."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(timeout=5)

    def chats(self) -> list[dict[str, Any]]:
        """The bodies of all chat requests, in order."""
        return [asked.body for asked in self.asked if asked.path.endswith("/completions")]

    def feedback(self) -> list[dict[str, Any]]:
        """The bodies of all feedback requests, in order."""
        return [asked.body for asked in self.asked if asked.path.endswith("/feedback")]

    def count_tokens(self, messages: Sequence[Mapping[str, str]]) -> int:
        """Tokens of a prompt as this server counts them."""
        return sum(4 + len(item["content"]) // self.characters_per_token for item in messages)


class _Handler(BaseHTTPRequestHandler):
    fake: FakeServer

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Says nothing: a test's output is the test's."""

    def do_GET(self) -> None:
        if self.path == "/info":
            self._send_json(200, self._info())
        elif self.path == "/ready":
            status = 200 if self.fake.ready else 503
            self._send_json(status, {"status": "ready" if self.fake.ready else "starting"})
        else:
            self._send_file(self.path.split("?")[0].lstrip("/") or "index.html")

    def do_POST(self) -> None:
        length = int(self.headers["Content-Length"])
        body = json.loads(self.rfile.read(length))
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.fake.asked.append(Asked(path=self.path, headers=headers, body=body))
        if self.path == "/v1/chat/completions":
            self._answer_chat(body)
        elif self.path == "/v1/feedback":
            if self.fake.feedback_script:
                self._refuse(self.fake.feedback_script.popleft())
            else:
                self._send_json(200, {"response_id": body["response_id"]})
        else:
            self._refuse(Refusal(404, f"There is no {self.path}."))

    def _info(self) -> dict[str, Any]:
        return {
            "model": "chat",
            "weights": self.fake.weights,
            "context_length": self.fake.context_length if self.fake.ready else None,
            "max_tokens": 256,
            "defaults": {"temperature": 0.7, "top_p": 0.9, "max_tokens": 128},
        }

    def _answer_chat(self, body: dict[str, Any]) -> None:
        prompt_tokens = self.fake.count_tokens(body["messages"])
        if prompt_tokens >= self.fake.context_length:
            words = f"The prompt has {prompt_tokens} tokens."
            self._refuse(Refusal(400, words, "context_length_exceeded"))
            return
        answer = self.fake.script.popleft() if self.fake.script else self.fake.default
        if isinstance(answer, Refusal):
            self._refuse(answer)
            return
        try:
            self._stream(answer, prompt_tokens)
        except (BrokenPipeError, ConnectionResetError):
            self.fake.client_left.set()

    def _stream(self, answer: Answer, prompt_tokens: int) -> None:
        self._send_head(200, "text/event-stream")
        name = f"chatcmpl-{len(self.fake.asked)}"
        self._send_chunk(name, {"role": "assistant", "content": ""})
        tokens = 0
        for piece in answer.pieces:
            if isinstance(piece, threading.Event):
                self._wait(piece)
                continue
            tokens += 1
            self._send_chunk(name, {"content": piece})
            if answer.pause_s:
                time.sleep(answer.pause_s)
        if answer.end == "drop":
            return
        if answer.end == "error":
            error = {"message": answer.message, "type": "server_error", "code": None}
            self._send_event({"error": {**error, "param": None}})
            return
        self._send_chunk(name, {}, finish="length" if answer.end == "length" else "stop")
        usage = {"prompt_tokens": prompt_tokens, "completion_tokens": tokens}
        self._send_event({"id": name, "choices": [], "usage": usage})
        self.wfile.write(b"data: [DONE]\n\n")

    def _wait(self, event: threading.Event) -> None:
        """Waits for the test's sign, or until the client closes the connection."""
        deadline = time.monotonic() + LONGEST_WAIT_S
        while not event.wait(0.02) and time.monotonic() < deadline:
            readable, _, _ = select.select([self.connection], [], [], 0)
            if readable and not self.connection.recv(1):
                raise ConnectionResetError

    def _send_chunk(self, name: str, delta: dict[str, str], finish: str | None = None) -> None:
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        head = {"id": name, "model": "chat", "system_fingerprint": self.fake.weights}
        self._send_event({**head, "choices": [choice], "usage": None})

    def _send_event(self, event: dict[str, Any]) -> None:
        self.wfile.write(f"data: {json.dumps(event)}\n\n".encode())
        self.wfile.flush()

    def _send_file(self, name: str) -> None:
        path = PAGE / name
        if path.suffix not in MEDIA_TYPES or "/" in name or not path.is_file():
            self._refuse(Refusal(404, f"There is no /{name}."))
            return
        self._send_head(200, MEDIA_TYPES[path.suffix])
        self.wfile.write(path.read_bytes())

    def _refuse(self, refusal: Refusal) -> None:
        error = {"message": refusal.message, "type": "error", "param": None, "code": refusal.code}
        self._send_json(refusal.status, {"error": error})

    def _send_json(self, status: int, body: dict[str, Any]) -> None:
        self._send_head(status, "application/json")
        self.wfile.write(json.dumps(body).encode())

    def _send_head(self, status: int, media_type: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", media_type)
        self.send_header("Cache-Control", "no-store")
        self.send_header("Content-Security-Policy", POLICY)
        self.end_headers()


if __name__ == "__main__":
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 8123
    server = FakeServer(port=port)
    words = [
        "I",
        "like",
        "to",
        "read,",
        "and",
        "on",
        "a",
        "good",
        "day",
        "I",
        "go",
        "for",
        "a",
        "long",
        "walk",
        "by",
        "the",
        "river.",
        "And",
        "you?",
    ]
    server.default = Answer([word + " " for word in words], pause_s=0.06)
    server.start()
    sys.stdout.write(f"The chat page, on a scripted server: {server.url}\n")
    threading.Event().wait()
