"""Raw files to records: conversations and documents as they stand there, one at a time.

Takes: the sources of a recipe. Gives: a `Reading` that yields `SourcedRecord`s and counts, file by
file and reason by reason, what it could not read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from lmloop.corpus.formats import read_rows
from lmloop.corpus.rows import Skipped, parse_row
from lmloop.corpus.sources import Source, SourceFile, find_sources
from lmloop.errors import SourceError
from lmloop.records import Record


class SourcedRecord(NamedTuple):
    """A record and the label of the file that it stands in."""

    source: str
    record: Record


@dataclass(slots=True)
class Reading:
    """One pass over the sources; the counts are whole when it has been iterated to its end."""

    sources: Sequence[Source]
    records: int = 0
    """Records read so far."""
    skipped: dict[str, Counter[str]] = field(default_factory=dict)
    """Label of a file → reason → lines, rows or files that were not read for it."""

    @property
    def files(self) -> int:
        """Files of known type."""
        return sum(len(source.files) for source in self.sources)

    @property
    def ignored_files(self) -> int:
        """Files of other types in the folders."""
        return sum(source.ignored for source in self.sources)

    def __iter__(self) -> Iterator[SourcedRecord]:
        """Yield every record; `SourceError` where a source has none or a named file is broken."""
        for source in self.sources:
            before = self.records
            for file in source.files:
                yield from self._read_file(file)
            if self.records == before and source.files:
                raise SourceError(f"source {source.name} has no readable record{self._why(source)}")

    def _read_file(self, file: SourceFile) -> Iterator[SourcedRecord]:
        label = file.label
        try:
            for number, row in enumerate(read_rows(file.path)):
                parsed = (
                    row
                    if isinstance(row, Skipped)
                    else parse_row(row, record_id=f"{label}#{number}")
                )
                if not isinstance(parsed, Skipped):
                    self.records += 1
                    yield SourcedRecord(label, parsed)
                    continue
                if parsed.whole_file and file.named:
                    raise SourceError(
                        f"source {label}: {parsed.reason}; mend or leave out the file"
                    )
                self.skipped.setdefault(label, Counter())[parsed.reason] += 1
        except OSError as error:
            raise SourceError(f"source {label} cannot be read: {error.strerror}") from error

    def _why(self, source: Source) -> str:
        reasons: Counter[str] = Counter()
        for file in source.files:
            reasons.update(self.skipped.get(file.label, {}))
        if not reasons:
            return ": it is empty"
        told = ", ".join(f"{reason} ({count:,})" for reason, count in reasons.most_common(3))
        return f": {told}; docs/prepare.md lists the known columns"


def read_sources(sources: Sequence[str]) -> Reading:
    """Find the files of all sources; reading happens when the result is iterated.

    Raises `SourceError` where a source is missing or has no file of a known type.
    """
    return Reading(find_sources(sources))
