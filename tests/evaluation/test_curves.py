"""The training journal as curves, whatever a killed run left in it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lmloop.evaluation.curves import MOST_POINTS, read_curves


def write(path: Path, *lines: dict[str, Any] | str) -> Path:
    texts = (line if isinstance(line, str) else json.dumps(line) for line in lines)
    path.write_text("\n".join(texts), encoding="utf-8")
    return path


def line(step: int, loss: float, **more: Any) -> dict[str, Any]:
    return {"step": step, "seconds": step / 2, "loss": loss, **more}


def test_stages_stand_one_behind_the_other(tmp_path: Path) -> None:
    pretrain = write(tmp_path / "a", line(1, 5.0), line(2, 4.0, validation_bpb=2.5))
    finetune = write(tmp_path / "b", line(1, 3.0), line(2, 2.0))
    assert read_curves({"pretrain": pretrain, "finetune": finetune}) == [
        {
            "stage": "pretrain",
            "loss": {"steps": [1, 2], "seconds": [0.5, 1.0], "values": [5.0, 4.0]},
            "validation_bpb": {"steps": [2], "seconds": [1.0], "values": [2.5]},
        },
        {
            "stage": "finetune",
            "loss": {"steps": [3, 4], "seconds": [1.5, 2.0], "values": [3.0, 2.0]},
            "validation_bpb": {"steps": [], "seconds": [], "values": []},
        },
    ]


def test_torn_lines_are_passed_over_and_a_step_run_twice_counts_as_it_ended(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a", line(1, 5.0), line(2, 4.5), '{"step": 3, "los', line(2, 4.0), "[]", "{}", ""
    )
    (curve,) = read_curves({"pretrain": path})
    assert curve["loss"]["steps"] == [1, 2]
    assert curve["loss"]["values"] == [5.0, 4.0]


def test_many_steps_are_averaged_in_groups(tmp_path: Path) -> None:
    path = write(tmp_path / "a", *(line(step, float(step)) for step in range(1, 2001)))
    (curve,) = read_curves({"pretrain": path})
    assert len(curve["loss"]["steps"]) == MOST_POINTS
    assert curve["loss"]["steps"][:2] == [5, 10]
    assert curve["loss"]["values"][:2] == [3.0, 8.0]
    assert curve["loss"]["steps"][-1] == 2000


def test_what_is_no_number_becomes_a_gap(tmp_path: Path) -> None:
    path = write(tmp_path / "a", line(1, 5.0), line(2, float("nan")), line(3, float("inf")))
    (curve,) = read_curves({"pretrain": path})
    assert curve["loss"]["values"] == [5.0, None, None]


def test_a_stage_without_steps_has_no_curve(tmp_path: Path) -> None:
    assert read_curves({"pretrain": write(tmp_path / "a")}) == []
    assert read_curves({}) == []
