"""The tokenize stage: records of a split become shards that say the same."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import numpy as np
import pytest

from lmloop.errors import CorpusError, TokenizerError
from lmloop.progress import Silent
from lmloop.records import Conversation, Document, Record, Turn
from lmloop.sections import TokenizeConfig
from lmloop.tokens import shards as shards_module
from lmloop.tokens.shards import Shards
from lmloop.tokens.tokenize import SPLITS, tokenize
from lmloop.tokens.tokenizer import Tokenizer

from ..conftest import CONTEXT_LENGTH, SPLIT_SIZES, VOCAB_SIZE


def run(splits: dict[str, list[Record]], folder: Path, *, vocab_size: int = 300) -> object:
    return tokenize(
        TokenizeConfig(vocab_size=vocab_size),
        splits.__getitem__,
        folder,
        context_length=CONTEXT_LENGTH,
        progress=Silent(),
    )


def test_every_split_comes_back_as_it_was(
    splits: dict[str, list[Record]], shards_folder: Path, tokenizer: Tokenizer
) -> None:
    for split in SPLITS:
        shards = Shards.open(shards_folder, split)
        assert shards.num_documents == len(splits[split]) == SPLIT_SIZES[split]
        assert shards.document_bytes.tolist() == [each.raw_bytes for each in splits[split]]
        for index, record in enumerate(splits[split]):
            ids = shards.document(index)
            assert ids[0] == tokenizer.document_id
            assert tokenizer.document_id not in ids[1:]
            assert isinstance(record, Conversation)
            said = "".join(turn.content for turn in record.turns)
            assert tokenizer.decode(ids.tolist()) == said
            answers = shards.read_answers(*shards.starts[index : index + 2].tolist())
            learnt = ids[answers].tolist()
            replies = [turn.content for turn in record.turns if turn.role == "assistant"]
            assert tokenizer.decode(learnt) == "".join(replies)
            assert learnt.count(tokenizer.stop_ids[0]) == len(replies)


def test_a_vocabulary_may_be_learnt_from_the_first_documents_alone(tmp_path: Path) -> None:
    """The whole documents that reach so many bytes; all of the text is encoded."""
    known = "whether tis nobler in the mind to suffer the slings and arrows of outrageous fortune "
    texts = [known * 40, known.upper() * 40, "xyzzy plugh " * 400]
    records: list[Record] = [
        Document(str(number), text, len(text)) for number, text in enumerate(texts)
    ]
    counts = tokenize(
        TokenizeConfig(vocab_size=300, train_bytes=len(texts[0]) + 1),
        lambda split: records,
        tmp_path,
        context_length=CONTEXT_LENGTH,
        progress=Silent(),
    )
    tokenizer = Tokenizer.open(tmp_path)
    assert len(tokenizer.encode_document(" NOBLER")) < len(tokenizer.encode_document(" xyzzyx"))
    assert counts["train"]["documents"] == 3


def test_the_index_counts_what_lies_there(shards_folder: Path) -> None:
    index = json.loads((shards_folder / "shards.json").read_text("utf-8"))
    assert index["vocab_size"] == VOCAB_SIZE
    for split in SPLITS:
        shards = Shards.open(shards_folder, split)
        entry = index["splits"][split]
        assert entry["tokens"] == shards.num_tokens
        assert entry["answer_tokens"] == int(sum(marks.sum() for marks in shards.answers))
        assert (entry["documents"], entry["raw_bytes"]) == (shards.num_documents, shards.raw_bytes)


def test_plain_documents_have_no_answers(splits: dict[str, list[Record]], tmp_path: Path) -> None:
    plain: list[Record] = [Document("d", "the sea 火车 <|end|>", 24)]
    run({"train": splits["train"], "validation": plain, "heldout": plain}, tmp_path)
    tokenizer, shards = Tokenizer.open(tmp_path), Shards.open(tmp_path, "heldout")
    assert shards.document(0).tolist() == tokenizer.encode_document("the sea 火车 <|end|>")
    assert not shards.read_answers(0, shards.num_tokens).any()
    assert shards.raw_bytes == 24


def test_more_records_than_are_encoded_at_once_keep_their_order(
    splits: dict[str, list[Record]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lmloop.tokens.tokenize._RECORDS_AT_ONCE", 7)
    monkeypatch.setattr(shards_module, "SHARD_TOKENS", 100)
    run(splits, tmp_path)
    tokenizer, shards = Tokenizer.open(tmp_path), Shards.open(tmp_path, "train")
    assert len(shards.tokens) > 5
    for index, record in enumerate(splits["train"]):
        assert isinstance(record, Conversation)
        said = "".join(turn.content for turn in record.turns)
        assert tokenizer.decode(shards.document(index).tolist()) == said


def test_the_same_records_give_the_same_bytes(
    splits: dict[str, list[Record]], tmp_path: Path
) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        run(splits, tmp_path / name)
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert "train-00000.tokens" in names
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


@pytest.mark.parametrize("empty", ["validation", "heldout"])
def test_an_empty_split_is_refused(
    splits: dict[str, list[Record]], tmp_path: Path, empty: str
) -> None:
    with pytest.raises(CorpusError, match=f"split '{empty}' of the corpus is empty"):
        run({**splits, empty: []}, tmp_path)


def test_a_corpus_too_small_for_the_vocabulary_is_refused(
    splits: dict[str, list[Record]], tmp_path: Path
) -> None:
    with pytest.raises(CorpusError, match=r"tokenize\.vocab_size = 100000: add text or lower it"):
        run(splits, tmp_path, vocab_size=100_000)
    assert list(tmp_path.iterdir()) == []


def test_a_record_that_the_template_refuses_ends_the_stage(
    splits: dict[str, list[Record]], tmp_path: Path
) -> None:
    strange: list[Record] = [Conversation("c", (Turn("robot", "beep"),), 4)]
    with pytest.raises(TokenizerError, match="unknown role robot"):
        run({**splits, "validation": strange}, tmp_path)


def test_a_full_disk_ends_the_stage_and_leaves_no_file_open(
    splits: dict[str, list[Record]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> object:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np, "asarray", full)
    # An open file would be told as a ResourceWarning, and warnings are errors.
    with pytest.raises(OSError, match="No space left"):
        run(splits, tmp_path)


def test_a_tokenizer_that_is_there_is_taken_as_it_is(
    splits: dict[str, list[Record]], shards_folder: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    tokenize(
        TokenizeConfig(),
        splits.__getitem__,
        tmp_path,
        context_length=CONTEXT_LENGTH,
        progress=Silent(),
        tokenizer=tokenizer,
    )
    for path in shards_folder.iterdir():
        assert (tmp_path / path.name).read_bytes() == path.read_bytes(), path.name
