"""Other programs' logs, read back as those programs read them."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lmloop.errors import MissingExtraError
from lmloop.tracking.trackers import open_trackers


def read_back(folder: Path) -> dict[str, dict[int, float]]:
    events = EventAccumulator(str(folder))
    events.Reload()
    return {
        name: {event.step: event.value for event in events.Scalars(name)}
        for name in events.Tags()["scalars"]
    }


def test_tensorboard_reads_what_was_journaled(tmp_path: Path) -> None:
    with open_trackers(["tensorboard"], home=tmp_path, run="pretrain-0") as watch:
        watch({"step": 1, "loss": 4.0, "norm": 0.5, "factor": 1.0, "tokens": 32})
        watch({"step": 2, "loss": 3.0, "norm": 0.25, "factor": 0.5, "validation_bpb": 2.5})
        watch({"step": 3, "skipped": "the loss is nan", "factor": 0.25})
    assert read_back(tmp_path / "tensorboard" / "pretrain-0") == {
        "train/loss": {1: 4.0, 2: 3.0},
        "train/gradient_norm": {1: 0.5, 2: 0.25},
        "train/rate_factor": {1: 1.0, 2: 0.5, 3: 0.25},
        "validation/bits_per_byte": {2: 2.5},
    }


def test_a_run_that_goes_on_replaces_the_steps_that_it_does_again(tmp_path: Path) -> None:
    for first, loss in ((1, 4.0), (3, 2.0)):
        with open_trackers(["tensorboard"], home=tmp_path, run="r") as watch:
            for step in range(first, 5):
                watch({"step": step, "loss": loss})
    told = read_back(tmp_path / "tensorboard" / "r")["train/loss"]
    assert told == {1: 4.0, 2: 4.0, 3: 2.0, 4: 2.0}
    assert not any(map(math.isnan, told.values()))


def test_without_trackers_nothing_is_written(tmp_path: Path) -> None:
    with open_trackers([], home=tmp_path, run="r") as watch:
        watch({"step": 1, "loss": 4.0})
    assert list(tmp_path.iterdir()) == []


def test_a_missing_tensorboard_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with (
        pytest.raises(MissingExtraError, match=r"lmloop\[track\]"),
        open_trackers(["tensorboard"], home=tmp_path, run="r"),
    ):
        pass
