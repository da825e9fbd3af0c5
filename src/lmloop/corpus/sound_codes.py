"""Sound as codes: speech becomes whole numbers that a decoder can write, and speech again.

Takes: samples at 16 kHz. Gives: codes, and samples from codes. What is coded is how loud each band
of pitch is; the waves are found again by their agreement alone. Source: Perraudin, Balazs and
Søndergaard 2013, A Fast Griffin-Lim Algorithm. Axes: N samples, M bands, T frames (100 a second),
S steps of several frames, L levels.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lmloop.corpus.audio import RATE
from lmloop.corpus.codebook import Codebook, fit_codebook
from lmloop.corpus.spectrogram import HOP, SECONDS, WINDOW, log_mel, mel_filters
from lmloop.errors import CorpusError

KIND = "sound"
NUM_BINS = 80
ROUNDS, MOMENTUM = 60, 0.99
"""Of Griffin-Lim."""
PEAK = 0.7
"""Share of full loudness that decoded sound has."""
DEPTH = 1.25
"""What is told apart below the loudest, in `log_mel`'s measure: five decades of power."""
TINY = 1e-12
_PART = SECONDS * RATE


def fit_sound_codes(
    clips: Iterable[NDArray[np.float32]],
    *,
    num_codes: int = 512,
    num_levels: int = 4,
    frames: int = 4,
    seed: int = 0,
) -> Codebook:
    """Learn a codebook of clips [N]; one step is `frames` hundredths of a second.

    Raises `CorpusError` where they are too short or too much alike for so many codes.
    """
    if not 1 <= frames <= 100:
        raise CorpusError(f"a step of {frames} frames is no usual one: give 1 to 100")
    steps = [cut_steps(clip, frames=frames) for clip in clips]
    if not steps:
        raise CorpusError("there is no sound to learn codes of: give at least one clip")
    layout = {"rate": RATE, "hop": HOP, "bins": NUM_BINS, "frames": frames}
    return fit_codebook(
        np.concatenate(steps),
        num_codes=num_codes,
        num_levels=num_levels,
        kind=KIND,
        layout=layout,
        seed=seed,
    )


def encode_sound(samples: NDArray[np.float32], book: Codebook) -> NDArray[np.int64]:
    """Codes [S, L] of samples [N]; a last step is filled up with silence."""
    return book.encode(cut_steps(samples, frames=_frames_of(book)))


def decode_sound(codes: ArrayLike, book: Codebook, *, seed: int = 0) -> NDArray[np.float32]:
    """Samples [N] of codes [S, L]: S steps of `frames` times `HOP` samples."""
    _frames_of(book)
    logs = book.decode(codes).reshape(-1, NUM_BINS).T
    if not logs.size:
        raise CorpusError("there are no codes to make sound of: give at least one step")
    # What `log_mel` did, undone; the loudest is not in it, and set below.
    power = 10 ** (4 * logs.astype(np.float64))
    samples = find_waves(spread_bands(power), seed=seed)
    peak = np.abs(samples).max()
    return (samples * (PEAK / peak if peak else 1)).astype(np.float32)


def cut_steps(samples: NDArray[np.float32], *, frames: int) -> NDArray[np.float32]:
    """Steps [S, frames · M] of samples [N]: the log-mel spectrogram below its loudest place."""
    if samples.ndim != 1 or len(samples) < HOP:
        raise CorpusError(
            f"samples of shape {list(samples.shape)} are no sound: give one row of at least {HOP}"
        )
    if not np.isfinite(samples).all():
        raise CorpusError("a sample is not finite: read the sound again")
    logs = np.concatenate(
        [
            log_mel(part, num_bins=NUM_BINS)[:, : -(-len(part) // HOP)]
            for part in (samples[at : at + _PART] for at in range(0, len(samples), _PART))
        ],
        axis=1,
    )
    below = np.maximum(logs - logs.max(), -DEPTH)
    missing = -below.shape[1] % frames
    filled = np.pad(below, ((0, 0), (0, missing)), constant_values=-DEPTH)
    return filled.T.reshape(-1, frames * NUM_BINS)


def spread_bands(power: NDArray[np.float64]) -> NDArray[np.float64]:
    """Magnitudes [F, T] of all frequencies whose bands have the power [M, T].

    Source: Lee and Seung 2001, Algorithms for Non-negative Matrix Factorization.
    """
    filters = mel_filters(len(power))
    found = np.ones((filters.shape[1], power.shape[1]))
    wanted, square = filters.T @ power, filters.T @ filters
    for _ in range(ROUNDS):
        found *= wanted / np.maximum(square @ found, TINY)
    return np.sqrt(found)


def find_waves(magnitudes: NDArray[np.float64], *, seed: int) -> NDArray[np.float64]:
    """Samples [T · HOP] whose spectrogram has these magnitudes [F, T], as nearly as can be."""
    from scipy.signal import ShortTimeFFT

    count = magnitudes.shape[1]
    transform = ShortTimeFFT(np.hanning(WINDOW + 1)[:-1], HOP, RATE)
    length = count * HOP

    def turn(spectrum: NDArray[np.complex128]) -> NDArray[np.float64]:
        samples: NDArray[np.float64] = transform.istft(spectrum, k1=length)
        return samples

    last = transform.p_max(length) - count
    magnitudes = np.pad(magnitudes, ((0, 0), (-transform.p_min, last)), mode="edge")
    angles = np.random.default_rng(seed).uniform(0, 2 * np.pi, magnitudes.shape)
    spectrum = magnitudes * np.exp(1j * angles)
    before = np.zeros_like(spectrum)
    for _ in range(ROUNDS):
        made = transform.stft(turn(spectrum))
        ahead = made + MOMENTUM * (made - before)
        spectrum = magnitudes * ahead / np.maximum(np.abs(ahead), TINY)
        before = made
    return turn(spectrum)


def _frames_of(book: Codebook) -> int:
    """Frames of a step; raise `CorpusError` for a codebook of anything else."""
    frames = book.layout.get("frames", 0)
    fixed = {"rate": RATE, "hop": HOP, "bins": NUM_BINS, "frames": frames}
    width = frames * NUM_BINS
    if book.kind != KIND or book.layout != fixed or book.vectors.shape[2] != width or not width:
        raise CorpusError(
            f"this codebook is of {book.kind}, {dict(book.layout)}: one that fit_sound_codes made "
            "is needed"
        )
    return frames
