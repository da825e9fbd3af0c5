"""WAV files: every width and rate becomes the same samples, and a bad file is one line."""

from __future__ import annotations

import struct
import tracemalloc
import wave
from pathlib import Path

import numpy as np
import pytest

from lmloop.corpus.audio import RATE, decode_samples, read_wav, resample, write_wav
from lmloop.errors import CorpusError


def write(
    folder: Path, data: bytes, *, width: int = 2, channels: int = 1, rate: int = RATE
) -> Path:
    path = folder / "sound.wav"
    with wave.open(str(path), "wb") as file:
        file.setparams((channels, width, rate, 0, "NONE", ""))
        file.writeframes(data)
    return path


@pytest.mark.parametrize(
    ("width", "data"),
    [
        (1, bytes([128, 192, 0])),
        (2, struct.pack("<3h", 0, 2**14, -(2**15))),
        (3, b"\0\0\0" + b"\0\0\x40" + b"\0\0\x80"),
        (4, struct.pack("<3i", 0, 2**30, -(2**31))),
    ],
)
def test_every_width_is_a_share_of_the_loudest(tmp_path: Path, width: int, data: bytes) -> None:
    assert decode_samples(data, width=width).tolist() == [0, 0.5, -1]
    samples = read_wav(write(tmp_path, data, width=width))
    assert samples.tolist() == [0, 0.5, -1]
    assert samples.dtype == np.float32


def test_channels_become_their_mean(tmp_path: Path) -> None:
    path = write(tmp_path, struct.pack("<4h", 2**14, 0, -(2**14), 2**14), channels=2)
    assert read_wav(path).tolist() == [0.25, 0]


@pytest.mark.parametrize("rate", [8_000, 11_025, 22_050, 44_100, 48_000])
def test_a_tone_of_another_rate_is_the_same_tone(rate: int) -> None:
    def tone(each: int) -> np.ndarray:
        return np.sin(2 * np.pi * 440 * np.arange(each) / each).astype(np.float32)

    samples = resample(tone(rate), rate=rate)
    assert samples.shape == (RATE,)
    assert samples.dtype == np.float32
    # The filter rings where the sound begins and ends.
    assert np.abs(samples - tone(RATE))[500:-500].max() < 2e-3


def test_what_is_too_high_for_the_rate_is_taken_out_not_folded_down() -> None:
    high = np.sin(2 * np.pi * 11_000 * np.arange(48_000) / 48_000).astype(np.float32)
    assert np.abs(resample(high, rate=48_000)[500:-500]).max() < 2e-3


def header(
    *, rate: int = RATE, frames: int = 2, data: bytes = bytes(4), kind: int = 1, bits: int = 16
) -> bytes:
    form = struct.pack("<HHIIHH", kind, 1, rate, 0, bits // 8, bits)
    size = frames * bits // 8
    chunks = b"WAVEfmt " + struct.pack("<I", 16) + form + b"data" + struct.pack("<I", size) + data
    return b"RIFF" + struct.pack("<I", min(2**32 - 1, 36 + size)) + chunks


BAD = {
    "a text": (
        b"Hello, world. This is no sound at all.",
        r"no WAV file .*does not start with RIFF",
    ),
    "an empty file": (b"", "no WAV file"),
    "a beginning only": (header()[:30], "no WAV file"),
    "a chunk beyond the file": (
        header()[:16] + b"\xff\xff\0\0" + header()[20:36] + b"LIST\5\0\0\0abcde\0dat",
        "no WAV file",
    ),
    "fractions": (header(kind=3), r"no WAV file .*unknown format: 3.*ffmpeg"),
    "no samples": (header(frames=0, data=b""), "has no samples"),
    "half of the samples": (header(frames=4), "is cut short: 4 samples are promised"),
    "a size of gigabytes": (header(frames=2**31 - 100), "is cut short: 2147483548 samples"),
    "no rate": (header(rate=0), "has 0 samples a second of 16 bits: 1000 to 192000"),
    "a rate of gigahertz": (header(rate=2**31), "has 2147483648 samples a second"),
    "64 bits": (header(bits=64, frames=1, data=bytes(8)), "of 64 bits: .* of 8 to 32 bits"),
}


@pytest.mark.parametrize("fault", BAD)
def test_a_bad_file_is_refused_in_one_line(tmp_path: Path, fault: str) -> None:
    data, why = BAD[fault]
    path = tmp_path / "sound.wav"
    path.write_bytes(data)
    with pytest.raises(CorpusError, match=why) as refusal:
        read_wav(path)
    assert str(path) in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_no_room_is_made_for_what_a_header_promises(tmp_path: Path) -> None:
    path = tmp_path / "sound.wav"
    path.write_bytes(header(frames=2**28))
    tracemalloc.start()
    with pytest.raises(CorpusError, match="is cut short"):
        read_wav(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"is no file: give the path of a \.wav file"):
        read_wav(tmp_path)


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "made.wav"
    write_wav(path, np.array([0, 0.5, -1, 2], np.float32))
    np.testing.assert_allclose(read_wav(path), [0, 0.5, -1, 1], atol=2**-14)
    with wave.open(str(path)) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (RATE, 1, 2)


@pytest.mark.parametrize("samples", [np.zeros(0), np.zeros((2, 5)), np.array([0, np.nan])])
def test_what_is_no_sound_leaves_no_file(tmp_path: Path, samples: np.ndarray) -> None:
    with pytest.raises(CorpusError, match="no row of finite numbers"):
        write_wav(tmp_path / "made.wav", samples.astype(np.float32))
    assert list(tmp_path.iterdir()) == []
