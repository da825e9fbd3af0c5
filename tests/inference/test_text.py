"""Ids become text piece by piece, and the pieces are the text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmloop.inference.text import REPLACEMENT, TextAssembler
from lmloop.tokens.tokenizer import Tokenizer


def byte_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """One id a byte, as a model may choose them."""
    pieces = tokenizer._backend.pre_tokenizer.pre_tokenize_str(text)  # type: ignore[union-attr]
    return [tokenizer.special_id(letter) for piece, _ in pieces for letter in piece]


def assemble(
    tokenizer: Tokenizer, ids: list[int], stop: tuple[str, ...] = ()
) -> tuple[list[str], bool]:
    """Pieces as they came, and whether a stop was met."""
    assembler = TextAssembler(tokenizer, stop)
    pieces = []
    for token in ids:
        text, stopped = assembler.add(token)
        pieces.append(text)
        if stopped:
            return pieces, True
    return [*pieces, assembler.finish()], False


@given(text=st.text(max_size=30))
def test_pieces_are_the_text_and_no_character_is_cut(tokenizer: Tokenizer, text: str) -> None:
    pieces, stopped = assemble(tokenizer, byte_ids(tokenizer, text))
    assert "".join(pieces) == text
    assert not stopped
    if REPLACEMENT not in text:
        assert not any(REPLACEMENT in piece for piece in pieces)


@given(ids=st.lists(st.integers(0, 339), max_size=40))
def test_pieces_of_any_ids_are_what_all_of_them_decode_to(
    tokenizer: Tokenizer, ids: list[int]
) -> None:
    pieces, _ = assemble(tokenizer, ids)
    assert "".join(pieces) == tokenizer.decode(ids)


def test_a_character_is_given_as_soon_as_it_is_whole(tokenizer: Tokenizer) -> None:
    pieces, _ = assemble(tokenizer, byte_ids(tokenizer, "aé你🙂b"))
    assert pieces == ["a", "", "é", "", "", "你", "", "", "", "🙂", "b", ""]


def test_ids_that_each_end_inside_a_character_never_show_half_of_one() -> None:
    class Overlapping:
        """Ids of three bytes over characters of four: every id but the last is cut."""

        text = "🙂" * 6

        def decode(self, ids: list[int]) -> str:
            data = self.text.encode()
            cut = b"".join(data[3 * each : 3 * each + 3] for each in ids)
            return cut.decode(errors="replace")

    pieces, _ = assemble(Overlapping(), list(range(8)))  # type: ignore[arg-type]
    assert "".join(pieces) == Overlapping.text
    assert not any(REPLACEMENT in piece for piece in pieces)
    assert pieces[1] == "🙂"


def test_a_decoder_that_marks_every_byte_of_a_cut_character_shows_none_of_them() -> None:
    class Bytes:
        """One id a byte; as SentencePiece decodes, a run of bytes is text or is none."""

        def decode(self, ids: list[int]) -> str:
            try:
                return bytes(ids).decode()
            except UnicodeDecodeError:
                return REPLACEMENT * len(ids)

    assembler = TextAssembler(Bytes(), ())  # type: ignore[arg-type]
    assert [assembler.add(byte)[0] for byte in "🙂".encode()] == ["", "", "", "🙂"]
    broken = [assembler.add(0xFF)[0] for _ in range(5)]
    assert broken == ["", "", "", REPLACEMENT, REPLACEMENT]
    assert assembler.finish() == REPLACEMENT * 3


def test_a_character_cut_off_at_the_very_end_is_marked(tokenizer: Tokenizer) -> None:
    pieces, _ = assemble(tokenizer, byte_ids(tokenizer, "a🙂")[:-1])
    assert "".join(pieces) == "a" + REPLACEMENT


def test_special_tokens_are_not_shown(tokenizer: Tokenizer) -> None:
    pieces, _ = assemble(tokenizer, [3, *byte_ids(tokenizer, "a"), 4])
    assert "".join(pieces) == "a"


@pytest.mark.parametrize(
    ("text", "stop", "shown"),
    [
        ("one\nUser: two", ("\nUser:",), "one"),
        ("aab aac", ("aac",), "aab "),
        ("ababac", ("abac",), "ab"),
        ("x--y", ("-",), "x"),
        ("hello", ("lo", "l"), "he"),
        ("hello", ("hello",), ""),
        ("abcd", ("cd", "bcd"), "a"),
        ("你好🙂吗", ("🙂吗",), "你好"),
        ("你好", ("好",), "你"),
        ("abc", ("abcd", "bc"), "a"),
    ],
)
def test_a_stop_string_over_several_ids_ends_the_text_before_it(
    tokenizer: Tokenizer, text: str, stop: tuple[str, ...], shown: str
) -> None:
    pieces, stopped = assemble(tokenizer, byte_ids(tokenizer, text + "never shown"), stop)
    assert stopped
    assert "".join(pieces) == shown


def test_the_beginning_of_a_stop_is_held_back_and_given_when_it_goes_on_otherwise(
    tokenizer: Tokenizer,
) -> None:
    pieces, _ = assemble(tokenizer, byte_ids(tokenizer, "ab--c"), ("---",))
    assert pieces == ["a", "b", "", "", "--c", ""]


def test_the_beginning_of_a_stop_at_the_end_is_flushed(tokenizer: Tokenizer) -> None:
    pieces, stopped = assemble(tokenizer, byte_ids(tokenizer, "ab--"), ("---",))
    assert (pieces, stopped) == (["a", "b", "", "", "--"], False)


def test_an_empty_stop_string_stops_nothing(tokenizer: Tokenizer) -> None:
    pieces, stopped = assemble(tokenizer, byte_ids(tokenizer, "ab"), ("",))
    assert ("".join(pieces), stopped) == ("ab", False)


@given(
    text=st.text(alphabet="ab你", max_size=12),
    stop=st.lists(st.text(alphabet="ab你", min_size=1, max_size=4), max_size=3),
)
def test_with_stop_strings_the_text_ends_where_the_first_is_complete(
    tokenizer: Tokenizer, text: str, stop: list[str]
) -> None:
    pieces, stopped = assemble(tokenizer, byte_ids(tokenizer, text), tuple(stop))
    ends = [text.index(each) + len(each) for each in stop if each in text]
    if not ends:
        assert ("".join(pieces), stopped) == (text, False)
        return
    # Of those that are complete at the same place, the one that begins first wins.
    first = min(ends)
    begin = min(first - len(each) for each in stop if text[:first].endswith(each))
    assert ("".join(pieces), stopped) == (text[:begin], True)
