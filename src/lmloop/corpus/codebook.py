"""A codebook: any vector becomes a few whole numbers, and they become nearly the same vector again.

Takes: vectors to learn from. Gives: codes of other vectors, their vectors again, one safetensors
file. Each level says what the levels before it left over. Sources: Lloyd 1982, Least Squares
Quantization in PCM (k-means); Juang and Gray 1982, Multiple Stage Vector Quantization for Speech
Coding. Axes: N vectors, D numbers a vector, L levels, K codes a level.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from lmloop.errors import ArtifactError, CorpusError
from lmloop.store.artifact import write_whole

TENSOR = "vectors"
KIND, LAYOUT = "lmloop.codebook", "lmloop.layout"
"""What the file's header says beside the tensor: what the vectors are, and how they were cut."""
ROUNDS = 20
"""Of k-means at most; it ends before, where no vector changes its code."""
AT_ONCE = 8192
"""Vectors whose distances to all codes are held in memory together."""


@dataclass(frozen=True, slots=True)
class Codebook:
    """What every code of every level stands for."""

    vectors: NDArray[np.float32]
    """[L, K, D]"""
    kind: str
    """What the vectors are, such as "picture" or "sound"."""
    layout: Mapping[str, int] = field(default_factory=dict)
    """How they were cut out of it: sizes, rates."""

    @property
    def num_levels(self) -> int:
        """Codes that stand for one vector together."""
        return len(self.vectors)

    @property
    def num_codes(self) -> int:
        """Different codes of a level."""
        return int(self.vectors.shape[1])

    def encode(self, vectors: ArrayLike) -> NDArray[np.int64]:
        """Codes [N, L] of vectors [N, D]; raise `CorpusError` for any that are no such vectors."""
        rest = _check_vectors(vectors, width=self.vectors.shape[2])
        codes = np.empty((len(rest), self.num_levels), np.int64)
        for level, known in enumerate(self.vectors):
            codes[:, level], _ = find_nearest(rest, known)
            rest = rest - known[codes[:, level]]
        return codes

    def decode(self, codes: ArrayLike) -> NDArray[np.float32]:
        """Vectors [N, D] of codes [N, L]; raise `CorpusError` for any that are no such codes."""
        numbers = np.asarray(codes)
        if (
            numbers.ndim != 2
            or numbers.shape[1] != self.num_levels
            or not np.issubdtype(numbers.dtype, np.integer)
            or (numbers.size and not 0 <= numbers.min() <= numbers.max() < self.num_codes)
        ):
            raise CorpusError(
                f"codes of shape {list(numbers.shape)} do not fit: give rows of {self.num_levels} "
                f"whole numbers from 0 to {self.num_codes - 1}"
            )
        found: NDArray[np.float32] = self.vectors[np.arange(self.num_levels), numbers].sum(1)
        return found

    def save(self, path: str | Path) -> None:
        """Write one safetensors file, whole or not at all."""
        header = {KIND: self.kind, LAYOUT: json.dumps(dict(self.layout))}
        with write_whole(Path(path)) as file:
            file.write(save({TENSOR: np.ascontiguousarray(self.vectors)}, header))


def fit_codebook(
    vectors: ArrayLike,
    *,
    num_codes: int,
    num_levels: int = 1,
    kind: str,
    layout: Mapping[str, int] | None = None,
    seed: int = 0,
) -> Codebook:
    """Learn a codebook of vectors [N, D], level by level.

    Raises `CorpusError` where they are no finite numbers, or fewer different ones than codes.
    """
    if num_codes < 2 or num_levels < 1:
        raise CorpusError(
            f"{num_levels} levels of {num_codes} codes: at least 1 of at least 2 are needed"
        )
    rest = _check_vectors(vectors)
    random = np.random.default_rng(seed)
    levels = []
    for _ in range(num_levels):
        levels.append(cluster(rest, count=num_codes, random=random))
        rest = rest - levels[-1][find_nearest(rest, levels[-1])[0]]
    return Codebook(np.stack(levels), kind, layout or {})


def cluster(
    vectors: NDArray[np.float32], *, count: int, random: np.random.Generator
) -> NDArray[np.float32]:
    """The means [K, D] of `count` groups of vectors [N, D], by k-means.

    Raises `CorpusError` where fewer vectors than groups differ.
    """
    different = np.unique(vectors, axis=0)
    if len(different) < count:
        raise CorpusError(
            f"{len(vectors)} vectors, {len(different)} of them different, do not give {count} "
            "codes: give more of them or ask for fewer codes"
        )
    means = different[random.choice(len(different), count, replace=False)]
    before = None
    for _ in range(ROUNDS):
        codes, distances = find_nearest(vectors, means)
        if before is not None and np.array_equal(codes, before):
            break
        before = codes
        means = _average(vectors, codes, distances, means=means)
    return means


def _average(
    vectors: NDArray[np.float32],
    codes: NDArray[np.int64],
    distances: NDArray[np.float32],
    *,
    means: NDArray[np.float32],
) -> NDArray[np.float32]:
    """The mean of each group; a group that lost all becomes the vector that fits worst."""
    order = np.argsort(codes, kind="stable")
    sizes = np.bincount(codes, minlength=len(means))
    held = sizes.nonzero()[0]
    starts = (np.cumsum(sizes) - sizes)[held]
    made = means.copy()
    sums = np.add.reduceat(vectors[order].astype(np.float64), starts)
    made[held] = sums / sizes[held, None]
    (lost,) = (sizes == 0).nonzero()
    made[lost] = vectors[np.argsort(-distances, kind="stable")[: len(lost)]]
    return made


def find_nearest(
    vectors: NDArray[np.float32], known: NDArray[np.float32]
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Which of `known` [K, D] lies nearest each vector [N, D], and the squared distances [N]."""
    codes = np.empty(len(vectors), np.int64)
    distances = np.empty(len(vectors), np.float32)
    lengths = np.square(known).sum(1)
    for start in range(0, len(vectors), AT_ONCE):
        part = slice(start, start + AT_ONCE)
        # The vector's own length is the same for all, and left out of the comparison.
        scores = lengths - 2 * vectors[part] @ known.T
        codes[part] = scores.argmin(1)
        distances[part] = np.square(vectors[part] - known[codes[part]]).sum(1)
    return codes, distances


def load_codebook(path: str | Path, *, kind: str | None = None) -> Codebook:
    """Read what `save` wrote; raise `ArtifactError` for anything else, or for another `kind`."""
    path = Path(path)
    try:
        with safe_open(path, framework="numpy") as file:
            header = file.metadata() or {}
            if KIND not in header or list(file.keys()) != [TENSOR]:
                raise ValueError("its header names no codebook")
            vectors, layout = file.get_tensor(TENSOR), json.loads(header[LAYOUT])
        if vectors.dtype != np.float32 or vectors.ndim != 3 or not vectors.size:
            raise ValueError(f"its tensor is {vectors.dtype} {list(vectors.shape)}")
        if not np.isfinite(vectors).all():
            raise ValueError("a number in it is not finite")
        if not isinstance(layout, dict) or {type(each) for each in layout.values()} - {int}:
            raise ValueError("its layout holds more than whole numbers")
    except (OSError, SafetensorError, KeyError, RecursionError, ValueError) as error:
        raise ArtifactError(f"{path} is no codebook that can be read: {error}") from error
    if kind is not None and header[KIND] != kind:
        raise ArtifactError(f"{path} is a codebook of kind {header[KIND]!r}: {kind!r} is needed")
    return Codebook(vectors, header[KIND], layout)


def _check_vectors(vectors: ArrayLike, *, width: int | None = None) -> NDArray[np.float32]:
    try:
        with np.errstate(over="ignore"):  # becomes infinite, which is refused by name
            found = np.asarray(vectors, np.float32)
    except (TypeError, ValueError) as error:
        raise CorpusError(f"these are no vectors of numbers: {error}") from error
    if found.ndim != 2 or not found.shape[1] or (width is not None and found.shape[1] != width):
        raise CorpusError(
            f"vectors of shape {list(found.shape)} do not fit: give rows of "
            f"{width or 'at least 1'} numbers"
        )
    if not np.isfinite(found).all():
        raise CorpusError("a vector holds numbers that are not finite: leave it out")
    return found
