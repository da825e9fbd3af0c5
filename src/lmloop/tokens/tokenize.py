"""Clean records to shards: train the tokenizer on the training split, encode every split.

Takes: an iterator of records a split. Gives: a folder with the tokenizer, the shards and
`shards.json`. Documents and conversations begin with the document token.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

from lmloop.errors import CorpusError
from lmloop.progress import Progress
from lmloop.records import Conversation, Record
from lmloop.sections import TokenizeConfig
from lmloop.tokens.chat import DEFAULT_TEMPLATE, ChatTemplate
from lmloop.tokens.shards import INDEX, ShardWriter
from lmloop.tokens.tokenizer import Tokenizer, train_tokenizer

SPLITS = ("train", "validation", "heldout")
_RECORDS_AT_ONCE = 512


def tokenize(
    config: TokenizeConfig,
    read: Callable[[str], Iterable[Record]],
    folder: Path,
    *,
    context_length: int,
    progress: Progress,
    tokenizer: Tokenizer | None = None,
) -> dict[str, Any]:
    """Write tokenizer and shards into `folder`; give counts. `read(split)` gives records.

    With a `tokenizer` none is trained.
    """
    if tokenizer is None:
        with progress.task("train tokenizer", total=None, unit=""):
            tokenizer = train_tokenizer(
                _sample(_texts(read("train")), config.train_bytes),
                vocab_size=config.vocab_size,
                kind=config.kind,
                segmenter=config.segmenter,
                chat_template=DEFAULT_TEMPLATE,
                context_length=context_length,
                extra_tokens=config.extra_tokens,
            )
    tokenizer.save(folder)
    template = ChatTemplate.of(tokenizer)
    counts = {}
    for split in SPLITS:
        writer = ShardWriter(folder, split, vocab_size=tokenizer.vocab_size)
        encoding = progress.task(f"encode {split}", total=None, unit="tokens")
        with closing(writer), encoding as task:
            for batch in _batches(read(split)):
                encoded = encode_records(batch, template)
                for record, (ids, answers) in zip(batch, encoded, strict=True):
                    writer.append(ids, answers, raw_bytes=record.raw_bytes)
                task.update(writer.num_tokens)
        counts[split] = writer.close()
        if not writer.num_documents:
            raise CorpusError(f"the split {split!r} of the corpus is empty: add text")
    index = {"vocab_size": tokenizer.vocab_size, "splits": counts}
    (folder / INDEX).write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
    return counts


def _texts(records: Iterable[Record]) -> Iterator[str]:
    for record in records:
        if isinstance(record, Conversation):
            yield from (turn.content for turn in record.turns)
        else:
            yield record.text


def _sample(texts: Iterable[str], most_bytes: int | None) -> Iterator[str]:
    """The first of them, until they have so many bytes."""
    read = 0
    for text in texts:
        yield text
        read += len(text.encode())
        if most_bytes is not None and read >= most_bytes:
            return


def _batches(records: Iterable[Record]) -> Iterator[list[Record]]:
    iterator = iter(records)
    while batch := list(islice(iterator, _RECORDS_AT_ONCE)):
        yield batch


def encode_records(
    records: Sequence[Record], template: ChatTemplate
) -> Iterator[tuple[list[int], list[bool]]]:
    """Ids of each record from its document token on, and which of them are answers."""
    tokenizer = template.tokenizer
    contents = iter(tokenizer.encode_batch(list(_texts(records))))
    for record in records:
        if isinstance(record, Conversation):
            own = [next(contents) for _ in record.turns]
            yield template.encode_answers(record.turns, own)
        else:
            ids = [tokenizer.document_id, *next(contents)]
            yield ids, [False] * len(ids)
