"""A run that was broken off goes on with its own settings only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lmloop.errors import TrainingError
from lmloop.unfinished import BEGUN, begin_run

SETTINGS: dict[str, Any] = {"seed": 0, "pretrain": {"steps": 9, "learning_rate": 0.1}}
CHANGED: dict[str, Any] = {"seed": 0, "pretrain": {"steps": 9, "learning_rate": 0.2}}


def begin(home: Path, key: str, settings: dict[str, Any], **changes: Any) -> Path:
    run = home / f"pretrain-{key}"
    begin_run(run, **{"name": "chat", "inputs": ["a"], "settings": settings, **changes})
    return run


def break_off(run: Path) -> None:
    (run / "snapshot-00000004").mkdir()


def test_the_same_settings_go_on_and_others_are_refused_with_what_differs(tmp_path: Path) -> None:
    first = begin(tmp_path, "1", SETTINGS)
    break_off(first)
    assert begin(tmp_path, "1", SETTINGS) == first
    told = (
        "pretrain of chat was broken off with other settings "
        "(pretrain.learning_rate 0.1 -> 0.2): put them back to go on, or delete "
    )
    with pytest.raises(TrainingError) as refused:
        begin(tmp_path, "2", CHANGED)
    assert str(refused.value) == f"{told}{first} to begin anew"
    assert not (tmp_path / "pretrain-2").exists()


@pytest.mark.parametrize("changes", [{"name": "other"}, {"inputs": ["b"]}])
def test_another_recipe_or_other_text_is_another_run(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    break_off(begin(tmp_path, "1", SETTINGS))
    assert (begin(tmp_path, "2", CHANGED, **changes) / BEGUN).exists()


def test_a_run_without_a_snapshot_has_nothing_to_go_on_from(tmp_path: Path) -> None:
    begin(tmp_path, "1", SETTINGS)
    assert begin(tmp_path, "2", CHANGED).exists()


@pytest.mark.parametrize("text", ["", "[]", "{", '{"name": "chat"}'])
def test_what_cannot_be_read_is_no_reason_to_refuse(tmp_path: Path, text: str) -> None:
    first = begin(tmp_path, "1", SETTINGS)
    break_off(first)
    (first / BEGUN).write_text(text)
    assert begin(tmp_path, "2", CHANGED).exists()


def test_keys_that_are_new_or_gone_are_told_too(tmp_path: Path) -> None:
    break_off(begin(tmp_path, "1", {"pretrain": {"a": 1}}))
    with pytest.raises(TrainingError, match=r"\(pretrain\.a 1 -> null; pretrain\.b null -> 2\)"):
        begin(tmp_path, "2", {"pretrain": {"b": 2}})
