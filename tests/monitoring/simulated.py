"""Traffic that nobody sent: rows of requests and ratings as a server writes them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import sqlalchemy as sa

from lmloop.monitoring.sample import EMBEDDING_SIZE
from lmloop.store.database import ratings_table, requests_table, transaction

START = 1_800_000_000.0
"""When the first request arrives, in seconds since the epoch."""
WEIGHTS = "a" * 12


def make_rows(
    count: int,
    *,
    seed: int,
    first: int = 0,
    start: float = START,
    spacing: float = 1.0,
    shifted: float = 0.0,
    **changes: Any,
) -> Iterator[dict[str, Any]]:
    """Rows of `count` requests, one every `spacing` seconds from number `first` on.

    A share `shifted` is Chinese, surprises the model, and lies elsewhere.
    """
    generator = np.random.default_rng(seed)
    for number in range(first, first + count):
        other = bool(generator.random() < shifted)
        yield {**_make_row(generator, number, start + number * spacing, other), **changes}


def _make_row(
    generator: np.random.Generator, number: int, created: float, other: bool
) -> dict[str, Any]:
    tokens = int(generator.integers(1, 40))
    signals = {
        "prompt_characters": int(np.exp(generator.normal(3.5, 0.8))),
        "answer_characters": 4 * tokens,
        "language": "zh" if other else str(generator.choice(["en", "de"], p=[0.95, 0.05])),
        "answer_language": "en",
        "prompt_nats": float(generator.normal(4 + 2 * other, 0.7)),
        "log_probability": float(generator.normal(-2 - other, 0.4)),
        "entropy": float(generator.normal(2, 0.4)),
        "repetition": 0.0 if generator.random() < 0.8 else float(generator.random()),
        "refusal": bool(generator.random() < 0.03),
        "length_stop": bool(generator.random() < 0.1),
    }
    embedding = generator.normal(size=EMBEDDING_SIZE) + np.arange(EMBEDDING_SIZE) / 40 * other
    first_token = float(np.exp(generator.normal(-3.5, 0.4)))
    return {
        "id": f"chatcmpl-{number:08d}",
        "created": created,
        "endpoint": "/v1/chat/completions",
        "model": "chat",
        "weights": WEIGHTS,
        "stream": True,
        "prompt_tokens": 12,
        "completion_tokens": tokens,
        "finish_reason": "length" if signals["length_stop"] else "stop",
        "first_token_seconds": first_token,
        "total_seconds": first_token + 0.004 * tokens,
        "consent": False,
        "arm": "live",
        "user_hash": None,
        "session_hash": f"session-{number}",
        "signals": json.dumps(signals),
        "embedding": embedding.astype("<f2").tobytes(),
    }


def rating(row: Mapping[str, Any], *, rating: int | None, **changes: Any) -> dict[str, Any]:
    """A rating of a request, half a minute later."""
    return {
        "request_id": row["id"],
        "created": row["created"] + 30,
        "rating": rating,
        "correction": None,
        **changes,
    }


def write(engine: sa.Engine, *rows: Mapping[str, Any]) -> None:
    """Put rows of requests and of ratings into the database."""
    tables = {"id": requests_table, "request_id": ratings_table}
    with transaction(engine) as connection:
        for key, table in tables.items():
            chosen = [dict(row) for row in rows if key in row]
            if chosen:
                connection.execute(table.insert(), chosen)
