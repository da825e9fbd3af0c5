"""Span corruption as plain as can be, one token at a time, after T5's published code.

Takes: lists of ids and marks. Gives: lists. Shares no code with lmloop; draws from a generator what
`random_spans_noise_mask` draws, in the same order.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def draw_noise(
    length: int, *, density: float, mean_span_length: float, generator: np.random.Generator
) -> list[bool]:
    """`random_spans_noise_mask`, for texts of at least two tokens in which the spans fit."""
    noise = min(max(round(length * density), 1), length - 1)
    spans = max(round(noise / mean_span_length), 1)
    left = draw_segments(noise, spans, generator)
    kept = draw_segments(length - noise, spans, generator)
    mask: list[bool] = []
    for keep, leave in zip(kept, left, strict=True):
        mask += [False] * keep + [True] * leave
    return mask


def draw_segments(items: int, segments: int, generator: np.random.Generator) -> list[int]:
    """`_random_segmentation`: a shuffled list says which items begin a segment."""
    flags = [place < segments - 1 for place in range(items - 1)]
    lengths = [1]
    for begins in generator.permutation(flags):
        if begins:
            lengths.append(1)
        else:
            lengths[-1] += 1
    return lengths


def split(
    tokens: Sequence[int], noise: Sequence[bool], sentinels: Sequence[int]
) -> tuple[list[int], list[int]]:
    """Source and targets, without end tokens."""
    source: list[int] = []
    targets: list[int] = []
    left = list(sentinels)
    for place, token in enumerate(tokens):
        if not noise[place]:
            source.append(token)
            continue
        if place == 0 or not noise[place - 1]:
            sentinel = left.pop(0)
            source.append(sentinel)
            targets.append(sentinel)
        targets.append(token)
    return source, targets


def restore(source: Sequence[int], targets: Sequence[int], sentinels: Sequence[int]) -> list[int]:
    """The text again: each sentinel of the source becomes what follows it in the targets."""
    spans: dict[int, list[int]] = {}
    for token in targets:
        if token in sentinels:
            spans[token] = span = []
        else:
            span.append(token)
    text: list[int] = []
    for token in source:
        text += spans[token] if token in sentinels else [token]
    return text


def lengths_for(inputs_length: int, *, density: float, mean_span_length: float) -> tuple[int, int]:
    """`random_spans_helper`: text and targets lengths for inputs that end with an end token."""

    def lengths(tokens: int) -> tuple[int, int]:
        noise = round(tokens * density)
        spans = round(noise / mean_span_length)
        return tokens - noise + spans + 1, noise + spans + 1

    tokens = inputs_length
    while lengths(tokens + 1)[0] <= inputs_length:
        tokens += 1
    return tokens, lengths(tokens)[1]
