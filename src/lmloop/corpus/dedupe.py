"""Which records are copies of others: exact ones by hash, near ones by MinHash and LSH.

Takes: content hashes and MinHash signatures. Gives: for each record the one that stays for it. The
answer depends on the set of records only, never on their order. LSH with bands: Leskovec,
Rajaraman, Ullman, Mining of Massive Datasets, section 3.4. Axes: N records, H hashes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lmloop.corpus.rules import split_words

NUM_HASHES = 112
SHORT_WORDS = 20
"""Texts of fewer words are compared by characters: they have too few word 5-grams."""
RECALL = 0.9
"""Least probability that a pair of exactly the asked similarity becomes a candidate."""
PIVOTS = 64
"""Members of a bucket that all others are compared with; larger buckets are rare and alike."""
CHUNK_PAIRS = 65_536


@dataclass(frozen=True, slots=True)
class NearDuplicates:
    """What the search found."""

    survivors: npt.NDArray[np.int64]
    """[N] index of the record that stays for each one: the smallest of its group, or itself."""
    pairs: int
    """Pairs whose estimated similarity reached the limit."""


def build_shingles(text: str) -> str:
    """Words between spaces, to take word 5-grams of; single characters where words are few."""
    words = split_words(text)
    if len(words) < SHORT_WORDS:
        words = list("".join(text.lower().split()))
    return " ".join(words)


def choose_bands(similarity: float) -> tuple[int, int]:
    """Bands and rows a band: as many rows as keep the recall at `similarity` at `RECALL` or more.

    0.8 gives 14 bands of 8 rows, recall 1 - (1 - 0.8^8)^14 = 0.92.
    """
    for rows in range(NUM_HASHES, 0, -1):
        bands = NUM_HASHES // rows
        if NUM_HASHES % rows == 0 and 1 - (1 - similarity**rows) ** bands >= RECALL:
            return bands, rows
    return NUM_HASHES, 1


def find_near_duplicates(
    signatures: npt.NDArray[np.uint32], *, similarity: float
) -> NearDuplicates:
    """Group records whose estimated Jaccard similarity is `similarity` or more.

    `signatures`: [N, H] MinHash values, in the order of the records' content hashes, so that the
    smallest index of a group is its smallest hash. Groups are the pairs' connected components.
    """
    pairs = _find_candidates(signatures, similarity)
    left, right = pairs // max(1, len(signatures)), pairs % max(1, len(signatures))
    alike = np.zeros(len(pairs), dtype=bool)
    for start in range(0, len(pairs), CHUNK_PAIRS):
        chunk = slice(start, start + CHUNK_PAIRS)
        equal = signatures[left[chunk]] == signatures[right[chunk]]
        alike[chunk] = equal.mean(axis=1) >= similarity
    survivors = _unite(len(signatures), left[alike], right[alike])
    return NearDuplicates(survivors=survivors, pairs=int(alike.sum()))


def _find_candidates(
    signatures: npt.NDArray[np.uint32], similarity: float
) -> npt.NDArray[np.int64]:
    """Pairs (i, j), i < j, that share a band, each once, written as i * N + j."""
    bands, rows = choose_bands(similarity)
    found = [np.empty(0, dtype=np.int64)]
    for band in range(bands):
        keys = _hash_rows(signatures[:, band * rows : (band + 1) * rows])
        order = np.argsort(keys, kind="stable")
        edges = np.flatnonzero(np.diff(keys[order])) + 1
        for start, end in zip([0, *edges], [*edges, len(order)], strict=True):
            if end - start > 1:
                found.append(_pair_bucket(order[start:end], total=len(signatures)))
    return np.unique(np.concatenate(found))


def _hash_rows(values: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint64]:
    """[N] one 64-bit number a row; a collision only costs a comparison."""
    key = np.zeros(len(values), dtype=np.uint64)
    for column in values.T:
        key = (key ^ column.astype(np.uint64)) * np.uint64(0x9E3779B97F4A7C15)
        key ^= key >> np.uint64(29)
    return key


def _pair_bucket(members: npt.NDArray[np.int64], *, total: int) -> npt.NDArray[np.int64]:
    pivots = np.arange(min(PIVOTS, len(members)))
    left, right = np.meshgrid(pivots, np.arange(len(members)), indexing="ij")
    later = right > left
    pairs: npt.NDArray[np.int64] = members[left[later]] * total + members[right[later]]
    return pairs


def _unite(
    count: int, left: npt.NDArray[np.int64], right: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """[N] the smallest index of each record's connected component (union-find)."""
    parents = list(range(count))

    def find(index: int) -> int:
        while parents[index] != index:
            parents[index] = parents[parents[index]]
            index = parents[index]
        return index

    for one, other in zip(left.tolist(), right.tolist(), strict=True):
        first, second = sorted((find(one), find(other)))
        parents[second] = first
    return np.array([find(index) for index in range(count)], dtype=np.int64)
