"""The log-mel spectrogram: bands by hand, and the same as by the plain sum."""

from __future__ import annotations

import cmath
import math

import numpy as np
import pytest

from lmloop.corpus.audio import RATE
from lmloop.corpus.spectrogram import log_mel, mel_filters


def test_silence_is_the_floor_everywhere() -> None:
    spectrogram = log_mel(np.zeros(1, np.float32))
    assert spectrogram.shape == (80, 3000)
    assert spectrogram.dtype == np.float32
    assert np.all(spectrogram == -1.5)  # log10 of 1e-10, then (x + 4) / 4


def test_a_tone_is_loudest_in_its_own_band() -> None:
    filters = mel_filters(80)
    for hertz in (200, 1000, 4000):
        tone = np.sin(2 * np.pi * hertz * np.arange(RATE) / RATE).astype(np.float32)
        spectrogram = log_mel(tone)
        assert spectrogram[:, 50].argmax() == filters[:, hertz // 40].argmax()
        assert spectrogram[:, 150:].max() == spectrogram.min(), "silence after one second"
        assert spectrogram.max() - spectrogram.min() == pytest.approx(2), "8 decades over 4"


@pytest.mark.parametrize("frame", [0, 11])
def test_one_value_is_the_plain_sum(frame: int) -> None:
    samples = np.random.default_rng(0).normal(0, 0.1, 30 * RATE).astype(np.float32)
    band, power = 7, []
    for bin_ in range(201):
        total = 0j
        for place in range(400):
            window = 0.5 - 0.5 * math.cos(2 * math.pi * place / 400)
            sample = float(samples[abs(160 * frame - 200 + place)])  # mirrored before the first
            total += sample * window * cmath.exp(-2j * math.pi * bin_ * place / 400)
        power.append(abs(total) ** 2)
    value = (math.log10(mel_filters(80)[band] @ np.array(power)) + 4) / 4
    assert log_mel(samples)[band, frame] == pytest.approx(value, abs=1e-6)


def test_bands_are_triangles_between_their_neighbours() -> None:
    filters = mel_filters(80)
    assert filters.shape == (80, 201)
    # Slaney: 15 steps to 1 kHz, 27 for each factor of 6.4 above; 8 kHz lies at 45.2455 of them.
    top = 15 + 27 * math.log(8) / math.log(6.4)
    step = top / 81
    assert step == pytest.approx(0.55858, abs=1e-5)
    low, middle, high = (200 / 3 * step * each for each in (1, 2, 3))
    frequency = 80.0
    inside = min((frequency - low) / (middle - low), (high - frequency) / (high - middle))
    assert filters[1, 2] == pytest.approx(inside * 2 / (high - low))
    assert np.all((filters > 0).sum(axis=1) >= 1)


def test_what_is_longer_than_30_seconds_is_refused() -> None:
    with pytest.raises(ValueError, match="480001 samples are more than 30 seconds"):
        log_mel(np.zeros(480_001, np.float32))
