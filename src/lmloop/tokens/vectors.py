"""Word vectors: a row of numbers a word, its neighbours, its analogies, and a start for embeddings.

Takes: words and their matrix, trained here or read from a file. Gives: the nearest words, the
fourth word of an analogy, and rows in the order of a vocabulary.
Axes: V words, D numbers a word.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from lmloop.errors import ArtifactError, UsageError


@dataclass(frozen=True, eq=False)
class WordVectors:
    """Words and one row a word. Raises `ArtifactError` where the two do not fit each other."""

    words: tuple[str, ...]
    matrix: NDArray[np.float32]
    """[V, D], finite."""

    def __post_init__(self) -> None:
        shape = self.matrix.shape
        if self.matrix.dtype != np.float32 or len(shape) != 2 or 0 in shape:
            raise ArtifactError(
                f"vectors are {self.matrix.dtype} {list(shape)}: allowed is float32 [words, "
                "numbers], at least one of each"
            )
        if shape[0] != len(self.words):
            raise ArtifactError(f"{len(self.words)} words have {shape[0]} vectors: give one each")
        if len(self.index) != len(self.words):
            raise ArtifactError(
                f"{len(self.words) - len(self.index)} words occur twice: give each word once"
            )
        if not np.isfinite(self.matrix).all():
            raise ArtifactError("a vector holds a number that is not finite: give finite numbers")

    @cached_property
    def index(self) -> dict[str, int]:
        """Row of each word."""
        return {word: row for row, word in enumerate(self.words)}

    @cached_property
    def _units(self) -> NDArray[np.float32]:
        """[V, D] rows of length 1; a row of zeros stays one."""
        # Scaled first, so that the squares of very large or small numbers are held by float32.
        largest = np.abs(self.matrix).max(axis=1, keepdims=True)
        scaled = self.matrix / np.where(largest > 0, largest, 1)
        lengths = np.linalg.norm(scaled, axis=1, keepdims=True)
        return np.asarray(scaled / np.where(lengths > 0, lengths, 1), dtype=np.float32)

    def row(self, word: str) -> int:
        """Row of a word; of an unknown one `UsageError` with the nearest spelling."""
        found = self.index.get(word)
        if found is not None:
            return found
        spelling = self._nearest_spelling(word)
        advice = f"did you mean {spelling!r}?" if spelling else "ask for a word of the file"
        raise UsageError(f"none of {len(self.words)} words is {word!r}: {advice}")

    def nearest(self, word: str, k: int = 10) -> list[tuple[str, float]]:
        """The `k` words of the largest cosine with `word`, itself excluded, best first."""
        row = self.row(word)
        return self._best(self._units[row], k, without=[row])

    def analogy(self, a: str, b: str, c: str, k: int = 10) -> list[tuple[str, float]]:
        """The `k` words d for which a is to b as c is to d, best first; the three are excluded.

        3CosAdd: the largest cosine with b - a + c, each of length 1 (Mikolov et al. 2013,
        "Linguistic Regularities in Continuous Space Word Representations").
        """
        rows = [self.row(word) for word in (a, b, c)]
        first, second, third = self._units[rows]
        wanted = second - first + third
        return self._best(wanted / max(float(np.linalg.norm(wanted)), 1e-12), k, without=rows)

    def align(self, vocabulary: Sequence[str]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Rows [V', D] in the order of a vocabulary, and which words [V'] were found.

        A word that the vectors do not have as it is spelt is looked up in lower case; the row of
        one that they do not have at all is zero.
        """
        rows = np.array(
            [self.index.get(word, self.index.get(word.lower(), -1)) for word in vocabulary],
            dtype=np.int64,
        )
        found = rows >= 0
        aligned = np.zeros((len(rows), self.matrix.shape[1]), dtype=np.float32)
        aligned[found] = self.matrix[rows[found]]
        return aligned, found

    def _best(
        self, wanted: NDArray[np.float32], k: int, *, without: Sequence[int]
    ) -> list[tuple[str, float]]:
        if k < 1:
            raise UsageError(f"k is {k}: ask for at least 1 word")
        scores = self._units @ wanted
        scores[list(without)] = -np.inf
        k = min(k, len(scores) - len(set(without)))
        candidates = np.argpartition(-scores, min(k, len(scores) - 1))[:k]
        order = candidates[np.lexsort((candidates, -scores[candidates]))]
        return [(self.words[row], float(scores[row])) for row in order.tolist()]

    def _nearest_spelling(self, word: str) -> str | None:
        """A known word that is spelt alike: about as long, with the same first or last letter."""
        if not word:
            return None
        alike = [
            each
            for each in self.words
            if abs(len(each) - len(word)) <= 2
            and each
            and (each[0].lower() == word[0].lower() or each[-1] == word[-1])
        ]
        found = difflib.get_close_matches(word, alike, n=1, cutoff=0.6)
        return found[0] if found else None
