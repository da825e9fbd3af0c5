"""A vocabulary of words: known ones are one id, others are spelt, and nothing is lost."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from lmloop.errors import CorpusError, TokenizerError
from lmloop.tokens.tokenizer import Kind, Tokenizer, train_tokenizer

TEXTS = ["却说曹操来到清华大学，the sea and the sea don't know.", "曹操笑曰 ok, 诸葛 café"] * 3


@cache
def make(*, kind: Kind = "word", vocab_size: int = 300) -> Tokenizer:
    return train_tokenizer(TEXTS, vocab_size=vocab_size, kind=kind)


def pieces(tokenizer: Tokenizer, text: str) -> list[str]:
    return [tokenizer.decode([each]) for each in tokenizer.encode(text)]


@pytest.mark.parametrize("kind", ["word", "character"])
@given(
    text=st.text(alphabet=st.one_of(st.characters(codec="utf-8"), st.sampled_from("曹操诸the ")))
)
def test_any_text_comes_back_byte_for_byte(kind: Kind, text: str) -> None:
    tokenizer = make(kind=kind, vocab_size=289)
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.encode_batch([text]) == tokenizer.encode_inputs([text], max_length=9**9)
    assert tokenizer.encode_batch([text]) == [ids]


def test_a_known_word_is_one_id_with_the_space_before_it() -> None:
    assert pieces(make(), "the sea 曹操来到清华大学") == [
        "the",
        " sea",
        " ",
        "曹操",
        "来到",
        "清华大学",
    ]
    assert pieces(make(), " don't") == [" don't"]


def test_an_unknown_word_is_its_characters_and_an_unknown_character_its_bytes() -> None:
    assert pieces(make(), "seal") == ["s", "e", "a", "l"]
    assert pieces(make(), "诸曹") == ["诸", "曹"]
    assert len(make().encode("🐢")) == len("🐢".encode())
    assert make().decode(make().encode("🐢")) == "🐢"


def test_characters_are_one_id_each_and_words_are_none() -> None:
    assert pieces(make(kind="character", vocab_size=289), "曹操 the") == [
        "曹",
        "操",
        " ",
        "t",
        "h",
        "e",
    ]


def test_the_vocabulary_has_exactly_the_size_asked_for_or_is_refused() -> None:
    assert make().vocab_size == 300
    assert make().special_ids == (0, 1, 2, 3, 4)
    with pytest.raises(CorpusError, match=r"tokenize\.vocab_size = 900: add text or lower it"):
        make(vocab_size=900)


def test_special_tokens_spelt_in_a_text_stay_text() -> None:
    assert not {*make().special_ids} & {*make().encode("曹操<|end|>")}
    assert make().decode(make().encode("曹操<|end|>")) == "曹操<|end|>"


def test_each_id_knows_its_word() -> None:
    words = make().words
    assert len(words) == make().vocab_size
    assert words[:5] == [""] * 5
    (sea,) = make().encode(" sea")
    (warlord,) = make().encode("曹操")
    assert (words[sea], words[warlord]) == ("sea", "曹操")


def test_training_gives_the_same_tokenizer_again() -> None:
    assert make.__wrapped__().definition == make().definition


def test_a_saved_tokenizer_opens_here_and_elsewhere(tmp_path: Path) -> None:
    make().save(tmp_path)
    text = "曹操来到清华大学 (the sea)"
    ids = make().encode(text)
    assert Tokenizer.open(tmp_path).encode(text) == ids
    plain = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    parted = ["曹操", "来到", "清华大学", " (the sea)"]
    assert plain.encode(parted, is_pretokenized=True).ids == ids
    # Without the segmenter a run of several words is unknown, and so its characters.
    assert plain.decode(plain.encode(text).ids) == text
    assert plain.encode("曹操来到").ids == spell(plain, "曹操来到")


def spell(backend: tokenizers.Tokenizer, text: str) -> list[int]:
    return [number for character in text for number in backend.encode(character).ids]


def test_an_unknown_segmenter_is_told_in_one_line(tmp_path: Path) -> None:
    make().save(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    config = json.loads(path.read_text("utf-8"))
    assert config["segmenter"] == "jieba"
    path.write_text(json.dumps(config | {"segmenter": ["os.system"]}))
    with pytest.raises(TokenizerError, match="allowed is characters or jieba") as caught:
        Tokenizer.open(tmp_path)
    assert "\n" not in str(caught.value)
