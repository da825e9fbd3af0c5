"""Objectives: what is hidden, what is predicted, who sees whom; nothing is lost on the way."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, chisquare

from lmloop.errors import TrainingError
from lmloop.records import Turn
from lmloop.tokens.chat import DEFAULT_TEMPLATE, ChatTemplate
from lmloop.tokens.loader import PackedLoader
from lmloop.tokens.objectives import (
    Example,
    FillInTheMiddle,
    Masking,
    Permutation,
    causal,
    causal_or_masked,
    chat,
    cut_middle,
    draw_prefix_length,
    fill_in_the_middle,
    join_middle,
    masked,
    permuted,
    permuted_in_one_stream,
    preference,
    prefix,
    visible,
)
from lmloop.tokens.shards import INDEX, Shards, ShardWriter
from lmloop.tokens.tokenizer import train_tokenizer

DOCUMENT, MASK, PREFIX, SUFFIX, MIDDLE = 0, 1, 2, 3, 4
SPECIAL = (DOCUMENT, PREFIX, SUFFIX, MIDDLE)
VOCABULARY = 100
FIM = FillInTheMiddle(prefix_id=PREFIX, suffix_id=SUFFIX, middle_id=MIDDLE)

texts = st.lists(st.integers(5, VOCABULARY - 1), max_size=40)
texts_with_special = st.lists(st.integers(0, 12), max_size=40)
shares = st.floats(0, 1)
seeds = st.integers(0, 2**32)


def masking(**changes: Any) -> Masking:
    settings: dict[str, Any] = {"mask_id": MASK, "vocab_size": VOCABULARY, "special_ids": SPECIAL}
    return Masking(**settings | changes)


def seeded(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def is_likely(successes: int, trials: int, share: float) -> bool:
    """Whether a binomial count lies in the middle 99.99 %."""
    low, high = binom.interval(0.9999, trials, share)
    return bool(low <= successes <= high)


OBJECTIVES: dict[str, Callable[[Any, np.random.Generator], Example]] = {
    "causal": lambda ids, draw: causal(ids, document_id=DOCUMENT),
    "masked": lambda ids, draw: masked(ids, masking(rate=0.4), generator=draw),
    "masked, next token": lambda ids, draw: masked(
        ids, masking(rate=0.4, next_token=True), generator=draw
    ),
    "causal or masked": lambda ids, draw: causal_or_masked(
        ids, masking(), causal_share=0.5, generator=draw
    ),
    "prefix": lambda ids, draw: prefix(
        ids, prefix_length=draw_prefix_length(len(ids), generator=draw)
    ),
    "fill in the middle": lambda ids, draw: fill_in_the_middle(ids, FIM, generator=draw),
    "permuted": lambda ids, draw: permuted(
        ids, Permutation(share=0.5, special_ids=SPECIAL), generator=draw
    ),
    "chat": lambda ids, draw: chat(ids, draw.random(len(ids)) < 0.5),
}


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("length", [0, 1, 2, 17])
def test_every_objective_gives_arrays_of_one_length_and_type(name: str, length: int) -> None:
    example = OBJECTIVES[name](range(20, 20 + length), seeded())
    arrays = example.tokens, example.targets, example.order
    assert {array.dtype for array in arrays} == {np.dtype(np.int64)}
    assert example.learnt.dtype == np.bool_
    assert {array.shape for array in (*arrays, example.learnt)} == {example.tokens.shape}
    assert visible(example.order).diagonal().all()


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_same_generator_gives_the_same_row(name: str) -> None:
    def make(seed: int) -> list[list[int]]:
        example = OBJECTIVES[name](range(20, 60), np.random.default_rng([seed, 7]))
        return [example.tokens.tolist(), example.learnt.tolist(), example.order.tolist()]

    assert make(3) == make(3)
    if name != "causal":
        assert any(make(seed) != make(3) for seed in range(4, 12))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_text_that_is_given_stays_as_it_is(name: str) -> None:
    ids = np.arange(20, 60)
    OBJECTIVES[name](ids, seeded())
    assert ids.tolist() == list(range(20, 60))


def test_causal_predicts_the_next_token_and_then_the_next_document() -> None:
    example = causal([0, 11, 12], document_id=DOCUMENT)
    assert example.tokens.tolist() == [0, 11, 12]
    assert example.targets.tolist() == [11, 12, 0]
    assert example.learnt.tolist() == [True, True, True]
    assert example.is_causal
    assert causal([0, 11, 12]).learnt.tolist() == [True, True, False]


@pytest.mark.parametrize("answers_only", [False, True])
def test_the_loaders_row_of_one_document_is_the_causal_or_the_chat_example(
    tmp_path: Path, answers_only: bool
) -> None:
    ids, answers = [0, 11, 12, 13], [False, False, True, True]
    writer = ShardWriter(tmp_path, "train", vocab_size=VOCABULARY)
    writer.append(ids, answers, raw_bytes=4)
    (tmp_path / INDEX).write_text(json.dumps({"splits": {"train": writer.close()}}))
    loader = PackedLoader(
        Shards.open(tmp_path, "train"),
        row_tokens=4,
        document_id=DOCUMENT,
        answers_only=answers_only,
        seed=0,
    )
    row = loader.rows(0, 1)
    example = chat(ids, answers) if answers_only else causal(ids, document_id=DOCUMENT)
    assert row.tokens[0].tolist() == example.tokens.tolist()
    assert row.learnt[0].tolist() == example.learnt.tolist()
    assert row.targets[0][example.learnt].tolist() == example.targets[example.learnt].tolist()


def test_causal_on_one_token_and_on_none() -> None:
    assert causal([7]).learnt.tolist() == [False]
    assert causal([7], document_id=DOCUMENT).targets.tolist() == [0]
    assert causal([], document_id=DOCUMENT).targets.tolist() == []


@given(ids=texts_with_special, rate=shares, exact=st.booleans(), seed=seeds)
def test_only_hidden_tokens_are_changed_and_none_of_them_is_special(
    ids: list[int], rate: float, exact: bool, seed: int
) -> None:
    options = masking(rate=rate, exact=exact)
    example = masked(ids, options, generator=seeded(seed))
    assert example.targets.tolist() == ids
    assert example.tokens[~example.learnt].tolist() == example.targets[~example.learnt].tolist()
    assert not np.isin(example.targets[example.learnt], [*SPECIAL, MASK]).any()
    assert not np.isin(example.tokens[example.learnt], SPECIAL).any()
    assert example.is_bidirectional


def test_hidden_tokens_are_masked_replaced_or_left_eight_to_one_to_one() -> None:
    ids = np.full(40_000, 50)
    example = masked(ids, masking(), generator=seeded())
    hidden = int(example.learnt.sum())
    shown = example.tokens[example.learnt]
    assert is_likely(hidden, len(ids), 0.15)
    assert is_likely(int((shown == MASK).sum()), hidden, 0.8)
    others = shown[(shown != MASK) & (shown != 50)]
    assert is_likely(len(others), hidden, 0.1 * 94 / 95)  # one in 95 is replaced by itself


def test_a_random_token_is_any_but_a_special_one_each_as_likely() -> None:
    options = masking(rate=1.0, mask_share=0.0, random_share=1.0, vocab_size=12, special_ids=(0, 5))
    example = masked(np.full(9000, 7), options, generator=seeded())
    counts = Counter(example.tokens.tolist())
    assert sorted(counts) == [2, 3, 4, 6, 7, 8, 9, 10, 11]
    assert chisquare(list(counts.values())).pvalue > 0.001


@given(ids=texts_with_special, rate=shares, seed=seeds)
def test_an_exact_rate_is_reached_by_rounding(ids: list[int], rate: float, seed: int) -> None:
    example = masked(ids, masking(rate=rate, exact=True), generator=seeded(seed))
    ordinary = sum(each > MIDDLE for each in ids)
    wanted = max(1, round(ordinary * rate)) if ordinary and rate else 0
    assert example.learnt.sum() == wanted


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize(("rate", "hidden"), [(0.0, 0), (1.0, 4)])
def test_masking_at_rate_zero_hides_nothing_and_at_rate_one_everything(
    exact: bool, rate: float, hidden: int
) -> None:
    options = masking(rate=rate, exact=exact, mask_share=1.0, random_share=0.0)
    example = masked([0, 11, 12, 13, 14], options, generator=seeded())
    assert example.learnt.sum() == hidden
    assert (example.tokens == MASK).sum() == hidden


@pytest.mark.parametrize("exact", [False, True])
def test_masking_hides_nothing_where_all_is_special_or_empty(exact: bool) -> None:
    options = masking(rate=1.0, exact=exact)
    for ids in ([], [0], [0, 1, 2, 3, 4]):
        example = masked(ids, options, generator=seeded())
        assert not example.learnt.any()
        assert example.tokens.tolist() == ids


def test_one_token_is_hidden_where_the_rate_is_exact() -> None:
    options = masking(exact=True, mask_share=1.0, random_share=0.0)
    assert masked([11], options, generator=seeded()).tokens.tolist() == [MASK]


@given(
    words=st.lists(st.integers(1, 4), min_size=1, max_size=15),
    rate=shares,
    exact=st.booleans(),
    seed=seeds,
)
def test_a_word_is_hidden_whole_or_not_at_all(
    words: list[int], rate: float, exact: bool, seed: int
) -> None:
    starts = [place == 0 for size in words for place in range(size)]
    ids = np.arange(20, 20 + len(starts))
    options = masking(rate=rate, exact=exact)
    example = masked(ids, options, generator=seeded(seed), word_starts=starts)
    parts = np.split(example.learnt, np.flatnonzero(starts)[1:])
    assert all(part.all() or not part.any() for part in parts)
    if exact and rate:
        wanted = max(1, round(len(ids) * rate))
        assert example.learnt.sum() <= wanted
        # What is missing was too little for any word that was passed over.
        passed = [len(part) for part in parts if not part.any()]
        assert not passed or wanted - example.learnt.sum() < min(passed)


def test_a_special_token_parts_a_word() -> None:
    starts = [True, False, False, False, False]
    options = masking(rate=0.5)
    made = [
        masked([11, 12, 0, 13, 14], options, generator=seeded(seed), word_starts=starts).learnt
        for seed in range(40)
    ]
    assert {tuple(learnt.tolist()) for learnt in made} == {
        (first, first, False, second, second) for first in (False, True) for second in (False, True)
    }


def test_a_row_that_begins_inside_a_word_hides_that_piece_too() -> None:
    options = masking(rate=1.0)
    example = masked([11, 12, 13], options, generator=seeded(), word_starts=[False, False, True])
    assert example.learnt.all()


@given(ids=texts_with_special, seed=seeds)
def test_masked_next_tokens_are_the_hidden_ones_a_place_earlier(ids: list[int], seed: int) -> None:
    plain = masked(ids, masking(rate=0.5), generator=seeded(seed))
    shifted = masked(ids, masking(rate=0.5, next_token=True), generator=seeded(seed))
    assert shifted.tokens.tolist() == plain.tokens.tolist()
    assert shifted.learnt[:-1].tolist() == plain.learnt[1:].tolist()
    assert shifted.targets[:-1].tolist() == plain.targets[1:].tolist()
    assert not shifted.learnt[-1:].any()
    assert shifted.is_bidirectional


def test_both_in_one_run_draws_each_row_and_its_order_says_which() -> None:
    rows = [
        causal_or_masked(
            range(20, 30), masking(), causal_share=0.25, generator=np.random.default_rng([0, row])
        )
        for row in range(2000)
    ]
    assert all(row.is_causal != row.is_bidirectional for row in rows)
    assert is_likely(sum(row.is_causal for row in rows), 2000, 0.25)
    kinds = {row.is_causal: row for row in rows}
    assert kinds[True].targets.tolist() == [*range(21, 30), 29]
    assert kinds[False].targets.tolist() == [*range(20, 30)]


@pytest.mark.parametrize(("share", "is_causal"), [(0.0, False), (1.0, True)])
def test_both_in_one_run_at_share_zero_and_one_is_one_of_them(
    share: float, is_causal: bool
) -> None:
    for seed in range(20):
        row = causal_or_masked(range(20, 30), masking(), causal_share=share, generator=seeded(seed))
        assert row.is_causal == is_causal


def test_a_prefix_sees_itself_in_both_directions_and_what_follows_is_causal() -> None:
    example = prefix([11, 12, 13, 14], prefix_length=2, document_id=DOCUMENT)
    assert visible(example.order).astype(int).tolist() == [
        [1, 1, 0, 0],
        [1, 1, 0, 0],
        [1, 1, 1, 0],
        [1, 1, 1, 1],
    ]
    assert example.targets.tolist() == [12, 13, 14, 0]
    assert example.learnt.tolist() == [False, True, True, True]


@given(ids=texts, data=st.data())
def test_no_token_of_a_prefix_language_model_sees_its_target(
    ids: list[int], data: st.DataObject
) -> None:
    example = prefix(ids, prefix_length=data.draw(st.integers(0, len(ids))))
    seen = visible(example.order)
    for place in np.flatnonzero(example.learnt):
        assert not seen[place, place + 1]


@pytest.mark.parametrize("length", [0, 1])
def test_a_prefix_of_none_or_one_is_causal(length: int) -> None:
    example = prefix([11, 12, 13], prefix_length=length)
    assert np.array_equal(visible(example.order), visible(causal([11, 12, 13]).order))
    assert example.learnt.tolist() == [True, True, False]


def test_a_prefix_of_all_leaves_nothing_but_the_end_to_predict() -> None:
    assert prefix([11, 12], prefix_length=2, document_id=0).learnt.tolist() == [False, True]
    assert not prefix([11, 12], prefix_length=2).learnt.any()
    assert len(prefix([], prefix_length=0).tokens) == 0


def test_prefix_lengths_are_drawn_evenly() -> None:
    generator = seeded()
    counts = Counter(draw_prefix_length(6, generator=generator) for _ in range(5000))
    assert sorted(counts) == [1, 2, 3, 4, 5]
    assert chisquare(list(counts.values())).pvalue > 0.001
    assert [draw_prefix_length(length, generator=generator) for length in (0, 1, 2)] == [0, 1, 1]


@pytest.mark.parametrize("length", [-1, 4])
def test_a_prefix_longer_than_the_text_is_refused(length: int) -> None:
    with pytest.raises(TrainingError, match=f"prefix_length is {length} in a text of 3 tokens"):
        prefix([11, 12, 13], prefix_length=length)


def test_the_middle_comes_last_in_both_layouts() -> None:
    pieces = [11, 12], [21], [31, 32]
    first = join_middle(*pieces, FIM, suffix_first=False, document_id=DOCUMENT)
    assert first.tokens.tolist() == [0, 2, 11, 12, 3, 31, 32, 4, 21]
    assert first.targets.tolist() == [2, 11, 12, 3, 31, 32, 4, 21, 0]
    assert first.learnt.astype(int).tolist() == [0, 1, 1, 0, 1, 1, 0, 1, 1]
    second = join_middle(*pieces, FIM, suffix_first=True)
    assert second.tokens.tolist() == [2, 3, 31, 32, 4, 11, 12, 21]
    assert second.learnt.astype(int).tolist() == [0, 1, 1, 0, 1, 1, 1, 0]
    assert first.is_causal
    assert second.is_causal


def take_apart(tokens: list[int]) -> list[int]:
    """The text that a rearranged row was made of, whichever layout it has."""
    head, tokens = tokens[: tokens.index(PREFIX)], tokens[tokens.index(PREFIX) + 1 :]
    place, suffix = tokens.index(MIDDLE), tokens.index(SUFFIX)
    before, after, middle = tokens[:suffix], tokens[suffix + 1 : place], tokens[place + 1 :]
    if before:
        return [*head, *before, *middle, *after]
    return [*head, *middle, *after]  # suffix first, or nothing before the middle: alike


@given(ids=texts, suffix_first_rate=shares, seed=seeds, headed=st.booleans())
def test_the_pieces_reassemble_the_text(
    ids: list[int], suffix_first_rate: float, seed: int, headed: bool
) -> None:
    text = [DOCUMENT, *ids] if headed else ids
    options = replace(FIM, rate=1.0, suffix_first_rate=suffix_first_rate)
    document_id = DOCUMENT if headed else None
    example = fill_in_the_middle(text, options, generator=seeded(seed), document_id=document_id)
    tokens = example.tokens.tolist()
    assert take_apart(tokens) == text
    assert len(tokens) == len(text) + 3
    assert not np.isin(example.targets[example.learnt], [PREFIX, SUFFIX, MIDDLE]).any()
    if headed:
        assert tokens[0] == DOCUMENT
        assert tokens.count(DOCUMENT) == 1
        assert example.targets[-1] == DOCUMENT
        assert example.learnt[-1]


def test_texts_are_rearranged_and_suffixes_come_first_as_often_as_asked_for() -> None:
    options = replace(FIM, rate=0.6, suffix_first_rate=0.3)
    generator = seeded()
    rows = [
        fill_in_the_middle(range(20, 60), options, generator=generator).tokens.tolist()
        for _ in range(3000)
    ]
    rearranged = [row for row in rows if PREFIX in row]
    assert is_likely(len(rearranged), 3000, 0.6)
    # With nothing before the middle, 81 of 41 * 41 cuts, the prefix first looks alike.
    alike = 81 / 41**2
    suffix_first = sum(row[1] == SUFFIX for row in rearranged)
    assert is_likely(suffix_first, len(rearranged), 0.3 + 0.7 * alike)


@pytest.mark.parametrize(("rate", "added"), [(0.0, 0), (1.0, 3)])
def test_filling_in_at_rate_zero_is_causal_and_at_rate_one_always_done(
    rate: float, added: int
) -> None:
    options = replace(FIM, rate=rate)
    for ids in ([], [11], list(range(20, 40))):
        for seed in range(10):
            example = fill_in_the_middle(ids, options, generator=seeded(seed))
            assert len(example.tokens) == len(ids) + added


def test_a_cut_falls_on_every_place_evenly() -> None:
    generator = seeded()
    cuts = Counter(cut_middle(2, generator=generator) for _ in range(9000))
    # Two places of 0, 1, 2: those that differ can be drawn in two orders.
    expected = {(0, 0): 1, (1, 1): 1, (2, 2): 1, (0, 1): 2, (0, 2): 2, (1, 2): 2}
    assert cuts.keys() == expected.keys()
    counts, weights = zip(*((cuts[cut], expected[cut] * 1000) for cut in expected), strict=True)
    assert chisquare(counts, weights).pvalue > 0.001
    assert cut_middle(0, generator=generator) == (0, 0)


def test_a_text_is_cut_between_characters_by_encoding_its_pieces() -> None:
    text = "a café"
    begin, end = cut_middle(len(text), generator=seeded(1))
    pieces = text[:begin], text[begin:end], text[end:]
    encoded = [[10 + ord(each) for each in piece] for piece in pieces]
    example = join_middle(encoded[0], encoded[1], encoded[2], FIM, suffix_first=False)
    assert take_apart(example.tokens.tolist()) == [10 + ord(each) for each in text]


@given(ids=texts_with_special, share=shares, seed=seeds)
def test_the_order_is_a_permutation_whose_last_share_is_predicted(
    ids: list[int], share: float, seed: int
) -> None:
    options = Permutation(share=share, special_ids=(*SPECIAL, MASK))
    example = permuted(ids, options, generator=seeded(seed))
    assert sorted(example.order.tolist()) == list(range(len(ids)))
    assert example.tokens.tolist() == example.targets.tolist() == ids
    special = np.array(ids, dtype=np.int64) <= MIDDLE
    wanted = max(1, round(int((~special).sum()) * share)) if share and not special.all() else 0
    assert example.learnt.sum() == wanted
    assert not example.learnt[special].any()
    assert sorted(example.order[example.learnt]) == list(range(len(ids) - wanted, len(ids)))


@given(ids=texts, seed=seeds)
def test_the_query_stream_sees_what_the_content_stream_sees_without_itself(
    ids: list[int], seed: int
) -> None:
    order = permuted(ids, Permutation(), generator=seeded(seed)).order
    content, query = visible(order), visible(order, itself=False)
    assert np.array_equal(content, query | np.eye(len(ids), dtype=np.bool_))
    assert not query.diagonal().any()
    assert query.sum() == len(ids) * (len(ids) - 1) // 2


def test_every_factorisation_order_is_equally_likely() -> None:
    generator = seeded()
    made = [permuted([5, 6, 7, 8], Permutation(), generator=generator) for _ in range(4800)]
    counts = Counter(tuple(each.order.tolist()) for each in made)
    assert len(counts) == 24
    assert chisquare(list(counts.values())).pvalue > 0.001


@given(ids=texts, share=st.floats(0, 1), seed=seeds)
def test_a_question_in_one_stream_sees_what_the_query_stream_sees(
    ids: list[int], share: float, seed: int
) -> None:
    options = Permutation(share=share, special_ids=SPECIAL)
    two = permuted(ids, options, generator=seeded(seed))
    one = permuted_in_one_stream(ids, options, mask_id=MASK, generator=seeded(seed))
    assert one.positions is not None
    asked = np.flatnonzero(two.learnt)
    assert one.tokens.tolist() == [*ids, *[MASK] * len(asked)]
    assert one.positions.tolist() == [*range(len(ids)), *asked]
    assert np.array_equal(np.flatnonzero(one.learnt), len(ids) + np.arange(len(asked)))
    assert np.array_equal(one.targets[one.learnt], two.targets[two.learnt])
    seen, text = visible(one.order), slice(len(ids))
    assert np.array_equal(seen[text, text], visible(two.order))
    assert np.array_equal(seen[len(ids) :, text], visible(two.order, itself=False)[asked])
    assert seen.diagonal().all()


def test_a_question_is_never_seen_by_what_was_revealed_before_it() -> None:
    example = permuted_in_one_stream(
        range(20, 40), Permutation(share=0.5), mask_id=MASK, generator=seeded()
    )
    asked, text = example.order[20:], example.order[:20]
    seen = visible(example.order)[:20, 20:]
    assert np.array_equal(seen, asked[None] < text[:, None])


def test_permuting_one_token_or_special_ones_only() -> None:
    options = Permutation(special_ids=SPECIAL)
    assert permuted([11], options, generator=seeded()).learnt.tolist() == [True]
    assert not permuted([0, 2, 3], options, generator=seeded()).learnt.any()


def test_a_conversation_is_learnt_where_the_template_says_that_answers_are() -> None:
    tokenizer = train_tokenizer(
        ["hello there", "good day"],
        vocab_size=265,
        chat_template=DEFAULT_TEMPLATE,
        context_length=64,
    )
    template = ChatTemplate.of(tokenizer)
    turns = [Turn("user", "hello"), Turn("assistant", "good day"), Turn("user", "day")]
    ids, answers = template.encode_answers(turns, [tokenizer.encode(t.content) for t in turns])
    example = chat(ids, answers)
    said = [*tokenizer.encode("good day"), tokenizer.stop_ids[0]]
    assert example.targets[example.learnt].tolist() == said
    assert example.is_causal


def test_chat_without_answers_learns_nothing() -> None:
    assert not chat([5, 6, 7], [False] * 3).learnt.any()
    assert chat([5], [True]).learnt.tolist() == [False]
    assert len(chat([], []).tokens) == 0


def test_a_preference_shares_its_prompt_and_learns_the_answers_only() -> None:
    pair = preference([0, 11], chosen=[21, 22, 9], rejected=[31, 9])
    assert pair.chosen.tokens.tolist() == [0, 11, 21, 22, 9]
    assert pair.chosen.targets[pair.chosen.learnt].tolist() == [21, 22, 9]
    assert pair.rejected.tokens.tolist() == [0, 11, 31, 9]
    assert pair.rejected.targets[pair.rejected.learnt].tolist() == [31, 9]


def test_a_preference_without_prompt_or_answer() -> None:
    pair = preference([], chosen=[21, 22], rejected=[])
    assert pair.chosen.targets[pair.chosen.learnt].tolist() == [22]
    assert len(pair.rejected.tokens) == 0


def test_segments_part_what_is_seen() -> None:
    order, segments = np.array([0, 1, 0, 0]), np.array([0, 0, 1, 1])
    assert visible(order, segments=segments).astype(int).tolist() == [
        [1, 0, 0, 0],
        [1, 1, 0, 0],
        [0, 0, 1, 1],
        [0, 0, 1, 1],
    ]


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: masking(rate=1.5), "rate is 1.5: give a share from 0 to 1"),
        (lambda: masking(rate=float("nan")), "rate is nan"),
        (lambda: masking(mask_share=0.9, random_share=0.2), "mask_and_random_share is 1.1"),
        (lambda: masking(mask_id=100), "they must be ids of the vocabulary, 0 to 99"),
        (lambda: masking(special_ids=(-1,)), "they must be ids of the vocabulary"),
        (lambda: masking(vocab_size=5), "all 5 ids of the vocabulary are special"),
        (lambda: replace(FIM, rate=-0.1), "rate is -0.1"),
        (lambda: replace(FIM, suffix_first_rate=2.0), "suffix_first_rate is 2.0"),
        (lambda: replace(FIM, middle_id=PREFIX), "give three different"),
        (lambda: Permutation(share=1.1), "share is 1.1"),
        (
            lambda: causal_or_masked([], masking(), causal_share=7, generator=seeded()),
            "causal_share is 7",
        ),
    ],
)
def test_options_that_cannot_be_are_refused(make: Callable[[], object], complaint: str) -> None:
    with pytest.raises(TrainingError, match=complaint):
        make()
