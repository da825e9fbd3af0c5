"""What the store's tests share: a store in a fresh folder, and a way to fill it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from lmloop.store.artifact import Artifact, ArtifactStore

KEY = "0123456789abcdef" * 4


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
