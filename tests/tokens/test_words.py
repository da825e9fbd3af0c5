"""Words of any script, and their numbers."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmloop.errors import CorpusError, MissingExtraError
from lmloop.tokens.words import WordSplitter, index_words


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("The cat, the CAT!", ["the", "cat", "the", "cat"]),
        ("don't re-use 'quotes' -- or 3.5", ["don't", "re-use", "quotes", "or", "3", "5"]),
        ("l’été à Køge", ["l’été", "à", "køge"]),
        ("Съешь ещё булок", ["съешь", "ещё", "булок"]),
        ("हिन्दी में लिखो", ["हिन्दी", "में", "लिखो"]),
        ("مرحبا بالعالم", ["مرحبا", "بالعالم"]),
        ("한국어 문장", ["한국어", "문장"]),
        ("我爱GPT2，真的", ["我", "爱", "gpt2", "真", "的"]),
        ("〇々𠀀﨎", ["〇", "々", "𠀀", "﨎"]),
        ("snake_case 🐢 a_b", ["snake", "case", "a", "b"]),
        (" \n.!?", []),
        ("", []),
    ],
)
def test_a_text_is_split_as_its_script_asks(text: str, words: list[str]) -> None:
    assert WordSplitter().split(text) == words


def test_the_case_is_kept_where_asked() -> None:
    assert WordSplitter(lowercase=False).split("The Cat") == ["The", "Cat"]


@given(st.text())
def test_every_word_stands_in_the_text_in_its_order(text: str) -> None:
    at = 0
    for word in WordSplitter(lowercase=False).split(text):
        assert word
        at = text.index(word, at) + len(word)


def test_jieba_cuts_runs_of_han_characters_and_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    splitter = WordSplitter(segmenter="jieba")
    assert splitter.split("我来到北京清华大学, OK?") == ["我", "来到", "北京", "清华大学", "ok"]
    assert list(tmp_path.iterdir()) == []


def test_without_jieba_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jieba", None)
    splitter = WordSplitter(segmenter="jieba")
    assert splitter.split("no Han here") == ["no", "han", "here"]
    with pytest.raises(MissingExtraError, match=r"pip install 'lmloop\[chinese\]'"):
        splitter.split("清华")


def test_words_are_numbered_by_frequency_and_rare_ones_close_up() -> None:
    stream = index_words([["b", "a", "rare"], [], ["a", "b", "a"]], min_count=2)
    assert stream.words == ("a", "b")
    assert stream.counts.tolist() == [3, 2]
    assert stream.ids.tolist() == [1, 0, 0, 1, 0]
    assert stream.starts.tolist() == [0, 2, 2, 5]
    assert stream.ids.dtype == np.int32


def test_a_cut_of_the_text_knows_its_sentences() -> None:
    stream = index_words([["a", "b"], [], ["a"], ["b", "a"]], min_count=1)
    words, sentences = stream.cut(1, 3)
    assert words.tolist() == [1, 0, 1]
    assert sentences.tolist() == [1, 3, 4]
    assert [len(part) for part in stream.cut(4, 9)] == [1, 1]


def test_no_more_words_are_kept_than_asked_for() -> None:
    stream = index_words([["a", "b", "b", "c", "c"]], min_count=1, max_words=2)
    assert stream.words == ("b", "c")
    assert stream.ids.tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("sentences", [[], [[]], [["once"]]])
def test_a_text_without_frequent_words_is_refused(sentences: list[list[str]]) -> None:
    with pytest.raises(CorpusError, match="lower min_count"):
        index_words(sentences, min_count=2)


@given(
    st.text(
        alphabet=st.one_of(st.characters(codec="utf-8"), st.sampled_from("我来到北京清华大学 a's"))
    )
)
def test_a_text_that_is_cut_loses_nothing(text: str) -> None:
    assert "".join(WordSplitter().cut(text)) == text


def test_only_runs_of_han_characters_are_cut() -> None:
    text = "OK, 我来到北京清华大学 (2nd time)"
    words = ["我", "来到", "北京", "清华大学"]
    assert WordSplitter(segmenter="jieba").cut(text) == ["OK, ", *words, " (2nd time)"]
    assert WordSplitter().cut("我a") == ["我", "a"]
