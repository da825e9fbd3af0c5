"""CTranslate2's `model.bin`, one variable after the other: read and checked.

Takes: a path, of which nothing is believed. Gives: the name of the model's specification, and any
variable on request. The format, version 6 since CTranslate2 3.0, is what its `specs/model_spec.py`
writes and its `models/model.cc` reads, little endian.
"""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lmloop.errors import ArtifactError
from lmloop.weights.gguf import quote

if TYPE_CHECKING:
    from jaxtyping import Shaped

VERSION = 6
MAX_VARIABLES = 100_000
DTYPES = tuple(map(np.dtype, ("<f4", "i1", "<i2", "<i4", "<f2", "<u2")))
"""By CTranslate2's number of each; the last are the bits of bfloat16, which numpy lacks."""


@dataclass(frozen=True, slots=True)
class CTranslate2File:
    """An open file. It is mapped: as with any mapping, nobody may cut it short while it is open."""

    path: Path
    specification: str
    """What kind of model it is, as `WhisperSpec`."""
    variables: Mapping[str, NDArray[Any]]
    """Views of the file by name; an alias is a second name of one view."""

    def read(self, name: str, *, dtype: torch.dtype = torch.float32) -> Shaped[Tensor, "*axes"]:
        """The variable in memory of its own; raise `ArtifactError` where none is called `name`.

        Fractions come in `dtype`; so do whole numbers with a scale beside them, one for all or one
        a row, by which they are divided. Whole numbers without one stay what they are.
        """
        if name not in self.variables:
            raise ArtifactError(f"{self.path} has no variable {quote(name)}")
        bits = self.variables[name]
        values = torch.from_numpy(bits.copy())
        values = values.view(torch.bfloat16) if bits.dtype == DTYPES[-1] else values
        scale = self.variables.get(f"{name}_scale")
        if scale is not None:
            if scale.dtype != DTYPES[0] or scale.shape not in ((), bits.shape[:1]):
                raise ArtifactError(f"{self.path}: the scale of {quote(name)} is not one a row")
            values = values / torch.from_numpy(scale.reshape(-1, *[1] * (bits.ndim - 1)).copy())
        return values.to(dtype) if values.is_floating_point() else values


def open_ctranslate2(path: str | Path) -> CTranslate2File:
    """Map a file and check it from front to back; raise `ArtifactError` naming file and fault."""
    path = Path(path)
    try:
        if not path.is_file():
            raise ArtifactError(f"{path} is no file: give the path of a CTranslate2 model.bin")
        with path.open("rb") as stream:
            if stream.read(4) != VERSION.to_bytes(4, "little"):
                raise ArtifactError(f"{path} is no CTranslate2 model of version {VERSION}")
            data = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error}") from error
    cursor = _Cursor(path, data)
    specification, _revision = cursor.text(), cursor.number(4)
    for _ in range(cursor.number(4)):
        cursor.add(cursor.text(), cursor.variable())
    for _ in range(cursor.number(4)):
        alias, name = cursor.text(), cursor.text()
        for kind in ("", "_scale") if f"{name}_scale" in cursor.variables else ("",):
            cursor.add(alias + kind, cursor.variables.get(name + kind))
    if cursor.offset != len(data):
        raise cursor.fail(f"{len(data) - cursor.offset} bytes follow its end")
    return CTranslate2File(path, specification, cursor.variables)


class _Cursor:
    """Reads a file from front to back, and never past its end."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path, self.data, self.offset = path, data, 4
        self.variables: dict[str, NDArray[Any]] = {}

    def add(self, name: str, found: NDArray[Any] | None) -> None:
        if found is None or name in self.variables or len(self.variables) == MAX_VARIABLES:
            raise self.fail(f"{quote(name)} stands for nothing, comes twice or is one too many")
        self.variables[name] = found

    def fail(self, what: str) -> ArtifactError:
        return ArtifactError(f"{self.path} is damaged: {what} (at byte {self.offset})")

    def take(self, size: int) -> int:
        """Where the next `size` bytes begin; the file goes on after them."""
        if size > len(self.data) - self.offset:
            raise self.fail(f"{size} bytes are promised, {len(self.data) - self.offset} are left")
        self.offset += size
        return self.offset - size

    def number(self, size: int) -> int:
        return int.from_bytes(self.data[self.take(size) : self.offset], "little")

    def text(self) -> str:
        """The next name; what is no UTF-8 in it is a name that nobody asks for."""
        name = self.data[self.take(self.number(2)) : self.offset]
        return name.decode(errors="replace").removesuffix("\0")

    def variable(self) -> NDArray[Any]:
        shape = tuple(self.number(4) for _ in range(self.number(1)))
        type_id, size = self.number(1), self.number(4)
        dtype = DTYPES[type_id] if type_id < len(DTYPES) else None
        if dtype is None or len(shape) > 4 or not size == prod(shape) * dtype.itemsize > 0:
            raise self.fail(f"{size} bytes of type {type_id} have the shape {quote(shape)}")
        return np.ndarray(shape, dtype, buffer=self.data, offset=self.take(size))
