"""What is known of a model without its numbers, against tensors that were counted."""

from __future__ import annotations

from typing import Any

import pytest

from lmloop.errors import TrainingError
from lmloop.model.config import ModelConfig
from lmloop.training.memory import plan_memory
from lmloop.training.outline import outline

from .live_bytes import count_live_bytes, make_section, make_shape

WIDE, LONG, LARGE_HEAD = make_shape(256, 3, 500), make_shape(64, 2, 300), make_shape(128, 2, 9000)
DEEP = make_shape(64, 6, 300)
ADAPTED = [
    {},
    {"dora": True},
    {"lora_dropout": 0.1},
    {"base_bits": 4},
    {"base_bits": 4, "dora": True},
    {"lora_targets": ("q_proj", "v_proj")},
    {"checkpointing": "full"},
    {"checkpointing": "selective"},
    {"base_bits": 4, "dora": True, "checkpointing": "selective"},
]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", [WIDE, LARGE_HEAD], ids=["wide", "the head"])
@pytest.mark.parametrize("change", ADAPTED, ids=lambda change: " ".join(change) or "plain")
def test_what_learns_beside_a_model_is_foretold_within_a_tenth(
    shape: ModelConfig, change: dict[str, Any], precision: str
) -> None:
    section = make_section(512, precision=precision, lora_rank=8, **change)
    counted = count_live_bytes(shape, section)
    assert plan_memory(shape, section).peak == pytest.approx(counted, rel=0.1)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", [LONG, DEEP], ids=["long", "deep"])
def test_long_rows_and_pieces_beside_a_model_are_foretold_as_well(
    shape: ModelConfig, precision: str
) -> None:
    section = make_section(1024, 256, precision=precision, lora_rank=8, micro_batch_tokens=512)
    counted = count_live_bytes(shape, section)
    assert plan_memory(shape, section).peak == pytest.approx(counted, rel=0.1)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "frozen",
    [
        ("embedding.*", "blocks.[01].*"),
        ("blocks.*",),
        ("norm.*", "blocks.1.*"),
        ("embedding.*", "blocks.*.mixer.*"),
    ],
    ids=" ".join,
)
def test_what_is_frozen_keeps_less(frozen: tuple[str, ...], precision: str) -> None:
    section = make_section(512, precision=precision, frozen=frozen)
    counted = count_live_bytes(WIDE, section)
    foretold = plan_memory(WIDE, section)
    assert foretold.peak == pytest.approx(counted, rel=0.1)
    everything = plan_memory(WIDE, section.model_copy(update={"frozen": ()}))
    assert foretold.activations < everything.activations


def test_an_adapter_has_gradients_and_moments_and_the_model_none() -> None:
    section = make_section(64, lora_rank=8, lora_targets=("q_proj",), precision="bfloat16")
    memory = plan_memory(LONG, section)
    # Of both layers A [8, 64] and B [64, 8].
    numbers = 2 * (8 * 64 + 64 * 8)
    assert (memory.masters, memory.optimizer, memory.gradients) == (
        4 * numbers,
        8 * numbers,
        4 * numbers,
    )
    whole = sum(each.numel() for each in outline(LONG, make_section(64)).parameters())
    assert memory.weights == 2 * whole + 4 * numbers
    assert memory.snapshot == 12 * numbers


def test_a_base_of_4_bits_has_half_a_byte_a_number_and_a_scale_a_block() -> None:
    plain, small = (
        plan_memory(LONG, make_section(64, lora_rank=8, base_bits=bits)) for bits in (None, 4)
    )
    # Queries, keys, values and output are 64 + 32 + 32 + 64 rows of 64; gate, up and down 3 · 192.
    numbers = 2 * ((64 + 32 + 32 + 64) * 64 + 3 * 192 * 64)
    assert plain.weights - small.weights == 4 * numbers - numbers // 2 - 4 * numbers // 64


def test_a_pattern_that_fits_nothing_is_refused_before_any_work() -> None:
    with pytest.raises(TrainingError, match="fits no parameter"):
        outline(LONG, make_section(64, frozen=("nothing.*",)))
