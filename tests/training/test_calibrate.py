"""How fast training is, by a clock that can be read."""

from __future__ import annotations

import numpy as np
import pytest

from lmloop.training import calibrate as module
from lmloop.training.calibrate import Speed, draw_batch, measure_speed

from .conftest import make_clock
from .live_bytes import make_section, make_shape

SHAPE = make_shape(64, 1, 50)


def test_a_step_is_its_tokens_and_one_update() -> None:
    speed = Speed(token_seconds=0.001, update_seconds=0.5)
    assert speed.step_seconds(make_section(2000, 8)) == pytest.approx(2.5)


def test_the_clock_decides_what_a_token_and_an_update_take() -> None:
    # Each look at the clock is 0.1 s after the one before it.
    speed = measure_speed(SHAPE, make_section(64, 16), seconds=1.0, clock=make_clock(0.1))
    assert speed.token_seconds == pytest.approx(0.1 / 64)
    assert speed.update_seconds == pytest.approx(0.1)


def test_a_piece_of_a_batch_is_measured_where_that_is_all_there_is_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    section = make_section(64, 16, micro_batch_tokens=32)
    speed = measure_speed(SHAPE, section, seconds=0.1, clock=make_clock(0.1))
    assert speed.token_seconds == pytest.approx(0.1 / 32)
    monkeypatch.setattr(module, "LARGEST_PROBE", 1.0)
    speed = measure_speed(SHAPE, section, seconds=0.1, clock=make_clock(0.1))
    assert speed.token_seconds == pytest.approx(0.1 / 16)


def test_a_drawn_batch_has_the_shape_and_share_that_were_asked_for() -> None:
    batch = draw_batch(SHAPE, 20, 50, learnt_share=0.3)
    assert batch.tokens.shape == (20, 50)
    assert batch.learnt.mean() == pytest.approx(0.3, abs=0.05)
    assert batch.source is None
    pair = make_shape(64, 1, 50, encoder=make_shape(64, 1, 50, causal=False, head="none"))
    source = draw_batch(pair, 2, 8, source_tokens=5).source
    assert source is not None
    assert source.shape == (2, 5)
    assert np.all(source < 50)
