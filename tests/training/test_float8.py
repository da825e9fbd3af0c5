"""Runs in float8: the loop, many ranks, and how a recipe asks for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from lmloop.errors import TrainingError
from lmloop.learning import FinetuneConfig, PretrainConfig
from lmloop.model import hardware
from lmloop.model.fp8 import Float8Linear
from lmloop.model.hardware import settle_dtype, settle_model
from lmloop.model.init import initialise
from lmloop.model.transformer import Transformer
from lmloop.progress import Silent
from lmloop.training import calibrate
from lmloop.training.calibrate import measure_speed
from lmloop.training.loop import train
from lmloop.training.memory import plan_memory
from lmloop.training.ranks import ALONE, Ranks

from ..conftest import VOCAB_SIZE, tiny_shape
from .conftest import WatchedLoader, fork_ranks, make_clock, make_config, read_errors
from .test_recipes import Place, run_pretrain

SHAPE = tiny_shape(vocab_size=VOCAB_SIZE, num_layers=1, hidden_size=32, intermediate_size=48)
Bytes = dict[str, bytes]


@pytest.fixture
def lent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the processor stand for a GPU that has float8: its products are the same, and slow."""
    monkeypatch.setattr(hardware, "_gpu_has_float8", lambda: True)


def learn(
    shards: Path,
    folder: Path,
    *,
    ranks: Ranks = ALONE,
    before_step: Callable[[int], object] = lambda step: None,
    **changes: Any,
) -> tuple[float, Bytes]:
    """Loss and weights of a run in float8, which goes on where `folder` has a snapshot."""
    folder.mkdir(exist_ok=True)
    config = make_config(precision="fp8", **changes)
    model = Transformer(SHAPE)
    initialise(model, seed=0)
    settle_model(model, config.precision)
    found = train(
        model,
        WatchedLoader(shards, config, before_step, answers_only=False),
        config,
        folder=folder,
        validate=lambda model: 1.0,
        clock=make_clock(),
        progress=Silent(),
        name="test",
        ranks=ranks,
    )
    assert any(isinstance(each, Float8Linear) for each in model.modules())
    kept = model.state_dict() if ranks.is_first else {}
    raw = {name: each.view(torch.uint8) for name, each in kept.items()}
    return found.final_loss, {name: bytes(each.numpy()) for name, each in raw.items()}


@pytest.mark.usefixtures("lent")
@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_a_run_that_was_killed_ends_in_the_same_weights(
    shards_folder: Path, tmp_path: Path, optimizer: str
) -> None:
    def fall(step: int) -> None:
        if step == 6:
            raise KeyboardInterrupt

    unbroken = learn(shards_folder, tmp_path / "one", optimizer=optimizer)
    with pytest.raises(KeyboardInterrupt):
        learn(shards_folder, tmp_path / "two", before_step=fall, optimizer=optimizer)
    assert learn(shards_folder, tmp_path / "two", optimizer=optimizer) == unbroken


@pytest.mark.usefixtures("lent")
@pytest.mark.parametrize("sharding", ["none", "full"])
def test_two_ranks_learn_what_one_process_does(
    shards_folder: Path, tmp_path: Path, sharding: str
) -> None:
    alone, _ = learn(shards_folder, tmp_path / "alone", optimizer="adamw")

    def work(ranks: Ranks) -> None:
        folder = tmp_path / f"rank-{ranks.rank}" if sharding == "none" else tmp_path / "both"
        loss, _ = learn(shards_folder, folder, ranks=ranks, optimizer="adamw", sharding=sharding)
        if ranks.is_first:
            (tmp_path / "loss").write_text(repr(loss))

    assert fork_ranks(2, work, folder=tmp_path) == [0, 0], read_errors(tmp_path)
    # Each rank rounds its part of a batch in a unit of its own.
    assert float((tmp_path / "loss").read_text()) == pytest.approx(alone, rel=1e-3)


def make_place(folder: Path, name: str) -> Place:
    (folder / name).mkdir()
    return Place(folder / name, folder / "runs" / name)


@pytest.mark.usefixtures("lent")
def test_a_checkpoint_is_laid_out_as_that_of_a_run_in_bfloat16(
    shards_folder: Path, tmp_path: Path
) -> None:
    kept = []
    for precision in ("fp8", "bfloat16"):
        place = make_place(tmp_path, precision)
        counts = run_pretrain(shards_folder, place, steps=2, precision=precision)
        assert counts["precision"] == precision
        kept.append(load_file(place.folder / "model.safetensors"))
    one, other = kept
    layouts = [{name: (x.shape, x.dtype) for name, x in each.items()} for each in kept]
    assert layouts[0] == layouts[1]
    assert any(not torch.equal(one[name], other[name]) for name in one)


@pytest.mark.usefixtures("lent")
def test_memory_and_time_of_a_run_are_foreseen(monkeypatch: pytest.MonkeyPatch) -> None:
    section, plain = (make_config(precision=name) for name in ("fp8", "bfloat16"))
    assert plan_memory(SHAPE, section) == plan_memory(SHAPE, plain)
    met: list[bool] = []
    real = calibrate.batch_loss

    def look(model: Transformer, batch: Any, **given: Any) -> torch.Tensor:
        met.append(any(isinstance(each, Float8Linear) for each in model.modules()))
        return real(model, batch, **given)

    monkeypatch.setattr(calibrate, "batch_loss", look)
    speed = measure_speed(SHAPE, section, seconds=0.1, clock=make_clock(0.1))
    assert speed.token_seconds > 0
    assert all(met)


def test_a_machine_without_float8_refuses_it_in_one_line(
    shards_folder: Path, tmp_path: Path
) -> None:
    place = make_place(tmp_path, "base")
    with pytest.raises(TrainingError, match="capability 8.9.*give 'bfloat16'") as told:
        run_pretrain(shards_folder, place, precision="fp8")
    assert "\n" not in str(told.value)
    assert told.value.exit_code == 2
    assert not any(place.folder.iterdir())
    assert not place.run.exists()


@pytest.mark.parametrize(
    ("capability", "hip", "has"),
    [((9, 0), None, True), ((8, 9), None, True), ((8, 6), None, False), ((9, 4), "6.2", False)],
)
def test_a_gpu_has_float8_from_ada_on(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], hip: str | None, has: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(torch.version, "hip", hip)
    if has:
        assert settle_dtype("fp8") == torch.bfloat16
    else:
        with pytest.raises(TrainingError, match="needs an NVIDIA GPU"):
            settle_dtype("fp8")


@pytest.mark.parametrize("section", [PretrainConfig, FinetuneConfig])
@pytest.mark.parametrize("changes", [{"lora_rank": 4}, {"tensor_parallel": 2}])
def test_what_does_not_go_with_float8_is_named(section: Any, changes: dict[str, int]) -> None:
    (key,) = changes
    with pytest.raises(ValidationError, match=f"{key} .*: take one out"):
        section(steps=1, precision="fp8", **changes)
