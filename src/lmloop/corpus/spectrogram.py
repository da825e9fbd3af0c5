"""The log-mel spectrogram: how loud each band of pitch is, a hundred times a second.

Takes: samples at 16 kHz. Gives: what Whisper's encoder reads. Source: Radford et al. 2022, Robust
Speech Recognition via Large-Scale Weak Supervision, section 2.2. Axes: M bands, T frames.
"""

from __future__ import annotations

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from lmloop.corpus.audio import RATE

SECONDS = 30
"""Of sound in one spectrogram; what is shorter is filled up with silence."""
WINDOW, HOP = 400, 160
"""Samples under one frame, and from one frame to the next."""
FLOOR = 1e-10
"""Power below which nothing is told apart."""
DECADES = 8.0
"""Of power below the loudest that are kept."""
KNEE, LINEAR, LOGARITHMIC = 1000.0, 200 / 3, 27 / np.log(6.4)
"""Slaney's scale of pitch (Auditory Toolbox, 1998): steps of 200/3 Hz up to 1 kHz, then 27 for a
factor of 6.4."""


def log_mel(samples: NDArray[np.float32], *, num_bins: int = 80) -> NDArray[np.float32]:
    """Spectrogram [M, T = 3000] of samples [N] of at most 30 seconds, mostly between -1 and 1."""
    length = SECONDS * RATE
    if len(samples) > length:
        raise ValueError(f"{len(samples)} samples are more than {SECONDS} seconds: cut them first")
    padded = np.pad(np.pad(samples, (0, length - len(samples))), WINDOW // 2, mode="reflect")
    frames = sliding_window_view(padded, WINDOW)[:-1:HOP]
    # Periodic: the window's last value would be the first of the next one.
    hann = np.hanning(WINDOW + 1)[:-1]
    power = np.abs(np.fft.rfft(frames * hann)) ** 2
    logs = np.log10(np.maximum(mel_filters(num_bins) @ power.T, FLOOR))
    kept: NDArray[np.float64] = np.maximum(logs, logs.max() - DECADES)
    return ((kept + 4) / 4).astype(np.float32)


def mel_filters(num_bins: int) -> NDArray[np.float64]:
    """Weights [M, 201] of the frequencies of a frame: triangles of equal area, overlapping."""
    top = KNEE / LINEAR + LOGARITHMIC * np.log(RATE / 2 / KNEE)
    corners = _hertz(np.linspace(0, top, num_bins + 2))
    low, middle, high = (corners[shift : num_bins + shift, None] for shift in range(3))
    frequencies = np.fft.rfftfreq(WINDOW, 1 / RATE)
    rising = (frequencies - low) / (middle - low)
    falling = (high - frequencies) / (high - middle)
    triangles: NDArray[np.float64] = np.maximum(0, np.minimum(rising, falling)) * 2 / (high - low)
    return triangles


def _hertz(mels: NDArray[np.float64]) -> NDArray[np.float64]:
    knee = KNEE / LINEAR
    bent = KNEE * np.exp((np.maximum(mels, knee) - knee) / LOGARITHMIC)
    return np.where(mels < knee, mels * LINEAR, bent)
