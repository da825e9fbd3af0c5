"""What Prometheus reads: counts and times of one server, in a registry of its own.

Takes: what happens, one call each. Gives: the text of `/metrics`. All labels come from closed
sets, so no client can make the page grow.
"""

from __future__ import annotations

from collections.abc import Sequence

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)

from lmloop.errors import RequestError
from lmloop.serving.router import Router

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)
TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000)
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})

_REASONS = {
    "context_length_exceeded": "too_long",
    "queue_full": "queue_full",
    "draining": "draining",
    "loading": "loading",
    "failed": "loading",
}


class Metrics:
    """The counters of one server."""

    def __init__(self, *, model: str) -> None:
        self.registry = CollectorRegistry()
        self._model = model
        ProcessCollector(registry=self.registry)
        self._running = self._gauge("requests_running", "Sequences being decoded")
        self._waiting = self._gauge("requests_waiting", "Sequences admitted and not yet decoded")
        self._engine_up = self._gauge("engine_up", "1 while an engine is ready")
        self._last_step = self._gauge(
            "engine_last_step_timestamp_seconds", "When the engine last gave a sign of life"
        )
        self._starts = self._gauge("engine_starts", "Engine processes started since the server")
        self._info = self._gauge("model_info", "What is served", "weights_version", "tokenizer_sha")
        self._prompt_tokens = self._counter("prompt_tokens", "Tokens read")
        self._generation_tokens = self._counter("generation_tokens", "Tokens made")
        self._finished = self._counter("requests_finished", "Requests by how they ended", "reason")
        self._rejected = self._counter("requests_rejected", "Requests never begun", "reason")
        self._ratings = self._counter("ratings", "Ratings received", "rating")
        self._dropped = self._counter("events_dropped", "Events that could not be recorded")
        self._first_token = self._seconds(
            "time_to_first_token_seconds", "From a request's arrival to its first token"
        )
        self._latency = self._seconds(
            "e2e_request_latency_seconds", "From a request's arrival to its last token"
        )
        self._prompt_sizes = self._tokens("request_prompt_tokens", "Tokens of a request's prompts")
        self._answer_sizes = self._tokens("request_generation_tokens", "Tokens of its answers")
        self._http = Counter(
            "http_requests",
            "HTTP requests by route",
            ("handler", "method", "status"),
            registry=self.registry,
        )
        self._http_seconds = Histogram(
            "http_request_duration_seconds",
            "Time from an HTTP request to the end of its answer",
            ("handler", "method"),
            buckets=SECONDS,
            registry=self.registry,
        )

    def count_http(self, handler: str, *, method: str, status: int, seconds: float) -> None:
        """One HTTP request; `handler` is a route's template, never a path."""
        method = method if method in METHODS else "other"
        self._http.labels(handler, method, str(status)).inc()
        self._http_seconds.labels(handler, method).observe(seconds)

    def count_rejected(self, error: RequestError) -> None:
        """One request that was refused before the engine began."""
        reason = _REASONS.get(error.code or "", "invalid")
        self._rejected.labels(self._model, reason).inc()

    def count_first_token(self, seconds: float) -> None:
        """One request whose first token is there."""
        self._first_token.labels(self._model).observe(seconds)

    def count_finished(
        self, reason: str, *, prompt_tokens: int, completion_tokens: int, seconds: float
    ) -> None:
        """One request that ended: stop, length, cancelled or error."""
        self._finished.labels(self._model, reason).inc()
        self._prompt_tokens.labels(self._model).inc(prompt_tokens)
        self._generation_tokens.labels(self._model).inc(completion_tokens)
        self._latency.labels(self._model).observe(seconds)
        self._prompt_sizes.labels(self._model).observe(prompt_tokens)
        self._answer_sizes.labels(self._model).observe(completion_tokens)

    def count_rating(self, rating: int | None) -> None:
        """One rating."""
        label = {1: "up", -1: "down"}.get(rating or 0, "none")
        self._ratings.labels(self._model, label).inc()

    def count_dropped(self, events: int) -> None:
        """Events that were lost (called from the writer's thread)."""
        self._dropped.labels(self._model).inc(events)

    def expose(self, router: Router) -> bytes:
        """The page, with the engine's state of this moment."""
        engine = router.live
        ready = engine.state == "ready"
        self._running.labels(self._model).set(router.running)
        self._waiting.labels(self._model).set(router.waiting)
        self._engine_up.labels(self._model).set(ready)
        self._last_step.labels(self._model).set(engine.last_heard)
        self._starts.labels(self._model).set(router.starts)
        if ready:
            self._info.clear()
            self._info.labels(self._model, engine.weights, engine.texts.fingerprint[:12]).set(1)
        return generate_latest(self.registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"llm_{name}", text, ("model", *labels), registry=self.registry)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        counter = Counter(f"llm_{name}", text, ("model", *labels), registry=self.registry)
        if not labels:
            counter.labels(self._model)
        return counter

    def _seconds(self, name: str, text: str) -> Histogram:
        return self._histogram(name, text, buckets=SECONDS)

    def _tokens(self, name: str, text: str) -> Histogram:
        return self._histogram(name, text, buckets=TOKENS)

    def _histogram(self, name: str, text: str, *, buckets: Sequence[float]) -> Histogram:
        return Histogram(
            f"llm_{name}", text, ("model",), buckets=tuple(buckets), registry=self.registry
        )
