"""What a forward is told besides its tokens: where they stand, and a view of who sees whom.

A view lays out what one layer needs of other tokens, and keeps what later steps need. Axes: N
tokens, M tokens of the encoder, D width, H query heads, K key heads, d width of a head, R runs of
tokens, S numbers of state.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple, Protocol

from torch import Tensor

from lmloop.model.scores import Scoring

if TYPE_CHECKING:
    from jaxtyping import Float, Int

Bias = Callable[[Tensor], Tensor]
"""What a score gains by how far the key lies behind the query: int64 [T, S] -> [H, T, S]."""
ReadSource = Callable[[Tensor], tuple[Tensor, Tensor]]
"""An encoder's states [M, E] as keys and values [M, K, d]."""


class Place(NamedTuple):
    """Where the tokens stand, as one layer takes it in."""

    angles: tuple[Tensor, Tensor] | None = None
    """Cosine and sine [N, 1, r/2] that turn queries and keys."""
    bias: Bias | None = None


class SequenceMixer(Protocol):
    """A layer that reads each text from its beginning to its end and carries a state along."""

    layer: int

    def run(
        self,
        x: Float[Tensor, "R T D"],
        state: Float[Tensor, "R S"] | None = None,
        lengths: Int[Tensor, "R"] | None = None,
    ) -> tuple[Float[Tensor, "R T D"], Float[Tensor, "R S"]]:
        """States behind each token and behind the last; None: texts begin here, and end with x."""


class View(Protocol):
    """How the packed tokens of one forward see each other, what came before, and their source."""

    def attend(
        self,
        layer: int,
        q: Float[Tensor, "N H d"],
        k: Float[Tensor, "N K d"],
        v: Float[Tensor, "N K d"],
        *,
        scoring: Scoring,
        bias: Bias | None,
    ) -> Float[Tensor, "N H d"]:
        """q [N, H, d], k and v [N, K, d] of one layer; gives [N, H, d]."""

    def attend_source(
        self, layer: int, q: Float[Tensor, "N H d"], read: ReadSource, *, scoring: Scoring
    ) -> Float[Tensor, "N H d"]:
        """q [N, H, d] over what `read` makes of the source; gives [N, H, d]."""

    def run(self, mixer: SequenceMixer, x: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
        """x [N, D] through a mixer that carries a state; gives [N, D]."""
