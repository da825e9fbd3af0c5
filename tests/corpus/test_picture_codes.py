"""Pictures become codes and pictures again, and PNG files that others open."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest

from lmloop.corpus.codebook import Codebook
from lmloop.corpus.picture_codes import (
    cut_patches,
    decode_pictures,
    encode_pictures,
    fit_picture_codes,
    write_png,
)
from lmloop.errors import CorpusError


def draw(count: int, *, colours: int = 1) -> np.ndarray:
    """Pictures of 4 × 6 pixels whose patches of 2 × 2 are of one of three shades."""
    shades = np.random.default_rng(0).choice([0, 100, 255], (count, 2, 3, colours))
    return shades.repeat(2, axis=1).repeat(2, axis=2).astype(np.uint8)


@pytest.mark.parametrize("colours", [1, 3])
def test_pictures_of_few_patches_come_back_as_they_were(colours: int) -> None:
    pictures = draw(60, colours=colours)
    book = fit_picture_codes(pictures, patch=2, num_codes=3**colours)
    codes = encode_pictures(pictures, book)
    assert codes.shape == (60, 6, 1)
    np.testing.assert_array_equal(decode_pictures(codes, book), pictures)


def test_shares_and_bytes_are_the_same_pictures() -> None:
    pictures = draw(20)
    book = fit_picture_codes(pictures, patch=2, num_codes=3)
    shares = encode_pictures(pictures / 255, book)
    np.testing.assert_array_equal(shares, encode_pictures(pictures, book))


def test_patches_are_cut_row_by_row() -> None:
    picture = np.arange(16, dtype=np.float32).reshape(1, 4, 4, 1)
    assert cut_patches(picture, patch=2).tolist() == [
        [0, 1, 4, 5],
        [2, 3, 6, 7],
        [8, 9, 12, 13],
        [10, 11, 14, 15],
    ]


def test_what_lies_beyond_black_and_white_is_cut_off() -> None:
    layout = {"height": 1, "width": 2, "colours": 1, "patch": 1}
    book = Codebook(np.array([[[-0.5], [1.5]]], np.float32), "picture", layout)
    assert decode_pictures([[[0], [1]]], book).ravel().tolist() == [0, 255]


@pytest.mark.parametrize(
    ("pictures", "patch", "complaint"),
    [
        (draw(5)[0], 2, r"shape \[4, 6, 1\]"),
        (draw(0), 2, "none of them 0"),
        (draw(5), 4, "patches of 4 do not fill 4 × 6"),
        (draw(5), 0, "patches of 0"),
        (draw(5) * 1.0, 2, "divide by the brightest"),
        (np.full((1, 4, 6, 1), np.nan), 2, "divide by the brightest"),
        (draw(5).astype(int), 2, "divide by the brightest"),
        (np.zeros((9, 4, 6, 1), np.uint8), 2, "54 vectors, 1 of them different"),
    ],
)
def test_what_gives_no_codes_is_refused(pictures: np.ndarray, patch: int, complaint: str) -> None:
    with pytest.raises(CorpusError, match=complaint):
        fit_picture_codes(pictures, patch=patch, num_codes=3)


def test_other_sizes_codes_and_codebooks_are_refused() -> None:
    book = fit_picture_codes(draw(20), patch=2, num_codes=3)
    with pytest.raises(CorpusError, match=r"give \[4, 6, 1\]"):
        encode_pictures(draw(2, colours=3), book)
    with pytest.raises(CorpusError, match="give 6 a picture"):
        decode_pictures(np.zeros((1, 5, 1), int), book)
    with pytest.raises(CorpusError, match="from 0 to 2"):
        decode_pictures(np.full((1, 6, 1), 3), book)
    for other in (
        Codebook(book.vectors, "sound", book.layout),
        Codebook(book.vectors, "picture", {}),
        Codebook(book.vectors, "picture", {**book.layout, "patch": 4}),
    ):
        with pytest.raises(CorpusError, match="fit_picture_codes made is needed"):
            encode_pictures(draw(2), other)


@pytest.mark.parametrize(("colours", "kind"), [(1, 0), (3, 2), (4, 6)])
def test_a_png_says_what_the_picture_is(tmp_path: Path, colours: int, kind: int) -> None:
    picture = np.arange(6 * colours, dtype=np.uint8).reshape(2, 3, colours)
    path = tmp_path / "picture.png"
    write_png(path, picture)
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    parts, place = {}, 8
    while place < len(data):
        (length,) = struct.unpack(">I", data[place : place + 4])
        name, body = data[place + 4 : place + 8], data[place + 8 : place + 8 + length]
        (check,) = struct.unpack(">I", data[place + 8 + length : place + 12 + length])
        assert zlib.crc32(name + body) == check
        parts[name] = body
        place += 12 + length
    assert list(parts) == [b"IHDR", b"IDAT", b"IEND"]
    assert struct.unpack(">2I5B", parts[b"IHDR"]) == (3, 2, 8, kind, 0, 0, 0)
    rows = zlib.decompress(parts[b"IDAT"])
    assert rows == b"\0" + picture[0].tobytes() + b"\0" + picture[1].tobytes()


@pytest.mark.parametrize(
    "picture",
    [
        np.zeros((2, 3, 2), np.uint8),
        np.zeros((2, 3), np.uint8),
        np.zeros((2, 3, 1)),
        np.zeros((0, 3, 1), np.uint8),
    ],
)
def test_what_is_no_picture_leaves_no_file(tmp_path: Path, picture: np.ndarray) -> None:
    with pytest.raises(CorpusError, match="picture"):
        write_png(tmp_path / "picture.png", picture)
    assert list(tmp_path.iterdir()) == []
