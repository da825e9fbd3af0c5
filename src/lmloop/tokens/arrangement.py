"""How the texts of a row are made ready to be learnt from, an objective each.

Takes: the recipe's choice, a tokenizer, the ids of a row's texts. Gives: a packed row. A row is a
function of its ids and of a generator alone. Plain causal rows need none of this: see `loader.py`.
Axes: N tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from lmloop.errors import TokenizerError
from lmloop.learning import PretrainConfig
from lmloop.tokens.objectives import (
    Example,
    FillInTheMiddle,
    Masking,
    Permutation,
    causal_or_masked,
    draw_prefix_length,
    fill_in_the_middle,
    permuted_in_one_stream,
    prefix,
)
from lmloop.tokens.pack import Packed, pack
from lmloop.tokens.spans import SpanCorruption, longest_text, predict_lengths, span_corruption
from lmloop.tokens.tokenizer import Tokenizer
from lmloop.tokens.word_edges import WordEdges, find_word_edges

Ids = NDArray[np.int64]


class Objective(Protocol):
    """How one text becomes an example."""

    def lengths(self, num_tokens: int) -> tuple[int, int]:
        """Most tokens that a text of so many takes in the row, and in the encoder's row."""

    def make(self, text: Ids, *, follows: int, generator: Generator) -> Example:
        """The example of a text [N], or of a piece of one, behind which stands `follows`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrangement:
    """Rows of one objective: how long they are, and how texts are laid into them."""

    objective: Objective
    document_id: int
    """Begins every text."""
    text_tokens: int
    """Tokens of text that a row is made of."""
    row_tokens: int
    source_tokens: int = 0
    """Length of the encoder's row."""

    def arrange(self, stream: Ids, *, generator: Generator) -> Packed:
        """The row of `text_tokens` ids and the one that follows them.

        Texts that make more tokens than they have may not all fit: what is left over at the end is
        not learnt this time.
        """
        ids = stream[:-1]
        begins = np.flatnonzero(ids == self.document_id)
        edges = np.unique(np.concatenate([[0], begins, [len(ids)]])).tolist()
        examples: list[Example] = []
        room, source_room = self.row_tokens, self.source_tokens
        for begin, end in zip(edges[:-1], edges[1:], strict=True):
            length = self._fit(end - begin, room, source_room)
            if length == 0:
                break
            text, follows = ids[begin : begin + length], int(stream[begin + length])
            example = self.objective.make(text, follows=follows, generator=generator)
            room -= len(example.tokens)
            source_room -= 0 if example.source is None else len(example.source)
            examples.append(example)
        return pack(
            examples,
            length=self.row_tokens,
            source_length=self.source_tokens,
            padding_id=self.document_id,
        )

    def shorten(self, num_tokens: int) -> Arrangement:
        """The same rows of no more than `num_tokens` of text: for a split smaller than a row."""
        return replace(self, text_tokens=min(self.text_tokens, max(1, num_tokens)))

    def _fit(self, length: int, room: int, source_room: int) -> int:
        """How many of the first `length` tokens of a text there is room for."""
        length = min(length, max(room, source_room))
        while length:
            needed, source_needed = self.objective.lengths(length)
            if needed <= room and source_needed <= source_room:
                break
            length -= 1
        return length


def make_arrangement(config: PretrainConfig, tokenizer: Tokenizer) -> Arrangement | None:
    """How a recipe's objective lays out its rows; None for plain causal rows.

    Raises `TokenizerError` where the tokenizer lacks a special token or cannot tell words apart.
    """
    if config.objective == "causal":
        return None
    ids = [_require(tokenizer, token, config) for token in config.special_tokens]
    document_id, row = tokenizer.document_id, config.row_tokens
    text_tokens, target_tokens, source_tokens = row, row, 0
    objective: Objective
    if config.objective == "prefix":
        objective = _Prefix()
    elif config.objective == "fill-in-the-middle":
        markers = dict(zip(("prefix_id", "suffix_id", "middle_id"), ids, strict=True))
        options = FillInTheMiddle(**markers, rate=config.middle_share)
        objective = _Middle(options, document_id)
    elif config.objective == "permutation":
        special = Permutation(share=config.mask_rate, special_ids=tokenizer.special_ids)
        objective = _Permuted(special, ids[0])
        text_tokens = max(1, int(row / (1 + config.mask_rate)))
    elif config.objective == "span-corruption":
        spans = _corrupt(config, tuple(ids), document_id)
        objective = _Spans(spans)
        text_tokens = longest_text(row, spans)
        source_tokens, target_tokens = row, predict_lengths(text_tokens, spans)[1]
    else:
        objective = _mask(config, tokenizer, mask_id=ids[0])
    return Arrangement(
        objective=objective,
        document_id=document_id,
        text_tokens=text_tokens,
        row_tokens=target_tokens,
        source_tokens=source_tokens,
    )


def _require(tokenizer: Tokenizer, token: str, config: PretrainConfig) -> int:
    try:
        return tokenizer.special_id(token)
    except TokenizerError as error:
        raise TokenizerError(
            f"{error}, which pretrain.objective = {config.objective!r} needs: add it to "
            "tokenize.extra_tokens and tokenize again"
        ) from None


def _mask(config: PretrainConfig, tokenizer: Tokenizer, *, mask_id: int) -> _Masked:
    both = config.objective == "causal+masked"
    options = Masking(
        mask_id=mask_id,
        vocab_size=tokenizer.vocab_size,
        special_ids=tokenizer.special_ids,
        rate=config.mask_rate,
        next_token=both,
    )
    edges = find_word_edges(tokenizer) if config.mask_words else None
    return _Masked(options, causal_share=config.causal_share if both else 0.0, edges=edges)


def _corrupt(config: PretrainConfig, sentinels: tuple[int, ...], end_id: int) -> SpanCorruption:
    return SpanCorruption(
        sentinels=sentinels,
        start_id=end_id,
        end_id=end_id,
        noise_density=config.mask_rate,
        mean_span_length=config.span_length,
    )


@dataclass(frozen=True, slots=True)
class _Masked:
    """Hidden tokens from all others, or, with `causal_share`, next tokens."""

    options: Masking
    causal_share: float
    edges: WordEdges | None

    def lengths(self, num_tokens: int) -> tuple[int, int]:
        return num_tokens, 0

    def make(self, text: Ids, *, follows: int, generator: Generator) -> Example:
        return causal_or_masked(
            text,
            self.options,
            causal_share=self.causal_share,
            generator=generator,
            word_starts=None if self.edges is None else self.edges.starts(text),
            document_id=follows,
        )


class _Prefix:
    """What stands behind a prefix of a drawn length."""

    def lengths(self, num_tokens: int) -> tuple[int, int]:
        return num_tokens, 0

    def make(self, text: Ids, *, follows: int, generator: Generator) -> Example:
        length = draw_prefix_length(len(text), generator=generator)
        return prefix(text, prefix_length=length, document_id=follows)


@dataclass(frozen=True, slots=True)
class _Middle:
    """The middle of a text from what stands before and behind it, or next tokens."""

    options: FillInTheMiddle
    document_id: int

    def lengths(self, num_tokens: int) -> tuple[int, int]:
        return num_tokens + 4, 0  # three markers, and a document token before a text's later piece

    def make(self, text: Ids, *, follows: int, generator: Generator) -> Example:
        example = fill_in_the_middle(
            text, self.options, generator=generator, document_id=self.document_id
        )
        if len(example.tokens) == len(text):  # left causal: the text may go on in another row
            example.targets[-1] = follows
        return example


@dataclass(frozen=True, slots=True)
class _Permuted:
    """The last tokens of a drawn order, each from those before it in that order."""

    options: Permutation
    mask_id: int

    def lengths(self, num_tokens: int) -> tuple[int, int]:
        return num_tokens + max(1, round(num_tokens * self.options.share)), 0

    def make(self, text: Ids, *, follows: int, generator: Generator) -> Example:
        return permuted_in_one_stream(text, self.options, mask_id=self.mask_id, generator=generator)


@dataclass(frozen=True, slots=True)
class _Spans:
    """Runs of tokens that left the text which the encoder reads."""

    options: SpanCorruption

    def lengths(self, num_tokens: int) -> tuple[int, int]:
        source, targets = predict_lengths(num_tokens, self.options)
        return targets, source

    def make(self, text: Ids, *, follows: int, generator: Generator) -> Example:
        return span_corruption(text, self.options, generator=generator)
