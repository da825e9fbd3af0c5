"""Several tasks on the same weights: each is learnt, told by itself, and resumes as exactly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lmloop.errors import CorpusError
from lmloop.learning import PretrainConfig
from lmloop.progress import Silent
from lmloop.training.recipes import pretrain
from lmloop.training.run import Run

from .conftest import SHAPE, make_clock

SIZES: dict[str, Any] = {
    "batch_tokens": 256,
    "row_tokens": 32,
    "precision": "float32",
    "save_every": 2,
}
TASKS: dict[str, Any] = {
    "next": {"objective": "causal", "share": 0.5},
    "mask": {"objective": "masked", "share": 0.25, "weight": 2.0},
    "middle": {"objective": "fill-in-the-middle", "share": 0.25},
}


class KilledError(Exception):
    """Stands for `kill -9`."""


def learn(folder: Path, shards: Path, name: str, **changes: Any) -> list[dict[str, Any]]:
    """Pre-train into a folder; its journal."""
    (folder / name).mkdir(exist_ok=True)
    pretrain(
        PretrainConfig(**(SIZES | {"steps": 6} | changes)),
        SHAPE,
        shards=shards,
        folder=folder / name,
        run=folder / "runs" / name,
        seed=0,
        validate=lambda model: 2.5,
        clock=make_clock(),
        progress=Silent(),
    )
    text = (folder / name / "journal.jsonl").read_text("utf-8")
    return [json.loads(line) for line in text.splitlines()]


def test_the_journal_tells_each_tasks_loss_and_all_of_them_fall(
    extended_shards_folder: Path, tmp_path: Path
) -> None:
    journal = learn(tmp_path, extended_shards_folder, "many", tasks=TASKS, steps=40)
    for name in TASKS:
        losses = [entry[f"loss.{name}"] for entry in journal]
        assert sum(losses[-5:]) < sum(losses[:5]) - 2.5, name


def test_one_task_alone_learns_as_its_objective_does(
    extended_shards_folder: Path, tmp_path: Path
) -> None:
    plain = learn(tmp_path, extended_shards_folder, "plain")
    task = learn(tmp_path, extended_shards_folder, "task", tasks={"next": {}})
    assert [entry["loss"] for entry in plain] == [entry["loss"] for entry in task]
    assert [entry["loss.next"] for entry in task] == pytest.approx(
        [entry["loss"] for entry in task]
    )
    one, other = (tmp_path / name / "model.safetensors" for name in ("plain", "task"))
    assert one.read_bytes() == other.read_bytes()


def test_the_loss_of_a_step_is_the_mean_of_its_targets_by_weight(
    extended_shards_folder: Path, tmp_path: Path
) -> None:
    tasks = {"one": {"share": 1.0}, "two": {"share": 1.0, "weight": 3.0}}
    for entry in learn(tmp_path, extended_shards_folder, "two", tasks=tasks):
        expected = (entry["loss.one"] + 3 * entry["loss.two"]) / 4
        assert entry["loss"] == pytest.approx(expected)


def test_a_killed_run_of_many_tasks_ends_in_the_same_weights(
    extended_shards_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = learn(tmp_path, extended_shards_folder, "whole", tasks=TASKS)
    step = Run.step

    def fall(run: Run, share: float) -> Any:
        if run.position.step == 5:
            raise KilledError
        return step(run, share)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "step", fall)
        with pytest.raises(KilledError):
            learn(tmp_path, extended_shards_folder, "broken", tasks=TASKS)
    broken = learn(tmp_path, extended_shards_folder, "broken", tasks=TASKS)
    one, other = (tmp_path / name / "model.safetensors" for name in ("whole", "broken"))
    assert one.read_bytes() == other.read_bytes()
    told = [f"loss.{name}" for name in TASKS]
    assert [[line[key] for key in told] for line in whole] == [
        [line[key] for key in told] for line in broken
    ]


def test_a_task_reads_text_to_rehearse_only_where_there_is_any(
    extended_shards_folder: Path, tmp_path: Path
) -> None:
    tasks = {"own": {}, "old": {"text": "rehearsal"}}
    with pytest.raises(CorpusError, match=r"pretrain.tasks.old reads text to rehearse"):
        learn(tmp_path, extended_shards_folder, "none", tasks=tasks)
