"""Which records share text with a test set: what a model learns must not hold what it is judged by.

Takes: sets of records by name, and records to look at. Gives: for each record the sets that it
shares text with. What must not be known are a set's answers and documents; they are looked for in
all that a record says. Runs of 13 words (characters, in scripts without spaces) of one utterance
are compared, after Brown et al. 2020, appendix C; texts too short for one have to match whole.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from lmloop.corpus.rules import normalise_text, split_words
from lmloop.records import Document, Record

NGRAM = 13
"""Words of a run that two texts share by copying, not by chance."""
MIN_CONTAINED = 8
"""A shorter answer is not looked for inside other text: many would hold it by chance."""
MIN_EQUAL = 6
"""A shorter answer counts only with its question, and the two together have to be so long."""
MIN_COMMON = 4
"""Records of a set from which on a run that most of them hold is a form of words, such as a
greeting before every conversation, and gives nothing away."""
EXAMPLES = 5

Words = tuple[str, ...]
_WHOLE = "="
"""Marks a text that has to match from its first word to its last; no word is punctuation."""


@dataclass(frozen=True, slots=True)
class Hit:
    """What a record shares with a set."""

    shared: str
    """The first shared words."""
    members: frozenset[int]
    """Numbers of the set's records that hold them, in the set's order."""


@dataclass(frozen=True, slots=True)
class Overlap:
    """What many records share with a set."""

    records: int
    """Records that share text with the set."""
    members: int
    """Records of the set that share text with them."""
    size: int
    """Records of the set."""
    share: float
    """Share of the set's runs of words that stand in these records, from 0 to 1.

    Chance gives little (0.001 between the two splits of the chat demo), a set that was learnt 1.
    """
    examples: tuple[str, ...]
    """Some of the shared words."""


class Decontaminator:
    """Knows the runs of words of several sets."""

    def __init__(self, sets: Mapping[str, Iterable[Record]], *, n: int = NGRAM) -> None:
        """`n`: words of a run. All runs of all sets are held in memory."""
        self._n = n
        self._sizes: dict[str, int] = {}
        self._runs: dict[str, int] = {}
        self._holders: dict[Words, dict[str, list[int]]] = {}
        self._lengths: set[int] = set()
        for name, records in sets.items():
            self._sizes[name] = self._runs[name] = 0
            for number, record in enumerate(records):
                self._sizes[name] += 1
                for run in set(self._own_runs(record)):
                    holders = self._holders.setdefault(run, {}).setdefault(name, [])
                    holders.append(number)
            self._forget_forms(name)
        # Every long run begins with a stem: one look at each word tells nearly all text apart.
        self._stem = min(self._lengths, default=n)
        self._stems = {run[: self._stem] for run in self._holders if _WHOLE not in run}

    def _forget_forms(self, name: str) -> None:
        """Leave out the runs that more than half of a set's records hold; count the others."""
        size = self._sizes[name]
        for runs in self._holders.values():
            if size >= MIN_COMMON and 2 * len(runs.get(name, ())) > size:
                del runs[name]
        self._runs[name] = sum(name in runs for runs in self._holders.values())

    @property
    def sizes(self) -> Mapping[str, int]:
        """Records of each set."""
        return dict(self._sizes)

    def hits(self, record: Record) -> dict[str, Hit]:
        """The sets that a record shares text with; empty where it shares none."""
        found = self._find(record)
        return {
            name: Hit(_show(found[name][0]), frozenset(self._find_members(name, found[name])))
            for name in self._sizes
            if name in found
        }

    def measure(self, records: Iterable[Record]) -> dict[str, Overlap]:
        """What `records` together share with each set, also where that is nothing."""
        counts = dict.fromkeys(self._sizes, 0)
        shared: dict[str, set[Words]] = {name: set() for name in self._sizes}
        examples: dict[str, dict[str, None]] = {name: {} for name in self._sizes}
        for record in records:
            for name, runs in self._find(record).items():
                counts[name] += 1
                shared[name].update(runs)
                examples[name][_show(runs[0])] = None
        return {
            name: Overlap(
                records=counts[name],
                members=len(self._find_members(name, shared[name])),
                size=size,
                share=len(shared[name]) / self._runs[name] if self._runs[name] else 0.0,
                examples=tuple(examples[name])[:EXAMPLES],
            )
            for name, size in self._sizes.items()
        }

    def _find(self, record: Record) -> dict[str, list[Words]]:
        found: dict[str, list[Words]] = {}
        for run in self._possible_runs(record):
            for name in self._holders.get(run, ()):
                found.setdefault(name, []).append(run)
        return found

    def _find_members(self, name: str, runs: Iterable[Words]) -> set[int]:
        return {number for run in runs for number in self._holders[run][name]}

    def _own_runs(self, record: Record) -> Iterator[Words]:
        """What of a set's record is looked for in others."""
        for question, words, is_answer in _read_utterances(record):
            if not is_answer:
                continue
            if len(words) >= self._n:
                self._lengths.add(self._n)
                yield from _cut(words, self._n)
                continue
            if _weigh(words) >= MIN_CONTAINED:
                self._lengths.add(len(words))
                yield words
            yield from _whole(question, words)

    def _possible_runs(self, record: Record) -> Iterator[Words]:
        """What of any record could be a run of a set's."""
        for question, words, is_answer in _read_utterances(record):
            for start, stem in enumerate(_cut(words, self._stem)):
                if stem in self._stems:
                    yield from (words[start : start + length] for length in self._lengths)
            if is_answer and len(words) < self._n:
                yield from _whole(question, words)


def overlap(
    records: Iterable[Record], against: Decontaminator | Mapping[str, Iterable[Record]]
) -> dict[str, Overlap]:
    """What `records` together share with each set of `against`; a clean one is there with 0."""
    if not isinstance(against, Decontaminator):
        against = Decontaminator(against)
    return against.measure(records)


def read_words(text: str) -> Words:
    """The words that texts are compared by: no case, punctuation, width or invisible characters."""
    return tuple(split_words(unicodedata.normalize("NFKC", normalise_text(text))))


def cut_runs(text: str, n: int = NGRAM) -> Iterator[Words]:
    """All runs of `n` words of a text."""
    return _cut(read_words(text), n)


def _read_utterances(record: Record) -> Iterator[tuple[Words, Words, bool]]:
    """For each utterance the one before it, its own words, and whether it is a model's to say."""
    if isinstance(record, Document):
        yield (), read_words(record.text), True
        return
    before: Words = ()
    for turn in record.turns:
        words = read_words(turn.content)
        yield before, words, turn.role == "assistant"
        before = words


def _cut(words: Words, n: int) -> Iterator[Words]:
    return zip(*(words[start:] for start in range(n)), strict=False)


def _whole(question: Words, answer: Words) -> Iterator[Words]:
    """A short answer as a whole: by itself where it says enough, and with its question."""
    if _weigh(answer) >= MIN_EQUAL:
        yield (_WHOLE, *answer)
    if question and answer and _weigh(question) + _weigh(answer) >= MIN_EQUAL:
        yield (*question, _WHOLE, *answer)


def _show(run: Words) -> str:
    return " ".join(word for word in run if word != _WHOLE)


def _weigh(words: Words) -> float:
    """How many words a text is worth: characters of scripts without spaces count half."""
    return sum(0.5 if len(word) == 1 and word >= "\u0e00" else 1.0 for word in words)
