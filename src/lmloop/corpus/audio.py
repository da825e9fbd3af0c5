"""Sound as numbers: a WAV file to samples of one channel at 16 kHz, and back.

Takes: a WAV file with whole numbers of 8 to 32 bits, any number of channels, any usual rate.
Gives: samples between -1 and 1. What is no such file, or not all of one, is a `CorpusError`.
"""

from __future__ import annotations

import wave
from math import gcd
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lmloop.errors import CorpusError
from lmloop.store.artifact import write_whole

RATE = 16_000
"""Samples a second of all sound inside lmloop."""
RATES = range(1_000, 192_001)
"""Those that are read: the filter between two rates grows with their ratio."""


def read_wav(path: str | Path) -> NDArray[np.float32]:
    """Samples [N] at `RATE`, the mean of all channels; raise `CorpusError` for a bad file."""
    path = Path(path)
    try:
        if not path.is_file():
            raise CorpusError(f"{path} is no file: give the path of a .wav file")
        with path.open("rb") as stream, wave.open(stream) as file:
            frames, channels, width = file.getnframes(), file.getnchannels(), file.getsampwidth()
            rate = file.getframerate()
            # Before reading: room would be made for as much as the header promises.
            if frames * channels * width > path.stat().st_size:
                raise CorpusError(f"{path} is cut short: {frames} samples are promised")
            data = file.readframes(frames)
    except (wave.Error, EOFError, RuntimeError) as error:  # the last where a chunk is too long
        raise CorpusError(
            f"{path} is no WAV file of whole numbers ({str(error) or 'it ends too soon'}): "
            "convert it, as with ffmpeg -i IN -c:a pcm_s16le OUT.wav"
        ) from error
    except OSError as error:
        raise CorpusError(f"{path} cannot be read: {error}") from error
    if not frames:
        raise CorpusError(f"{path} has no samples")
    if len(data) < frames * channels * width:
        raise CorpusError(f"{path} is cut short: {frames} samples are promised")
    if rate not in RATES or width > 4:
        raise CorpusError(
            f"{path} has {rate} samples a second of {8 * width} bits: {RATES[0]} to {RATES[-1]} "
            "of 8 to 32 bits are allowed"
        )
    mono = decode_samples(data, width=width).reshape(-1, channels).mean(axis=1)
    return resample(mono, rate=rate)


def decode_samples(data: bytes, *, width: int) -> NDArray[np.float32]:
    """Numbers of `width` bytes, little endian, as shares of the loudest; one byte is unsigned."""
    raw = np.frombuffer(data, np.uint8).reshape(-1, width)
    # The bytes become the upper ones of 32 bits, whatever their number.
    wide = np.zeros((len(raw), 4), np.uint8)
    wide[:, 4 - width :] = raw ^ (0x80 if width == 1 else 0)
    return wide.view("<i4")[:, 0].astype(np.float32) / np.float32(2**31)


def resample(samples: NDArray[np.float32], *, rate: int) -> NDArray[np.float32]:
    """Samples [N] of another rate at `RATE`, through a filter against aliases."""
    if rate == RATE:
        return samples
    from scipy.signal import resample_poly

    common = gcd(rate, RATE)
    made: NDArray[np.float32] = resample_poly(samples, RATE // common, rate // common)
    return made.astype(np.float32, copy=False)


def write_wav(path: str | Path, samples: NDArray[np.float32]) -> None:
    """Write samples [N] at `RATE` as 16 bits, whole or not at all; louder than 1 is cut off.

    Raises `CorpusError` for what is no row of finite numbers.
    """
    if samples.ndim != 1 or not len(samples) or not np.isfinite(samples).all():
        raise CorpusError(f"samples of shape {list(samples.shape)} are no row of finite numbers")
    data = np.rint(samples.clip(-1, 1) * (2**15 - 1)).astype("<i2")
    with write_whole(Path(path)) as stream, wave.open(stream, "wb") as file:
        file.setparams((1, 2, RATE, 0, "NONE", ""))
        file.writeframes(data.tobytes())
