"""Records to vectors: turns and paragraphs are sentences, words of any script are learnt."""

from __future__ import annotations

import pytest

from lmloop.errors import CorpusError
from lmloop.records import Conversation, Document, Turn
from lmloop.tokens.vectors import WordVectors
from lmloop.training.glove import GloveOptions
from lmloop.training.skip_gram import SkipGramOptions
from lmloop.training.vectors import train_vectors

RECORDS = [
    Document("0", "The sea is\nwide.\n \nNot here", 0),
    Conversation("1", (Turn("user", "我来到清华大学"), Turn("assistant", "Here is the sea")), 0),
]
TINY = SkipGramOptions(dimensions=4, epochs=1)


def train(*, options: SkipGramOptions | GloveOptions = TINY, min_count: int = 1) -> WordVectors:
    return train_vectors(RECORDS, options=options, min_count=min_count, seed=0)


def test_words_of_documents_and_turns_get_vectors_of_either_method() -> None:
    expected = {"the", "sea", "is", "wide", "not", "here", "我", "来到", "清华大学"}
    assert set(train().words) == expected
    glove = train(options=GloveOptions(dimensions=3, epochs=1))
    assert (set(glove.words), glove.matrix.shape) == (expected, (9, 3))


def test_a_blank_line_parts_sentences_and_a_line_break_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[list[str]] = []

    def remember(sentences: object, *, min_count: int) -> None:
        seen.extend(sentences)  # type: ignore[arg-type]
        raise CorpusError("enough")

    monkeypatch.setattr("lmloop.training.vectors.index_words", remember)
    with pytest.raises(CorpusError, match="enough"):
        train()
    assert seen[:2] == [["the", "sea", "is", "wide"], ["not", "here"]]
    assert seen[2:] == [["我", "来到", "清华大学"], ["here", "is", "the", "sea"]]


def test_rare_words_are_left_out() -> None:
    assert set(train(min_count=2).words) == {"the", "sea", "is", "here"}
    with pytest.raises(CorpusError, match="lower min_count"):
        train(min_count=3)
