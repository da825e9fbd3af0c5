"""Many processes as one run: the same sums, samples, losses and weights, and one end for all."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch

from lmloop.config import rank_setting
from lmloop.errors import CorpusError, StoppedError, TrainingError
from lmloop.learning import PretrainConfig
from lmloop.model.init import initialise
from lmloop.model.transformer import Transformer
from lmloop.progress import Silent
from lmloop.sections import ModelSection
from lmloop.tokens.loader import Batch, PackedLoader
from lmloop.training import parallel
from lmloop.training.ranks import Ranks, join_ranks
from lmloop.training.recipes import pretrain
from lmloop.training.run import Run as TrainingRun

from ..conftest import CONTEXT_LENGTH
from .conftest import Run, fork_ranks, make_clock, make_config, read_errors

MakeRun = Callable[..., Run]
STEPS = 50


def save(path: Path, value: object) -> None:
    path.write_text(json.dumps(value))


def test_ranks_add_up_agree_and_collect(tmp_path: Path) -> None:
    def work(ranks: Ranks) -> None:
        assert (ranks.size, ranks.is_first) == (3, ranks.rank == 0)
        tensor = torch.full((1000,), float(10**ranks.rank))
        ranks.add_up(tensor)
        assert tensor.tolist() == [111.0] * 1000
        # A third has no end in binary: it arrives whole, as the double that it is.
        assert ranks.agree(1 / 3 + ranks.rank) == 1 / 3
        assert ranks.total(0.1 * ranks.rank) == 0.1 + 0.2
        for dtype in (torch.bfloat16, torch.uint8, torch.bool, torch.float32):
            turned = torch.tensor([[0, 3, 1], [1, 0, 2]]).to(dtype).T * (ranks.rank == 0)
            scalar = torch.tensor(7 - ranks.rank).to(dtype)
            ranks.share(turned)
            ranks.share(scalar)
            first = torch.tensor([[0, 1], [3, 0], [1, 2]]).to(dtype)
            assert torch.equal(turned, first) and torch.equal(scalar, torch.tensor(7).to(dtype))
        texts = ranks.collect("ä" * 400 if ranks.rank == 1 else f"of {ranks.rank}")
        assert texts == ["of 0", "ä" * 256, "of 2"]
        # Rank r sends as many numbers as the receiver's: 10 r + receiver, to itself as well.
        sent = [torch.full((to,), 10 * ranks.rank + to, dtype=torch.bfloat16) for to in range(3)]
        got = ranks.exchange(sent, [ranks.rank] * 3)  # type: ignore[attr-defined]
        assert [each.tolist() for each in got] == [
            [10.0 * origin + ranks.rank] * ranks.rank for origin in range(3)
        ]

    assert fork_ranks(3, work, folder=tmp_path) == [0, 0, 0], read_errors(tmp_path)


@pytest.mark.parametrize("guilty", [0, 1])
def test_what_one_rank_cannot_do_is_told_once_and_ends_all(tmp_path: Path, guilty: int) -> None:
    def work(ranks: Ranks) -> None:
        if ranks.rank == guilty:
            raise CorpusError("there is no text")
        ranks.total(1.0)

    # The store is with the first rank here; under torchrun it outlives that one.
    assert set(fork_ranks(2, work, folder=tmp_path)) <= {1, 2}
    told = read_errors(tmp_path)
    assert told[0] == (
        "CorpusError: there is no text"
        if guilty == 0
        else "TrainingError: rank 1: there is no text"
    )


def test_what_all_ranks_refuse_is_told_by_the_first(tmp_path: Path) -> None:
    def work(ranks: Ranks) -> None:
        ranks.collect("")
        raise StoppedError("saved")

    assert fork_ranks(2, work, folder=tmp_path) == [0, 0]
    assert read_errors(tmp_path) == {0: "StoppedError: saved"}


def test_a_rank_that_finds_no_other_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "MEETING", timedelta(seconds=1))
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "1")
    with (
        pytest.raises(TrainingError, match="^rank 1 of 2 does not find the others .*torchrun"),
        join_ranks(rank_setting()),
    ):
        raise AssertionError


@pytest.mark.slow
@pytest.mark.parametrize(("size", "lost"), [(2, 1), (4, 2), (4, 0)])
def test_a_killed_rank_is_named_and_nobody_waits_for_it(
    tmp_path: Path, size: int, lost: int
) -> None:
    def work(ranks: Ranks) -> None:
        tensor = torch.zeros(100_000)
        for step in range(10**6):
            if (ranks.rank, step) == (lost, 5):
                os.kill(os.getpid(), signal.SIGKILL)
            ranks.add_up(tensor)

    began = time.monotonic()
    codes = fork_ranks(size, work, folder=tmp_path)
    assert time.monotonic() - began < 30
    expected = [1] * size
    expected[lost] = -signal.SIGKILL
    assert codes == expected
    told = read_errors(tmp_path)
    assert list(told) == [1 if lost == 0 else 0]
    assert next(iter(told.values())).startswith(f"LostRankError: rank {lost} is lost, ")


@pytest.mark.slow
def test_ranks_that_wait_in_vain_for_one_that_lives_name_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parallel, "STEP", timedelta(seconds=1))

    def work(ranks: Ranks) -> None:
        if ranks.rank == 1:
            time.sleep(4)  # hangs, for longer than the other waits
        ranks.total(1.0)

    assert fork_ranks(2, work, folder=tmp_path) == [1, 1]
    told = read_errors(tmp_path)
    assert told[0].startswith("LostRankError: the ranks have lost each other (")
    assert "is lost" not in told[0]


KINDS = {"decoder": "causal", "encoder": "masked", "encoder-decoder": "span-corruption"}


def train_kind(
    kind: str, shards: Path, folder: Path, ranks: Ranks, *, kv_heads: int = 1, **changes: Any
) -> None:
    """Pre-train a small model of a kind; each rank leaves its weights, the first a checkpoint."""
    torch.set_num_threads(1)
    shape = ModelSection(
        kind=kind,  # type: ignore[arg-type]
        num_layers=2,
        hidden_size=16,
        num_heads=2,
        num_kv_heads=kv_heads,
        head_dim=8,
        intermediate_size=24,
        context_length=CONTEXT_LENGTH,
    )
    settings = {"steps": STEPS, "batch_tokens": 256, "row_tokens": 32, "precision": "float32"}
    config = {**settings, "objective": KINDS[kind], "validate_every": 25, **changes}
    kept: list[Any] = []
    real = TrainingRun.finish

    def finish(self: Any, name: str, validate: Any) -> float:
        kept.append(self._optimizer)
        return real(self, name, validate)

    seen: list[int] = []
    rows = PackedLoader.rows

    def look(self: PackedLoader, start: int, count: int) -> Batch:
        seen.extend(range(start, start + count))
        return rows(self, start, count)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainingRun, "finish", finish)
        if kind == "decoder":  # the others also read rows to validate
            patch.setattr(PackedLoader, "rows", look)
        folder.mkdir(exist_ok=True)
        pretrain(
            PretrainConfig.model_validate(config),
            shape,
            shards=shards,
            folder=folder,
            run=folder / "run",
            seed=0,
            validate=lambda model: 2.5,
            clock=make_clock(),
            progress=Silent(),
            ranks=ranks,
        )
    weights = b"".join(each.numpy().tobytes() for each in kept[0].master.values())
    (folder / f"weights-{ranks.rank}").write_bytes(weights)
    save(folder / f"rows-{ranks.rank}", seen)


def read_journal(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "journal.jsonl").read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "optimizer", "loss", "norm"),
    [
        ("decoder", "adamw", 1e-6, 1e-4),
        ("encoder", "adamw", 1e-6, 1e-4),
        ("encoder-decoder", "adamw", 1e-6, 1e-4),
        # Muon rounds to bfloat16 on its way: a gradient that differs in its last bit can differ by
        # a bfloat16 step behind it. A batch in pieces in one process differs as much.
        ("decoder", "muon", 5e-4, 5e-2),
    ],
)
def test_fifty_steps_on_many_ranks_are_those_of_one_process_but_for_rounding(
    extended_shards_folder: Path,
    tmp_path: Path,
    kind: str,
    optimizer: str,
    loss: float,
    norm: float,
) -> None:
    journals: dict[int, list[dict[str, Any]]] = {}
    for size in (1, 2, 4):
        folder = tmp_path / str(size)
        folder.mkdir()

        def work(ranks: Ranks, folder: Path = folder) -> None:
            train_kind(kind, extended_shards_folder, folder, ranks, optimizer=optimizer)

        assert fork_ranks(size, work, folder=folder) == [0] * size, read_errors(folder)
        journals[size] = read_journal(folder)
        weights = {(folder / f"weights-{rank}").read_bytes() for rank in range(size)}
        assert len(weights) == 1
        if kind == "decoder":
            rows = [json.loads((folder / f"rows-{rank}").read_text()) for rank in range(size)]
            share = 8 // size
            dealt = [
                row
                for step in range(STEPS)
                for own in rows
                for row in own[step * share : (step + 1) * share]
            ]
            assert dealt == list(range(8 * STEPS))
    for size in (2, 4):
        assert len(journals[size]) == len(journals[1]) == STEPS
        assert journals[size][0]["norm"] == pytest.approx(journals[1][0]["norm"], rel=1e-6)
        for one, other in zip(journals[1], journals[size], strict=True):
            assert other["loss"] == pytest.approx(one["loss"], rel=loss)
            assert other["norm"] == pytest.approx(one["norm"], rel=norm)
    assert journals[1][-1]["loss"] < journals[1][0]["loss"] - 0.1


@pytest.mark.slow
def test_a_run_goes_on_in_the_same_weights_and_on_another_number_of_ranks(
    make_run: MakeRun, tmp_path: Path
) -> None:
    config = make_config(batch_tokens=64, steps=12, ema=0.9, optimizer="adamw")

    def go(name: str, size: int, *, stop: int | None = None) -> Run:
        run = make_run(name, config=config)

        def work(ranks: Ranks) -> None:
            real = TrainingRun.step

            def step(self: Any, share: float) -> Any:
                if self.position.step == stop:
                    os._exit(9)
                return real(self, share)

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(TrainingRun, "step", step)
                run.go(ranks=ranks, validate=lambda model: 1.0)
            (run.folder / f"weights-{ranks.rank}").write_bytes(b"".join(run.weights().values()))

        expected = [9 if stop is not None else 0] * size
        assert fork_ranks(size, work, folder=tmp_path) == expected, read_errors(tmp_path)
        return run

    unbroken, broken, grown = go("unbroken", 2), go("broken", 2, stop=6), go("grown", 2, stop=6)
    go("broken", 2)
    go("grown", 4)
    kept = {
        name: (run.folder / "weights-0").read_bytes()
        for name, run in (("unbroken", unbroken), ("broken", broken))
    }
    assert kept["broken"] == kept["unbroken"]
    for one, other in zip(grown.journal(), unbroken.journal(), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("sharding", ["none", "full"])
def test_all_ranks_begin_with_the_weights_of_the_first(
    make_run: MakeRun, tmp_path: Path, sharding: str
) -> None:
    """Bigrams are computed on each rank, and unlike processors may round them otherwise."""
    config = make_config(batch_tokens=64, steps=4, sharding=sharding)

    def go(name: str, *, apart: float) -> list[bytes]:
        run = make_run(name, config=config)

        def work(ranks: Ranks) -> None:
            def begin(model: Transformer, *, seed: int) -> None:
                initialise(model, seed=seed)
                with torch.no_grad():
                    for each in model.parameters():
                        each.mul_(1 + apart * ranks.rank)

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("tests.training.conftest.initialise", begin)
                run.go(ranks=ranks, validate=lambda model: 1.0)
            whole = ranks.is_first or sharding == "none"
            kept = b"".join(run.weights().values()) if whole else b""
            (run.folder / f"weights-{ranks.rank}").write_bytes(kept)

        assert fork_ranks(2, work, folder=tmp_path) == [0, 0], read_errors(tmp_path)
        return [(run.folder / f"weights-{rank}").read_bytes() for rank in range(2)]

    alike, unlike = go("alike", apart=0.0), go("unlike", apart=1e-3)
    assert unlike == alike
    assert sharding == "full" or alike[0] == alike[1]


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["stop", "skip", "rollback"])
def test_what_is_unsound_on_one_rank_is_dealt_with_by_all_alike(
    make_run: MakeRun, tmp_path: Path, policy: str
) -> None:
    run = make_run(config=make_config(batch_tokens=64, on_unsound=policy))

    def work(ranks: Ranks) -> None:
        steps = 0

        def poison(step: int) -> None:
            nonlocal steps
            weight = run.model.embedding.weight  # type: ignore[union-attr]
            for hook in list(weight._backward_hooks or {}):
                del weight._backward_hooks[hook]  # type: ignore[union-attr]
            if step == 6 and ranks.rank == 1:
                weight.register_hook(lambda grad: grad * torch.inf)

        rows = PackedLoader.rows

        def look(self: PackedLoader, start: int, count: int) -> Batch:
            poison(start // 4)
            return rows(self, start, count)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(PackedLoader, "rows", look)
            run.go(ranks=ranks, validate=lambda model: 1.0)
        (run.folder / f"weights-{ranks.rank}").write_bytes(b"".join(run.weights().values()))
        save(run.folder / f"said-{ranks.rank}", run.said.lines)

    codes = fork_ranks(2, work, folder=tmp_path)
    told = read_errors(tmp_path)
    if policy == "stop":
        assert codes == [2, 2]
        assert list(told) == [0]
        assert "at step 6" in told[0]
        assert "it was first in embedding.weight, documents" in told[0]
        return
    assert codes == [0, 0], told
    first, second = ((run.folder / f"weights-{rank}").read_bytes() for rank in range(2))
    assert first == second
    assert len(run.journal()) == 10
    assert ("skipped" in run.journal()[6]) == (policy == "skip")


@pytest.mark.slow
def test_a_sigterm_to_any_rank_stops_all_after_the_same_step(
    make_run: MakeRun, tmp_path: Path
) -> None:
    run = make_run(config=make_config(batch_tokens=64, steps=1000, save_every=1000))

    def work(ranks: Ranks) -> None:
        def step(number: int) -> None:
            if (ranks.rank, number) == (1, 7):
                os.kill(os.getpid(), signal.SIGTERM)

        real = TrainingRun.step

        def watch(self: Any, share: float) -> Any:
            step(self.position.step)
            return real(self, share)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(TrainingRun, "step", watch)
            run.go(ranks=ranks, validate=lambda model: 1.0)

    assert fork_ranks(2, work, folder=tmp_path) == [0, 0]
    told = read_errors(tmp_path)
    assert list(told) == [0]
    assert "is saved at step 8: the same command goes on" in told[0]
    assert run.snapshots() == ["snapshot-00000008"]


@pytest.mark.slow
def test_the_first_ranks_clock_counts_for_all(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(config=make_config(batch_tokens=64, budget="3s"))

    def work(ranks: Ranks) -> None:
        run.go(ranks=ranks, clock=make_clock(0.1 + ranks.rank), validate=lambda model: 1.0)
        (run.folder / f"weights-{ranks.rank}").write_bytes(b"".join(run.weights().values()))

    assert fork_ranks(2, work, folder=tmp_path) == [0, 0], read_errors(tmp_path)
    assert len(run.journal()) > 5
    first, second = ((run.folder / f"weights-{rank}").read_bytes() for rank in range(2))
    assert first == second
