"""Memory foretold against memory counted, and what is done where it is not enough."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from lmloop.learning import PretrainConfig
from lmloop.model.config import ModelConfig
from lmloop.training import memory
from lmloop.training.compact import SMALL
from lmloop.training.memory import plan_memory

from ..conftest import random_model, tiny_shape
from .live_bytes import RESIDENT, count_live_bytes, make_section, make_shape

WIDE, LONG, LARGE_HEAD = make_shape(256, 3, 500), make_shape(64, 2, 300), make_shape(128, 2, 9000)
DEEP = make_shape(64, 6, 300)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("optimizer", ["muon", "adamw", "sgd", "schedule-free"])
@pytest.mark.parametrize(
    ("shape", "section"),
    [
        (WIDE, make_section(128)),
        (WIDE, make_section(512, micro_batch_tokens=128)),
        (LONG, make_section(2048, 256)),
        (LARGE_HEAD, make_section(512)),
    ],
    ids=["the update", "pieces", "activations", "the head"],
)
def test_memory_is_foretold_within_a_tenth(
    shape: ModelConfig, section: PretrainConfig, optimizer: str, precision: str
) -> None:
    section = section.model_copy(update={"optimizer": optimizer, "precision": precision})
    counted = count_live_bytes(shape, section)
    assert plan_memory(shape, section).peak == pytest.approx(counted, rel=0.1)


@pytest.mark.parametrize(
    "change", [{"ema": 0.9}, {"frozen": ("embedding.*", "blocks.0.*")}, {"ema": 0.9, "l1": 0.1}]
)
def test_averages_and_frozen_parts_are_counted(change: dict[str, Any]) -> None:
    section = make_section(128, **change)
    counted = count_live_bytes(WIDE, section)
    assert plan_memory(WIDE, section).peak == pytest.approx(counted, rel=0.1)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("checkpointing", ["selective", "full"])
@pytest.mark.parametrize("shape", [LONG, DEEP], ids=["long", "deep"])
def test_what_is_computed_again_is_counted(
    shape: ModelConfig, checkpointing: str, precision: str
) -> None:
    section = make_section(1024, 256, checkpointing=checkpointing, precision=precision)
    counted = count_live_bytes(shape, section)
    assert plan_memory(shape, section).peak == pytest.approx(counted, rel=0.1)
    kept = plan_memory(shape, section.model_copy(update={"checkpointing": "none"}))
    assert plan_memory(shape, section).peak < kept.peak


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("optimizer", ["muon", "adamw", "sgd"])
def test_state_in_8_bits_is_counted(optimizer: str, precision: str) -> None:
    section = make_section(128, optimizer=optimizer, precision=precision, state_bits=8)
    counted = count_live_bytes(WIDE, section)
    assert plan_memory(WIDE, section).peak == pytest.approx(counted, rel=0.1)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", [LONG, LARGE_HEAD], ids=["long", "the head"])
@pytest.mark.parametrize("width", [64, 512])
def test_a_teacher_is_counted(shape: ModelConfig, width: int, precision: str) -> None:
    section = make_section(512, 128, precision=precision)
    teacher = make_shape(width, 2, shape.vocab_size)
    counted = count_live_bytes(shape, section, teacher=teacher)
    assert plan_memory(shape, section, teacher=teacher).peak == pytest.approx(counted, rel=0.1)
    alone = plan_memory(shape, section)
    assert plan_memory(shape, section, teacher=teacher).peak > 1.05 * alone.peak


def test_state_in_8_bits_has_a_byte_a_number_and_a_scale_a_block() -> None:
    numbers = sum(each.numel() for each in random_model(WIDE).parameters() if each.numel() >= SMALL)
    exact = plan_memory(WIDE, make_section(128, optimizer="adamw"))
    small = plan_memory(WIDE, make_section(128, optimizer="adamw", state_bits=8))
    assert exact.optimizer - small.optimizer == 2 * (3 * numbers - 4 * numbers // 256)
    assert small.snapshot == small.masters + small.optimizer


def test_what_is_offloaded_is_not_in_the_memory_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    section = make_section(512, micro_batch_tokens=128, offload=True)
    here = plan_memory(WIDE, section)
    monkeypatch.setattr(memory, "best_device", lambda: torch.device("cuda", 0))
    there = plan_memory(WIDE, section)
    assert here.offloaded == 0
    assert there.offloaded == here.masters + here.optimizer + here.gathered
    assert there.kept == there.weights
    assert there.peak <= here.peak - there.offloaded


def test_each_part_has_the_bytes_of_its_numbers() -> None:
    shape = tiny_shape(num_layers=1, vocab_size=50)
    # Embedding 50·24, two norms and the last of 24, of heads 2·8; matrices of attention
    # (32 + 16 + 16 + 32)·24 and of the feed-forward layer 3·24·40.
    matrices, rest = 96 * 24 + 3 * 24 * 40, 50 * 24 + 3 * 24 + 2 * 8
    total = matrices + rest
    section = make_section(64, 32, precision="bfloat16", ema=0.9, patience=2)
    memory = plan_memory(shape, section)
    assert (memory.weights, memory.masters, memory.gradients) == (2 * total, 4 * total, 2 * total)
    assert memory.optimizer == 4 * matrices + 8 * rest
    assert (memory.averages, memory.gathered) == (8 * total, 0)
    assert memory.snapshot == memory.masters + memory.optimizer + memory.averages
    for method, states in (("adamw", 2), ("sgd", 1), ("schedule-free", 3)):
        other = plan_memory(shape, make_section(64, 32, optimizer=method))
        assert other.optimizer == 4 * states * total
    assert plan_memory(shape, make_section(64, 32, micro_batch_tokens=32)).gathered == 4 * total


ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    ("optimizer", "precision"),
    [("muon", "bfloat16"), ("adamw", "float32"), ("schedule-free", "float32")],
)
def test_a_process_that_hands_freed_memory_back_holds_what_was_foretold(
    optimizer: str, precision: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.training.live_bytes", optimizer, precision],
        cwd=ROOT,
        # Large blocks go back to the system when they are freed: no gaps between them are counted.
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": str(1 << 18)},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    # In bfloat16 a process holds some 55 MB beside its tensors whatever the batch: of 2,048 tokens
    # that is 12 % of the peak, here 8 %.
    section = make_section(4096, 256, optimizer=optimizer, precision=precision)
    assert plan_memory(RESIDENT, section).peak == pytest.approx(int(done.stdout), rel=0.1)
