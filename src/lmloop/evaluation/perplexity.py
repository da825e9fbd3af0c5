"""How well a model predicts text it has not seen, in bits per byte of the raw text.

Takes: a model and the shards of a split. Gives: nats a document, and from them bits per byte: all
nats of all predicted tokens (role, stop and document tokens included) over ln 2 · raw UTF-8 bytes.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmloop.errors import ArtifactError, CorpusError
from lmloop.evaluation.metrics import Metric, bootstrap_ratio
from lmloop.inference.load import LoadedModel
from lmloop.inference.score import cut_windows, score_windows
from lmloop.model.transformer import Transformer
from lmloop.progress import Progress, Silent
from lmloop.tokens.shards import Shards

TOKENS_AT_ONCE = 1 << 16
"""Documents are scored in groups of about so many tokens: rows of like length run together."""
OTHER_TOKENS = 1 << 14
"""Tokens of each other kind of text that are measured, at most."""
LONGEST_WINDOW = 2048
"""Tokens of context that a report gives at most: memory of attention grows with the square."""
CHECKED_TOKENS = 8192
"""Held-out tokens on which the arithmetic is compared with fp32."""


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


def measure_prediction(
    model: LoadedModel, base: LoadedModel | None, shards: Shards, *, seed: int, progress: Progress
) -> tuple[Metric, dict[str, Any]]:
    """Bits per byte of both models, and how far the arithmetic is from fp32."""
    nats = _nats(model, shards, name="bits per byte", progress=progress)
    value = bits_per_byte(nats, shards.document_bytes)
    if not math.isfinite(value):
        raise ArtifactError(
            f"checkpoint {model.fingerprint[:12]} predicts nothing finite (bits per byte is "
            f"{value}): its training diverged; train again with a lower learning rate"
        )
    base_value = None
    if base is not None:
        base_nats = _nats(
            _ask_alike(base, model), shards, name="bits per byte of the base", progress=progress
        )
        base_value = bits_per_byte(base_nats, shards.document_bytes)
    metric = Metric(
        name="bits_per_byte",
        value=value,
        unit="bits",
        interval=bootstrap_ratio(nats / math.log(2), shards.document_bytes, seed=seed),
        base=base_value,
        explanation="bits that a byte of unseen text costs, role and stop tokens included; "
        "lower is better",
    )
    return metric, _check_arithmetic(model, shards, nats)


def measure_elsewhere(
    name: str,
    model: LoadedModel,
    base: LoadedModel | None,
    shards: Shards,
    *,
    seed: int,
    progress: Progress,
) -> Metric:
    """Bits per byte of both models on the first documents of other text called `name`."""
    work = partial(_nats, shards=shards, max_tokens=OTHER_TOKENS, progress=progress)
    nats = work(model, name=f"bits per byte {name}")
    raw_bytes = shards.document_bytes[: len(nats)]
    base_value = None
    if base is not None:
        asked = _ask_alike(base, model)
        base_value = bits_per_byte(work(asked, name=f"the base {name}"), raw_bytes)
    return Metric(
        name=f"{name}_bits_per_byte",
        value=bits_per_byte(nats, raw_bytes),
        unit="bits",
        interval=bootstrap_ratio(nats / math.log(2), raw_bytes, seed=seed),
        base=base_value,
        explanation=f"the same of the text under prepare.{name}: what training cost there",
    )


def _ask_alike(base: LoadedModel, model: LoadedModel) -> LoadedModel:
    """The base, asked for the same tokens as the model: it may part documents by another one."""
    return replace(base, tokenizer=model.tokenizer)


def _check_arithmetic(
    model: LoadedModel, shards: Shards, nats: NDArray[np.float64]
) -> dict[str, Any]:
    """Bits per byte of the first documents again in fp32: what the faster arithmetic costs."""
    exact = replace(model, transformer=copy.deepcopy(model.transformer).float())
    again = _nats(exact, shards, name="check in float32", max_tokens=CHECKED_TOKENS)
    raw_bytes = shards.document_bytes[: len(again)]
    difference = bits_per_byte(nats[: len(again)], raw_bytes) - bits_per_byte(again, raw_bytes)
    dtype = str(model.transformer.embedding.weight.dtype).removeprefix("torch.")
    return {
        "dtype": dtype,
        "documents_checked": len(again),
        "bits_per_byte_minus_float32": round(difference, 6),
    }


def _nats(
    model: LoadedModel,
    shards: Shards,
    *,
    name: str,
    max_tokens: int | None = None,
    progress: Progress | None = None,
) -> NDArray[np.float64]:
    return document_nats(
        model.transformer,
        shards,
        document_id=model.require_tokenizer().document_id,
        context_length=min(model.config.context_length, LONGEST_WINDOW),
        max_tokens=max_tokens,
        progress=progress,
        name=name,
    )
