"""Shards on disk: what goes in comes out, over any number of files, or is refused."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from lmloop.errors import ArtifactError
from lmloop.tokens import shards as module
from lmloop.tokens.shards import INDEX, Shards, ShardWriter

DOCUMENTS = [[0, 11, 12], [0, 13], [0, 14, 15, 16], [0, 17, 18]]
ANSWERS = [[False, True, True], [False, False], [False, False, True, True], [False, True, False]]


def write(folder: Path, *, vocab_size: int = 300, documents: list[list[int]] = DOCUMENTS) -> dict:  # type: ignore[type-arg]
    writer = ShardWriter(folder, "train", vocab_size=vocab_size)
    for number, (ids, answers) in enumerate(zip(documents, ANSWERS, strict=True)):
        writer.append(ids, answers, raw_bytes=10 + number)
    entry = writer.close()
    (folder / INDEX).write_text(json.dumps({"splits": {"train": entry}}))
    return entry


@pytest.mark.parametrize(
    ("shard_tokens", "names"),
    [
        (100, ["train-00000"]),
        (5, ["train-00000", "train-00001"]),
        (1, ["train-00000", "train-00001", "train-00002", "train-00003"]),
    ],
)
def test_documents_come_back_whatever_the_size_of_a_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shard_tokens: int, names: list[str]
) -> None:
    monkeypatch.setattr(module, "SHARD_TOKENS", shard_tokens)
    entry = write(tmp_path)
    split = Shards.open(tmp_path, "train")
    assert entry["shards"] == names
    assert [split.document(index).tolist() for index in range(4)] == DOCUMENTS
    assert split.starts.tolist() == [0, 3, 5, 9, 12]
    assert split.document_bytes.tolist() == [10, 11, 12, 13]
    assert (split.num_tokens, split.num_documents, split.raw_bytes) == (12, 4, 46)
    flat, marks = sum(DOCUMENTS, []), sum(ANSWERS, [])
    for start in range(13):
        for stop in range(start, 13):
            assert split.read(start, stop).tolist() == flat[start:stop]
            assert split.read_answers(start, stop).tolist() == marks[start:stop]


def test_the_entry_counts_what_was_written(tmp_path: Path) -> None:
    assert write(tmp_path) == {
        "shards": ["train-00000"],
        "dtype": "uint16",
        "documents": 4,
        "tokens": 12,
        "answer_tokens": 5,
        "raw_bytes": 46,
    }


@pytest.mark.parametrize(
    ("vocab_size", "dtype", "largest"), [(65_536, "uint16", 65_535), (65_537, "uint32", 65_536)]
)
def test_ids_rest_in_the_smallest_type_that_holds_them(
    tmp_path: Path, vocab_size: int, dtype: str, largest: int
) -> None:
    documents = [[0, largest, 1], *DOCUMENTS[1:]]
    entry = write(tmp_path, vocab_size=vocab_size, documents=documents)
    split = Shards.open(tmp_path, "train")
    assert entry["dtype"] == dtype == split.tokens[0].dtype.name
    assert split.document(0).tolist() == [0, largest, 1]
    assert split.document(0).dtype == np.int64
    assert isinstance(split.tokens[0], np.memmap)
    assert (tmp_path / "train-00000.tokens").read_bytes()[:1] == b"\x00"
    with pytest.raises(ValueError, match="read-only"):
        split.tokens[0][0] = 1


def test_a_split_without_documents_is_empty_and_opens(tmp_path: Path) -> None:
    entry = ShardWriter(tmp_path, "train", vocab_size=300).close()
    (tmp_path / INDEX).write_text(json.dumps({"splits": {"train": entry}}))
    split = Shards.open(tmp_path, "train")
    assert (split.num_documents, split.num_tokens, split.raw_bytes) == (0, 0, 0)
    assert split.read(0, 5).tolist() == []


def test_closing_twice_writes_once(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path, "train", vocab_size=300)
    writer.append([0, 1], [False, True], raw_bytes=1)
    assert writer.close() == writer.close()


@pytest.mark.parametrize("suffix", [".tokens", ".answers", ".starts", ".bytes"])
@pytest.mark.parametrize("cut", [1, 8])
def test_sizes_that_disagree_are_refused(tmp_path: Path, suffix: str, cut: int) -> None:
    write(tmp_path)
    path = tmp_path / f"train-00000{suffix}"
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(ArtifactError, match="sizes of split 'train' disagree|no readable split"):
        Shards.open(tmp_path, "train")


@pytest.mark.parametrize("suffix", [".tokens", ".answers", ".starts", ".bytes"])
def test_a_missing_file_is_named(tmp_path: Path, suffix: str) -> None:
    write(tmp_path)
    (tmp_path / f"train-00000{suffix}").unlink()
    with pytest.raises(ArtifactError, match=f"train-00000\\{suffix}"):
        Shards.open(tmp_path, "train")


@pytest.mark.parametrize(
    "index",
    [
        "",
        "[]",
        "{}",
        '{"splits": 3}',
        '{"splits": {"train": null}}',
        '{"splits": {"train": {"shards": ["train-00000"], "dtype": "no_such_type"}}}',
    ],
)
def test_a_damaged_index_is_refused(tmp_path: Path, index: str) -> None:
    write(tmp_path)
    (tmp_path / INDEX).write_text(index)
    with pytest.raises(ArtifactError, match="no readable split 'train'"):
        Shards.open(tmp_path, "train")


def test_an_unknown_split_is_refused(tmp_path: Path) -> None:
    write(tmp_path)
    with pytest.raises(ArtifactError, match="no readable split 'test'"):
        Shards.open(tmp_path, "test")
    with pytest.raises(ArtifactError, match=INDEX):
        Shards.open(tmp_path / "nowhere", "train")


@pytest.mark.parametrize("suffix", [".tokens", ".answers"])
@pytest.mark.parametrize("change", ["deleted", "cut off", "written", "longer"])
def test_a_file_that_changes_while_it_is_read_is_refused(
    tmp_path: Path, suffix: str, change: str
) -> None:
    write(tmp_path)
    split = Shards.open(tmp_path, "train")
    path = tmp_path / f"train-00000{suffix}"
    whole = path.read_bytes()
    if change == "deleted":
        path.unlink()
    elif change == "cut off":
        os.truncate(path, 0)
    else:
        path.write_bytes(whole[:-1] + b"x" * (1 + (change == "longer")))
        os.utime(path, ns=(0, 0))
    read = split.read if suffix == ".tokens" else split.read_answers
    with pytest.raises(ArtifactError, match="changed while it was read: run the same command"):
        read(0, 3)


def test_a_file_that_is_not_asked_for_may_be_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SHARD_TOKENS", 5)
    write(tmp_path)
    split = Shards.open(tmp_path, "train")
    (tmp_path / "train-00001.tokens").unlink()
    assert split.document(0).tolist() == DOCUMENTS[0]
