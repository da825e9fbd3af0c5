"""Records to word vectors: cut into words, number them, train.

Takes: documents and conversations, options. Gives: `WordVectors`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from lmloop.progress import Progress, Silent, Task
from lmloop.records import Document, Record
from lmloop.tokens.vectors import WordVectors
from lmloop.tokens.words import Segmenter, WordSplitter, index_words
from lmloop.training.glove import GloveOptions, train_glove
from lmloop.training.skip_gram import SkipGramOptions, train_skip_gram

_BLANK_LINE = re.compile(r"\n\s*\n")


def train_vectors(
    records: Iterable[Record],
    *,
    options: SkipGramOptions | GloveOptions,
    min_count: int,
    seed: int,
    segmenter: Segmenter = "jieba",
    progress: Progress | None = None,
) -> WordVectors:
    """Vectors of the words that occur at least `min_count` times in the records.

    Words are neighbours within a turn of a conversation or a paragraph of a document. Raises
    `CorpusError` where no word is left, `TrainingError`, and `MissingExtraError` where Han
    characters meet a `segmenter` that is not installed.
    """
    progress = progress or Silent()
    splitter = WordSplitter(segmenter=segmenter)
    with progress.task("words", total=None, unit="records") as task:
        stream = index_words(_sentences(records, splitter, task), min_count=min_count)
    if isinstance(options, GloveOptions):
        return train_glove(stream, options=options, seed=seed, progress=progress)
    return train_skip_gram(stream, options=options, seed=seed, progress=progress)


def _sentences(
    records: Iterable[Record], splitter: WordSplitter, task: Task
) -> Iterator[list[str]]:
    for number, record in enumerate(records):
        if isinstance(record, Document):
            yield from map(splitter.split, _BLANK_LINE.split(record.text))
        else:
            yield from (splitter.split(turn.content) for turn in record.turns)
        task.update(number)
