"""Packing: examples of any objective in one row, each as it would be alone."""

from __future__ import annotations

import numpy as np
import pytest

from lmloop.errors import TrainingError
from lmloop.tokens.objectives import (
    Example,
    Masking,
    Permutation,
    causal,
    masked,
    permuted,
    permuted_in_one_stream,
    prefix,
    visible,
)
from lmloop.tokens.pack import pack
from lmloop.tokens.spans import SpanCorruption, span_corruption

SPANS = SpanCorruption(sentinels=(99, 98, 97), start_id=0, end_id=1)


def one_of_each() -> list[Example]:
    generator = np.random.default_rng(0)
    masking = Masking(mask_id=2, vocab_size=100)
    return [
        causal([10, 11, 12], document_id=3),
        masked([20, 21, 22, 23], masking, generator=generator),
        prefix([30, 31, 32, 33], prefix_length=2),
        permuted([40, 41, 42], Permutation(), generator=generator),
    ]


def test_two_examples_are_packed_as_written_by_hand() -> None:
    row = pack([causal([5, 6]), prefix([7, 8, 9], prefix_length=2)], length=7, padding_id=4)
    assert row.tokens.tolist() == [5, 6, 7, 8, 9, 4, 4]
    assert row.targets.tolist() == [6, 6, 8, 9, 9, 4, 4]
    assert row.learnt.tolist() == [True, False, False, True, False, False, False]
    assert row.order.tolist() == [0, 1, 0, 0, 1, 0, 1]
    assert row.segments.tolist() == [0, 0, 1, 1, 1, 2, 2]
    assert row.positions.tolist() == [0, 1, 0, 1, 2, 0, 1]
    assert len(row.source) == len(row.source_segments) == len(row.source_positions) == 0


def test_a_packed_token_sees_what_it_sees_alone() -> None:
    examples = one_of_each()
    row = pack(examples, length=20)
    seen = visible(row.order, segments=row.segments)
    start = 0
    for example in examples:
        stop = start + len(example.tokens)
        assert np.array_equal(seen[start:stop, start:stop], visible(example.order))
        assert not seen[start:stop, :start].any()
        assert not seen[start:stop, stop:].any()
        start = stop
    assert seen.diagonal().all()


def test_padding_is_never_learnt() -> None:
    row = pack(one_of_each(), length=50)
    assert not row.learnt[14:].any()
    assert row.learnt[:14].sum() == sum(each.learnt.sum() for each in one_of_each())


def test_sources_are_packed_beside_their_targets() -> None:
    generator = np.random.default_rng(0)
    pair = [span_corruption([10, 11, 12], SPANS, generator=generator), causal([5, 6])]
    row = pack([*pair, span_corruption([20, 21], SPANS, generator=generator)], source_length=9)
    assert row.source.tolist() == [10, 11, 99, 1, 20, 99, 1, 0, 0]
    assert row.source_segments.tolist() == [0, 0, 0, 0, 2, 2, 2, 3, 3]
    assert row.source_positions.tolist() == [0, 1, 2, 3, 0, 1, 2, 0, 1]
    assert row.targets.tolist() == [99, 12, 1, 6, 6, 99, 21, 1]
    assert row.segments.tolist() == [0, 0, 0, 1, 1, 2, 2, 2]


def test_positions_that_an_example_tells_are_kept() -> None:
    drawn = permuted_in_one_stream(
        [20, 21, 22], Permutation(share=0.3), mask_id=9, generator=np.random.default_rng(0)
    )
    row = pack([causal([5, 6]), drawn, causal([7])], length=9)
    asked = int(np.flatnonzero(drawn.order[:3] == 5)[0])
    assert row.positions.tolist() == [0, 1, 0, 1, 2, asked, 0, 0, 1]
    assert row.tokens.tolist() == [5, 6, 20, 21, 22, 9, 7, 0, 0]


def test_nothing_packs_into_nothing_or_into_padding() -> None:
    assert len(pack([]).tokens) == 0
    row = pack([causal([])], length=2, padding_id=4)
    assert row.tokens.tolist() == [4, 4]
    assert not row.learnt.any()


def test_rows_of_one_length_have_one_type_each_field() -> None:
    for row in (pack([]), pack([], length=3), pack(one_of_each(), length=20, source_length=2)):
        kinds = {str(getattr(row, name).dtype) for name in row.__slots__ if name != "learnt"}
        assert kinds == {"int64"}
        assert row.learnt.dtype == np.bool_


def test_examples_longer_than_the_row_are_refused() -> None:
    with pytest.raises(TrainingError, match="the examples have 14 tokens, more than length 13"):
        pack(one_of_each(), length=13)
    example = span_corruption([10, 11, 12], SPANS, generator=np.random.default_rng(0))
    with pytest.raises(TrainingError, match="4 tokens, more than source_length 3"):
        pack([example], source_length=3)
