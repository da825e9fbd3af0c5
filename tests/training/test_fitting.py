"""What is done where a run needs more memory than there is."""

from __future__ import annotations

import pytest

from lmloop.errors import TrainingError
from lmloop.training.fitting import (
    USABLE_SHARE,
    advise,
    choose_micro_batch,
    require_memory,
    usable_bytes,
)
from lmloop.training.memory import plan_memory

from .live_bytes import make_section, make_shape

WIDE, LONG = make_shape(256, 3, 500), make_shape(64, 2, 300)
BROAD = make_shape(1024, 8, 8000)


def test_nothing_is_advised_where_all_fits() -> None:
    assert advise(WIDE, make_section(), free=10**12) == []
    assert choose_micro_batch(WIDE, make_section(), free=10**12) == 256


def test_the_largest_micro_batch_that_fits_is_chosen() -> None:
    section = make_section(1 << 17, 64)
    peaks = {
        tokens: plan_memory(
            LONG, section.model_copy(update={"micro_batch_tokens": tokens})
        ).resident
        for tokens in (1 << 15, 1 << 16)
    }
    assert peaks[1 << 15] < peaks[1 << 16]
    for tokens in (1 << 15, 1 << 16):
        free = int(peaks[tokens] / USABLE_SHARE) + 1
        assert choose_micro_batch(LONG, section, free=free) == tokens
        assert plan_memory(LONG, section).resident > usable_bytes(free)


def test_what_to_change_is_told_in_order_with_its_bytes() -> None:
    section = make_section(2048, 64, ema=0.9, optimizer="adamw")
    least = plan_memory(
        BROAD,
        make_section(
            2048, 64, micro_batch_tokens=64, precision="bfloat16", optimizer="adamw", state_bits=8
        ),
    ).resident
    told = advise(BROAD, section, free=int(least / USABLE_SHARE) + 1)
    assert [line.split(" needs ")[0] for line in told] == [
        "micro_batch_tokens = 64",
        'precision = "bfloat16"',
        "no ema",
        "state_bits = 8",
    ]
    assert told[-1].endswith(f"needs {least / 1e6:,.0f} MB")


def test_a_model_that_fits_in_no_way_is_refused_with_what_would_help() -> None:
    with pytest.raises(TrainingError, match=r"needs \d+ MB even with one row of 64 tokens") as told:
        choose_micro_batch(WIDE, make_section(), free=8_000_000)
    assert "a model of" in str(told.value)
    assert "\n" not in str(told.value)


def test_a_run_that_cannot_fit_is_refused_with_what_to_change() -> None:
    section = make_section(1 << 16)
    peak = plan_memory(WIDE, section).resident
    require_memory(WIDE, section, free=peak)
    with pytest.raises(TrainingError, match=r"training needs .* are free: micro_batch_tokens = "):
        require_memory(WIDE, section, free=peak - 1)


def test_what_is_cut_by_itself_or_only_adapted_is_counted_as_that() -> None:
    section = make_section(1 << 16)
    free = plan_memory(WIDE, section).resident - 1
    require_memory(WIDE, section.model_copy(update={"micro_batch_tokens": "auto"}), free=free)
    require_memory(WIDE, section.model_copy(update={"lora_rank": 2}), free=free)
    with pytest.raises(TrainingError, match="are free: .*a model of"):
        auto = section.model_copy(update={"micro_batch_tokens": "auto"})
        require_memory(WIDE, auto, free=1000)
