"""Files of word vectors: bit for bit through every layout, gensim's too; bad ones told by line."""

from __future__ import annotations

import struct
import tracemalloc
import warnings
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from lmloop.errors import ArtifactError
from lmloop.tokens.vector_files import VectorLayout, layout_of, load_vectors, save_vectors
from lmloop.tokens.vectors import WordVectors

LAYOUTS: tuple[VectorLayout, ...] = get_args(VectorLayout)
PAIR = WordVectors(("sea", "海"), np.array([[0.5, -2.0], [0.1, 1e-12]], dtype=np.float32))
FILES: dict[VectorLayout, bytes] = {
    "word2vec-text": "2 2\nsea 0.5 -2.0\n海 0.1 1e-12\n".encode(),
    "glove": "sea 0.5 -2.0\n海 0.1 1e-12\n".encode(),
    "word2vec-binary": b"2 2\nsea "
    + struct.pack("<2f", 0.5, -2.0)
    + "\n海 ".encode()
    + struct.pack("<2f", 0.1, 1e-12)
    + b"\n",
}


def assert_same(one: WordVectors, other: WordVectors) -> None:
    assert one.words == other.words
    assert one.matrix.tobytes() == other.matrix.tobytes()
    assert one.matrix.shape == other.matrix.shape


def write(folder: Path, content: bytes) -> Path:
    path = folder / "vectors"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_file_is_written_byte_for_byte_as_by_hand(tmp_path: Path, layout: VectorLayout) -> None:
    save_vectors(PAIR, tmp_path / "v", layout=layout)
    assert (tmp_path / "v").read_bytes() == FILES[layout]
    assert [path.name for path in tmp_path.iterdir()] == ["v"]


@pytest.mark.parametrize("asked", [True, False])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_file_is_read_and_its_layout_found(
    tmp_path: Path, layout: VectorLayout, asked: bool
) -> None:
    path = write(tmp_path, FILES[layout])
    assert_same(load_vectors(path, layout=layout if asked else None), PAIR)


@pytest.mark.parametrize(
    "content",
    [
        b"2 1\r\na 1\r\nb 2\r\n",
        b"2 1\na 1 \nb 2 \n",
        b"2 1\na 1\nb 2",
        b"2 1\na 1\nb 2\n\n\n",
        b"a 1.0\nb 2.0\n\n",
        b"2 1\na \x00\x00\x80\x3fb \x00\x00\x00\x40",
    ],
)
def test_what_other_tools_write_is_read(tmp_path: Path, content: bytes) -> None:
    vectors = load_vectors(write(tmp_path, content))
    assert (vectors.words, vectors.matrix.tolist()) == (("a", "b"), [[1.0], [2.0]])


def test_a_word_with_spaces_is_read_from_a_glove_file(tmp_path: Path) -> None:
    path = write(tmp_path, b"the 1 2\n. . . 3 4\nat name@domain.com 5 6\nroute 66 7 8\n")
    assert load_vectors(path).words == ("the", ". . .", "at name@domain.com", "route 66")
    path = write(tmp_path, b"route 66 7 8\nthe 1 2\n")
    with pytest.raises(ArtifactError, match="line 2: 3 fields, and a word with 3 numbers"):
        load_vectors(path)
    assert load_vectors(path, dimensions=2).words == ("route 66", "the")


def gensim_keyed_vectors() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from gensim.models import KeyedVectors
    return KeyedVectors


@pytest.mark.parametrize("binary", [True, False])
def test_gensim_reads_what_we_write_and_we_what_gensim_writes(tmp_path: Path, binary: bool) -> None:
    keyed = gensim_keyed_vectors()
    rng = np.random.default_rng(0)
    words = tuple(f"word{number}é海" for number in range(50))
    ours = WordVectors(words, rng.standard_normal((50, 7)).astype(np.float32))
    save_vectors(ours, tmp_path / "ours", layout="word2vec-binary" if binary else "word2vec-text")
    theirs = keyed.load_word2vec_format(str(tmp_path / "ours"), binary=binary)
    assert_same(WordVectors(tuple(theirs.index_to_key), theirs.vectors), ours)
    theirs.save_word2vec_format(str(tmp_path / "theirs"), binary=binary)
    assert_same(load_vectors(tmp_path / "theirs"), ours)
    save_vectors(ours, tmp_path / "glove", layout="glove")
    headed = tmp_path / "headed"  # gensim's own reading without a header leaves the file open
    headed.write_bytes(b"50 7\n" + (tmp_path / "glove").read_bytes())
    glove = keyed.load_word2vec_format(str(headed), binary=False)
    assert_same(WordVectors(tuple(glove.index_to_key), glove.vectors), ours)
    for word, cosine in ours.nearest(words[3], 5):
        assert theirs.similarity(words[3], word) == pytest.approx(cosine, abs=1e-6)
    asked = dict(positive=[words[1], words[2]], negative=[words[0]], topn=5)
    expected = [word for word, _ in theirs.most_similar(**asked)]
    assert [word for word, _ in ours.analogy(words[0], words[1], words[2], 5)] == expected


WORDS = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters=" \n"), min_size=1, max_size=6
)


@given(data=st.data(), layout=st.sampled_from(LAYOUTS))
def test_any_vectors_come_back_bit_for_bit(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, layout: VectorLayout
) -> None:
    words = data.draw(st.lists(WORDS, min_size=1, max_size=5, unique=True))
    shape = (len(words), data.draw(st.integers(1, 4)))
    finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
    matrix = data.draw(npst.arrays(np.float32, shape, elements=finite))
    vectors = WordVectors(tuple(words), matrix)
    path = tmp_path_factory.mktemp("files") / "v"
    save_vectors(vectors, path, layout=layout)
    assert_same(load_vectors(path, layout=layout), vectors)


@pytest.mark.parametrize(
    ("content", "layout", "complaint"),
    [
        (b"", None, "line 1: there is no vector"),
        (b"\n\n", None, "line 1: there is no vector"),
        (b"2 2\n", None, "line 1: 2 words of 2 numbers do not fit in its 4 bytes"),
        (b"999999999999 300\na 1\n", None, "line 1: .* do not fit"),
        (b"2 999999999999999999\na 1\n", None, "line 1: .* do not fit"),
        (b"0 2\n", None, "line 1: 0 words"),
        (b"2 0\na\nb\n", None, "line 1: 2 words of 0 numbers"),
        (b"a 1\n", "word2vec-text", "line 1: a word2vec file begins"),
        (b"9" * 99, "word2vec-binary", "line 1: a word2vec file begins"),
        (b"1 1\na 1\n", "glove", "line 1: it is the first line of a word2vec file"),
        (b"3 1\na 1\nb 2\n    \n", None, "line 3: the file ends after 2 words"),
        (b"1 1\na 1\nb 2\n", None, "line 3: a row too many"),
        (b"2 2\na 1 2\nb 1\n", None, "line 3: 2 fields"),
        (b"a 1.0 2\nb 1\n", None, "line 2: 2 fields"),
        (b"a 1.0 2\n\nb 1 2\n", None, "line 2: it is blank"),
        (b"a 1.0 2\nb 1 x\n", None, "line 2: b'x' is not a number"),
        (b"a 1.0 2\nb 1 1_0\n", None, "line 2: b'1_0' is not a number"),
        (b"a 1.0 2\nb nan 1\n", None, "line 2: the vector of 'b' is not finite"),
        (b"a 1.0 2\nb -inf 1\n", None, "line 2: the vector of 'b' is not finite"),
        (b"a 1.0 2\nb 1 1e39\n", None, "line 2: the vector of 'b' is not finite"),
        (b"a 1.0 2\na 1 2\n", None, "line 2: the word 'a' stands at line 1 already"),
        (b"a 1.0 2\n\xff 1 2\n", None, r"line 2: the word b'\\xff' is not UTF-8"),
        (b"a 1.0 2\n 1 2\n", None, "line 2: there is no word"),
        (b"a " + b"1 " * (1 << 20), None, "line 1: it is longer than"),
        (b"2 1\na 1234b 12", "word2vec-binary", "word 2: at byte 10 the file ends in its vector"),
        (b"1 1\n" + b"a" * 9999, "word2vec-binary", "word 1: .* no word ends in a space"),
        (b"1 1\na 1234\nmore", "word2vec-binary", "word 1: at byte 10 more follows"),
        (b"1 1\na \0\0\xc0\x7f", None, "word 1: the vector of 'a' is not finite"),
        (b"2 1\na 1234a 1234", "word2vec-binary", "word 2: .* stands at word 1 already"),
        (b"1 1\n\xfe 1234", "word2vec-binary", "word 1: .* is not UTF-8"),
        (b"1 1\n 1234567", "word2vec-binary", "word 1: there is no word"),
    ],
)
def test_a_bad_file_is_refused_in_one_line_with_its_place(
    tmp_path: Path, content: bytes, layout: VectorLayout | None, complaint: str
) -> None:
    path = write(tmp_path, content)
    with pytest.raises(ArtifactError, match=complaint) as caught:
        load_vectors(path, layout=layout)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_suffix_of_a_new_file_says_its_layout() -> None:
    assert layout_of("a/b.VEC") == layout_of(Path("b.txt")) == "word2vec-text"
    assert (layout_of("b.bin"), layout_of("b.glove")) == ("word2vec-binary", "glove")
    for name in ("b", "b.npz"):
        with pytest.raises(ArtifactError, match=f"{name} says no layout: .*[.]glove"):
            layout_of(name)


def test_a_missing_file_or_a_folder_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "absent", tmp_path):
        with pytest.raises(ArtifactError, match="cannot be read"):
            load_vectors(path)


def test_a_large_promise_takes_no_memory(tmp_path: Path) -> None:
    path = write(tmp_path, b"100000000 300\na " + bytes(1200))
    tracemalloc.start()
    with pytest.raises(ArtifactError, match="do not fit"):
        load_vectors(path, layout="word2vec-binary")
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


@given(data=st.data(), layout=st.sampled_from(LAYOUTS), known=st.booleans())
def test_a_mutated_file_is_read_or_refused_and_nothing_else(
    tmp_path_factory: pytest.TempPathFactory,
    data: st.DataObject,
    layout: VectorLayout,
    known: bool,
) -> None:
    content = bytearray(FILES[layout])
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content)))
        new = data.draw(st.binary(max_size=3) | st.sampled_from([b"9", b" ", b"\n", b"-", b"nan"]))
        content[at : at + data.draw(st.integers(0, 4))] = new
    path = write(tmp_path_factory.mktemp("files"), bytes(content))
    try:
        vectors = load_vectors(path, layout=layout if known else None)
    except ArtifactError as error:
        assert "\n" not in str(error)
    else:
        assert 4 * vectors.matrix.size <= 4 * len(content)


@pytest.mark.parametrize(
    ("word", "layout"),
    [
        ("", "glove"),
        ("two\nlines", "word2vec-text"),
        ("two words", "word2vec-binary"),
        (" ahead", "word2vec-text"),
        ("\ud800", "glove"),
        ("a 1", "glove"),
        ("x" * 5000, "word2vec-binary"),
    ],
)
def test_a_word_that_could_not_be_read_back_is_not_written(
    tmp_path: Path, word: str, layout: VectorLayout
) -> None:
    path = write(tmp_path, b"before")
    with pytest.raises(ArtifactError):
        save_vectors(WordVectors((word,), np.ones((1, 1), np.float32)), path, layout=layout)
    assert path.read_bytes() == b"before"


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "v").mkdir()
    with pytest.raises(ArtifactError, match="cannot be written"):
        save_vectors(PAIR, tmp_path / "v", layout="glove")
    with pytest.raises(ArtifactError, match="cannot be written"):
        save_vectors(PAIR, tmp_path / "absent" / "v", layout="glove")
    assert [path.name for path in tmp_path.iterdir()] == ["v"]
