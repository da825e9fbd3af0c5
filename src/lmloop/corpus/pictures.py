"""Pictures as numbers: a file to the square of pixels that an encoder sees.

Takes: a PNG, JPEG, GIF, BMP, TIFF or WebP file, decoded by Daft. Gives: numbers around zero [C, H,
W], as the image processors of ViT make them. What is no such file is a `CorpusError`. Axes: H, W
pixels, C channels: three, or one of gray.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmloop.config import silence_telemetry
from lmloop.errors import CorpusError

LARGEST_FILE = 64 * 2**20
"""Bytes of a file that is read; the decoder itself keeps to 512 MiB of pixels."""
_BILINEAR = 2
"""What image processors call this way of resizing."""
_LUMA = 19_595, 38_470, 7_471
"""Shares of red, green and blue in gray, of 65,536 (ITU-R BT.601)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PictureRules:
    """How pixels become the numbers that a model was trained on."""

    size: int
    """Pixels on each side."""
    mean: tuple[float, ...]
    """Of each channel, taken away from shares of the brightest."""
    std: tuple[float, ...]
    """Of each channel, what is divided by then."""
    factor: float = 1 / 255
    """What makes shares of whole numbers."""

    def describe(self) -> dict[str, Any]:
        """The entries of a `preprocessor_config.json` that image processors read."""
        return {
            "image_processor_type": "ViTImageProcessor",
            "do_resize": True,
            "size": {"height": self.size, "width": self.size},
            "resample": _BILINEAR,
            "do_rescale": True,
            "rescale_factor": self.factor,
            "do_normalize": True,
            "image_mean": list(self.mean),
            "image_std": list(self.std),
        }


def read_picture_rules(entries: Mapping[str, Any], *, size: int, channels: int) -> PictureRules:
    """What a `preprocessor_config.json` says, for a model that sees `size` pixels of `channels`.

    Absent entries are those of ViT: everything is done, mean and deviation are 0.5. Raises
    `ValueError` for what is done otherwise here, or makes no sense.
    """
    square = {"height": size, "width": size}
    if entries.get("size", size) not in (size, square):
        raise ValueError(f"size is {entries['size']}: the model sees {square}")
    expected = {"do_resize": True, "resample": _BILINEAR, "do_center_crop": False}
    for name, known in expected.items():
        if entries.get(name, known) != known:
            raise ValueError(f"{name} is {entries[name]!r}: known here is {known!r}")
    factor, mean, std = 1.0, [0.0] * channels, [1.0] * channels
    if entries.get("do_rescale", True):
        factor = float(entries.get("rescale_factor", 1 / 255))
    if entries.get("do_normalize", True):
        mean, std = (entries.get(name, [0.5] * channels) for name in ("image_mean", "image_std"))
    numbers = np.array([mean, std], dtype=float)
    if numbers.shape != (2, channels) or not np.isfinite(numbers).all() or not numbers[1].all():
        raise ValueError(
            f"image_mean is {mean}, image_std {std}: {channels} numbers each, of the latter none "
            "zero, are needed"
        )
    first, second = (tuple(each) for each in numbers.tolist())
    return PictureRules(size=size, mean=first, std=second, factor=factor)


def read_picture(path: str | Path, *, channels: int) -> NDArray[np.uint8]:
    """Pixels [H, W, C] of a file; raise `CorpusError` for a bad one, `ValueError` for 2 channels.

    What is transparent is taken as if it were not; of a film the first picture.
    """
    if channels not in (1, 3):
        raise ValueError(f"{channels} channels: pictures have 3, or 1 where they are gray")
    path = Path(path)
    try:
        if not path.is_file():
            raise CorpusError(f"{path} is no file: give the path of a picture")
        if path.stat().st_size > LARGEST_FILE:
            raise CorpusError(f"{path} has more than {LARGEST_FILE >> 20} MiB: make it smaller")
        data = path.read_bytes()
    except OSError as error:
        raise CorpusError(f"{path} cannot be read: {error}") from error
    pixels = _decode(data, path=path)
    if channels == 3:
        return pixels
    # As Pillow rounds it.
    gray = (pixels.astype(np.uint32) @ np.array(_LUMA, np.uint32) + 2**15) >> 16
    return gray.astype(np.uint8)[:, :, None]


def prepare_picture(pixels: NDArray[np.uint8], rules: PictureRules) -> NDArray[np.float32]:
    """Numbers [C, size, size] of pixels [H, W, C] of any height and width."""
    resized = resize(pixels, height=rules.size, width=rules.size)
    shares = resized.astype(np.float32) * np.float32(rules.factor)
    mean, std = (np.array(each, np.float32) for each in (rules.mean, rules.std))
    return np.ascontiguousarray(((shares - mean) / std).transpose(2, 0, 1))


def resize(pixels: NDArray[np.uint8], *, height: int, width: int) -> NDArray[np.uint8]:
    """Pixels [H, W, C] as [height, width, C], each the mean of those around it.

    Near ones count more, in a triangle as wide as a new pixel, as in Pillow: columns first, both
    rounded.
    """
    for axis, length in ((1, width), (0, height)):
        if pixels.shape[axis] != length:
            weights = _triangles(pixels.shape[axis], length)
            summed = np.moveaxis(np.tensordot(weights, pixels, axes=(1, axis)), 0, axis)
            pixels = np.floor(summed + 0.5).clip(0, 255).astype(np.uint8)
    return pixels


def _triangles(old: int, new: int) -> NDArray[np.float64]:
    """Weights [new, old] of the pixels of a line, which add up to one."""
    step = old / new
    reach = max(step, 1.0)
    centres = (np.arange(new) + 0.5) * step
    distances = np.abs(np.arange(old) + 0.5 - centres[:, None]) / reach
    weights = np.maximum(0.0, 1.0 - distances)
    scaled: NDArray[np.float64] = weights / weights.sum(axis=1, keepdims=True)
    return scaled


def _decode(data: bytes, *, path: Path) -> NDArray[np.uint8]:
    """Red, green and blue [H, W, 3] of a file's bytes; raise `CorpusError` where it is damaged."""
    silence_telemetry()
    import daft

    try:
        column = daft.Series.from_pylist([data]).image.decode(mode=daft.ImageMode.RGB)
        pixels: NDArray[np.uint8] = column.to_pylist()[0]
    except daft.exceptions.DaftCoreException as error:
        raise CorpusError(
            f"{path} is no picture that can be read, or only a part of one: "
            "convert it to PNG or JPEG"
        ) from error
    return pixels
