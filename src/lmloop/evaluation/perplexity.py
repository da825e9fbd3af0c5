"""How well a model predicts text it has not seen, in bits per byte of the raw text.

Takes: a model and the shards of a split. Gives: nats a document, and from them bits per byte: all
nats of all predicted tokens (role, stop and document tokens included) over ln 2 · raw UTF-8 bytes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from lmloop.errors import CorpusError
from lmloop.inference.score import cut_windows, score_windows
from lmloop.model.transformer import Transformer
from lmloop.progress import Progress, Silent
from lmloop.tokens.shards import Shards

TOKENS_AT_ONCE = 1 << 16
"""Documents are scored in groups of about so many tokens: rows of like length run together."""


def bits_per_byte_of(
    model: Transformer,
    shards: Shards,
    *,
    document_id: int,
    context_length: int,
    max_tokens: int | None = None,
) -> float:
    """Bits per byte of a split, or of its first whole documents of at most `max_tokens` in all.

    Computed in the dtype that the model has; sums in fp64. At least one document is always read.
    """
    nats = document_nats(
        model,
        shards,
        document_id=document_id,
        context_length=context_length,
        max_tokens=max_tokens,
    )
    return bits_per_byte(nats, shards.document_bytes[: len(nats)])


def bits_per_byte(nats: NDArray[np.float64], raw_bytes: NDArray[np.int64]) -> float:
    """Total nats over ln 2 · total bytes; both [documents]."""
    return float(nats.sum() / (math.log(2) * raw_bytes.sum()))


def document_nats(
    model: Transformer,
    shards: Shards,
    *,
    document_id: int,
    context_length: int,
    max_tokens: int | None = None,
    progress: Progress | None = None,
    name: str = "bits per byte",
) -> NDArray[np.float64]:
    """Nats of each document, the document token behind it included; fp64 [documents].

    The token in front of a document is given, not predicted. Raises `CorpusError` where the split
    is empty.
    """
    if not shards.num_documents:
        raise CorpusError("the split holds no document: there is nothing to measure on")
    count = _count_documents(shards, max_tokens)
    nats = np.zeros(count)
    total = float(shards.starts[count])
    with (progress or Silent()).task(name, total=total, unit="tokens") as task:
        for first, last in _groups(shards, count):
            ended = [np.append(shards.document(i), document_id) for i in range(first, last)]
            windows = list(cut_windows(ended, context_length=context_length))
            for window, value in zip(windows, score_windows(model, windows), strict=True):
                nats[first + window.document] += value
            task.update(float(shards.starts[last]))
    return nats


def _count_documents(shards: Shards, max_tokens: int | None) -> int:
    """How many documents from the first on have at most `max_tokens` together; at least one."""
    if max_tokens is None:
        return shards.num_documents
    return max(1, int(np.searchsorted(shards.starts, max_tokens, side="right")) - 1)


def _groups(shards: Shards, count: int) -> Iterator[tuple[int, int]]:
    """First and last (exclusive) document of each group."""
    first = 0
    while first < count:
        until = int(np.searchsorted(shards.starts, shards.starts[first] + TOKENS_AT_ONCE, "right"))
        last = min(count, max(first + 1, until - 1))
        yield first, last
        first = last
