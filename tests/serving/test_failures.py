"""One shape for every error."""

from __future__ import annotations

import json
from typing import Any

import pytest

from lmloop.errors import ContextLengthError, RequestError
from lmloop.serving.failures import error_object, error_response, internal_error

from .harness import Server


def test_an_error_has_all_four_keys() -> None:
    error = ContextLengthError(prompt_tokens=9, context_length=8)
    assert error_object(error) == {
        "error": {
            "message": str(error),
            "type": "invalid_request_error",
            "param": "messages",
            "code": "context_length_exceeded",
        }
    }


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"),
        (401, "authentication_error"),
        (403, "permission_error"),
        (404, "invalid_request_error"),
        (500, "server_error"),
        (503, "server_error"),
    ],
)
def test_the_type_follows_from_the_status(status: int, kind: str) -> None:
    assert error_object(RequestError("no", status=status))["error"]["type"] == kind


def test_a_client_is_told_when_to_try_again_and_when_not() -> None:
    unavailable = error_response(RequestError("later", status=503))
    assert int(unavailable.headers["retry-after"]) > 0
    fault = error_response(internal_error())
    assert fault.headers["x-should-retry"] == "false"
    assert "retry-after" not in fault.headers
    assert "retry-after" not in error_response(RequestError("no")).headers


def test_a_fault_of_ours_says_nothing_about_itself() -> None:
    body: Any = json.loads(bytes(error_response(internal_error()).body))
    assert "x-request-id" in body["error"]["message"]


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nothing", 404, "not_found"),
        ("GET", "/docs", 404, "not_found"),
        ("GET", "/openapi.json", 404, "not_found"),
        ("GET", "/v1/", 404, "not_found"),
        ("GET", "/v1/models/", 404, "model_not_found"),
        ("GET", "/../../etc/passwd", 404, "not_found"),
        ("GET", "/%2e%2e/pyproject.toml", 404, "not_found"),
        ("GET", "/index.html", 404, "not_found"),
        ("POST", "/v1/embeddings", 404, "not_found"),
        ("POST", "/v1/responses", 404, "not_found"),
        ("POST", "/admin/swap", 404, "not_found"),
        ("GET", "/v1/chat/completions", 405, "method_not_allowed"),
        ("DELETE", "/v1/models", 405, "method_not_allowed"),
        ("POST", "/", 405, "method_not_allowed"),
        ("PUT", "/v1/feedback", 405, "method_not_allowed"),
        ("BREW", "/health", 405, "method_not_allowed"),
    ],
)
def test_a_path_or_method_that_is_none_gets_the_same_shape(
    server: Server, method: str, path: str, status: int, code: str
) -> None:
    reply = server.request(method, path)
    assert (reply.status, reply.error["code"]) == (status, code)


def test_a_very_long_path_is_not_sent_back_whole(server: Server) -> None:
    reply = server.get("/" + "a" * 5000)
    assert reply.status == 404
    assert len(reply.body) < 500
