"""Rows by objective: pure functions of their number, texts apart, nothing learnt that is shown."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lmloop.errors import CorpusError, TokenizerError
from lmloop.learning import PretrainConfig
from lmloop.tokens.arrangement import Arrangement, make_arrangement
from lmloop.tokens.loader import Batch, PackedLoader
from lmloop.tokens.shards import Shards
from lmloop.tokens.spans import SpanCorruption, count_spans, longest_text
from lmloop.tokens.tokenizer import Tokenizer

ROW = 48
DOCUMENT = 0
MASK, PREFIX, SUFFIX, MIDDLE, FIRST_SENTINEL = range(5, 10)
OBJECTIVES = (
    *("masked", "causal+masked", "prefix", "fill-in-the-middle", "permutation"),
    "span-corruption",
)

Rows = Callable[..., Batch]


def make_config(objective: str, **changes: Any) -> PretrainConfig:
    return PretrainConfig.model_validate(
        {"objective": objective, "steps": 1, "row_tokens": ROW, "batch_tokens": ROW, **changes}
    )


def make_loader(folder: Path, objective: str, *, seed: int = 0, **changes: Any) -> PackedLoader:
    config = make_config(objective, **changes)
    return PackedLoader(
        Shards.open(folder, "train"),
        row_tokens=config.row_tokens,
        document_id=DOCUMENT,
        answers_only=False,
        seed=seed,
        arrangement=make_arrangement(config, Tokenizer.open(folder)),
    )


@pytest.fixture
def rows(extended_shards_folder: Path) -> Rows:
    """Many rows of an objective."""

    def make(objective: str, *, count: int = 60, **changes: Any) -> Batch:
        return make_loader(extended_shards_folder, objective, **changes).rows(0, count)

    return make


def require_same(one: Batch, other: Batch) -> None:
    for field in fields(Batch):
        ours, theirs = getattr(one, field.name), getattr(other, field.name)
        assert (ours is None) == (theirs is None)
        assert ours is None or np.array_equal(ours, theirs), field.name


def join(parts: list[Batch]) -> Batch:
    names = [field.name for field in fields(Batch) if getattr(parts[0], field.name) is not None]
    return Batch(**{name: np.concatenate([getattr(p, name) for p in parts]) for name in names})


def texts_of(batch: Batch) -> list[tuple[int, np.ndarray]]:
    """Row and places of every text that is no padding."""
    found = []
    for row, segments in enumerate(batch.segments):
        for segment in np.unique(segments):
            places = np.flatnonzero(segments == segment)
            if batch.learnt[row, places].any():
                found.append((row, places))
    return found


@pytest.fixture(scope="module")
def documents(extended_shards_folder: Path) -> list[str]:
    """Every document, each id a character, and the document that follows."""
    shards = Shards.open(extended_shards_folder, "train")
    return [spell([*shards.document(i), DOCUMENT]) for i in range(shards.num_documents)]


def spell(ids: Any) -> str:
    return "".join(chr(0x4E00 + int(each)) for each in ids)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_row_is_a_function_of_its_number(extended_shards_folder: Path, objective: str) -> None:
    whole = make_loader(extended_shards_folder, objective).rows(0, 12)
    again = make_loader(extended_shards_folder, objective)
    again.rows(100, 1)
    require_same(join([again.rows(row, 1) for row in reversed(range(12))][::-1]), whole)
    assert make_loader(extended_shards_folder, objective, seed=1).rows(0, 12).tokens.tolist() != (
        whole.tokens.tolist()
    )


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_together_read_what_one_alone_reads(
    extended_shards_folder: Path, objective: str, world_size: int
) -> None:
    whole = make_loader(extended_shards_folder, objective).rows(0, 12)
    share = 12 // world_size
    ranks = [make_loader(extended_shards_folder, objective) for _ in range(world_size)]
    require_same(join([each.rows(rank * share, share) for rank, each in enumerate(ranks)]), whole)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_an_epoch_draws_anew(extended_shards_folder: Path, objective: str) -> None:
    loader = make_loader(extended_shards_folder, objective)
    count = loader.rows_per_epoch
    assert loader.rows(0, 3).tokens.tolist() != loader.rows(count, 3).tokens.tolist()


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_rows_are_full_of_what_is_learnt_from(rows: Rows, objective: str) -> None:
    batch = rows(objective)
    assert batch.order is not None
    assert batch.order.shape == batch.segments.shape == batch.tokens.shape
    read = batch if batch.source is None else batch.source
    assert batch.source is None or batch.source.shape == (60, ROW)
    assert read is not batch or batch.tokens.shape == (60, ROW)
    padding = (batch.tokens == DOCUMENT) & (batch.positions > 0)
    assert not (padding & batch.learnt).any()
    assert padding.mean() < 0.3


@pytest.mark.parametrize("rate", [0.15, 0.4])
@pytest.mark.parametrize("objective", ["masked", "permutation", "span-corruption"])
def test_the_share_that_is_predicted_is_the_one_asked_for(
    rows: Rows, objective: str, rate: float
) -> None:
    batch = rows(objective, count=200, mask_rate=rate, row_tokens=ROW if rate < 0.3 else 24)
    read = batch.tokens.size
    if objective == "permutation":
        read -= int(batch.learnt.sum())
    if objective == "span-corruption":
        assert batch.source is not None
        sentinels = (batch.targets >= FIRST_SENTINEL) & (batch.targets < FIRST_SENTINEL + 8)
        learnt = batch.learnt & ~sentinels & (batch.targets != DOCUMENT)
        kept = (batch.source > FIRST_SENTINEL + 8).sum()
        assert learnt.sum() / (learnt.sum() + kept) == pytest.approx(rate, rel=0.35)
        return
    assert batch.learnt.sum() / read == pytest.approx(rate, rel=0.2)


def test_masked_rows_see_everything_and_targets_stand_at_their_own_place(
    rows: Rows, documents: list[str]
) -> None:
    batch = rows("masked")
    assert batch.order is not None
    assert not batch.order.any()
    hidden = batch.learnt
    assert (batch.tokens[hidden] == MASK).mean() == pytest.approx(0.8, abs=0.06)
    assert np.array_equal(batch.tokens[~hidden], batch.targets[~hidden])
    for row, places in texts_of(batch):
        assert any(spell(batch.targets[row, places]) in text for text in documents)
        assert batch.positions[row, places].tolist() == list(range(len(places)))
    special = batch.targets < FIRST_SENTINEL
    assert not hidden[special].any()


def test_both_in_one_run_predict_the_next_token_whatever_is_hidden(
    rows: Rows, documents: list[str]
) -> None:
    batch = rows("causal+masked", count=200, causal_share=0.3)
    assert batch.order is not None
    causal = 0
    for row, places in texts_of(batch):
        order, targets = batch.order[row, places], batch.targets[row, places]
        learnt = batch.learnt[row, places]
        is_causal = order.any() or (learnt.all() and len(places) > 1)
        causal += is_causal
        if is_causal:
            assert order.tolist() == list(range(len(places)))
            assert learnt.all()
            text = [batch.tokens[row, places[0]], *targets]
            assert any(spell(text) in each for each in documents)
        else:
            first = batch.tokens[row, places[0]]
            assert any(spell(targets[:-1]) in each for each in documents), first
    shares = [bool(batch.order[row, places].any()) for row, places in texts_of(batch)]
    assert causal / len(shares) == pytest.approx(0.3, abs=0.1)


def test_a_prefix_sees_itself_and_what_follows_is_learnt(rows: Rows, documents: list[str]) -> None:
    batch = rows("prefix")
    assert batch.order is not None
    lengths = set()
    for row, places in texts_of(batch):
        order = batch.order[row, places]
        length = int((order == 0).sum())
        lengths.add(length)
        assert order[length:].tolist() == list(range(1, len(order) - length + 1))
        assert batch.learnt[row, places].tolist() == [
            place >= length - 1 for place in range(len(order))
        ]
        text = [*batch.tokens[row, places], batch.targets[row, places[-1]]]
        assert any(spell(text) in each for each in documents)
    assert len(lengths) > 5


def test_a_middle_comes_last_and_what_is_left_causal_says_what_follows(
    rows: Rows, documents: list[str]
) -> None:
    batch = rows("fill-in-the-middle", count=200, middle_share=0.5)
    assert batch.order is not None
    rearranged = 0
    for row, places in texts_of(batch):
        tokens, targets = batch.tokens[row, places], batch.targets[row, places]
        assert batch.order[row, places].tolist() == list(range(len(places)))
        if MIDDLE not in tokens:
            assert any(spell([*tokens, targets[-1]]) in each for each in documents)
            continue
        rearranged += 1
        assert tokens[0] == targets[-1] == DOCUMENT
        cuts = [int(np.flatnonzero(tokens == each)[0]) for each in (PREFIX, SUFFIX, MIDDLE)]
        if cuts[0] + 1 == cuts[1]:  # the suffix first, or nothing before the middle
            end, middle = tokens[cuts[1] + 1 : cuts[2]], tokens[cuts[2] + 1 :]
            text = [*middle, *end]
        else:
            begin, end = tokens[cuts[0] + 1 : cuts[1]], tokens[cuts[1] + 1 : cuts[2]]
            text = [*begin, *tokens[cuts[2] + 1 :], *end]
        assert any(spell(text) in each for each in documents)
        assert not batch.learnt[row, places][np.isin(targets, [PREFIX, SUFFIX, MIDDLE])].any()
    assert rearranged / len(texts_of(batch)) == pytest.approx(0.5, abs=0.1)


def test_a_permutation_asks_for_each_predicted_token_just_before_it_is_revealed(
    rows: Rows, documents: list[str]
) -> None:
    batch = rows("permutation")
    assert batch.order is not None
    for row, places in texts_of(batch):
        learnt = batch.learnt[row, places]
        text, asked = places[~learnt], places[learnt]
        assert any(spell(batch.tokens[row, text]) in each for each in documents)
        assert batch.positions[row, text].tolist() == list(range(len(text)))
        assert (batch.tokens[row, asked] == MASK).all()
        for place in asked:
            answer = text[batch.positions[row, place]]
            assert batch.targets[row, place] == batch.tokens[row, answer]
            assert batch.order[row, place] == batch.order[row, answer] - 1
        last = sorted(batch.order[row, text])[-len(asked) :]
        assert sorted(batch.order[row, asked] + 1) == last


def test_spans_leave_the_source_and_stand_in_the_targets(rows: Rows, documents: list[str]) -> None:
    batch = rows("span-corruption")
    assert batch.source is not None
    assert batch.source_segments is not None
    assert batch.source_positions is not None
    for row, places in texts_of(batch):
        segment = batch.segments[row, places[0]]
        inside = batch.source_segments[row] == segment
        source = batch.source[row, inside].tolist()
        assert batch.source_positions[row, inside].tolist() == list(range(len(source)))
        targets = batch.targets[row, places].tolist()
        assert batch.tokens[row, places].tolist() == [DOCUMENT, *targets[:-1]]
        assert source[-1] == targets[-1] == DOCUMENT
        spans: dict[int, list[int]] = {}
        for token in targets[:-1]:
            if FIRST_SENTINEL <= token < FIRST_SENTINEL + 8:
                spans[token] = []
            else:
                spans[max(spans)].append(token)
        text = [each for token in source[:-1] for each in spans.get(token, [token])]
        assert any(spell(text) in each for each in documents)


@pytest.mark.parametrize("row_tokens", [8, 24, 100, 512, 4096])
@pytest.mark.parametrize(("rate", "length"), [(0.15, 3.0), (0.5, 3.0), (0.15, 1.0), (0.9, 20.0)])
def test_a_recipe_asks_for_as_many_sentinels_as_a_row_can_have_spans(
    row_tokens: int, rate: float, length: float
) -> None:
    config = make_config(
        "span-corruption", row_tokens=row_tokens, mask_rate=rate, span_length=length
    )
    needed = config.special_tokens
    options = SpanCorruption(
        sentinels=(), start_id=0, end_id=0, noise_density=rate, mean_span_length=length
    )
    spans = count_spans(longest_text(row_tokens, options), options)[1]
    assert spans <= len(needed) <= spans * 1.2 + 4
    assert needed[:2] == ("<|extra_0|>", "<|extra_1|>")[: len(needed)]


def test_words_are_hidden_whole_where_that_is_asked_for(rows: Rows) -> None:
    batch = rows("masked", mask_words=True, count=200, mask_rate=0.3)
    alone = rows("masked", mask_words=False, count=200, mask_rate=0.3)

    def neighbours(each: Batch) -> float:
        return float((each.learnt[:, 1:] & each.learnt[:, :-1]).mean())

    assert neighbours(batch) > 1.3 * neighbours(alone)
    assert batch.learnt.mean() == pytest.approx(alone.learnt.mean(), rel=0.15)


def test_plain_causal_rows_need_no_arrangement(extended_shards_folder: Path) -> None:
    assert make_arrangement(make_config("causal"), Tokenizer.open(extended_shards_folder)) is None
    batch = make_loader(extended_shards_folder, "causal").rows(0, 2)
    assert batch.order is None
    assert batch.source is None


@pytest.mark.parametrize(
    ("objective", "token"),
    [
        ("masked", "<|mask|>"),
        ("causal+masked", "<|mask|>"),
        ("permutation", "<|mask|>"),
        ("fill-in-the-middle", "<|prefix|>"),
        ("span-corruption", "<|extra_0|>"),
    ],
)
def test_a_missing_special_token_is_named_with_the_key(
    tokenizer: Tokenizer, objective: str, token: str
) -> None:
    with pytest.raises(TokenizerError) as caught:
        make_arrangement(make_config(objective), tokenizer)
    told = str(caught.value)
    assert f"no token {token!r}" in told
    assert "tokenize.extra_tokens" in told
    assert "\n" not in told


def test_a_split_shorter_than_a_row_gives_shorter_texts(extended_shards_folder: Path) -> None:
    tokenizer = Tokenizer.open(extended_shards_folder)
    arrangement = make_arrangement(make_config("masked"), tokenizer)
    assert isinstance(arrangement, Arrangement)
    shards = Shards.open(extended_shards_folder, "validation")
    assert arrangement.shorten(shards.num_tokens) == arrangement
    assert arrangement.shorten(20).text_tokens == 20
    long = make_arrangement(
        make_config("masked", row_tokens=1 << 13, batch_tokens=1 << 13), tokenizer
    )
    assert long is not None
    settings: dict[str, Any] = {"row_tokens": 1 << 13, "document_id": 0, "seed": 0}
    with pytest.raises(CorpusError, match="fewer than one row of 8192"):
        PackedLoader(shards, **settings, answers_only=False, arrangement=long)
    loader = PackedLoader(
        shards, **settings, answers_only=False, arrangement=long.shorten(shards.num_tokens)
    )
    assert loader.rows(0, 1).learnt.sum() > 10
