"""A run in its folder: what it does not trust, what it goes back to, when it has had enough."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from lmloop.errors import DivergedError, TrainingError
from lmloop.model.transformer import Transformer
from lmloop.training import run as run_file

from .conftest import KilledError, Run, kill_at, make_config

MakeRun = Callable[..., Run]


def test_a_loss_that_is_no_number_ends_the_run_and_keeps_the_last_snapshot(
    make_run: MakeRun,
) -> None:
    run = make_run()

    def poison(step: int) -> None:
        if step == 6:
            assert run.model is not None
            with torch.no_grad():
                run.model.embedding.weight[:] = math.nan

    with pytest.raises(TrainingError, match="the loss is nan at step 6: lower .*learning_rate"):
        run.go(before_step=poison)
    assert run.snapshots() == ["snapshot-00000004"]
    assert [entry["step"] for entry in run.journal()] == [1, 2, 3, 4, 5, 6]


def test_a_gradient_that_is_no_number_is_never_saved(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run()

    def poison(step: int) -> None:
        if step == 3:
            assert run.model is not None
            run.model.norm.weight.register_hook(lambda grad: grad * math.inf)

    with pytest.raises(TrainingError, match="the gradient's norm is (nan|inf) at step 3"):
        run.go(before_step=poison)
    assert run.snapshots() == []


def figures(values: list[float]) -> Callable[[Transformer], float]:
    """A validation that gives these figures, one after the other, then the last for ever."""
    left = iter(values)
    return lambda model: next(left, values[-1])


def test_patience_ends_the_run_and_keeps_the_best_weights(make_run: MakeRun) -> None:
    config = make_config(steps=30, validate_every=2, patience=2)
    run = make_run(config=config)
    result = run.go(validate=figures([3.0, 2.0, 2.5, 2.5, 9.0]))
    assert result.steps == 8
    assert result.validation_bits_per_byte == 2.0
    short = make_run("short", config=make_config(steps=30, validate_every=2))
    with pytest.raises(KilledError):
        short.go(before_step=kill_at(4))
    assert short.weights() == run.weights()


def poison_at(run: Run, *steps: int) -> Callable[[int], None]:
    """Let the embedding's gradient be infinite in these batches, counted from 0."""

    def look(batch: int) -> None:
        assert run.model is not None
        infinite = batch in steps
        weight = run.model.embedding.weight
        for hook in list(weight._backward_hooks or {}):
            del weight._backward_hooks[hook]
        if infinite:
            weight.register_hook(lambda grad: grad * math.inf)

    return look


def test_an_unsound_batch_is_left_out_where_the_recipe_says_so(make_run: MakeRun) -> None:
    run = make_run(config=make_config(on_unsound="skip"))
    result = run.go(before_step=poison_at(run, 3))
    entries = run.journal()
    assert [entry["step"] for entry in entries] == list(range(1, 11))
    assert "loss" not in entries[3]
    assert entries[3]["skipped"].startswith("the gradient's norm is ")
    assert math.isfinite(result.final_loss)
    assert run.said.lines[0].startswith("the gradient's norm is ")
    assert "at step 3 (first in embedding.weight, documents " in run.said.lines[0]
    assert run.said.lines[0].endswith("): the batch is left out")


def test_a_run_goes_back_to_its_snapshot_and_on_behind_the_batch(make_run: MakeRun) -> None:
    seen: list[int] = []
    run = make_run(config=make_config(on_unsound="rollback"))
    poison = poison_at(run, 6)

    def look(batch: int) -> None:
        seen.append(batch)
        poison(batch)

    result = run.go(before_step=look)
    assert result.steps == 10
    assert "back to step 4, and on behind that batch" in run.said.lines[0]
    # Batch 6 is looked at again to find out where it went wrong; 4 to 6 are passed over.
    assert list(dict.fromkeys(seen)) == list(range(13))
    assert [entry["step"] for entry in run.journal()] == list(range(1, 11))
    again = make_run("again", config=make_config(on_unsound="rollback"))
    for killed in (5, 8, 11):
        with pytest.raises(KilledError):
            poison = poison_at(again, 6)
            again.go(before_step=lambda batch: (kill_at(killed)(batch), poison(batch)))  # noqa: B023
    again.go(before_step=poison_at(again, 6))
    assert again.weights() == run.weights()


def test_going_back_again_and_again_ends_the_run(make_run: MakeRun) -> None:
    run = make_run(config=make_config(on_unsound="rollback"))
    # Two steps in three are sound, so that each return comes to another end.
    with pytest.raises(TrainingError, match="the gradient's norm is (nan|inf) at step 6: lower"):
        run.go(before_step=poison_at(run, *range(6, 99, 3)))
    assert len([line for line in run.said.lines if "back to step 4" in line]) == 3


def test_before_the_first_snapshot_there_is_nothing_to_go_back_to(make_run: MakeRun) -> None:
    run = make_run(config=make_config(on_unsound="rollback"))
    with pytest.raises(TrainingError, match=r"documents \d.*; no snapshot was due yet"):
        run.go(before_step=poison_at(run, 2))


def test_batches_left_out_one_after_the_other_end_the_run(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_file, "MOST_LEFT_OUT", 3)
    run = make_run(config=make_config(on_unsound="skip"))
    with pytest.raises(DivergedError, match="step 8: .*3 batches before it were left out; the la"):
        run.go(before_step=poison_at(run, 2, 3, 5, *range(6, 99)))
    assert run.snapshots() == ["snapshot-00000004", "snapshot-00000008"]


def test_a_run_whose_every_batch_was_left_out_is_no_result(make_run: MakeRun) -> None:
    run = make_run(config=make_config(on_unsound="skip"))
    with pytest.raises(DivergedError, match="all 10 batches were left out"):
        run.go(before_step=poison_at(run, *range(99)))


def test_a_snapshot_of_another_optimizer_is_refused(make_run: MakeRun) -> None:
    with pytest.raises(KilledError):
        make_run(config=make_config(optimizer="adamw")).go(before_step=kill_at(6))
    with pytest.raises(TrainingError, match="the snapshot of step 4 does not fit .*: delete"):
        make_run(config=make_config(optimizer="muon")).go()


def test_a_stop_before_the_first_snapshot_does_not_point_to_one(make_run: MakeRun) -> None:
    run = make_run()
    with pytest.raises(DivergedError, match="at step 2: .*; no snapshot was due yet"):
        run.go(before_step=poison_at(run, 2))
