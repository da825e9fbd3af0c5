"""Other programs' logs, read back as those programs read them."""

from __future__ import annotations

import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lmloop.errors import MissingExtraError, StoppedError
from lmloop.tracking.trackers import open_trackers


def read_back(folder: Path) -> dict[str, dict[int, float]]:
    events = EventAccumulator(str(folder))
    events.Reload()
    return {
        name: {event.step: event.value for event in events.Scalars(name)}
        for name in events.Tags()["scalars"]
    }


def test_tensorboard_reads_what_was_journaled(tmp_path: Path) -> None:
    with open_trackers(["tensorboard"], home=tmp_path, run="pretrain-0", name="tiny") as watch:
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
        with open_trackers(["tensorboard"], home=tmp_path, run="r", name="tiny") as watch:
            for step in range(first, 5):
                watch({"step": step, "loss": loss})
    told = read_back(tmp_path / "tensorboard" / "r")["train/loss"]
    assert told == {1: 4.0, 2: 4.0, 3: 2.0, 4: 2.0}
    assert not any(map(math.isnan, told.values()))


def test_without_trackers_nothing_is_written(tmp_path: Path) -> None:
    with open_trackers([], home=tmp_path, run="r", name="tiny") as watch:
        watch({"step": 1, "loss": 4.0})
    assert list(tmp_path.iterdir()) == []


STEPS = (
    {"step": 1, "seconds": 0.5, "loss": 4.0, "norm": 0.5, "factor": 1.0, "tokens": 32},
    {
        "step": 2,
        "seconds": 1.0,
        "loss": 3.0,
        "validation_bpb": 2.5,
        "samples": [{"prompt": "the", "text": "cat sat"}],
    },
)


def read_mlflow(home: Path) -> tuple[Any, dict[str, list[tuple[int, float]]], str]:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=(home / "mlflow").as_uri())
    experiment = client.get_experiment_by_name("tiny")
    (run,) = client.search_runs([experiment.experiment_id])
    told = {
        key: [(each.step, each.value) for each in client.get_metric_history(run.info.run_id, key)]
        for key in run.data.metrics
    }
    (text,) = (home / "mlflow").rglob("step-00000002.txt")
    return run, told, text.read_text("utf-8")


def test_mlflow_reads_what_was_journaled_and_takes_a_run_up_again(tmp_path: Path) -> None:
    names, place = ["mlflow"], {"home": tmp_path, "run": "pretrain-0", "name": "tiny"}
    with pytest.raises(StoppedError), open_trackers(names, **place) as watch:
        watch(STEPS[0])
        raise StoppedError("saved")
    with open_trackers(names, **place) as watch:
        watch(STEPS[1])
    run, told, text = read_mlflow(tmp_path)
    assert (run.info.status, run.info.run_name) == ("FINISHED", "pretrain-0")
    assert told["train/loss"] == [(1, 4.0), (2, 3.0)]
    assert told["validation/bits_per_byte"] == [(2, 2.5)]
    assert text == "the cat sat"


def read_wandb(home: Path) -> list[dict[str, Any]]:
    """The lines of history in the files that `wandb sync` would send, oldest first."""
    from wandb.proto.wandb_internal_pb2 import Record

    lines = []
    for file in sorted((home / "wandb").rglob("*.wandb")):
        if "latest-run" in file.parts:
            continue
        data, place = file.read_bytes(), 7
        while place + 7 <= len(data):  # checksum, length and kind, then the record
            length = int.from_bytes(data[place + 4 : place + 6], "little")
            record = Record.FromString(data[place + 7 : place + 7 + length])
            place += 7 + length
            if record.WhichOneof("record_type") == "history":
                items = record.history.item
                told = {".".join(each.nested_key): json.loads(each.value_json) for each in items}
                lines.append(told)
    return lines


@pytest.mark.slow
def test_wandb_keeps_what_was_journaled_offline(tmp_path: Path) -> None:
    place = {"home": tmp_path, "run": "pretrain-0", "name": "tiny"}
    with open_trackers(["wandb"], **place) as watch:
        for step in STEPS:
            watch(step)
    deadline = time.monotonic() + 60
    while len(lines := read_wandb(tmp_path)) < 2:  # its own process writes, and may be behind
        assert time.monotonic() < deadline
        time.sleep(0.05)
    first, second = lines
    assert (first["step"], first["train/loss"]) == (1, 4.0)
    assert (second["step"], second["validation/bits_per_byte"]) == (2, 2.5)
    assert second["samples/0"] == "the cat sat"


@pytest.mark.parametrize(
    ("tracker", "module", "package"),
    [
        ("tensorboard", "tensorboard", "tensorboard"),
        ("mlflow", "mlflow.tracking", "mlflow-skinny"),
        ("wandb", "wandb", "wandb"),
    ],
)
def test_a_missing_library_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tracker: str, module: str, package: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with (
        pytest.raises(MissingExtraError, match=rf"{package} is not .*lmloop\[track\]"),
        open_trackers([tracker], home=tmp_path, run="r", name="tiny"),
    ):
        pass
    assert list(tmp_path.iterdir()) == []
