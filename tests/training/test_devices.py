"""Training on another device than the processor: nothing is made or left on the wrong one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.optim import optimizer as module

from lmloop.model.config import ModelConfig
from lmloop.model.init import initialise
from lmloop.model.transformer import Transformer
from lmloop.training.batch import batch_loss
from lmloop.training.calibrate import draw_batch
from lmloop.training.optim import make_optimizer

from ..elsewhere import ELSEWHERE, Elsewhere
from ..model.kinds import decoder, pair
from .live_bytes import make_section, make_shape


@pytest.fixture(autouse=True)
def _fuse_there_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch fuses its optimizers on CUDA; let it believe the same of tensors without storage."""
    monkeypatch.setattr(module, "_get_fused_kernels_supported_devices", lambda: ["meta"])


def step_elsewhere(config: ModelConfig, **changes: Any) -> None:
    section = make_section(128, **changes)
    model = Transformer(config)
    initialise(model, seed=0)
    model.to(ELSEWHERE).train()
    model.checkpoint(section.checkpointing)
    batch = draw_batch(config, 2, 16, learnt_share=0.5)
    with Elsewhere():
        optimizer = make_optimizer(model, section)
        for _ in range(2):
            batch_loss(model, batch).backward()
            optimizer.gather(0.5)
            batch_loss(model, batch).backward()
            optimizer.gather(0.5)
            assert optimizer.step(1.0, clip=1.0) == 1.0
    # Counts of steps may lie anywhere.
    large = {each.device for each in optimizer.state().values() if each.numel() > 2}
    assert large == {ELSEWHERE}


SHAPE = make_shape(64, 2, 300)


@pytest.mark.parametrize("bits", [32, 8])
@pytest.mark.parametrize("optimizer", ["muon", "adamw", "sgd"])
def test_a_decoder_learns_where_it_is(optimizer: str, bits: int) -> None:
    step_elsewhere(SHAPE, optimizer=optimizer, state_bits=bits)


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer": "schedule-free"},
        {"ema": 0.9, "l1": 0.1, "weight_decay": 0.1, "label_smoothing": 0.1},
        {"checkpointing": "full"},
        {"checkpointing": "selective"},
    ],
)
def test_every_method_stays_on_the_device(changes: dict[str, Any]) -> None:
    step_elsewhere(SHAPE, **changes)


@pytest.mark.parametrize("make", [decoder, pair])
@pytest.mark.parametrize(
    "kind", ["gpt2", "gemma", "relative", "first transformer", "cosine, learnt"]
)
def test_every_kind_stays_on_the_device(kind: str, make: Any) -> None:
    step_elsewhere(make(kind))


def test_the_watch_finds_a_tensor_on_the_wrong_device() -> None:
    there, here = torch.ones(2, device=ELSEWHERE), torch.ones(2)
    with Elsewhere():
        assert there.sum().item() == 1.0
        assert (there + here.to(ELSEWHERE)).device == ELSEWHERE
        with pytest.raises(AssertionError, match="mixes"):
            there + here
