"""Text to ids and back, byte for byte, and never into a special token."""

from __future__ import annotations

import json
import shutil
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from lmloop.errors import CorpusError, TokenizerError
from lmloop.records import Record
from lmloop.tokens.chat import DEFAULT_TEMPLATE
from lmloop.tokens.tokenizer import SPECIAL_TOKENS, Tokenizer, train_tokenizer

from ..conftest import VOCAB_SIZE


@given(text=st.text(max_size=200))
def test_any_text_comes_back_byte_for_byte(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


@given(texts=st.lists(st.text(max_size=40), max_size=8))
def test_many_texts_at_once_are_encoded_as_one_by_one(
    tokenizer: Tokenizer, texts: list[str]
) -> None:
    assert tokenizer.encode_batch(texts) == [tokenizer.encode(text) for text in texts]


@given(parts=st.lists(st.sampled_from([*SPECIAL_TOKENS, "<|", "|>", "end", " ", "\n"]), max_size=8))
def test_special_tokens_spelt_in_a_text_stay_text(tokenizer: Tokenizer, parts: list[str]) -> None:
    text = "".join(parts)
    ids = tokenizer.encode(text)
    special = {tokenizer.special_id(token) for token in SPECIAL_TOKENS}
    assert not special & set(ids)
    assert tokenizer.decode(ids) == text
    assert tokenizer.encode_batch([text]) == [ids]
    assert tokenizer.encode_document(text) == [tokenizer.document_id, *ids]


def test_in_markup_special_tokens_are_meant(tokenizer: Tokenizer) -> None:
    user, stop = tokenizer.special_id("<|user|>"), tokenizer.special_id("<|end|>")
    assert tokenizer.encode_markup("<|end|>\n<|user|>") == [stop, *tokenizer.encode("\n"), user]
    assert tokenizer.encode_markup("") == []
    assert tokenizer.encode_markup("<|end|") == tokenizer.encode("<|end|")


def test_text_stays_text_while_another_thread_encodes_markup(tokenizer: Tokenizer) -> None:
    over = threading.Event()

    def encode_markup() -> None:
        while not over.is_set():
            tokenizer.encode_markup("<|end|>")

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    thread = threading.Thread(target=encode_markup)
    thread.start()
    try:
        stop = tokenizer.stop_ids[0]
        leaked = sum(stop in tokenizer.encode("<|end|>") for _ in range(3000))
    finally:
        over.set()
        thread.join(timeout=10)
        sys.setswitchinterval(interval)
    assert leaked == 0


def test_the_vocabulary_has_exactly_the_size_asked_for(tokenizer: Tokenizer) -> None:
    assert tokenizer.vocab_size == VOCAB_SIZE
    assert [tokenizer.special_id(token) for token in SPECIAL_TOKENS] == [0, 1, 2, 3, 4]
    assert (tokenizer.document_id, tokenizer.stop_ids) == (0, (1, 0))


def test_training_gives_the_same_tokenizer_again(
    splits: dict[str, list[Record]], tmp_path: Path
) -> None:
    texts = [turn.content for each in splits["train"] for turn in each.turns]  # type: ignore[union-attr]
    for name in ("one", "two"):
        trained = train_tokenizer(
            texts, vocab_size=300, chat_template=DEFAULT_TEMPLATE, context_length=64
        )
        (tmp_path / name).mkdir()
        trained.save(tmp_path / name)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_extra_tokens_stand_behind_the_usual_ones_and_text_never_turns_into_them() -> None:
    texts = ["some longer words that are repeated in every further sentence", "a train to the sea"]
    settings: dict[str, Any] = {"vocab_size": 300, "chat_template": "", "context_length": 8}
    plain = train_tokenizer(texts, **settings)
    made = train_tokenizer(texts, **settings, extra_tokens=("<|mask|>", "<|extra_0|>"))
    assert [made.special_id(token) for token in SPECIAL_TOKENS] == [0, 1, 2, 3, 4]
    assert [made.special_id(token) for token in ("<|mask|>", "<|extra_0|>")] == [5, 6]
    assert made.special_ids == (0, 1, 2, 3, 4, 5, 6)
    assert plain.special_ids == (0, 1, 2, 3, 4)
    assert made.vocab_size == plain.vocab_size == 300
    assert not {5, 6} & set(made.encode("<|mask|> <|extra_0|>"))
    assert made.decode(made.encode("a <|mask|>")) == "a <|mask|>"


def test_the_mask_is_named_to_other_programs(tmp_path: Path) -> None:
    texts = ["some longer words that are repeated in every further sentence", "a train to the sea"]
    for extra in ((), ("<|mask|>",)):
        train_tokenizer(
            texts, vocab_size=300, chat_template="", context_length=8, extra_tokens=extra
        ).save(tmp_path)
        config = json.loads((tmp_path / "tokenizer_config.json").read_text("utf-8"))
        assert config.get("mask_token") == (extra[0] if extra else None)


def test_an_extra_token_that_is_there_already_is_refused() -> None:
    with pytest.raises(TokenizerError, match=r"has '<\|end\|>': leave it out of tokenize"):
        train_tokenizer(
            ["a"], vocab_size=300, chat_template="", context_length=8, extra_tokens=("<|end|>",)
        )


def test_a_corpus_too_small_for_the_vocabulary_is_refused() -> None:
    with pytest.raises(CorpusError, match=r"gives 26\d vocabulary entries.*vocab_size = 400"):
        train_tokenizer(["abab"], vocab_size=400, chat_template="", context_length=8)


def test_a_saved_tokenizer_opens_as_it_was(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    again = Tokenizer.open(tmp_path)
    text = "do you like 火车 <|end|>?"
    assert again.encode(text) == tokenizer.encode(text)
    assert again.chat_template == tokenizer.chat_template == DEFAULT_TEMPLATE
    assert (again.vocab_size, again.stop_ids) == (tokenizer.vocab_size, tokenizer.stop_ids)


def test_an_id_is_decoded_without_special_tokens_and_cut_characters_are_marked(
    tokenizer: Tokenizer,
) -> None:
    ids = tokenizer.encode("🐍")
    assert len(ids) > 1
    assert tokenizer.decode([0, 3, *ids, 1]) == "🐍"
    assert tokenizer.decode(ids[:1]) == "\ufffd"


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("tokenizer.json", "{"),
        ("tokenizer.json", "[]"),
        ("tokenizer.json", "\udcff"),
        ("tokenizer_config.json", "{"),
        ("tokenizer_config.json", "[]"),
        ("tokenizer_config.json", '{"eos_token": "<|never|>"}'),
        ("tokenizer.json", None),
        ("tokenizer_config.json", None),
    ],
)
def test_a_damaged_or_missing_file_is_told_in_one_line(
    shards_folder: Path, tmp_path: Path, file: str, content: str | None
) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(shards_folder / name, tmp_path / name)
    if content is None:
        (tmp_path / file).unlink()
    else:
        (tmp_path / file).write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(TokenizerError) as caught:
        Tokenizer.open(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_truncated_tokenizer_is_refused(shards_folder: Path, tmp_path: Path) -> None:
    whole = (shards_folder / "tokenizer.json").read_bytes()
    (tmp_path / "tokenizer.json").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "tokenizer_config.json").write_text("{}")
    with pytest.raises(TokenizerError, match=r"tokenizer\.json cannot be read"):
        Tokenizer.open(tmp_path)


def test_an_unknown_special_token_is_named(tokenizer: Tokenizer) -> None:
    with pytest.raises(TokenizerError, match=r"no token '<\|tool\|>'"):
        tokenizer.special_id("<|tool|>")


def test_the_config_is_what_hugging_face_reads(shards_folder: Path) -> None:
    config = json.loads((shards_folder / "tokenizer_config.json").read_text("utf-8"))
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert (config["bos_token"], config["eos_token"]) == ("<|endoftext|>", "<|end|>")
    assert config["model_max_length"] == 64


def foreign(folder: Path, *, config: dict[str, Any], in_front: str | None = None) -> Tokenizer:
    """A folder as others write it, and what its own processing puts in front of a text."""
    vocabulary = {token: place for place, token in enumerate(["<s>", "</s>", "a", "b", "ab"])}
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, [("a", "b")]))
    backend.add_special_tokens(["<s>", "</s>"])
    if in_front is not None:
        backend.post_processor = tokenizers.processors.TemplateProcessing(
            single=f"{in_front} $A", special_tokens=[(in_front, vocabulary[in_front])]
        )
    (folder / "tokenizer.json").write_text(backend.to_str())
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return Tokenizer.open(folder)


NAMED: dict[str, Any] = {"bos_token": "<s>", "eos_token": {"content": "</s>", "lstrip": False}}


@pytest.mark.parametrize(
    ("config", "in_front", "expected"),
    [
        (NAMED, None, [4]),
        (NAMED, "<s>", [0, 4]),
        (NAMED | {"add_bos_token": False}, "<s>", [4]),
        (NAMED | {"add_bos_token": True}, None, [0, 4]),
        ({"bos_token": None, "eos_token": "</s>"}, None, [4]),
    ],
)
def test_a_foreign_tokenizer_begins_a_document_as_its_maker_does(
    tmp_path: Path, config: dict[str, Any], in_front: str | None, expected: list[int]
) -> None:
    tokenizer = foreign(tmp_path, config=config, in_front=in_front)
    assert tokenizer.encode_document("ab") == expected
    assert tokenizer.stop_ids[0] == 1


def test_a_template_in_a_file_of_its_own_is_read(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}")
    tokenizer = foreign(tmp_path, config=NAMED | {"chat_template": "old"})
    assert tokenizer.chat_template == "{{ messages }}"


def write_word_pieces(folder: Path) -> tokenizers.Tokenizer:
    """A small tokenizer of BERT's kind, whose file cuts and fills texts to six ids."""
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "do", "you", "like", "##s", "tea", "火", "车"]
    backend = tokenizers.Tokenizer(
        tokenizers.models.WordPiece({name: at for at, name in enumerate(names)}, unk_token="[UNK]")
    )
    backend.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    backend.add_special_tokens(names[:4])
    backend.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    backend.enable_truncation(6)
    backend.enable_padding(length=6, pad_id=0, pad_token="[PAD]")
    backend.save(str(folder / "tokenizer.json"))
    told = {"cls_token": "[CLS]", "sep_token": {"content": "[SEP]"}, "pad_token": "[PAD]"}
    (folder / "tokenizer_config.json").write_text(json.dumps(told))
    return backend


def test_word_pieces_come_with_what_stands_around_them(tmp_path: Path) -> None:
    backend = write_word_pieces(tmp_path)
    tokenizer = Tokenizer.open(tmp_path)
    assert (tokenizer.document_id, tokenizer.stop_ids) == (2, (3, 2))
    assert tokenizer.encode("Do you like teas") == [4, 5, 6, 8, 7]
    texts = ["Do you like teas 火车 xyz", "", "tea"]
    found = tokenizer.encode_inputs(texts, max_length=512)
    assert found == [[2, 4, 5, 6, 8, 7, 9, 10, 1, 3], [2, 3], [2, 8, 3]]
    backend.no_padding()
    cut = [each.ids for each in backend.encode_batch(texts)]
    assert tokenizer.encode_inputs(texts, max_length=6) == cut == [[2, 4, 5, 6, 8, 3], *found[1:]]


def test_special_tokens_that_are_spelt_in_an_encoders_text_stay_text(tmp_path: Path) -> None:
    write_word_pieces(tmp_path)
    (found,) = Tokenizer.open(tmp_path).encode_inputs(["tea[SEP]tea"], max_length=512)
    assert found == [2, 8, 1, 1, 1, 8, 3]


def test_text_alone_is_enough_to_learn_from(tmp_path: Path) -> None:
    made = train_tokenizer(["the sea and the train"] * 3, vocab_size=262)
    made.save(tmp_path)
    opened = Tokenizer.open(tmp_path)
    assert opened.chat_template is None
    assert opened.decode(opened.encode("the café")) == "the café"


def test_a_token_that_begins_turns_can_be_told_from_one_that_begins_documents(
    shards_folder: Path, tmp_path: Path
) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_text((shards_folder / name).read_text("utf-8"), "utf-8")
    config = json.loads((tmp_path / "tokenizer_config.json").read_text("utf-8"))
    config |= {"bos_token": "<|user|>", "add_bos_token": False}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config), "utf-8")
    theirs = Tokenizer.open(tmp_path)
    assert theirs.document_id == theirs.special_id("<|user|>")
    parted = theirs.part_documents()
    assert parted.document_id == parted.special_id("<|endoftext|>")
    parted.save(tmp_path)
    again = Tokenizer.open(tmp_path)
    assert again.document_id == parted.document_id
    assert (again.chat_template, again.definition) == (theirs.chat_template, theirs.definition)
    assert again.encode_document("sea") == theirs.encode_document("sea") == theirs.encode("sea")
