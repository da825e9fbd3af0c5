from __future__ import annotations

import random

import numpy as np
import pytest
from datasketch import MinHash, MinHashLSH

from lmloop.corpus.dedupe import NUM_HASHES, build_shingles, choose_bands, find_near_duplicates


def sign(text: str) -> MinHash:
    words = text.split()
    minhash = MinHash(num_perm=NUM_HASHES, seed=1)
    for start in range(max(1, len(words) - 4)):
        minhash.update(" ".join(words[start : start + 5]).encode())
    return minhash


def make_texts(seed: int) -> list[str]:
    """Thirty texts of 100 words, each six times with 0 to 15 of its last words changed."""
    source = random.Random(seed)
    texts = []
    for _ in range(30):
        words = [f"w{source.randrange(5000)}" for _ in range(100)]
        for changes in range(0, 18, 3):
            other = [f"x{source.randrange(5000)}" for _ in range(changes)]
            texts.append(" ".join([*words[: 100 - changes], *other]))
    return texts


@pytest.mark.parametrize("similarity", [0.5, 0.8])
def test_pairs_are_those_that_datasketch_finds(similarity: float) -> None:
    hashes = [sign(text) for text in make_texts(seed=3)]
    signatures = np.stack([minhash.hashvalues.astype(np.uint32) for minhash in hashes])
    bands, rows = choose_bands(similarity)
    index = MinHashLSH(num_perm=NUM_HASHES, params=(bands, rows))
    pairs = set()
    for number, minhash in enumerate(hashes):
        for other in index.query(minhash):
            if minhash.jaccard(hashes[other]) >= similarity:
                pairs.add((other, number))
        index.insert(number, minhash)
    found = find_near_duplicates(signatures, similarity=similarity)
    assert found.pairs == len(pairs) > 30
    assert all(found.survivors <= np.arange(len(signatures)))
    assert all(found.survivors[left] == found.survivors[right] for left, right in pairs)
    assert len(set(found.survivors)) == len(signatures) - count_joined(pairs)


def count_joined(pairs: set[tuple[int, int]]) -> int:
    """How many records hang on an earlier one, by sets."""
    groups: list[set[int]] = []
    for pair in pairs:
        touched = [group for group in groups if group & set(pair)]
        groups = [group for group in groups if group not in touched]
        groups.append(set(pair).union(*touched))
    return sum(len(group) - 1 for group in groups)


def test_the_smallest_of_a_chain_stays_for_all() -> None:
    signatures = np.arange(5 * NUM_HASHES, dtype=np.uint32).reshape(5, NUM_HASHES)
    # 1 is like 3 and 3 like 4, but 1 and 4 share only 90 of 112 values.
    signatures[3] = signatures[1]
    signatures[3, :11] = 70_000
    signatures[4] = signatures[3]
    signatures[4, 11:22] = 80_000
    found = find_near_duplicates(signatures, similarity=0.9)
    assert found.survivors.tolist() == [0, 1, 2, 1, 1]
    assert found.pairs == 2


def test_a_bucket_of_equal_records_leaves_one() -> None:
    signatures = np.zeros((300, NUM_HASHES), dtype=np.uint32)
    found = find_near_duplicates(signatures, similarity=0.8)
    assert found.survivors.tolist() == [0] * 300


def test_similar_bands_alone_make_no_duplicate() -> None:
    signatures = np.arange(2 * NUM_HASHES, dtype=np.uint32).reshape(2, NUM_HASHES)
    signatures[1, :80] = signatures[0, :80]
    found = find_near_duplicates(signatures, similarity=0.8)
    assert (found.pairs, found.survivors.tolist()) == (0, [0, 1])


@pytest.mark.parametrize("count", [0, 1])
def test_few_records_have_no_duplicates(count: int) -> None:
    signatures = np.zeros((count, NUM_HASHES), dtype=np.uint32)
    assert find_near_duplicates(signatures, similarity=0.8).survivors.tolist() == [0] * count


def test_bands_keep_the_recall_at_the_asked_similarity() -> None:
    assert choose_bands(0.8) == (14, 8)
    assert choose_bands(1.0) == (1, 112)
    for similarity in (0.01, 0.2, 0.5, 0.7, 0.9, 0.95):
        bands, rows = choose_bands(similarity)
        assert bands * rows == NUM_HASHES
        assert rows == 1 or 1 - (1 - similarity**rows) ** bands >= 0.9


def test_shingles_are_words_and_for_short_texts_characters() -> None:
    long = " ".join(f"Word{number}," for number in range(20))
    assert build_shingles(long) == " ".join(f"word{number}" for number in range(20))
    assert build_shingles("Hi, you") == "h i , y o u"
    assert build_shingles("\u4f60\u597d" * 10) == " ".join("\u4f60\u597d" * 10)
