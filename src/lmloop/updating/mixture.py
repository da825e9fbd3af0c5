"""The text of an update: collected exchanges several times, and old text against forgetting.

Takes: the feedback, a way to read the old training records, the live model's tokenizer. Gives:
shards that training reads, in which a stated share of the learnt tokens is old; and a split of
exchanges that are not learnt, where early stopping watches such. Everything is learnt, questions
too, as in pre-training: measured, that forgets less than learning answers only. Left out are the
earlier answers of a collected conversation: they are the model's own, and only the last one was
rated or corrected.
"""

from __future__ import annotations

import hashlib
import heapq
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmloop.errors import UpdateError
from lmloop.records import Conversation, Record
from lmloop.tokens.chat import ChatTemplate
from lmloop.tokens.shards import INDEX, ShardWriter
from lmloop.tokens.tokenize import encode_records
from lmloop.tokens.tokenizer import Tokenizer
from lmloop.updating.watched import set_aside

SPLIT = "train"
"""What training reads."""
WATCHED = "validation"
"""What early stopping watches, where it watches collected exchanges."""


@dataclass(frozen=True, slots=True)
class _Encoded:
    """A record as ids, with which of them are learnt."""

    ids: NDArray[np.uint32]
    learnt: NDArray[np.bool_]
    num_learnt: int
    raw_bytes: int


def write_mixture(
    feedback: Sequence[Record],
    old: Callable[[], Iterable[Record]],
    *,
    tokenizer: Tokenizer,
    folder: Path,
    passes: int,
    replay_share: float,
    seed: int,
    is_watched: bool = False,
) -> dict[str, Any]:
    """Write `feedback` `passes` times, and old records, as the split `train`; give the counts.

    With `is_watched` some of the feedback is the split `validation` instead, see `set_aside`.

    Old conversations and documents are drawn by a hash of `seed` and their id, none twice before
    all were drawn once, until `replay_share` of all learnt tokens is old: to within half a record,
    but one at least. Only what is drawn is held in memory. Equal arguments give equal bytes. Raises
    `TokenizerError` where the tokenizer cannot chat or its stop token would not be learnt,
    `UpdateError` where the feedback has no answer, or where there is nothing old to replay.
    """
    template = ChatTemplate.of(tokenizer)
    template.check_stop_is_learnt()
    learnt, watched = set_aside(feedback) if is_watched else (feedback, [])
    fresh = _encode_feedback(learnt, template)
    wanted = passes * sum(each.num_learnt for each in fresh)
    wanted_old = round(wanted * replay_share / (1 - replay_share))
    replayed = _replay(old(), template, wanted=wanted_old, seed=seed) if wanted_old else []
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(folder)
    texts = {SPLIT: [*fresh * passes, *replayed]}
    if watched:
        texts[WATCHED] = _encode_feedback(watched, template)
    splits = _write_splits(texts, folder, vocab_size=tokenizer.vocab_size)
    held = sum(each.num_learnt for each in replayed)
    return {
        "feedback_records": len(fresh),
        "feedback_watched": len(watched),
        "feedback_passes": passes,
        "feedback_tokens_learnt": wanted,
        "old_records": len(replayed),
        "old_tokens_learnt": held,
        "replay_share": round(held / (held + wanted), 4),
        "tokens": splits[SPLIT]["tokens"],
    }


def _write_splits(
    texts: Mapping[str, Iterable[_Encoded]], folder: Path, *, vocab_size: int
) -> dict[str, dict[str, Any]]:
    """Write each split and the index over them; give the splits' entries in it."""
    splits = {}
    for name, encoded in texts.items():
        writer = ShardWriter(folder, name, vocab_size=vocab_size)
        with closing(writer):
            for each in encoded:
                writer.append(each.ids.tolist(), each.learnt.tolist(), raw_bytes=each.raw_bytes)
        splits[name] = writer.close()
    index = {"vocab_size": vocab_size, "splits": splits}
    (folder / INDEX).write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
    return splits


def _encode_feedback(feedback: Sequence[Record], template: ChatTemplate) -> list[_Encoded]:
    """The conversations that have an answer; raise `UpdateError` where none has."""
    talks = [each for each in feedback if isinstance(each, Conversation)]
    encoded = [
        _hold(talk, ids, _leave_out_earlier(answers))
        for talk, (ids, answers) in zip(talks, encode_records(talks, template), strict=True)
        if any(answers)
    ]
    if not encoded:
        raise UpdateError(
            f"none of the {len(feedback)} collected records has an answer to learn from: collect "
            "ratings or corrections of conversations first"
        )
    return encoded


def _hold(record: Record, ids: list[int], learnt: list[bool]) -> _Encoded:
    """Five bytes a token: the mixture of many corrections is long."""
    marks = np.asarray(learnt, dtype=np.bool_)
    return _Encoded(np.asarray(ids, dtype=np.uint32), marks, int(marks.sum()), record.raw_bytes)


def _leave_out_earlier(answers: Sequence[bool]) -> list[bool]:
    """True but for the answers in front of the last one; `answers` marks all of them."""
    start = len(answers) - list(reversed(answers)).index(True)
    while start and answers[start - 1]:
        start -= 1
    return [place >= start or not answer for place, answer in enumerate(answers)]


def _replay(
    old: Iterable[Record], template: ChatTemplate, *, wanted: int, seed: int
) -> list[_Encoded]:
    """Old records of `wanted` tokens, as near as whole records come, but at least one."""
    drawn = _draw(old, template, wanted=wanted, seed=seed)
    if not drawn:
        raise UpdateError(
            "there are no old training records to replay: set update.replay_share = 0 to learn "
            "from the feedback alone"
        )
    taken: list[_Encoded] = []
    missing = wanted
    for each in cycle(drawn):
        if taken and 2 * missing <= each.num_learnt:
            break
        taken.append(each)
        missing -= each.num_learnt
    return taken


def _draw(
    old: Iterable[Record], template: ChatTemplate, *, wanted: int, seed: int
) -> list[_Encoded]:
    """The first records in the order of their hashes that hold `wanted` tokens, or all there are.

    Once so many are held, a newcomer behind the last of them is passed over without being encoded:
    of a large corpus that is nearly every record.
    """
    heap: list[tuple[int, int, _Encoded]] = []  # the last in the order on top
    held = 0
    for number, record in enumerate(old):
        place = _place(record, seed=seed)
        if held >= wanted and place > -heap[0][0]:
            continue
        ids, _ = next(encode_records([record], template))
        encoded = _hold(record, ids, [True] * len(ids))
        heapq.heappush(heap, (-place, -number, encoded))
        held += encoded.num_learnt
        while held - heap[0][2].num_learnt >= wanted:
            held -= heapq.heappop(heap)[2].num_learnt
    return [encoded for _, _, encoded in sorted(heap, reverse=True)]


def _place(record: Record, *, seed: int) -> int:
    digest = hashlib.sha256(f"{seed} {record.id}".encode()).digest()
    return int.from_bytes(digest[:8], "big")
