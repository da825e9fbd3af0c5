"""The loop: what it journals and saves, and that killing and resuming it changes nothing."""

from __future__ import annotations

import errno
import json
import math
import os
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from lmloop.errors import TrainingError
from lmloop.model.transformer import Transformer
from lmloop.tokens.arrangement import make_arrangement
from lmloop.tokens.loader import Batch, PackedLoader
from lmloop.tokens.objectives import visible
from lmloop.tokens.shards import Shards
from lmloop.tokens.tokenizer import Tokenizer
from lmloop.training import loop, snapshot
from lmloop.training.loop import batch_loss, mean_loss
from lmloop.training.schedule import warmup_stable_decay

from ..conftest import VOCAB_SIZE, random_model, tiny_shape
from .conftest import Run, make_clock, make_config

MakeRun = Callable[..., Run]


class KilledError(Exception):
    """Stands for `kill -9`: nothing of the loop catches it."""


def kill_at(step: int) -> Callable[[int], None]:
    def kill(now: int) -> None:
        if now == step:
            raise KilledError

    return kill


@pytest.mark.parametrize("answers_only", [False, True])
def test_the_loss_of_a_batch_is_the_mean_over_its_learnt_targets(
    shards_folder: Path, answers_only: bool
) -> None:
    loader = PackedLoader(
        Shards.open(shards_folder, "train"),
        row_tokens=24,
        document_id=0,
        answers_only=answers_only,
        seed=0,
    )
    batch = loader.rows(0, 3)
    model = random_model(tiny_shape(vocab_size=VOCAB_SIZE))
    nats = []
    with torch.no_grad():
        for row in range(3):
            for place in range(24):
                if not batch.learnt[row, place]:
                    continue
                first = place - int(batch.positions[row, place])
                past = torch.from_numpy(batch.tokens[row : row + 1, first : place + 1])
                target = torch.tensor([batch.targets[row, place]])
                nats.append(F.cross_entropy(model(past)[0, -1:], target).item())
    assert len(nats) == batch.learnt.sum() > 0
    assert batch_loss(model, batch).item() == pytest.approx(sum(nats) / len(nats), rel=1e-4)


def test_a_batch_without_answers_moves_nothing(shards_folder: Path) -> None:
    loader = PackedLoader(
        Shards.open(shards_folder, "train"), row_tokens=8, document_id=0, answers_only=True, seed=0
    )
    batch = next(
        batch for batch in (loader.rows(row, 1) for row in range(99)) if not batch.learnt.any()
    )
    model = random_model(tiny_shape(vocab_size=VOCAB_SIZE))
    loss = batch_loss(model, batch)
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.item() == 0
    assert not any(each.grad.any() for each in model.parameters() if each.grad is not None)


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
        curve = warmup_stable_decay(entry["share"], warmup_share=0.02, decay_share=0.5)
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
    with pytest.raises(OSError, match="No space left"):
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


def test_a_torn_journal_of_a_killed_run_is_mended(make_run: MakeRun) -> None:
    run = make_run()
    with pytest.raises(KilledError):
        run.go(before_step=kill_at(6))
    with (run.folder / "journal.jsonl").open("a") as stream:
        stream.write(json.dumps({"step": 7})[:-4])
    run.go()
    assert [entry["step"] for entry in run.journal()] == list(range(1, 11))


OBJECTIVES = (
    *("causal", "masked", "causal+masked", "prefix", "fill-in-the-middle", "permutation"),
    "span-corruption",
)


def arranged_batch(folder: Path, objective: str, *, rows: int, **changes: Any) -> Batch:
    config = make_config(objective=objective, row_tokens=32, **changes)
    tokenizer = Tokenizer.open(folder)
    loader = PackedLoader(
        Shards.open(folder, "train"),
        row_tokens=32,
        document_id=tokenizer.document_id,
        answers_only=False,
        seed=0,
        arrangement=make_arrangement(config, tokenizer),
    )
    return loader.rows(0, rows)


def model_for(objective: str) -> Transformer:
    shape = tiny_shape(vocab_size=VOCAB_SIZE)
    if objective == "span-corruption":
        shape = replace(shape, encoder=replace(shape, causal=False, head="none"))
    return random_model(shape)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_place_sees_what_its_order_says_and_never_the_token_that_it_predicts(
    extended_shards_folder: Path, monkeypatch: pytest.MonkeyPatch, objective: str
) -> None:
    batch = arranged_batch(extended_shards_folder, objective, rows=2)
    model, embedded, states = model_for(objective), [], []
    model.embedding.register_forward_hook(lambda *given: embedded.append(given[-1]))
    monkeypatch.setattr(
        loop, "head_loss", lambda model, hidden, targets: states.append(hidden) or hidden.sum()
    )
    batch_loss(model, batch)
    length = batch.tokens.shape[1]
    order = batch.positions if batch.order is None else batch.order
    for number, flat in enumerate(np.flatnonzero(batch.learnt)):
        row, place = divmod(int(flat), length)
        grads = torch.autograd.grad(states[0][number].square().sum(), embedded, retain_graph=True)
        seen = grads[-1].abs().sum(-1).view(len(batch.tokens), length).numpy() > 0
        expected = np.zeros_like(seen)
        expected[row] = visible(order[row], segments=batch.segments[row])[place]
        assert np.array_equal(seen, expected)
        if batch.source_segments is not None:
            read = grads[0].abs().sum(-1).view(batch.source_segments.shape).numpy() > 0
            same = batch.source_segments == batch.segments[row, place]
            assert np.array_equal(read, same & (np.arange(len(read)) == row)[:, None])
        hidden = answer_places(batch, objective, row, place)
        assert not seen[row, hidden].any()


def answer_places(batch: Batch, objective: str, row: int, place: int) -> list[int]:
    """Where the row itself shows the token that a place predicts, in what it must not see."""
    segments, positions = batch.segments[row], batch.positions[row]
    text = segments == segments[place]
    if objective == "permutation":
        alike = np.flatnonzero(text & (positions == positions[place]) & ~batch.learnt[row])
        assert batch.tokens[row, alike].tolist() == [batch.targets[row, place]]
        return alike.tolist()
    if objective == "masked" or (batch.order is not None and not batch.order[row, text].any()):
        return []  # it sees its own place and all others: what is hidden there is the collation's
    behind = np.flatnonzero(text & (positions == positions[place] + 1))
    assert batch.tokens[row, behind].tolist() in ([], [batch.targets[row, place]])
    return behind.tolist()


@pytest.mark.parametrize("objective", ["masked", "span-corruption", "permutation"])
def test_texts_of_a_row_give_the_loss_that_they_give_alone(
    extended_shards_folder: Path, objective: str
) -> None:
    batch = arranged_batch(extended_shards_folder, objective, rows=3)
    model, total, count = model_for(objective), 0.0, 0
    with torch.no_grad():
        whole = batch_loss(model, batch).item()
        for row, segments in enumerate(batch.segments):
            for segment in np.unique(segments):
                alone = take_text(batch, row, segment)
                if alone.learnt.any():
                    total += batch_loss(model, alone).item() * alone.learnt.sum()
                    count += alone.learnt.sum()
    assert whole == pytest.approx(total / count, rel=1e-5)


def take_text(batch: Batch, row: int, segment: int) -> Batch:
    """One text of a batch as a batch of its own."""
    parts = {}
    for field in fields(Batch):
        whole = getattr(batch, field.name)
        if whole is not None:
            read = field.name.startswith("source")
            home = batch.source_segments if read else batch.segments
            assert home is not None
            parts[field.name] = whole[row, home[row] == segment][None]
    return Batch(**parts)


def test_a_batch_with_sources_needs_a_model_that_reads_them(extended_shards_folder: Path) -> None:
    batch = arranged_batch(extended_shards_folder, "span-corruption", rows=1)
    with pytest.raises(TrainingError, match="needs an encoder: set model.kind"):
        batch_loss(model_for("causal"), batch)


def test_the_mean_loss_of_many_rows_is_over_all_that_is_learnt(
    extended_shards_folder: Path,
) -> None:
    tokenizer = Tokenizer.open(extended_shards_folder)
    config = make_config(objective="masked", row_tokens=32)
    loader = PackedLoader(
        Shards.open(extended_shards_folder, "train"),
        row_tokens=32,
        document_id=tokenizer.document_id,
        answers_only=False,
        seed=0,
        arrangement=make_arrangement(config, tokenizer),
    )
    model = model_for("masked")
    with torch.no_grad():
        whole = batch_loss(model, loader.rows(0, 7)).item()
    for rows_at_once in (1, 3, 7, 100):
        found = mean_loss(model, loader, rows=7, rows_at_once=rows_at_once)
        assert found == pytest.approx(whole, rel=1e-5)
