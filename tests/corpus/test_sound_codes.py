"""Sound becomes codes and sound again."""

from __future__ import annotations

import numpy as np
import pytest

from lmloop.corpus.audio import RATE
from lmloop.corpus.codebook import Codebook
from lmloop.corpus.sound_codes import (
    cut_steps,
    decode_sound,
    encode_sound,
    find_waves,
    fit_sound_codes,
    spread_bands,
)
from lmloop.corpus.spectrogram import HOP, mel_filters
from lmloop.errors import CorpusError


def tone(hertz: float, *, seconds: float = 0.24) -> np.ndarray:
    times = np.arange(int(seconds * RATE)) / RATE
    return (0.5 * np.sin(2 * np.pi * hertz * times)).astype(np.float32)


def pitch(samples: np.ndarray) -> float:
    """Hertz of the loudest frequency."""
    return float(np.abs(np.fft.rfft(samples)).argmax() * RATE / len(samples))


@pytest.fixture(scope="module")
def book() -> Codebook:
    clips = [tone(hertz, seconds=0.2) for hertz in (300, 600, 1200, 2400)]
    return fit_sound_codes(clips, num_codes=8, num_levels=2, frames=2)


@pytest.mark.parametrize("hertz", [300, 600, 1200, 2400])
def test_a_tone_comes_back_at_its_pitch(book: Codebook, hertz: float) -> None:
    samples = tone(hertz)
    codes = encode_sound(samples, book)
    assert codes.shape == (12, 2)
    again = decode_sound(codes, book)
    assert again.shape == samples.shape
    assert again.dtype == np.float32
    assert np.abs(again).max() == pytest.approx(0.7)
    assert pitch(again) == pytest.approx(hertz, abs=40)


def test_two_tones_follow_each_other(book: Codebook) -> None:
    codes = encode_sound(np.concatenate([tone(2400), tone(300)]), book)
    again = decode_sound(codes, book)
    assert pitch(again[:3600]) == pytest.approx(2400, abs=40)
    assert pitch(again[4200:]) == pytest.approx(300, abs=40)


def test_the_same_codes_give_the_same_samples(book: Codebook) -> None:
    codes = encode_sound(tone(600), book)
    np.testing.assert_array_equal(decode_sound(codes, book), decode_sound(codes, book))


def test_loudness_does_not_matter(book: Codebook) -> None:
    quiet = encode_sound(tone(600) * np.float32(0.25), book)
    np.testing.assert_array_equal(quiet, encode_sound(tone(600), book))


def test_a_last_step_is_filled_up() -> None:
    assert cut_steps(tone(300, seconds=0.055), frames=4).shape == (2, 320)
    assert cut_steps(tone(300, seconds=0.055), frames=4)[1, 160:].max() == -1.25


def test_sound_of_any_length_is_cut() -> None:
    steps = cut_steps(tone(300, seconds=30.5), frames=5)
    assert steps.shape == (610, 400)


def test_the_waves_have_the_magnitudes_that_were_asked_for() -> None:
    from scipy.signal import ShortTimeFFT

    samples = tone(440) + tone(1330)
    transform = ShortTimeFFT(np.hanning(401)[:-1], HOP, RATE)
    wanted = np.abs(transform.stft(samples, p0=0, p1=24))
    found = np.abs(transform.stft(find_waves(wanted, seed=0), p0=0, p1=24))
    # At its ends the sound is cut, and the waves cannot know how.
    assert np.abs(found - wanted)[:, 3:-3].max() < 0.15 * wanted.max()


def test_the_bands_of_what_was_spread_are_those_given() -> None:
    power = np.random.default_rng(0).uniform(0.5, 1, (201, 3))
    bands = mel_filters(80) @ power
    np.testing.assert_allclose(mel_filters(80) @ spread_bands(bands) ** 2, bands, rtol=0.05)


@pytest.mark.parametrize(
    ("samples", "complaint"),
    [
        (np.zeros(0, np.float32), r"shape \[0\]"),
        (np.zeros(100, np.float32), "at least 160"),
        (np.zeros((2, 400), np.float32), "give one row"),
        (np.full(400, np.nan, np.float32), "not finite"),
    ],
)
def test_what_is_no_sound_is_refused(book: Codebook, samples: np.ndarray, complaint: str) -> None:
    with pytest.raises(CorpusError, match=complaint):
        encode_sound(samples, book)


def test_silence_and_nothing_give_no_codebook() -> None:
    with pytest.raises(CorpusError, match="1 of them different"):
        fit_sound_codes([np.zeros(RATE, np.float32)], num_codes=4)
    with pytest.raises(CorpusError, match="at least one clip"):
        fit_sound_codes([])
    with pytest.raises(CorpusError, match="give 1 to 100"):
        fit_sound_codes([tone(300)], frames=0)


def test_no_codes_and_other_codebooks_are_refused(book: Codebook) -> None:
    with pytest.raises(CorpusError, match="at least one step"):
        decode_sound(np.zeros((0, 2), int), book)
    for other in (
        Codebook(book.vectors, "picture", book.layout),
        Codebook(book.vectors, "sound", {**book.layout, "frames": 3}),
        Codebook(book.vectors, "sound", {**book.layout, "rate": 8000}),
        Codebook(book.vectors, "sound", {}),
    ):
        with pytest.raises(CorpusError, match="fit_sound_codes made is needed"):
            encode_sound(tone(300), other)
