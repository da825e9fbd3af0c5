"""Pictures: every kind of file becomes the same numbers, and a bad one is one line."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lmloop.corpus.pictures import (
    LARGEST_FILE,
    PictureRules,
    prepare_picture,
    read_picture,
    read_picture_rules,
    resize,
)
from lmloop.errors import CorpusError

COLOURS = {1: 0, 3: 2, 4: 6}
"""What PNG calls pixels of so many numbers."""


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(pixels: np.ndarray, *, sizes: tuple[int, int] | None = None) -> bytes:
    """A PNG file of pixels [H, W, C], or one that promises other sizes."""
    height, width, channels = pixels.shape
    told = sizes or (height, width)
    lines = b"".join(b"\0" + line.tobytes() for line in pixels)
    head = struct.pack(">IIBBBBB", told[1], told[0], 8, COLOURS[channels], 0, 0, 0)
    parts = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def draw(height: int, width: int, channels: int = 3) -> np.ndarray:
    shape = height, width, channels
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def write(folder: Path, data: bytes) -> Path:
    path = folder / "picture.png"
    path.write_bytes(data)
    return path


def test_the_pixels_of_a_file_are_read_as_they_lie(tmp_path: Path) -> None:
    pixels = draw(5, 7)
    found = read_picture(write(tmp_path, png(pixels)), channels=3)
    assert found.dtype == np.uint8
    assert np.array_equal(found, pixels)


def test_gray_and_transparent_pictures_have_three_channels_too(tmp_path: Path) -> None:
    gray, clear = draw(5, 7, 1), draw(5, 7, 4)
    found = read_picture(write(tmp_path, png(gray)), channels=3)
    assert np.array_equal(found, gray.repeat(3, axis=2))
    found = read_picture(write(tmp_path, png(clear)), channels=3)
    assert np.array_equal(found, clear[:, :, :3])


def test_a_model_that_sees_gray_is_given_gray(tmp_path: Path) -> None:
    gray = draw(5, 7, 1)
    assert np.array_equal(read_picture(write(tmp_path, png(gray)), channels=1), gray)
    colours = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]]], np.uint8)
    found = read_picture(write(tmp_path, png(colours)), channels=1)
    assert found[0, :, 0].tolist() == [76, 150, 29, 255]


def test_two_channels_are_no_picture(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="2 channels"):
        read_picture(write(tmp_path, png(draw(2, 2))), channels=2)


def test_what_is_no_picture_is_one_line(tmp_path: Path) -> None:
    whole = png(draw(20, 30))
    for data in (b"", b"no picture", whole[:60], whole[:-40], png(draw(2, 2), sizes=(40_000,) * 2)):
        with pytest.raises(CorpusError, match=r"picture\.png is no picture .* PNG or JPEG$"):
            read_picture(write(tmp_path, data), channels=3)
    for path in (tmp_path, tmp_path / "none.png"):
        with pytest.raises(CorpusError, match="is no file"):
            read_picture(path, channels=3)


def test_a_file_beyond_all_bounds_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "large.png"
    with path.open("wb") as file:
        file.truncate(LARGEST_FILE + 1)
    with pytest.raises(CorpusError, match="more than 64 MiB"):
        read_picture(path, channels=3)


def test_half_as_many_pixels_are_means_of_those_under_a_triangle() -> None:
    line = np.array([[[0], [0], [80], [80], [160], [160]]], np.uint8)
    # A new pixel is two old ones wide: it sees four with 1/8, 3/8, 3/8, 1/8, at the end three.
    assert resize(line, height=1, width=3)[0, :, 0].tolist() == [11, 80, 149]


def test_more_pixels_lie_on_lines_between_the_old_ones() -> None:
    line = np.array([[[0]], [[100]]], np.uint8)
    assert resize(line, height=4, width=1)[:, 0, 0].tolist() == [0, 25, 75, 100]


def test_pixels_become_numbers_channel_by_channel() -> None:
    rules = PictureRules(size=2, mean=(0.0, 0.5, 0.5), std=(1.0, 0.5, 0.25))
    pixels = np.full((2, 2, 3), (255, 255, 0), np.uint8)
    numbers = prepare_picture(pixels, rules)
    assert numbers.dtype == np.float32
    assert numbers.shape == (3, 2, 2)
    assert numbers[:, 0, 0].tolist() == [1.0, 1.0, -2.0]


def test_rules_are_those_of_the_file_and_else_those_of_vit() -> None:
    usual = PictureRules(size=8, mean=(0.5,) * 3, std=(0.5,) * 3)
    assert read_picture_rules({}, size=8, channels=3) == usual
    assert read_picture_rules(usual.describe(), size=8, channels=3) == usual
    assert read_picture_rules({"size": 8}, size=8, channels=3) == usual
    told = {"image_mean": [0.1], "image_std": [0.2], "rescale_factor": 0.5}
    rules = read_picture_rules(told, size=8, channels=1)
    assert rules == PictureRules(size=8, mean=(0.1,), std=(0.2,), factor=0.5)
    told = {"do_normalize": False, "do_rescale": False}
    rules = read_picture_rules(told, size=8, channels=1)
    assert rules == PictureRules(size=8, mean=(0.0,), std=(1.0,), factor=1.0)


@pytest.mark.parametrize(
    ("entries", "told"),
    [
        ({"size": {"shortest_edge": 8}}, "size is .* sees"),
        ({"size": 9}, "size is 9"),
        ({"resample": 3}, "resample is 3: known here is 2"),
        ({"do_resize": False}, "do_resize is False"),
        ({"do_center_crop": True}, "do_center_crop is True"),
        ({"image_mean": [0.5]}, "inhomogeneous"),
        ({"image_mean": [0.5], "image_std": [0.5]}, "3 numbers each"),
        ({"image_std": [0.5, 0.0, 0.5]}, "none zero"),
        ({"image_mean": [0.5, float("nan"), 0.5]}, "3 numbers each"),
    ],
)
def test_rules_that_are_not_followed_here_are_refused(entries: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        read_picture_rules(entries, size=8, channels=3)
