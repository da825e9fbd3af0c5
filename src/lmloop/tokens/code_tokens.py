"""Codes of pictures and sounds as tokens: the names by which they stand in a tokenizer.

Takes: codes, several levels to a step. Gives: ids of one row, and the codes again. A code of each
level has a token of its own, so that a model is told which level it writes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lmloop.errors import TokenizerError
from lmloop.tokens.tokenizer import Tokenizer


def name_codes(num_codes: int, *, num_levels: int = 1) -> tuple[str, ...]:
    """`<|c0|>`, `<|c1|>`, …: what goes among the extra tokens, the levels one after another."""
    return tuple(f"<|c{number}|>" for number in range(num_codes * num_levels))


class CodeTokens:
    """Which ids of a tokenizer are codes."""

    def __init__(self, tokenizer: Tokenizer, *, num_codes: int, num_levels: int = 1) -> None:
        """Raise `TokenizerError` where the tokenizer lacks one, or has them in another order."""
        names = name_codes(num_codes, num_levels=num_levels)
        ids = [tokenizer.special_id(name) for name in names]
        self.first = ids[0]
        self.num_codes, self.num_levels = num_codes, num_levels
        if ids != list(range(self.first, self.first + len(ids))):
            raise TokenizerError(
                f"the tokenizer has {names[0]} to {names[-1]} in another order: name them as "
                "name_codes does"
            )

    def encode(self, codes: ArrayLike) -> list[int]:
        """Ids [S · L] of codes [S, L], step by step."""
        ids: list[int] = (np.asarray(codes) + self._starts).flatten().tolist()
        return ids

    def decode(self, ids: Sequence[int]) -> NDArray[np.int64]:
        """Codes [S, L] of the ids up to the first that is none, or stands at the wrong level.

        A last step that is not whole is left out: a model may stop anywhere.
        """
        count = len(ids) // self.num_levels * self.num_levels
        codes = np.array(ids[:count], np.int64).reshape(-1, self.num_levels) - self._starts
        wrong = np.flatnonzero(((codes < 0) | (codes >= self.num_codes)).any(axis=1))
        return codes[: wrong[0]] if len(wrong) else codes

    @property
    def _starts(self) -> NDArray[np.int64]:
        return self.first + self.num_codes * np.arange(self.num_levels)
