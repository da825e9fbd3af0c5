"""What Prometheus reads: counts and times of one server, in a registry of its own.

Takes: what happens, one call each. Gives: the text of `/metrics`. All labels come from closed
sets, so no client can make the page grow. `arm` says who answered: live weights, a candidate with
a share of the sessions (canary), or one whose answers nobody sees (shadow).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)

from lmloop.errors import RequestError
from lmloop.serving.process import Arm
from lmloop.serving.replies import Usage
from lmloop.serving.router import Router

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)
TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000)
ROLES = ("live", "candidate", "previous")
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})

_REASONS = {
    "context_length_exceeded": "too_long",
    "queue_full": "queue_full",
    "draining": "draining",
    "loading": "loading",
    "failed": "loading",
}


class ArmMetrics:
    """The counters of one arm, with their labels bound: some of them count every token."""

    def __init__(self, metrics: Metrics, arm: Arm) -> None:
        labels = (metrics.model, arm)
        self._metrics = metrics
        self._is_seen = arm != "shadow"
        self._finished = {
            reason: metrics.finished.labels(*labels, reason)
            for reason in ("stop", "length", "cancelled", "error")
        }
        self._first_token = metrics.first_token.labels(*labels)
        self._gap = metrics.gap.labels(*labels)
        self._latency = metrics.latency.labels(*labels)

    def count_first_token(self, seconds: float) -> None:
        """One request whose first token is there."""
        self._first_token.observe(seconds)

    def count_gap(self, seconds: float) -> None:
        """One token, so long after the one before it."""
        self._gap.observe(seconds)

    def count_finished(self, reason: str, *, usage: Usage, seconds: float) -> None:
        """One request that ended: stop, length, cancelled or error."""
        self._finished[reason].inc()
        self._latency.observe(seconds)
        if self._is_seen:
            self._metrics.count_usage(usage)


class Metrics:
    """The counters of one server."""

    def __init__(self, *, model: str) -> None:
        self.registry = CollectorRegistry()
        self.model = model
        ProcessCollector(registry=self.registry)
        self._running = self._gauge("requests_running", "Sequences being decoded")
        self._waiting = self._gauge("requests_waiting", "Sequences admitted and not yet decoded")
        self._engine_up = self._gauge("engine_up", "1 while an engine is ready")
        self._last_step = self._gauge(
            "engine_last_step_timestamp_seconds", "When the engine last gave a sign of life"
        )
        self._starts = self._gauge("engine_starts", "Engine processes started since the server")
        self._engines_up = self._gauge("engines_up", "1 while an engine of this role is up", "role")
        self._generation = self._gauge(
            "registry_generation", "Generation of the registry's rows that is served"
        )
        self._share = self._gauge(
            "candidate_share_ratio", "Share of the sessions that the candidate answers, 0 to 1"
        )
        self._info = self._gauge("model_info", "What is served", "weights_version", "tokenizer_sha")
        self._prompt_tokens = self._counter("prompt_tokens", "Tokens read")
        self._generation_tokens = self._counter("generation_tokens", "Tokens made")
        self.finished = self._counter(
            "requests_finished", "Requests by how they ended", "arm", "reason"
        )
        self._rejected = self._counter("requests_rejected", "Requests never begun", "reason")
        self._ratings = self._counter("ratings", "Ratings received", "rating")
        self._dropped = self._counter("events_dropped", "Events that could not be recorded")
        self.first_token = self._seconds(
            "time_to_first_token_seconds", "From a request's arrival to its first token", "arm"
        )
        self.gap = self._seconds(
            "inter_token_latency_seconds", "From one token of an answer to the next", "arm"
        )
        self.latency = self._seconds(
            "e2e_request_latency_seconds", "From a request's arrival to its last token", "arm"
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

        self._arms: dict[Arm, ArmMetrics] = {arm: ArmMetrics(self, arm) for arm in get_args(Arm)}

    def of_arm(self, arm: Arm) -> ArmMetrics:
        """The counters of the requests that went one way."""
        return self._arms[arm]

    def count_http(self, handler: str, *, method: str, status: int, seconds: float) -> None:
        """One HTTP request; `handler` is a route's template, never a path."""
        method = method if method in METHODS else "other"
        self._http.labels(handler, method, str(status)).inc()
        self._http_seconds.labels(handler, method).observe(seconds)

    def count_rejected(self, error: RequestError) -> None:
        """One request that was refused before the engine began."""
        reason = _REASONS.get(error.code or "", "invalid")
        self._rejected.labels(self.model, reason).inc()

    def count_usage(self, usage: Usage) -> None:
        """The tokens of one answer that somebody gets."""
        self._prompt_tokens.labels(self.model).inc(usage.prompt_tokens)
        self._generation_tokens.labels(self.model).inc(usage.completion_tokens)
        self._prompt_sizes.labels(self.model).observe(usage.prompt_tokens)
        self._answer_sizes.labels(self.model).observe(usage.completion_tokens)

    def count_rating(self, rating: int | None) -> None:
        """One rating."""
        label = {1: "up", -1: "down"}.get(rating or 0, "none")
        self._ratings.labels(self.model, label).inc()

    def count_dropped(self, events: int) -> None:
        """Events that were lost (called from the writer's thread)."""
        self._dropped.labels(self.model).inc(events)

    def expose(self, router: Router) -> bytes:
        """The page, with the engine's state of this moment."""
        engine = router.live
        ready = engine.state == "ready"
        self._running.labels(self.model).set(router.running)
        self._waiting.labels(self.model).set(router.waiting)
        self._engine_up.labels(self.model).set(ready)
        self._last_step.labels(self.model).set(engine.last_heard)
        self._starts.labels(self.model).set(router.starts)
        self._expose_rollout(router)
        if ready:
            self._info.clear()
            self._info.labels(self.model, engine.weights, engine.texts.fingerprint[:12]).set(1)
        return generate_latest(self.registry)

    def _expose_rollout(self, router: Router) -> None:
        engines, rollout = router.engines(), router.describe()
        for role in ROLES:
            up = role in engines and engines[role].state == "ready"
            self._engines_up.labels(self.model, role).set(up)
        self._generation.labels(self.model).set(rollout["generation"])
        share = rollout["share"] if rollout["phase"] == "canary" else 0
        self._share.labels(self.model).set((share or 0) / 100)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"llm_{name}", text, ("model", *labels), registry=self.registry)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        counter = Counter(f"llm_{name}", text, ("model", *labels), registry=self.registry)
        if not labels:
            counter.labels(self.model)
        return counter

    def _seconds(self, name: str, text: str, *labels: str) -> Histogram:
        return self._histogram(name, text, *labels, buckets=SECONDS)

    def _tokens(self, name: str, text: str) -> Histogram:
        return self._histogram(name, text, buckets=TOKENS)

    def _histogram(self, name: str, text: str, *labels: str, buckets: Sequence[float]) -> Histogram:
        names = ("model", *labels)
        return Histogram(f"llm_{name}", text, names, buckets=tuple(buckets), registry=self.registry)
