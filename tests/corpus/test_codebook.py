"""Codebooks: what they learn, what they lose, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from lmloop.corpus.codebook import Codebook, cluster, find_nearest, fit_codebook, load_codebook
from lmloop.errors import ArtifactError, CorpusError

BOOK = Codebook(
    np.array([[[0, 0], [10, 0]], [[0, 1], [0, -1]]], np.float32), "sound", {"frames": 1}
)
"""Two levels of two codes."""


def clouds() -> np.ndarray:
    """Three groups of 50 points around corners of a triangle."""
    corners = np.repeat([[0, 0], [10, 0], [0, 10]], 50, axis=0)
    return corners + np.random.default_rng(0).normal(0, 0.1, corners.shape)


def test_the_means_of_three_clouds_are_found() -> None:
    book = fit_codebook(clouds(), num_codes=3, kind="picture", seed=1)
    means = sorted(book.vectors[0].round().tolist())
    assert means == [[0, 0], [0, 10], [10, 0]]
    codes = book.encode(clouds())
    assert codes.shape == (150, 1)
    assert [len(set(part.tolist())) for part in codes[:, 0].reshape(3, 50)] == [1, 1, 1]


def test_the_second_level_says_what_the_first_left_over() -> None:
    vectors = [[0.2, 0.9], [9, -1], [11, 1.2]]
    assert BOOK.encode(vectors).tolist() == [[0, 0], [1, 1], [1, 0]]
    assert BOOK.decode([[0, 0], [1, 1], [1, 0]]).tolist() == [[0, 1], [10, -1], [10, 1]]


def test_more_levels_lose_less() -> None:
    vectors = np.random.default_rng(0).normal(size=(400, 6))

    def loss(levels: int) -> float:
        book = fit_codebook(vectors, num_codes=8, num_levels=levels, kind="sound")
        return float(np.square(book.decode(book.encode(vectors)) - vectors).mean())

    assert loss(1) > 1.2 * loss(2) > 1.4 * loss(4)


def test_the_same_seed_gives_the_same_book() -> None:
    one, two = (fit_codebook(clouds(), num_codes=5, kind="sound", seed=3) for _ in range(2))
    np.testing.assert_array_equal(one.vectors, two.vectors)


def test_no_code_is_lost_however_the_vectors_lie() -> None:
    """K-means leaves a group empty now and then, where nothing is done about it."""
    for seed in range(150):
        random = np.random.default_rng(seed)
        vectors = (random.exponential(size=(100, 2)) ** 3).astype(np.float32)
        means = cluster(vectors, count=30, random=random)
        assert set(find_nearest(vectors, means)[0]) == set(range(30))


def test_a_book_comes_back_from_its_file(tmp_path: Path) -> None:
    path = tmp_path / "book.safetensors"
    BOOK.save(path)
    back = load_codebook(path, kind="sound")
    np.testing.assert_array_equal(back.vectors, BOOK.vectors)
    assert (back.kind, back.layout) == ("sound", {"frames": 1})
    assert (back.num_levels, back.num_codes) == (2, 2)
    assert [each.name for each in tmp_path.iterdir()] == ["book.safetensors"]


@pytest.mark.parametrize(
    ("vectors", "complaint"),
    [
        (np.zeros((0, 2)), "0 vectors, 0 of them different"),
        (np.ones((50, 2)), "50 vectors, 1 of them different"),
        ([[1, 2], [3, 4]], "2 vectors, 2 of them different, do not give 3 codes"),
        ([[1, np.nan]] * 3, "not finite"),
        ([[1, 1e39]] * 3, "not finite"),
        ([1, 2, 3], r"shape \[3\]"),
        (np.ones((3, 0)), r"shape \[3, 0\]"),
        ([["a", "b"]], "no vectors of numbers"),
    ],
)
def test_vectors_that_give_no_codes_are_refused(vectors: object, complaint: str) -> None:
    with pytest.raises(CorpusError, match=complaint) as caught:
        fit_codebook(vectors, num_codes=3, kind="sound")  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("codes", "levels"), [(1, 1), (4, 0)])
def test_a_book_of_nothing_is_refused(codes: int, levels: int) -> None:
    with pytest.raises(CorpusError, match="at least 1 of at least 2"):
        fit_codebook(clouds(), num_codes=codes, num_levels=levels, kind="sound")


@pytest.mark.parametrize(
    "codes", [[0, 1], [[0]], [[0, 2]], [[-1, 0]], [[0.5, 0.0]]], ids=lambda each: str(each)
)
def test_codes_that_no_book_has_are_refused(codes: list[object]) -> None:
    with pytest.raises(CorpusError, match="rows of 2 whole numbers from 0 to 1"):
        BOOK.decode(codes)  # type: ignore[arg-type]


def test_vectors_of_another_width_are_refused() -> None:
    with pytest.raises(CorpusError, match="rows of 2 numbers"):
        BOOK.encode([[1, 2, 3]])


def damage(path: Path, kind: str) -> None:
    good = {"vectors": BOOK.vectors}
    header = {"lmloop.codebook": "sound", "lmloop.layout": "{}"}
    if kind == "cut":
        path.write_bytes(path.read_bytes()[:-5])
    elif kind == "text":
        path.write_text("not a codebook")
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "another's":
        save_file(good, path)
    elif kind == "flat":
        save_file({"vectors": BOOK.vectors[0]}, path, header)
    elif kind == "halves":
        save_file({"vectors": BOOK.vectors.astype(np.float16)}, path, header)
    elif kind == "infinite":
        save_file({"vectors": BOOK.vectors / np.float32(1e-45)}, path, header)
    else:
        save_file(good, path, header | {"lmloop.layout": json.dumps({"frames": kind})})


@pytest.mark.parametrize(
    "kind", ["cut", "text", "empty", "another's", "flat", "halves", "infinite", "many"]
)
def test_a_broken_file_is_one_line(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "book.safetensors"
    BOOK.save(path)
    with np.errstate(all="ignore"):
        damage(path, kind)
    with pytest.raises(ArtifactError, match="no codebook that can be read") as caught:
        load_codebook(path)
    assert "\n" not in str(caught.value)


def test_a_book_of_another_kind_or_none_is_refused(tmp_path: Path) -> None:
    BOOK.save(tmp_path / "book")
    with pytest.raises(ArtifactError, match="of kind 'sound': 'picture' is needed"):
        load_codebook(tmp_path / "book", kind="picture")
    with pytest.raises(ArtifactError, match="no codebook"):
        load_codebook(tmp_path / "nothing")
