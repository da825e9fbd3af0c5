"""Files of word vectors: word2vec's text and binary layouts, and GloVe's.

Takes: a path. Gives: `WordVectors`, or the file written whole or not at all. A file is other
people's: what it promises is held against its size before any memory is taken, and what is wrong
with it is told with its line.

- word2vec text: a line "V D", then a line a word: the word and D numbers, parted by spaces.
- word2vec binary: the same first line, then a word, a space and D little-endian float32 a word.
- GloVe: as word2vec text, without the first line.

Axes: V words, D numbers a word.
"""

from __future__ import annotations

import mmap
import re
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray

from lmloop.errors import ArtifactError
from lmloop.store.artifact import write_whole
from lmloop.tokens.vectors import WordVectors

VectorLayout = Literal["word2vec-text", "word2vec-binary", "glove"]
SUFFIXES: dict[str, VectorLayout] = {
    ".vec": "word2vec-text",
    ".txt": "word2vec-text",
    ".bin": "word2vec-binary",
    ".glove": "glove",
}
"""What the end of a file's name says of its layout."""

LONGEST_LINE = 1 << 20
"""Bytes that a line of text is allowed: 50,000 numbers."""
LONGEST_WORD = 1 << 12
"""Bytes that a word of a binary file is allowed."""
_HEADER = re.compile(rb"([0-9]{1,18})[ \t]+([0-9]{1,18})[ \t]*\r?\n?")


def load_vectors(
    path: str | Path, *, layout: VectorLayout | None = None, dimensions: int | None = None
) -> WordVectors:
    """Open a file of word vectors.

    Without `layout` it is found out: a first line of two whole numbers is word2vec's, and its rows
    are text where the first one can be read as such. `dimensions` is needed only for a GloVe file
    whose first word ends in a space and a number. Raises `ArtifactError`.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        with path.open("rb") as stream:
            found = layout or _find_layout(stream)
            if found == "word2vec-binary":
                return _read_binary(stream, path=path, size=size)
            return _read_text(
                stream, path=path, size=size, glove=found == "glove", dimensions=dimensions
            )
    except OSError as error:
        raise ArtifactError(
            f"{path} cannot be read ({error.strerror}): name a file of word vectors"
        ) from error


def layout_of(path: str | Path) -> VectorLayout:
    """The layout that a new file's suffix asks for; raises `ArtifactError` for an unknown one."""
    suffix = Path(path).suffix.lower()
    if suffix not in SUFFIXES:
        raise ArtifactError(
            f"{path} says no layout: end its name in {', '.join(SUFFIXES)} "
            "(word2vec text, the same, word2vec binary, GloVe)"
        )
    return SUFFIXES[suffix]


def save_vectors(vectors: WordVectors, path: str | Path, *, layout: VectorLayout) -> None:
    """Write a file that `load_vectors` reads back bit for bit, whole or not at all.

    Raises `ArtifactError` where a word cannot be told from its numbers in that layout.
    """
    for word in vectors.words:
        _refuse_word(word, layout=layout)
    if layout == "glove" and _ends_in_number(vectors.words[0]):
        raise ArtifactError(
            f"the first word {vectors.words[0]!r} ends in a number, which a GloVe file cannot "
            "tell from its vector: save as word2vec-text"
        )
    with _write(Path(path)) as stream:
        if layout != "glove":
            stream.write(b"%d %d\n" % vectors.matrix.shape)
        for word, row in zip(vectors.words, vectors.matrix, strict=True):
            if layout == "word2vec-binary":
                stream.write(word.encode() + b" " + row.astype("<f4").tobytes() + b"\n")
            else:
                # As text a float32 has the fewest digits that give the same bits again.
                numbers = " ".join(row.astype(str).tolist())
                stream.write(f"{word} {numbers}\n".encode())


def _refuse_word(word: str, *, layout: VectorLayout) -> None:
    binary = layout == "word2vec-binary"
    try:
        too_long = len(word.encode()) > LONGEST_WORD
    except UnicodeEncodeError as error:
        raise ArtifactError(f"the word {word!r} is not Unicode text: leave it out") from error
    if not word or too_long or "\n" in word or word != word.strip(" ") or (binary and " " in word):
        raise ArtifactError(
            f"the word {word[:40]!r} cannot be written: allowed is 1 to {LONGEST_WORD} bytes, no "
            f"line break and no {'space' if binary else 'space at its ends'}"
        )


def _ends_in_number(word: str) -> bool:
    first, _, last = word.rpartition(" ")
    return bool(first) and _number(last.encode()) is not None


@contextmanager
def _write(path: Path) -> Iterator[IO[bytes]]:
    """The file to write; raise `ArtifactError` where the system refuses."""
    try:
        with write_whole(path) as stream:
            yield stream
    except OSError as error:
        raise ArtifactError(
            f"{path} cannot be written ({error.strerror}): what was there before is as it was"
        ) from error


def _find_layout(stream: BinaryIO) -> VectorLayout:
    header = _HEADER.fullmatch(stream.readline(64))
    if header is None:
        stream.seek(0)
        return "glove"
    dimensions = int(header[2])
    fields = stream.readline(LONGEST_LINE).rstrip(b"\r\n ").split(b" ")
    stream.seek(0)
    text = len(fields) > dimensions and all(
        _number(each) is not None for each in fields[len(fields) - dimensions :]
    )
    return "word2vec-text" if text or _is_printable(fields) else "word2vec-binary"


def _is_printable(fields: list[bytes]) -> bool:
    """Whether a row that is no row of text was meant as one: for the better error."""
    try:
        return re.search(r"[\x00-\x08\x0e-\x1f]", b" ".join(fields).decode()) is None
    except UnicodeDecodeError:
        return False


def _number(text: bytes) -> float | None:
    try:
        # Python allows underscores between digits; the layouts do not.
        return None if b"_" in text else float(text)
    except ValueError:
        return None


@dataclass(slots=True)
class _Rows:
    """Rows as they are read: what every layout checks."""

    path: Path
    dimensions: int
    unit: Literal["line", "word"]
    """What places are counted in: lines of a text file, words of a binary one."""
    numbers: array[float] = field(default_factory=lambda: array("f"))
    places: dict[str, int] = field(default_factory=dict)

    def add(self, word: bytes, row: NDArray[np.float32], *, place: int) -> None:
        """Take the row of a word that stands at `place`."""
        try:
            name = word.decode()
        except UnicodeDecodeError as error:
            raise self.refusal(place, f"the word {word[:40]!r} is not UTF-8") from error
        if not name.strip(" "):
            raise self.refusal(place, "there is no word before the numbers")
        if name in self.places:
            said = f"the word {name[:40]!r} stands at {self.unit} {self.places[name]} already"
            raise self.refusal(place, said)
        if not np.isfinite(row).all():
            raise self.refusal(place, f"the vector of {name[:40]!r} is not finite in float32")
        self.places[name] = place
        self.numbers.frombytes(row.tobytes())

    def refusal(self, place: int, said: str) -> ArtifactError:
        """The error that `said` is wrong at a place."""
        return _refusal(self.path, f"{self.unit} {place}", said)

    def close(self) -> WordVectors:
        """All rows as vectors."""
        matrix = np.frombuffer(self.numbers, dtype=np.float32).reshape(-1, self.dimensions)
        return WordVectors(tuple(self.places), matrix)


def _refusal(path: Path, where: str, said: str) -> ArtifactError:
    return ArtifactError(f"{path}, {where}: {said}: mend the file or choose another")


def _read_header(
    stream: BinaryIO, *, path: Path, size: int, row_bytes: tuple[int, int]
) -> tuple[int, int]:
    """V and D of the first line; a row takes at least `row_bytes` = (fixed, a number) bytes."""
    header = _HEADER.fullmatch(stream.readline(64))
    if header is None:
        raise ArtifactError(
            f'{path}, line 1: a word2vec file begins with "words numbers", as "1000 100": '
            "choose the layout glove or another file"
        )
    count, dimensions = int(header[1]), int(header[2])
    fixed, each = row_bytes
    if count < 1 or dimensions < 1:
        raise ArtifactError(f"{path}, line 1: {count} words of {dimensions} numbers: no vectors")
    # The last row's line end may be missing.
    if count * (fixed + each * dimensions) > size + 1:
        raise ArtifactError(
            f"{path}, line 1: {count} words of {dimensions} numbers do not fit in its {size} "
            "bytes: the file is cut short, or of another layout"
        )
    return count, dimensions


def _read_text(
    stream: BinaryIO, *, path: Path, size: int, glove: bool, dimensions: int | None
) -> WordVectors:
    count = None
    if not glove:
        # A word and its line's end are two bytes; a number and the space before it, two.
        count, dimensions = _read_header(stream, path=path, size=size, row_bytes=(2, 2))
    rows: _Rows | None = None
    for place, fields in _read_lines(stream, path=path, first=1 if glove else 2):
        if rows is None:
            rows = _Rows(path, dimensions or _count_numbers(fields), "line")
            if glove and _HEADER.fullmatch(b" ".join(fields)):
                said = "it is the first line of a word2vec file, not of a GloVe one"
                raise rows.refusal(place, said)
        if len(rows.places) == count:
            raise rows.refusal(place, f"a row too many: line 1 promises {count} words")
        row = _parse_numbers(fields, rows, place=place)
        rows.add(b" ".join(fields[: len(fields) - rows.dimensions]), row, place=place)
    if rows is None:
        raise ArtifactError(f"{path}, line 1: there is no vector in it: choose another file")
    if count is not None and len(rows.places) < count:
        said = f"the file ends after {len(rows.places)} words, and line 1 promises {count}"
        raise rows.refusal(place, said)
    return rows.close()


def _read_lines(stream: BinaryIO, *, path: Path, first: int) -> Iterator[tuple[int, list[bytes]]]:
    """Lines that are not blank, with their number; only the last ones may be blank."""
    blank = None
    place = first - 1
    while line := stream.readline(LONGEST_LINE + 1):
        place += 1
        if len(line) > LONGEST_LINE:
            raise _refusal(path, f"line {place}", f"it is longer than {LONGEST_LINE} bytes")
        fields = line.rstrip(b"\r\n ").split(b" ")
        if fields == [b""]:
            blank = blank or place
        elif blank:
            raise _refusal(path, f"line {blank}", "it is blank, and words follow")
        else:
            yield place, fields


def _count_numbers(fields: list[bytes]) -> int:
    """How many fields at a row's end are numbers; the first is always the word."""
    count = 0
    while count < len(fields) - 1 and _number(fields[-1 - count]) is not None:
        count += 1
    return max(count, 1)


def _parse_numbers(fields: list[bytes], rows: _Rows, *, place: int) -> NDArray[np.float32]:
    """The last D fields of a row as float32."""
    wanted = rows.dimensions
    numbers = fields[-wanted:]
    if len(fields) <= wanted:
        raise rows.refusal(place, f"{len(fields)} fields, and a word with {wanted} numbers is due")
    try:
        if any(b"_" in each for each in numbers):
            raise ValueError
        with np.errstate(over="ignore"):  # becomes infinite, which is refused by name
            return np.array(list(map(float, numbers)), dtype=np.float64).astype(np.float32)
    except ValueError:
        wrong = next(each for each in numbers if _number(each) is None)
        raise rows.refusal(place, f"{wrong[:40]!r} is not a number") from None


def _read_binary(stream: BinaryIO, *, path: Path, size: int) -> WordVectors:
    # A word and the space behind it are two bytes.
    count, dimensions = _read_header(stream, path=path, size=size, row_bytes=(2, 4))
    rows = _Rows(path, dimensions, "word")
    position = stream.tell()
    with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        for place in range(1, count + 1):
            # The original tool ends a row with a line break, gensim does not.
            while data[position : position + 1] == b"\n":
                position += 1
            space = data.find(b" ", position, position + LONGEST_WORD + 1)
            end = space + 1 + 4 * dimensions
            if space < 0 or end > size:
                said = "the file ends in its vector" if space >= 0 else "no word ends in a space"
                raise rows.refusal(place, f"at byte {position} {said}")
            row = np.frombuffer(data[space + 1 : end], dtype="<f4").astype(np.float32)
            rows.add(data[position:space], row, place=place)
            position = end
        if data[position:].strip(b"\n"):
            raise rows.refusal(count, f"at byte {position} more follows than line 1 promises")
    return rows.close()
