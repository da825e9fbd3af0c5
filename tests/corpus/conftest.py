"""Rows of chat and prose to make small corpora of."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

WriteRows = Callable[..., Path]


@pytest.fixture
def write_rows(tmp_path: Path) -> WriteRows:
    """Write rows as JSONL, a str as it stands; give the path."""

    def write(rows: Iterable[Any], name: str = "rows.jsonl") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        return path

    return write


@pytest.fixture
def chats() -> list[dict[str, Any]]:
    """Sixty conversations that share nothing."""
    return [
        {
            "messages": [
                {"role": "user", "content": f"question {number * 7919} about topic {number}?"},
                {"role": "assistant", "content": f"answer {number * 104729} to that, {number}"},
            ]
        }
        for number in range(60)
    ]
