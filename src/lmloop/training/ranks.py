"""The processes of one run: who this one is, and what it agrees on with the others.

Takes: this process's place among the others. Gives: a `Ranks`; that of a run in one process does
nothing. Only the first rank writes, prints and decides; all take every step together.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

from lmloop.config import Place
from lmloop.errors import TrainingError

if TYPE_CHECKING:
    from torch import Tensor


class Ranks:
    """One process alone. `parallel.ManyRanks` is the same for many."""

    rank = 0
    """Number of this process."""
    size = 1
    """How many there are (the world size)."""

    @property
    def is_first(self) -> bool:
        """Whether this is the one that writes and prints."""
        return self.rank == 0

    def part(self, first: int, rows: int, *, copies: int = 1) -> tuple[int, int]:
        """This rank's own of a batch: a first row and how many, all ranks' in their order.

        So many neighbours (`copies`) have the same part. Raises `TrainingError` where rows cannot
        be dealt out evenly.
        """
        parts = self.size // copies
        share, left = divmod(rows, parts)
        if left or not share:
            raise TrainingError(
                f"a batch of {rows} rows cannot be dealt out evenly to {parts} ranks: make "
                "batch_tokens / row_tokens a multiple of the number of ranks, or start fewer"
            )
        return first + self.rank // copies * share, share

    def require_rows(self, rows: int, *, row_tokens: int, copies: int = 1) -> None:
        """Raise `TrainingError` where a text has fewer rows than there are parts of a batch.

        One process learns so little text as often as it is told to; many would learn the same rows
        side by side, and gain nothing.
        """
        parts = self.size // copies
        if rows < parts:
            raise TrainingError(
                f"the text has {rows} rows of {row_tokens} tokens and is to be dealt out to "
                f"{parts} ranks: add text, lower row_tokens, or start fewer"
            )

    def agree(self, value: float) -> float:
        """The first rank's value; waits for as long as it takes that one to come to it."""
        return value

    def total(self, value: float) -> float:
        """The sum of all ranks' values."""
        return value

    def add_up(self, tensor: Tensor) -> None:
        """Put the sum of all ranks' tensors in place of each."""

    def share(self, tensor: Tensor) -> None:
        """Put the first rank's tensor in place of each, to the bit."""

    def collect(self, text: str) -> list[str]:
        """Every rank's text, shortened, in their order; nobody goes on before all are here."""
        return [text]


ALONE = Ranks()


def join_ranks(place: Place | None) -> AbstractContextManager[Ranks]:
    """Meet the other processes of the run, if there are any.

    While they are together, one that is lost ends all (`LostRankError`); an error of lmloop is told
    by the first rank alone, the others end without a word. Raises `TrainingError` where they do not
    find each other.
    """
    if place is None:
        return nullcontext(ALONE)
    from lmloop.training.parallel import join

    return join(place)
