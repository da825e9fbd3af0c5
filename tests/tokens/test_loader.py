"""Packed rows: every token once an epoch, the same rows however they are asked for."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmloop.errors import CorpusError
from lmloop.tokens.loader import Batch, PackedLoader
from lmloop.tokens.shards import INDEX, Shards, ShardWriter

DOCUMENT = 0


def open_shards(
    folder: Path, documents: list[list[int]], *, learnt: set[int] | None = None
) -> Shards:
    """One split; ids in `learnt` are answers."""
    writer = ShardWriter(folder, "train", vocab_size=1000)
    for ids in documents:
        writer.append(ids, [each in (learnt or set()) for each in ids], raw_bytes=len(ids))
    (folder / INDEX).write_text(json.dumps({"splits": {"train": writer.close()}}))
    return Shards.open(folder, "train")


def make_loader(
    shards: Shards, *, row_tokens: int = 4, answers_only: bool = False, seed: int = 0
) -> PackedLoader:
    return PackedLoader(
        shards,
        row_tokens=row_tokens,
        document_id=DOCUMENT,
        answers_only=answers_only,
        seed=seed,
    )


def fields(batch: Batch) -> list[list[list[int]]]:
    parts = (batch.tokens, batch.targets, batch.learnt, batch.segments, batch.positions)
    return [part.tolist() for part in parts]


@pytest.fixture
def shards(tmp_path: Path) -> Shards:
    """Twenty-four tokens in six documents, all ids but the document's different."""
    draw, ids = np.random.default_rng(0), iter(range(1, 100))
    lengths = draw.permutation([1, 2, 3, 4, 5, 9])
    documents = [[DOCUMENT, *(next(ids) for _ in range(length - 1))] for length in lengths]
    return open_shards(tmp_path, documents, learnt=set(range(5, 12)))


def test_two_documents_are_packed_as_written_by_hand(tmp_path: Path) -> None:
    loader = make_loader(open_shards(tmp_path, [[0, 11, 12, 13], [0, 21]], learnt={12, 13, 21}))
    # Six tokens make one row of four; which document comes first is drawn.
    assert loader.rows_per_epoch == 1
    row = loader.rows(0, 1)
    if row.tokens[0].tolist() == [0, 11, 12, 13]:
        assert fields(row) == [
            [[0, 11, 12, 13]],
            [[11, 12, 13, 0]],
            [[1] * 4],
            [[1] * 4],
            [[0, 1, 2, 3]],
        ]
    else:
        expected = [[[0, 21, 0, 11]], [[21, 0, 11, 12]], [[1] * 4], [[1, 1, 2, 2]], [[0, 1, 0, 1]]]
        assert fields(row) == expected


def test_a_row_that_begins_inside_a_document_counts_its_positions_from_there(
    tmp_path: Path,
) -> None:
    loader = make_loader(open_shards(tmp_path, [[0, 11, 12, 13, 14, 15]]), row_tokens=3)
    batch = loader.rows(0, 2)
    order = np.argsort(batch.tokens[:, 0])
    assert batch.tokens[order].tolist() == [[0, 11, 12], [13, 14, 15]]
    assert batch.targets[order].tolist() == [[11, 12, 13], [14, 15, 0]]
    assert batch.segments[order].tolist() == [[1, 1, 1], [0, 0, 0]]
    assert batch.positions[order].tolist() == [[0, 1, 2], [0, 1, 2]]


def test_only_answers_are_learnt_where_that_is_asked_for(tmp_path: Path) -> None:
    shards = open_shards(tmp_path, [[0, 11, 12, 13, 14, 15]], learnt={12, 15})
    batch = make_loader(shards, row_tokens=6, answers_only=True).rows(0, 1)
    assert batch.targets.tolist() == [[11, 12, 13, 14, 15, 0]]
    assert batch.learnt.tolist() == [[False, True, False, False, True, False]]
    assert make_loader(shards, row_tokens=6).rows(0, 1).learnt.all()


@pytest.mark.parametrize("row_tokens", [1, 2, 3, 4, 6, 8, 12, 24])
@pytest.mark.parametrize("epoch", [0, 1, 7])
def test_every_token_of_an_epoch_is_exactly_one_target(
    shards: Shards, row_tokens: int, epoch: int
) -> None:
    loader = make_loader(shards, row_tokens=row_tokens)
    rows = loader.rows_per_epoch
    batch = loader.rows(epoch * rows, rows)
    everything = Counter(shards.read(0, shards.num_tokens).tolist())
    assert Counter(batch.targets.flatten().tolist()) == everything
    assert Counter(batch.tokens.flatten().tolist()) == everything


@pytest.mark.parametrize("row_tokens", [5, 7, 23])
def test_less_than_one_row_is_left_out_of_an_epoch(shards: Shards, row_tokens: int) -> None:
    loader = make_loader(shards, row_tokens=row_tokens)
    batch = loader.rows(0, loader.rows_per_epoch)
    everything = Counter(shards.read(0, shards.num_tokens).tolist())
    left = everything - Counter(batch.targets.flatten().tolist())
    assert sum(left.values()) == 24 % row_tokens
    assert not Counter(batch.targets.flatten().tolist()) - everything


def test_a_target_is_the_token_that_follows(shards: Shards) -> None:
    loader = make_loader(shards)
    stream = shards.read(0, shards.num_tokens).tolist()
    follows = dict(zip(stream, stream[1:], strict=False))
    batch = loader.rows(0, loader.rows_per_epoch)
    for token, target in zip(batch.tokens.flatten(), batch.targets.flatten(), strict=True):
        if token != DOCUMENT and target != DOCUMENT:
            assert follows[int(token)] == target
    assert np.array_equal(batch.tokens[:, 1:], batch.targets[:, :-1])


@given(cuts=st.lists(st.integers(1, 9), min_size=1, max_size=8), start=st.integers(0, 20))
def test_rows_do_not_depend_on_how_many_are_asked_for_at_once(
    shards_of_talks: Shards, cuts: list[int], start: int
) -> None:
    whole = make_loader(shards_of_talks).rows(start, sum(cuts))
    loader = make_loader(shards_of_talks)
    place, parts = start, []
    for count in cuts:
        parts.append(loader.rows(place, count))
        place += count
    for name in ("tokens", "targets", "learnt", "segments", "positions"):
        pieces = [getattr(part, name) for part in parts]
        assert np.array_equal(np.concatenate(pieces), getattr(whole, name))


@pytest.fixture(scope="module")
def shards_of_talks(tmp_path_factory: pytest.TempPathFactory) -> Shards:
    return open_shards(tmp_path_factory.mktemp("talks"), [[0, *range(1, 8)], [0, 21, 22], [0, 31]])


def test_rows_asked_for_in_any_order_are_the_same(shards: Shards) -> None:
    loader = make_loader(shards)
    forwards = [fields(loader.rows(row, 1)) for row in range(20)]
    backwards = [fields(loader.rows(row, 1)) for row in reversed(range(20))]
    assert forwards == backwards[::-1]


def test_epochs_and_seeds_differ(shards: Shards) -> None:
    loader, other = make_loader(shards), make_loader(shards, seed=1)
    rows = loader.rows_per_epoch
    epochs = [loader.rows(epoch * rows, rows).tokens.tolist() for epoch in range(4)]
    assert len({str(epoch) for epoch in epochs}) == 4
    assert other.rows(0, rows).tokens.tolist() != epochs[0]
    assert make_loader(shards).rows(0, rows).tokens.tolist() == epochs[0]


def test_segments_part_the_documents_of_a_row(shards: Shards) -> None:
    loader = make_loader(shards, row_tokens=12)
    batch = loader.rows(0, 10)
    home = {
        int(token): number
        for number in range(shards.num_documents)
        for token in shards.document(number)
        if token != DOCUMENT
    }
    for tokens, segments, positions in zip(
        batch.tokens, batch.segments, batch.positions, strict=True
    ):
        for segment in set(segments.tolist()):
            inside = segments == segment
            assert len({home[int(each)] for each in tokens[inside] if each != DOCUMENT}) <= 1
            assert positions[inside].tolist() == list(range(inside.sum()))
            assert DOCUMENT not in tokens[inside][1:]


def test_cut_rows_have_the_same_tokens_and_see_no_further_than_they_reach(shards: Shards) -> None:
    whole = make_loader(shards, row_tokens=8).rows(0, 2)
    cut = whole.cut(4)
    assert cut.tokens.shape == (4, 4)
    for name in ("tokens", "targets", "learnt", "segments", "positions"):
        before, after = getattr(whole, name), getattr(cut, name)
        assert after.tolist() == [row[i : i + 4] for row in before.tolist() for i in (0, 4)]
    assert whole.cut(8) is whole


def test_rows_with_an_order_of_their_own_stay_whole(shards: Shards) -> None:
    whole = make_loader(shards, row_tokens=8).rows(0, 2)
    ordered = replace(whole, order=whole.positions)
    sourced = replace(whole, source=whole.tokens)
    assert ordered.cut(4) is ordered
    assert sourced.cut(4) is sourced


def test_a_split_shorter_than_a_row_is_refused(shards: Shards) -> None:
    with pytest.raises(CorpusError, match="24 tokens, fewer than one row of 25"):
        make_loader(shards, row_tokens=25)


def test_the_rows_of_an_epoch_come_in_a_shuffled_order(tmp_path: Path) -> None:
    shards = open_shards(tmp_path, [[0, *range(1, 60)]])
    loader = make_loader(shards, row_tokens=3)
    firsts = loader.rows(0, loader.rows_per_epoch).tokens[:, 0].tolist()
    assert sorted(firsts) == list(range(0, 60, 3))
    assert firsts != sorted(firsts)


def test_rows_tell_which_documents_they_are_cut_from(shards: Shards) -> None:
    loader = make_loader(shards)
    for start in range(2 * loader.rows_per_epoch):
        ids = set(loader.rows(start, 1).tokens.flatten().tolist()) - {DOCUMENT}
        holding = [
            number
            for number in range(shards.num_documents)
            if ids & set(shards.document(number).tolist())
        ]
        told = loader.documents(start, 1)
        assert set(holding) <= set(told)  # a document of one token holds the first id only
        assert all(
            shards.document(number).tolist() == [DOCUMENT] for number in set(told) - set(holding)
        )
    everything = loader.documents(0, loader.rows_per_epoch)
    assert everything == sorted(set(everything)) == list(range(shards.num_documents))


def test_a_token_that_begins_every_turn_parts_no_document(tmp_path: Path) -> None:
    # As chat templates do whose `bos_token` begins each turn.
    talks = [[DOCUMENT, 11, DOCUMENT, 12, DOCUMENT, 13], [DOCUMENT, 21, DOCUMENT, 22]]
    batch = make_loader(open_shards(tmp_path, talks), row_tokens=10).rows(0, 1)
    first = 6 if batch.tokens[0, 1] == 11 else 4
    assert batch.segments[0].tolist() == [1] * first + [2] * (10 - first)
    assert batch.positions[0].tolist() == [*range(first), *range(10 - first)]
