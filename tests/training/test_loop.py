"""The loop: what it journals and saves, and that killing and resuming it changes nothing."""

from __future__ import annotations

import errno
import json
import math
import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from lmloop.errors import (
    DiskFullError,
    PrunedError,
    StoppedError,
    TrainingError,
)
from lmloop.training import snapshot
from lmloop.training.schedule import rate_factor
from lmloop.training.snapshot import load_snapshot

from ..conftest import VOCAB_SIZE
from .conftest import KilledError, Run, kill_at, make_clock, make_config

MakeRun = Callable[..., Run]


def test_fine_tuning_survives_batches_without_answers(make_run: MakeRun) -> None:
    config = make_config(batch_tokens=8, row_tokens=8, steps=40)
    run = make_run(config=config, answers_only=True)
    result = run.go()
    losses = [entry["loss"] for entry in run.journal()]
    assert 0.0 in losses
    assert result.steps == 40


def test_the_model_learns(make_run: MakeRun) -> None:
    run = make_run(config=make_config(steps=60, batch_tokens=128, row_tokens=32, save_every=100))
    result = run.go()
    losses = [entry["loss"] for entry in run.journal()]
    assert losses[0] == pytest.approx(math.log(VOCAB_SIZE), rel=0.05)
    assert result.final_loss < losses[0] - 1.5


def test_a_run_tells_what_it_came_to(make_run: MakeRun) -> None:
    run = make_run(config=make_config(steps=25))
    result = run.go()
    losses = [entry["loss"] for entry in run.journal()]
    assert (result.steps, result.tokens) == (25, 25 * 32)
    assert result.final_loss == pytest.approx(sum(losses[-2:]) / 2)
    assert run.model is not None
    expected = run.model.embedding.weight.norm().item()
    assert result.validation_bits_per_byte == pytest.approx(expected)
    assert result.seconds > 0


def test_the_journal_has_a_line_a_step_with_what_was_decided(make_run: MakeRun) -> None:
    run = make_run()
    run.go()
    journal = run.journal()
    assert [entry["step"] for entry in journal] == list(range(1, 11))
    assert [entry["share"] for entry in journal] == [step / 10 for step in range(10)]
    assert [entry["tokens"] for entry in journal] == [32 * step for step in range(1, 11)]
    for entry in journal:
        curve = rate_factor(entry["share"], curve="wsd", warmup_share=0.02, decay_share=0.5)
        assert entry["factor"] == curve
        assert entry["loss"] > 0
        assert entry["norm"] > 0
    measured = [entry["step"] for entry in journal if "validation_bpb" in entry]
    assert measured == [3, 6, 9]
    seconds = [entry["seconds"] for entry in journal]
    assert seconds == sorted(seconds)


def test_a_snapshot_is_saved_every_so_often_and_at_the_end(make_run: MakeRun) -> None:
    run = make_run(config=make_config(steps=10, save_every=4))
    saved: list[list[str]] = []
    run.go(before_step=lambda step: saved.append(run.snapshots()))
    assert saved[3] == []
    assert saved[4] == ["snapshot-00000004"]
    assert run.snapshots() == ["snapshot-00000008", "snapshot-00000010"]


def test_the_journal_is_on_the_disk_before_the_snapshot_that_counts_on_it(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    real = os.fsync

    def spy(descriptor: int) -> None:
        synced.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        real(descriptor)

    monkeypatch.setattr(os, "fsync", spy)
    make_run(config=make_config(steps=4, save_every=4)).go()
    assert synced.index("journal.jsonl") < synced.index("state.safetensors")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kills", [[0], [1], [3], [4], [5], [9], [4, 4, 8], [2, 6, 7, 9, 9]])
def test_a_run_killed_at_any_step_ends_in_the_very_same_weights(
    make_run: MakeRun, kills: list[int], dtype: torch.dtype
) -> None:
    unbroken = make_run("unbroken", dtype=dtype)
    expected = unbroken.go()
    broken = make_run("broken", dtype=dtype)
    for step in kills:
        with pytest.raises(KilledError):
            broken.go(before_step=kill_at(step))
    result = broken.go()
    assert broken.weights() == unbroken.weights()
    assert (result.steps, result.final_loss) == (expected.steps, expected.final_loss)
    for one, other in zip(broken.journal(), unbroken.journal(), strict=True):
        assert {**one, "seconds": 0} == {**other, "seconds": 0}


@pytest.mark.parametrize("optimizer", ["muon", "adamw", "sgd"])
def test_a_killed_run_with_state_in_8_bits_ends_in_the_very_same_weights(
    make_run: MakeRun, optimizer: str
) -> None:
    config = make_config(optimizer=optimizer, state_bits=8)
    unbroken = make_run("unbroken", config=config)
    unbroken.go()
    broken = make_run("broken", config=config)
    with pytest.raises(KilledError):
        broken.go(before_step=kill_at(6))
    found = load_snapshot(broken.folder, tell=broken.said.say)
    assert found is not None
    assert torch.uint8 in {each.dtype for each in found[1].values()}
    broken.go()
    assert broken.weights() == unbroken.weights()


@pytest.mark.parametrize("change", [{"checkpointing": "full"}, {"offload": True}])
def test_what_saves_memory_alone_changes_no_weight(
    make_run: MakeRun, change: dict[str, Any]
) -> None:
    plain, spared = make_run("plain"), make_run("spared", config=make_config(**change))
    plain.go()
    spared.go()
    assert spared.weights() == plain.weights()


def test_a_resumed_run_says_where_it_goes_on(make_run: MakeRun) -> None:
    run = make_run()
    with pytest.raises(KilledError):
        run.go(before_step=kill_at(6))
    assert run.said.lines == []
    run.go()
    assert len(run.said.lines) == 1
    assert run.said.lines[0].startswith("resumed at step 4 after ")


def test_a_finished_run_is_not_trained_any_further(make_run: MakeRun) -> None:
    run = make_run()
    first = run.go()
    weights = run.weights()
    steps: list[int] = []
    again = run.go(before_step=steps.append)
    assert steps == []
    assert run.weights() == weights
    assert (again.steps, again.final_loss) == (first.steps, first.final_loss)


@pytest.mark.parametrize("file", ["state.safetensors", "seal.json"])
def test_a_damaged_snapshot_is_passed_over_and_the_weights_are_the_same(
    make_run: MakeRun, file: str
) -> None:
    unbroken = make_run("unbroken")
    unbroken.go()
    run = make_run("broken")
    with pytest.raises(KilledError):
        run.go(before_step=kill_at(9))
    path = run.folder / "snapshot-00000008" / file
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    run.go()
    assert run.said.lines[0].startswith("snapshot-00000008 is damaged and passed over: ")
    assert file in run.said.lines[0] or "seal" in file
    assert run.said.lines[1].startswith("resumed at step 4 ")
    assert run.weights() == unbroken.weights()
    assert [entry["step"] for entry in run.journal()] == list(range(1, 11))


def test_where_every_snapshot_is_damaged_the_run_begins_again(make_run: MakeRun) -> None:
    unbroken = make_run("unbroken")
    unbroken.go()
    run = make_run("broken")
    with pytest.raises(KilledError):
        run.go(before_step=kill_at(9))
    for name in run.snapshots():
        (run.folder / name / "state.safetensors").write_bytes(b"")
    run.go()
    assert len(run.said.lines) == 2
    assert all("is damaged and passed over" in line for line in run.said.lines)
    assert run.weights() == unbroken.weights()


def test_a_disk_that_fills_up_during_a_save_costs_no_more_than_the_steps_since_the_last(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    unbroken = make_run("unbroken")
    unbroken.go()
    run = make_run("broken")
    real, saves = snapshot.save_file, 0

    def full_the_second_time(*arguments: Any, **options: Any) -> None:
        nonlocal saves
        saves += 1
        if saves == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(*arguments, **options)

    monkeypatch.setattr(snapshot, "save_file", full_the_second_time)
    with pytest.raises(DiskFullError, match="snapshot-00000008 .*No space left"):
        run.go()
    assert run.snapshots() == ["snapshot-00000004"]
    run.go()
    assert run.said.lines[0].startswith("resumed at step 4")
    assert run.weights() == unbroken.weights()


def test_a_clock_budget_ends_when_its_time_is_over(make_run: MakeRun) -> None:
    run = make_run(config=make_config(budget="3s"))
    result = run.go(clock=make_clock(0.1))
    shares = [entry["share"] for entry in run.journal()]
    assert shares == sorted(shares)
    assert 0 < shares[0] < 0.1
    assert 0.9 < shares[-1] < 1
    assert result.seconds >= 3
    assert result.steps == len(shares) > 5


def test_a_clock_run_that_is_resumed_counts_the_seconds_of_its_first_part(
    make_run: MakeRun,
) -> None:
    run = make_run(config=make_config(budget="3s"))
    with pytest.raises(KilledError):
        run.go(clock=make_clock(0.1), before_step=kill_at(6))
    before = run.journal()[3]
    run.go(clock=make_clock(0.1))
    after = run.journal()[4]
    assert (before["step"], after["step"]) == (4, 5)
    assert after["share"] > before["share"]
    assert run.journal()[-1]["share"] > 0.9


@pytest.mark.parametrize("killed", [False, True])
def test_a_replay_gives_the_weights_of_the_clock_run_byte_for_byte(
    make_run: MakeRun, killed: bool
) -> None:
    clocked = make_run("clocked", config=make_config(budget="3s"))
    if killed:
        with pytest.raises(KilledError):
            clocked.go(clock=make_clock(0.07), before_step=kill_at(6))
    clocked.go(clock=make_clock(0.13))
    journal = clocked.folder / "journal.jsonl"
    replayed = make_run("replayed", config=make_config(replay=str(journal)))
    replayed.go(clock=make_clock(0.01))
    assert replayed.weights() == clocked.weights()
    for one, other in zip(replayed.journal(), clocked.journal(), strict=True):
        assert {**one, "seconds": 0} == {**other, "seconds": 0}


def test_a_replay_that_is_killed_goes_on_as_well(make_run: MakeRun) -> None:
    clocked = make_run("clocked", config=make_config(budget="3s"))
    clocked.go()
    journal = clocked.folder / "journal.jsonl"
    replayed = make_run("replayed", config=make_config(replay=str(journal)))
    with pytest.raises(KilledError):
        replayed.go(before_step=kill_at(5))
    replayed.go()
    assert replayed.weights() == clocked.weights()


def test_a_torn_journal_of_a_killed_run_is_mended(make_run: MakeRun) -> None:
    run = make_run()
    with pytest.raises(KilledError):
        run.go(before_step=kill_at(6))
    with (run.folder / "journal.jsonl").open("a") as stream:
        stream.write(json.dumps({"step": 7})[:-4])
    run.go()
    assert [entry["step"] for entry in run.journal()] == list(range(1, 11))


METHODS: list[dict[str, Any]] = [
    {"optimizer": "adamw", "schedule": "cosine", "ema": 0.9},
    {"optimizer": "sgd", "learning_rate": 0.1, "schedule": "linear", "final_share": 0.1},
    {"optimizer": "schedule-free"},
    {"label_smoothing": 0.1, "weight_decay": 0.1, "l1": 0.01, "schedule": "constant"},
    {"micro_batch_tokens": 16, "layer_decay": 0.5, "frozen": ("embedding.*",)},
    {"patience": 50, "validate_every": 1},
    {"row_tokens": 32, "batch_tokens": 64, "first_row_tokens": 8},
]


@pytest.mark.parametrize("changes", METHODS)
def test_every_method_learns_and_ends_in_the_same_weights_after_kills(
    make_run: MakeRun, changes: dict[str, Any]
) -> None:
    config = make_config(**{"steps": 12, **changes})
    unbroken = make_run("unbroken", config=config)
    unbroken.go()
    losses = [entry["loss"] for entry in unbroken.journal()]
    assert losses[-1] < losses[0]
    broken = make_run("broken", config=config)
    for step in (3, 7, 9):
        with pytest.raises(KilledError):
            broken.go(before_step=kill_at(step))
    broken.go()
    assert broken.weights() == unbroken.weights()


def test_a_batch_in_pieces_learns_the_same_but_for_rounding(make_run: MakeRun) -> None:
    whole, pieces = (
        make_run(name, config=make_config(optimizer="adamw", micro_batch_tokens=tokens))
        for name, tokens in (("whole", None), ("pieces", 16))
    )
    whole.go()
    pieces.go()
    for one, other in zip(whole.journal(), pieces.journal(), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-4)
        assert one["norm"] == pytest.approx(other["norm"], rel=1e-3)


def test_answers_count_alike_however_a_batch_is_cut(make_run: MakeRun) -> None:
    whole, pieces = (
        make_run(
            name,
            config=make_config(steps=4, optimizer="adamw", micro_batch_tokens=tokens),
            answers_only=True,
        )
        for name, tokens in (("whole", None), ("pieces", 16))
    )
    whole.go()
    pieces.go()
    for one, other in zip(whole.journal(), pieces.journal(), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-4)


def test_whoever_watches_is_told_each_line_of_the_journal_and_may_end_the_run(
    make_run: MakeRun,
) -> None:
    told: list[Any] = []
    run = make_run()
    run.go(watch=lambda entry: told.append(dict(entry)))
    assert [{**each, **line} for each, line in zip(told, run.journal(), strict=True)] == told
    assert all("tokens_per_second" in each for each in told[1:])

    def prune(entry: Mapping[str, Any]) -> None:
        if entry["step"] == 5:
            raise PrunedError("worse than the others")

    pruned = make_run("pruned")
    with pytest.raises(PrunedError):
        pruned.go(watch=prune)
    assert len(pruned.journal()) == 5


def test_sigterm_saves_and_the_same_run_goes_on_to_the_same_weights(make_run: MakeRun) -> None:
    unbroken = make_run("unbroken")
    unbroken.go()
    run = make_run("broken")

    def terminate(step: int) -> None:
        if step == 5:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(StoppedError, match="is saved at step 6: the same command goes on") as told:
        run.go(before_step=terminate)
    assert told.value.exit_code == 0
    assert run.snapshots()[-1] == "snapshot-00000006"
    run.go()
    assert run.said.lines[0].startswith("resumed at step 6 ")
    assert run.weights() == unbroken.weights()


@pytest.mark.parametrize(("seconds", "steps"), [("0.05s", 0), ("0.15s", 1)])
def test_a_budget_shorter_than_a_step_is_refused_and_keeps_nothing(
    make_run: MakeRun, seconds: str, steps: int
) -> None:
    run = make_run(config=make_config(budget=seconds))
    with pytest.raises(TrainingError, match=f"budget = '{seconds}' was over after {steps} of"):
        run.go(clock=make_clock(0.1))
    assert run.snapshots() == []


def test_a_journal_that_lost_lines_is_told_and_costs_nothing_else(make_run: MakeRun) -> None:
    unbroken = make_run("unbroken")
    unbroken.go()
    run = make_run("broken")
    with pytest.raises(KilledError):
        run.go(before_step=kill_at(6))
    path = run.folder / "journal.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([lines[0], b"alien \xff\n", *lines[2:]]))
    run.go()
    assert any("lacks 1 of 4 steps" in line for line in run.said.lines)
    assert run.weights() == unbroken.weights()
