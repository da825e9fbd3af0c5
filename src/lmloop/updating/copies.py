"""Which exchanges say the same: one of each is learnt, whoever sent how many.

Takes: candidates. Gives: for those that are copies of another the reason. The answer depends on the
set of candidates only, never on their order: the smallest hash stays, an accepted one first.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import groupby

import numpy as np
import numpy.typing as npt

from lmloop.corpus.dedupe import (
    NUM_HASHES,
    SHORT_WORDS,
    build_shingles,
    find_near_duplicates,
)
from lmloop.corpus.rules import NGRAM
from lmloop.sections import PrepareConfig
from lmloop.updating.screening import Candidate

EXACT_DUPLICATE = "exact_duplicate"
NEAR_DUPLICATE = "near_duplicate"
REPEATED_ANSWER = "max_per_answer"
REJECTED = "rejected"
_RANKS = {"rejected": 0, "accepted": 1, "pending": 2}


def find_copies(candidates: Iterable[Candidate], *, max_per_answer: int) -> dict[str, str]:
    """Id of each candidate that does not stay → why.

    The words of question and answer decide: equal ones are one exchange, and where one of them was
    rejected all are; so are nearly equal ones. Of exchanges with one answer `max_per_answer` stay;
    long answers are one where they are nearly equal, short ones ("it costs 9 crowns") where they
    are equal.
    """
    left = sorted(candidates, key=_order)
    found: dict[str, str] = {}
    for judge in (_find_equal, _find_near, partial(_find_repeated, limit=max_per_answer)):
        found |= judge(left)
        left = [each for each in left if each.id not in found]
    return found


def draw(candidate: Candidate, *, seed: int = 0) -> str:
    """A candidate's lot, as hex: whoever has the smaller one goes first.

    Request ids are the server's own: nobody can choose his lot.
    """
    return hashlib.sha256(f"{seed} {candidate.exchange.request_id}".encode()).hexdigest()


def _order(candidate: Candidate) -> tuple[int, str]:
    return _RANKS[candidate.exchange.state], draw(candidate)


def _find_equal(candidates: Sequence[Candidate]) -> dict[str, str]:
    found: dict[str, str] = {}
    for first, *others in _group(candidates, lambda each: repr(each.words)):
        rejected = first.exchange.state == "rejected"
        found |= {each.id: REJECTED if rejected else EXACT_DUPLICATE for each in others}
        if rejected:
            found[first.id] = REJECTED
    return found


def _find_near(candidates: Sequence[Candidate]) -> dict[str, str]:
    survivors = _unite([f"{each.question}\n{each.taught}" for each in candidates])
    return {
        candidate.id: NEAR_DUPLICATE
        for number, candidate in enumerate(candidates)
        if survivors[number] != number
    }


def _find_repeated(candidates: Sequence[Candidate], *, limit: int) -> dict[str, str]:
    answers = {each.id: each.words[1] for each in candidates}
    long = [each for each in candidates if len(answers[each.id]) >= SHORT_WORDS]
    alike = _unite([each.taught for each in long])
    answers |= {each.id: answers[long[first].id] for each, first in zip(long, alike, strict=True)}
    groups = _group(candidates, lambda each: repr(answers[each.id]))
    return {each.id: REPEATED_ANSWER for group in groups for each in group[limit:]}


def _group(
    candidates: Sequence[Candidate], key: Callable[[Candidate], str]
) -> list[list[Candidate]]:
    """Candidates of one key together, in the order in which they came."""
    return [list(group) for _, group in groupby(sorted(candidates, key=key), key=key)]


def _unite(texts: Sequence[str]) -> list[int]:
    """For each text the first one that is nearly equal to it, by way of others perhaps."""
    similarity: float = PrepareConfig.model_fields["near_duplicate_similarity"].default
    if not texts:
        return []
    # The same permutations always: what a reviewer saw to be copies stay copies.
    draws = np.random.default_rng(0).integers(0, 2**64, size=(2, NUM_HASHES), dtype=np.uint64)
    signatures = np.stack([_sign(build_shingles(text), draws) for text in texts])
    survivors: list[int] = find_near_duplicates(
        signatures, similarity=similarity
    ).survivors.tolist()
    return survivors


def _sign(shingles: str, draws: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint32]:
    """[NUM_HASHES] MinHash of the word 5-grams, by multiply-shift hashing (Dietzfelbinger 1997)."""
    words = shingles.split(" ")
    runs = {" ".join(words[at : at + NGRAM]) for at in range(max(1, len(words) - NGRAM + 1))}
    digests = b"".join(hashlib.blake2b(run.encode(), digest_size=8).digest() for run in runs)
    keys = np.frombuffer(digests, dtype=np.uint64)
    hashed = keys[:, None] * (draws[0] | np.uint64(1)) + draws[1]
    signature: npt.NDArray[np.uint32] = (hashed >> np.uint64(32)).astype(np.uint32).min(axis=0)
    return signature
