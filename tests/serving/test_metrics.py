"""The numbers that Prometheus reads."""

from __future__ import annotations

import asyncio
import contextlib
import json
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from lmloop.errors import ContextLengthError, RequestError
from lmloop.serving.metrics import Metrics
from lmloop.serving.replies import Usage
from lmloop.serving.router import Router

from .harness import (
    MODEL,
    Server,
    chat_body,
    fake_spec,
    running_server,
    version_spec,
    wait_until,
)
from .inside import inside


def sample(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


def test_the_names_are_those_that_dashboards_know(server: Server) -> None:
    server.chat()
    text = server.get("/metrics").body.decode()
    found = {family.name for family in text_string_to_metric_families(text)}
    assert found >= {
        "llm_requests_running",
        "llm_requests_waiting",
        "llm_prompt_tokens",
        "llm_generation_tokens",
        "llm_requests_finished",
        "llm_requests_rejected",
        "llm_time_to_first_token_seconds",
        "llm_inter_token_latency_seconds",
        "llm_e2e_request_latency_seconds",
        "llm_model_info",
        "llm_engine_up",
        "llm_engines_up",
        "llm_registry_generation",
        "llm_candidate_share_ratio",
        "llm_events_dropped",
        "http_requests",
        "http_request_duration_seconds",
        "process_cpu_seconds",
    }


def test_tokens_times_and_ends_are_counted(tmp_path: Path) -> None:
    with running_server(tmp_path) as server:
        usage = [server.chat(seed=seed).json["usage"] for seed in range(3)]
        assert server.metric("llm_prompt_tokens_total") == sum(u["prompt_tokens"] for u in usage)
        made = sum(u["completion_tokens"] for u in usage)
        assert server.metric("llm_generation_tokens_total") == made
        assert server.metric("llm_time_to_first_token_seconds_count", model=MODEL) == 3
        assert server.metric("llm_e2e_request_latency_seconds_count") == 3
        assert server.metric("llm_requests_finished_total", reason="stop") == 3
        server.chat("endless", max_tokens=2)
        assert server.metric("llm_requests_finished_total", reason="length") == 1
        labels = {"weights_version": "0123456789ab", "tokenizer_sha": "f" * 12}
        assert server.metric("llm_model_info", **labels) == 1


def test_gaps_between_the_tokens_of_one_choice_are_timed(tmp_path: Path) -> None:
    with running_server(tmp_path) as server:
        tokens = server.chat("slow", seed=3, n=2, max_tokens=4).json["usage"]["completion_tokens"]
        assert tokens == 8
        name = "llm_inter_token_latency_seconds"
        assert server.metric(f"{name}_count", arm="live") == 8 - 2
        # A slow step takes 20 ms.
        assert 6 * 0.02 <= server.metric(f"{name}_sum", arm="live") < 6 * 2


def test_the_arms_are_counted_apart_and_nobody_gets_a_shadows_tokens() -> None:
    metrics = Metrics(model="m")
    usage = Usage(prompt_tokens=3, completion_tokens=5)
    for number, arm in enumerate(("live", "canary", "shadow"), start=1):
        meter = metrics.of_arm(arm)  # type: ignore[arg-type]
        meter.count_first_token(0.1)
        meter.count_gap(0.01)
        for _ in range(number):
            meter.count_finished("stop", usage=usage, seconds=1.0)
        found = [
            sample(metrics, "llm_requests_finished_total", model="m", arm=arm, reason="stop"),
            sample(metrics, "llm_time_to_first_token_seconds_count", model="m", arm=arm),
            sample(metrics, "llm_inter_token_latency_seconds_count", model="m", arm=arm),
            sample(metrics, "llm_e2e_request_latency_seconds_count", model="m", arm=arm),
        ]
        assert found == [number, 1, 1, number]
    assert sample(metrics, "llm_prompt_tokens_total", model="m") == 3 * 3
    assert sample(metrics, "llm_generation_tokens_total", model="m") == 3 * 5
    assert sample(metrics, "llm_request_generation_tokens_count", model="m") == 3


def test_the_state_of_a_rollout_is_shown(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with inside(tmp_path) as running:
            router, metrics = running.service.router, running.service.metrics

            def shown() -> list[float | None]:
                metrics.expose(router)
                ups = [
                    sample(metrics, "llm_engines_up", model=MODEL, role=role)
                    for role in ("live", "candidate", "previous")
                ]
                names = ("llm_registry_generation", "llm_candidate_share_ratio", "llm_engine_up")
                return ups + [sample(metrics, name, model=MODEL) for name in names]

            assert shown() == [1, 0, 0, 0, 0, 1]
            await running.aim(version_spec(tmp_path, "B"), phase="shadow", share=20)
            assert shown() == [1, 1, 0, 7, 0, 1]
            await running.aim(version_spec(tmp_path, "B"), phase="canary", share=20)
            assert shown() == [1, 1, 0, 7, 0.2, 1]

    asyncio.run(scenario())


def test_refusals_are_counted_by_reason(tmp_path: Path) -> None:
    with running_server(tmp_path) as server:
        server.chat("a" * 1000)
        server.chat(model="other")
        server.chat(temperature=9)
        assert server.metric("llm_requests_rejected_total", reason="too_long") == 1
        assert server.metric("llm_requests_rejected_total", reason="invalid") == 2
        assert server.metric("llm_requests_finished_total", reason="error") == 0


def test_running_and_waiting_are_what_they_are_now(tmp_path: Path) -> None:
    spec = fake_spec(tmp_path, "--max-running", "1", capacity=3)
    with running_server(tmp_path, spec) as server, contextlib.ExitStack() as stack:
        for _ in range(3):
            connection = stack.enter_context(contextlib.closing(server.connect()))
            body = json.dumps(chat_body("endless slow", stream=True))
            connection.request(
                "POST", "/v1/chat/completions", body, {"Content-Type": "application/json"}
            )
        wait_until(lambda: server.metric("llm_requests_waiting") == 2)
        assert server.metric("llm_requests_running") == 1
        assert server.chat().error["code"] == "queue_full"
        assert server.metric("llm_requests_rejected_total", reason="queue_full") == 1
        stack.close()
        wait_until(lambda: server.metric("llm_requests_running") == 0)
        wait_until(lambda: server.metric("llm_requests_waiting") == 0)


def test_no_client_can_make_the_page_grow(server: Server) -> None:
    server.get("/first")
    server.request("SPAM", "/")
    before = {line.rpartition(" ")[0] for line in metric_lines(server)}
    for number in range(30):
        server.get(f"/junk/{number}")
        server.get(f"/v1/models/junk-{number}")
        server.chat(model=f"junk-{number}")
        server.request(f"SPAM{number}", "/")
    after = {line.rpartition(" ")[0] for line in metric_lines(server)}
    assert "junk" not in str(after)
    assert "SPAM" not in str(after)
    assert len(after - before) < 60
    name = "http_requests_total"
    assert server.metric(name, handler="unmatched", method="GET", status="404") >= 30
    assert server.metric(name, handler="/v1/models/{name:path}", status="404") == 30
    assert server.metric(name, handler="/", method="other", status="405") >= 30


def metric_lines(server: Server) -> list[str]:
    return server.get("/metrics").body.decode().splitlines()


def test_a_reason_that_nobody_foresaw_counts_as_invalid() -> None:
    metrics = Metrics(model="m")
    metrics.count_rejected(RequestError("no", code="news"))
    metrics.count_rejected(ContextLengthError(prompt_tokens=1, context_length=1))
    name = "llm_requests_rejected_total"
    assert sample(metrics, name, model="m", reason="invalid") == 1
    assert sample(metrics, name, model="m", reason="too_long") == 1


def test_ratings_and_losses_are_counted() -> None:
    metrics = Metrics(model="m")
    for rating in (1, 1, -1, None):
        metrics.count_rating(rating)
    metrics.count_dropped(7)
    name = "llm_ratings_total"
    found = [sample(metrics, name, model="m", rating=each) for each in ("up", "down", "none")]
    assert found == [2, 1, 1]
    assert sample(metrics, "llm_events_dropped_total", model="m") == 7


def test_an_engine_that_is_not_there_yet_counts_as_down(tmp_path: Path) -> None:
    metrics = Metrics(model="m")
    text = metrics.expose(Router(fake_spec(tmp_path))).decode()
    assert 'llm_engine_up{model="m"} 0.0' in text
    assert "llm_model_info{" not in text


def test_two_servers_in_one_process_count_apart() -> None:
    first, second = Metrics(model="m"), Metrics(model="m")
    first.count_dropped(1)
    assert sample(second, "llm_events_dropped_total", model="m") == 0
