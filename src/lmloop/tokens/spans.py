"""Span corruption: runs of tokens leave the text, and a decoder learns to give them back.

Takes: ids of one text, options, a random generator. Gives: an `Example` with a source. As in Raffel
et al. 2020, arXiv:1910.10683, sections 3.1.4 and 3.3.4, and the code published with it
(`random_spans_noise_mask` and `random_spans_helper`). How long both sides become depends on the
length of the text alone. Axes: N tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from lmloop.errors import TrainingError
from lmloop.tokens.objectives import Example, Ids


@dataclass(frozen=True, kw_only=True, slots=True)
class SpanCorruption:
    """What leaves the text, and what stands in its place."""

    sentinels: tuple[int, ...]
    """Ids that stand for the first span, the second and so on; the text must not contain them."""
    start_id: int
    """What the decoder reads first (T5: the padding id)."""
    end_id: int | None = None
    """Ends source and targets, if given."""
    noise_density: float = 0.15
    """Share of the tokens that leaves."""
    mean_span_length: float = 3.0
    """Tokens in a span, on average."""

    def __post_init__(self) -> None:
        """Raise `TrainingError` where nothing could be corrupted that way."""
        if not 0 <= self.noise_density < 1:
            raise TrainingError(
                f"noise_density is {self.noise_density}: give a share from 0 to below 1"
            )
        if not self.mean_span_length >= 1:
            raise TrainingError(
                f"mean_span_length is {self.mean_span_length}: a span has at least 1 token"
            )
        if len(set(self.sentinels)) < len(self.sentinels):
            raise TrainingError("two sentinels have the same id: give each span its own")


def span_corruption(tokens: Ids, options: SpanCorruption, *, generator: Generator) -> Example:
    """The text without some spans as source; sentinels and spans as targets of the decoder.

    A text of fewer than two tokens stays whole. As published, the first token always stays and the
    last always leaves: rows cut out of a long stream are better than whole texts. Raises
    `TrainingError` where there are fewer sentinels than spans, or one of them stands in the text.
    """
    ids = np.asarray(tokens, dtype=np.int64)
    noise = draw_noise(len(ids), options, generator=generator)
    source, targets = split_spans(ids, noise, options)
    read = np.append(options.start_id, targets)[: len(targets)]
    learnt = np.ones(len(targets), dtype=np.bool_)
    return Example(read, targets, learnt, np.arange(len(targets)), source)


def count_spans(num_tokens: int, options: SpanCorruption) -> tuple[int, int]:
    """How many of `num_tokens` leave, and in how many spans.

    As in the published code something leaves and something stays, however short the text; each
    span has a token and a kept token before it, however dense the noise.
    """
    if num_tokens < 2 or options.noise_density == 0:
        return 0, 0
    noise = min(max(round(num_tokens * options.noise_density), 1), num_tokens - 1)
    spans = max(round(noise / options.mean_span_length), 1)
    return noise, min(spans, noise, num_tokens - noise)


def predict_lengths(num_tokens: int, options: SpanCorruption) -> tuple[int, int]:
    """Lengths of source and targets that a text of `num_tokens` will have."""
    noise, spans = count_spans(num_tokens, options)
    added = spans + (options.end_id is not None)
    return num_tokens - noise + added, noise + added


def longest_text(source_length: int, options: SpanCorruption) -> int:
    """The most tokens whose source has at most `source_length`; 0 where not even one fits."""
    num_tokens = 0
    while predict_lengths(num_tokens + 1, options)[0] <= source_length:
        num_tokens += 1
    return num_tokens


def draw_noise(
    num_tokens: int, options: SpanCorruption, *, generator: Generator
) -> NDArray[np.bool_]:
    """Which tokens leave, [N]: kept runs and spans by turns, a kept run first."""
    noise, spans = count_spans(num_tokens, options)
    if spans == 0:
        return np.zeros(num_tokens, dtype=np.bool_)
    left = _draw_lengths(noise, spans, generator)
    kept = _draw_lengths(num_tokens - noise, spans, generator)
    lengths = np.stack([kept, left], axis=1).flatten()
    return np.repeat(np.arange(2 * spans) % 2 == 1, lengths)


def split_spans(
    tokens: Ids, noise: NDArray[np.bool_], options: SpanCorruption
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Source: a sentinel for each run of `noise`. Targets: each sentinel, then what it stands for.

    A decoder alone learns the same from both joined, with the source as its `prefix`. Raises
    `TrainingError` where the sentinels run out or the text contains one.
    """
    ids = np.asarray(tokens, dtype=np.int64)
    sentinels = np.asarray(options.sentinels, dtype=np.int64)
    if np.isin(ids, sentinels).any():
        raise TrainingError("the text contains a sentinel: sentinels must be ids of their own")
    begins = noise & ~np.append(False, noise)[: len(noise)]
    spans = int(begins.sum())
    if spans > len(sentinels):
        raise TrainingError(
            f"a text of {len(ids)} tokens has {spans} spans but there are {len(sentinels)} "
            "sentinels: add sentinels, take longer spans or shorter rows"
        )
    end = [] if options.end_id is None else [options.end_id]
    marked = ids.copy()
    marked[begins] = sentinels[:spans]
    source = marked[~noise | begins]
    targets = np.insert(ids[noise], np.flatnonzero(begins[noise]), sentinels[:spans])
    return np.append(source, end).astype(np.int64), np.append(targets, end).astype(np.int64)


def _draw_lengths(num_tokens: int, parts: int, generator: Generator) -> NDArray[np.int64]:
    """`num_tokens` cut into `parts` of at least one token, each such way as likely."""
    cuts = generator.permutation(np.arange(num_tokens - 1) < parts - 1)
    places = np.concatenate([[0], np.flatnonzero(cuts) + 1, [num_tokens]])
    return np.diff(places)
