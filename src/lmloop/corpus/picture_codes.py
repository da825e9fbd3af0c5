"""Pictures as codes: small pictures become whole numbers that a decoder can write, and PNG files.

Takes: pictures of one size, grey or of several colours, as bytes or as shares between 0 and 1.
Gives: a code a patch (or several), row by row, and pictures from codes. Axes: B pictures, H rows,
W columns, C colours, P patches of a picture, L levels, S side of a patch.
"""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lmloop.corpus.codebook import Codebook, fit_codebook
from lmloop.errors import CorpusError
from lmloop.store.artifact import write_whole

KIND = "picture"
PNG_KINDS = {1: 0, 3: 2, 4: 6}
"""Colours a pixel, and what PNG calls that: grey, red green blue, the same with opacity."""


def fit_picture_codes(
    pictures: ArrayLike, *, patch: int, num_codes: int = 512, num_levels: int = 1, seed: int = 0
) -> Codebook:
    """Learn a codebook of pictures [B, H, W, C], cut into squares of `patch` pixels.

    Raises `CorpusError` where they are no pictures, the patches do not fill them, or too few of
    the patches differ.
    """
    shares = _check_pictures(pictures)
    _, height, width, colours = shares.shape
    if patch < 1 or height % patch or width % patch:
        raise CorpusError(
            f"patches of {patch} do not fill {height} × {width} pixels: give a divisor of both"
        )
    layout = {"height": height, "width": width, "colours": colours, "patch": patch}
    return fit_codebook(
        cut_patches(shares, patch=patch),
        num_codes=num_codes,
        num_levels=num_levels,
        kind=KIND,
        layout=layout,
        seed=seed,
    )


def encode_pictures(pictures: ArrayLike, book: Codebook) -> NDArray[np.int64]:
    """Codes [B, P, L] of pictures [B, H, W, C] of the codebook's own size."""
    height, width, colours, patch = _sizes_of(book)
    shares = _check_pictures(pictures)
    if shares.shape[1:] != (height, width, colours):
        raise CorpusError(
            f"pictures of {list(shares.shape[1:])} do not fit the codebook: give "
            f"{[height, width, colours]}"
        )
    codes = book.encode(cut_patches(shares, patch=patch))
    return codes.reshape(len(shares), -1, book.num_levels)


def decode_pictures(codes: ArrayLike, book: Codebook) -> NDArray[np.uint8]:
    """Pictures [B, H, W, C] of codes [B, P, L], as bytes."""
    height, width, colours, patch = _sizes_of(book)
    rows, columns = height // patch, width // patch
    numbers = np.asarray(codes)
    if numbers.ndim != 3 or numbers.shape[1] != rows * columns:
        raise CorpusError(
            f"codes of shape {list(numbers.shape)} are no pictures: give {rows * columns} a picture"
        )
    patches = book.decode(numbers.reshape(-1, numbers.shape[2]))
    squares = patches.reshape(-1, rows, columns, patch, patch, colours).swapaxes(2, 3)
    shares = squares.reshape(-1, height, width, colours).clip(0, 1)
    pictures: NDArray[np.uint8] = np.rint(shares * 255).astype(np.uint8)
    return pictures


def cut_patches(shares: NDArray[np.float32], *, patch: int) -> NDArray[np.float32]:
    """Patches [B · P, S · S · C] of pictures [B, H, W, C], row by row."""
    count, height, width, colours = shares.shape
    rows, columns = height // patch, width // patch
    squares = shares.reshape(count, rows, patch, columns, patch, colours).swapaxes(2, 3)
    return squares.reshape(-1, patch * patch * colours)


def write_png(path: str | Path, picture: NDArray[np.uint8]) -> None:
    """Write a picture [H, W, C] of bytes, whole or not at all; C is 1, 3 or 4.

    Source: the PNG specification (W3C 2003), without filters.
    """
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] not in PNG_KINDS:
        raise CorpusError(
            f"{picture.dtype} {list(picture.shape)} is no picture: give uint8 [H, W, C] with C of "
            f"{', '.join(map(str, PNG_KINDS))}"
        )
    height, width, colours = picture.shape
    if not height or not width:
        raise CorpusError(f"{height} × {width} pixels are no picture: give at least one")
    header = struct.pack(">2I5B", width, height, 8, PNG_KINDS[colours], 0, 0, 0)
    # Each row begins with the number of its filter, none.
    rows = np.pad(picture.reshape(height, -1), ((0, 0), (1, 0))).tobytes()
    with write_whole(Path(path)) as file:
        file.write(b"\x89PNG\r\n\x1a\n")
        for name, data in ((b"IHDR", header), (b"IDAT", zlib.compress(rows, 9)), (b"IEND", b"")):
            check = zlib.crc32(name + data)
            file.write(struct.pack(">I", len(data)) + name + data + struct.pack(">I", check))


def _check_pictures(pictures: ArrayLike) -> NDArray[np.float32]:
    """Pictures [B, H, W, C] as shares between 0 and 1."""
    found = np.asarray(pictures)
    if found.ndim != 4 or not found.size:
        raise CorpusError(
            f"pictures of shape {list(found.shape)} do not fit: give [B, H, W, C], none of them 0"
        )
    if found.dtype == np.uint8:
        return found.astype(np.float32) / np.float32(255)
    if not np.issubdtype(found.dtype, np.floating) or not ((found >= 0) & (found <= 1)).all():
        raise CorpusError("pictures are bytes, or shares from 0 to 1: divide by the brightest")
    return found.astype(np.float32)


def _sizes_of(book: Codebook) -> tuple[int, int, int, int]:
    """Height, width, colours, side of a patch; raise `CorpusError` for another codebook."""
    sizes = [book.layout.get(name, 0) for name in ("height", "width", "colours", "patch")]
    height, width, colours, patch = sizes
    fits = min(sizes) > 0 and not height % patch and not width % patch
    if book.kind != KIND or not fits or book.vectors.shape[2] != patch * patch * colours:
        raise CorpusError(
            f"this codebook is of {book.kind}, {dict(book.layout)}: one that fit_picture_codes "
            "made is needed"
        )
    return height, width, colours, patch
