"""Two loaders as one: the share holds, and rows depend on the cursor alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lmloop.tokens.loader import PackedLoader
from lmloop.tokens.mixture import MixedLoader

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


def test_documents_of_the_rehearsed_text_count_on(parts: dict[str, PackedLoader]) -> None:
    loader = MixedLoader(**parts, share=0.5)
    found = loader.documents(0, 20)
    assert found == list(range(8))
    assert max(MixedLoader(**parts, share=0.01).documents(0, 20)) == 4
