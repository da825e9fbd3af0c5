"""What the store's tests share: a store in a fresh folder, and a way to fill it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from lmloop.store.artifact import Artifact, ArtifactStore

KEY = "0123456789abcdef" * 4


def request_row(identity: str, **changes: Any) -> dict[str, Any]:
    """A row of `requests` as a server writes it."""
    return {
        "id": identity,
        "created": 1.0,
        "endpoint": "/v1/chat/completions",
        "model": "chat",
        "weights": "f" * 12,
        "stream": True,
        "prompt_tokens": 5,
        "completion_tokens": 7,
        "finish_reason": "stop",
        "total_seconds": 0.5,
        "consent": False,
        **changes,
    }


def rating_row(identity: str, **changes: Any) -> dict[str, Any]:
    """A row of `ratings`."""
    return {"request_id": identity, "created": 2.0, "rating": 1, **changes}


def count(engine: sa.Engine, table: sa.Table) -> int:
    """Rows of a table."""
    with engine.connect() as connection:
        return int(connection.scalar(sa.select(sa.func.count()).select_from(table)) or 0)


@pytest.fixture
def quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait for no disk: what these tests write need not survive a power cut."""
    monkeypatch.setattr(os, "fsync", os.fstat)


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path / "home")


@pytest.fixture
def make_artifact(store: ArtifactStore) -> Callable[..., Artifact]:
    """Write an artifact of two files that hold `text`; `key` is what it was made from."""

    raw = {"kind": "raw", "fingerprint": "f" * 64, "source": "talks.jsonl"}

    def make(
        text: str = "one",
        *,
        key: str = KEY,
        stage: str = "prepare",
        name: str = "chat",
        made_from: Sequence[Mapping[str, str]] = (raw,),
        counts: Mapping[str, Any] | None = None,
    ) -> Artifact:
        with store.write(stage, key) as draft:
            (draft.path / "data").mkdir()
            (draft.path / "data" / "part.txt").write_text(text)
            (draft.path / "config.json").write_text(f'{{"text": "{text}"}}')
            return draft.finish(
                kind="corpus",
                name=name,
                made_from=made_from,
                settings={"min_turns": 2},
                counts={"records": 3} if counts is None else counts,
                code_version="0.1.0",
                environment={"threads": 2},
                created=float(len(text)),
            )

    return make
