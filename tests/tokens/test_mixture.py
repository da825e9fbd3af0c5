"""Two loaders as one: the share holds, and rows depend on the cursor alone."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from lmloop.tokens.loader import PackedLoader
from lmloop.tokens.mixture import MixedLoader, Task, TaskLoader, cut_rows

from .test_loader import make_loader, open_shards


def make_part(folder: Path, first: int, documents: int) -> PackedLoader:
    folder.mkdir()
    texts = [[0, *range(first + 9 * n, first + 9 * n + 7)] for n in range(documents)]
    return make_loader(open_shards(folder, texts))


@pytest.fixture
def parts(tmp_path: Path) -> dict[str, PackedLoader]:
    """Ids from 100 on are of the own text, from 500 on of the rehearsed."""
    return {
        "own": make_part(tmp_path / "own", 100, 5),
        "rehearsed": make_part(tmp_path / "rehearsed", 500, 3),
    }


@pytest.mark.parametrize(("share", "expected"), [(0.2, 8), (0.5, 20), (0.33, 13)])
def test_the_share_of_rows_is_rehearsed(
    parts: dict[str, PackedLoader], share: float, expected: int
) -> None:
    batch = MixedLoader(**parts, share=share).rows(0, 40)
    assert batch.tokens.shape == (40, 4)
    assert int((batch.tokens.max(axis=1) >= 500).sum()) == expected


def test_rows_are_the_same_however_they_are_asked_for(parts: dict[str, PackedLoader]) -> None:
    loader = MixedLoader(**parts, share=0.3)
    whole = loader.rows(3, 20)
    singles = [loader.rows(row, 1) for row in range(3, 23)]
    for name in ("tokens", "targets", "learnt", "segments", "positions"):
        rows = np.concatenate([getattr(each, name) for each in singles])
        assert sorted(getattr(whole, name).tolist()) == sorted(rows.tolist())
    assert whole.order is None and whole.source is None


def test_rows_of_all_parts_add_up(parts: dict[str, PackedLoader]) -> None:
    own, rehearsed = (each.rows_per_epoch for each in parts.values())
    assert (own, rehearsed) == (10, 6)  # of 40 and 24 tokens, four a row
    assert MixedLoader(**parts, share=0.1).rows_per_epoch == 16
    assert make_tasks(parts, 1, 1, 1).rows_per_epoch == 26


def test_documents_of_the_rehearsed_text_count_on(parts: dict[str, PackedLoader]) -> None:
    loader = MixedLoader(**parts, share=0.5)
    found = loader.documents(0, 20)
    assert found == list(range(8))
    assert max(MixedLoader(**parts, share=0.01).documents(0, 20)) == 4


def make_tasks(parts: dict[str, PackedLoader], *shares: float) -> TaskLoader:
    """Two tasks of the own text and one of the rehearsed, which weighs half."""
    loaders = (parts["own"], parts["own"], parts["rehearsed"])
    return TaskLoader(
        {
            name: Task(loader=loader, share=share, weight=weight, first_document=first)
            for name, loader, share, weight, first in zip(
                ("one", "two", "three"), loaders, shares, (1.0, 1.0, 0.5), (0, 0, 5), strict=True
            )
        }
    )


@pytest.mark.parametrize("shares", [(0.6, 0.3, 0.1), (6, 3, 1), (1, 1, 1), (0.1, 0.1, 5.0)])
def test_each_task_has_its_share_of_any_rows_and_none_gives_a_row_back(
    parts: dict[str, PackedLoader], shares: tuple[float, ...]
) -> None:
    loader, seen = make_tasks(parts, *shares), dict.fromkeys(("one", "two", "three"), 0)
    for row in range(60):
        (piece,) = loader.pieces(row, 1, at_once=8)
        assert len(piece.batch.tokens) == 1
        seen[piece.task] += 1
        for count, share in zip(seen.values(), shares, strict=True):
            assert abs(count - (row + 1) * share / sum(shares)) < 2
    assert sum(seen.values()) == 60


def test_pieces_are_the_rows_of_one_task_each_however_they_are_asked_for(
    parts: dict[str, PackedLoader],
) -> None:
    loader = make_tasks(parts, 0.5, 0.3, 0.2)
    found: list[dict[str, list[list[int]]]] = []
    for cuts, at_once in (((3, 23), 20), ((3, 10, 11, 23), 2)):
        rows: dict[str, list[list[int]]] = {"one": [], "two": [], "three": []}
        for start, end in itertools.pairwise(cuts):
            for piece in cut_rows(loader, start, end - start, at_once=at_once):
                assert len(piece.batch.tokens) <= at_once
                assert piece.weight == (0.5 if piece.task == "three" else 1.0)
                rows[piece.task] += piece.batch.tokens.tolist()
        found.append(rows)
    assert found[0] == found[1]
    assert all(min(row) >= 500 or row[0] == 0 for row in found[0]["three"])
    assert loader.documents(0, 40) == list(range(8))


def test_a_loader_without_tasks_is_cut_as_it_is(parts: dict[str, PackedLoader]) -> None:
    pieces = cut_rows(parts["own"], 2, 5, at_once=2)
    assert [(len(piece.batch.tokens), piece.task, piece.weight) for piece in pieces] == [
        (2, "", 1.0),
        (2, "", 1.0),
        (1, "", 1.0),
    ]
    rows = np.concatenate([piece.batch.tokens for piece in pieces])
    assert np.array_equal(rows, parts["own"].rows(2, 5).tokens)
