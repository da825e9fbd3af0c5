"""The view of rows of one length: training, scoring, encoding.

Takes: how many rows of how many tokens, and which of them belong together. Gives: a `View`. Axes:
B rows, T places, N = B·T tokens, M tokens of all sources, R texts.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lmloop.model.blocks import attend_blocks, make_blocks
from lmloop.model.scores import Scoring, attend, make_mask
from lmloop.model.views import Bias, ReadSource, SequenceMixer

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch.nn.attention.flex_attention import BlockMask


@dataclass(frozen=True, slots=True)
class Source:
    """What the encoder has made of the sources of a batch."""

    states: Float[Tensor, "M E"]
    segments: Int[Tensor, "B S"]
    """Number of the text within its row that each belongs to; M = B·S."""


class PackedRows:
    """View of B rows of T tokens each; where `segments` differ, tokens are blind to each other.

    It is for one forward: what it adds to scores is made once for all layers.

    Within a text, token i sees token j where order[j] <= order[i] (decision 15): `order` counts
    upwards for `causal`, is all zero where all see each other, and may be anything else.
    """

    def __init__(
        self,
        *,
        rows: int,
        length: int,
        segments: Int[Tensor, "B T"] | None = None,
        order: Int[Tensor, "B T"] | None = None,
        causal: bool = True,
        source: Source | None = None,
    ) -> None:
        self.rows, self.length, self.segments, self.source = rows, length, segments, source
        self._order, self._causal = order, causal
        self._masks: dict[int | None, Tensor | None] = {}
        self._blocks: dict[int | None, BlockMask] = {}
        self._bias: Tensor | None = None

    def make_ready(
        self, windows: Iterable[int | None], bias: Bias | None, *, like: Float[Tensor, "N D"]
    ) -> None:
        """Make what layers with these windows share before the first of them.

        A layer that is run again must find what it found the first time, made outside of itself.
        """
        for window in windows:
            if like.is_cuda:
                self._share_blocks(window, bias, like=like)
            else:
                self._mask(window, bias, like=like)

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
        """q [N, H, d], k and v [N, K, d]; gives [N, H, d]."""
        q, k, v = (self._in_rows(each) for each in (q, k, v))
        if q.is_cuda:
            attended = self._attend_blocks(q, k, v, scoring=scoring, bias=bias)
        else:
            mask = self._mask(scoring.window, bias, like=q)
            attended = attend(q, k, v, scoring=scoring, mask=mask)
        return attended.transpose(1, 2).flatten(0, 1)

    def attend_source(
        self, layer: int, q: Float[Tensor, "N H d"], read: ReadSource, *, scoring: Scoring
    ) -> Float[Tensor, "N H d"]:
        """q [N, H, d] over keys and values of the source; gives [N, H, d]."""
        if self.source is None:
            raise ValueError("a model with an encoder needs the states of a source")
        k, v = (self._in_rows(each) for each in read(self.source.states))
        segments = self.source.segments.new_zeros(self.rows, self.length)
        segments = segments if self.segments is None else self.segments
        hidden = (segments[:, :, None] != self.source.segments[:, None])[:, None]
        q, mask = self._in_rows(q), make_mask(hidden, dtype=q.dtype)
        return attend(q, k, v, scoring=scoring, mask=mask).transpose(1, 2).flatten(0, 1)

    def run(self, mixer: SequenceMixer, x: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
        """Each text from its beginning."""
        if self.segments is None:
            return mixer.run(x.view(self.rows, self.length, -1))[0].flatten(0, 1)
        first = self.segments.new_ones(self.rows, self.length, dtype=torch.bool)
        first[:, 1:] = self.segments[:, 1:] != self.segments[:, :-1]
        starts = first.flatten().nonzero()[:, 0]
        lengths = starts.diff(append=starts.new_tensor([len(x)]))
        inside = torch.arange(int(lengths.max()), device=x.device) < lengths[:, None]
        padded = x.new_zeros(*inside.shape, x.shape[1])
        padded[inside] = x
        return mixer.run(padded, lengths=lengths)[0][inside]

    def _attend_blocks(
        self, q: Tensor, k: Tensor, v: Tensor, *, scoring: Scoring, bias: Bias | None
    ) -> Tensor:
        """As `attend` of rows does, without what nobody sees."""
        blocks = self._share_blocks(scoring.window, bias, like=q)
        return attend_blocks(q, k, v, scoring=scoring, blocks=blocks, bias=self._bias)

    def _share_blocks(self, window: int | None, bias: Bias | None, *, like: Tensor) -> BlockMask:
        """The blocks of a window, and the bias of all layers; made once."""
        if window not in self._blocks:
            self._blocks[window] = make_blocks(
                rows=self.rows,
                length=self.length,
                segments=self.segments,
                order=self._order,
                causal=self._causal,
                window=window,
                device=like.device,
            )
        if bias is not None and self._bias is None:
            self._bias = bias(self._distance(like.device)).to(like.dtype)
        return self._blocks[window]

    def _in_rows(self, heads: Tensor) -> Tensor:
        """[B·T, H, d] -> [B, H, T, d]."""
        return heads.view(self.rows, -1, *heads.shape[1:]).transpose(1, 2)

    def _mask(
        self, window: int | None, bias: Bias | None, *, like: Tensor
    ) -> Float[Tensor, "b h T T"] | None:
        """What is added to scores; made once for all layers with this window."""
        if window not in self._masks:
            hidden, distance = self._hidden(window, like.device), self._distance(like.device)
            added = None if bias is None else bias(distance)[None]
            if hidden is None:
                self._masks[window] = None if added is None else added.to(like.dtype)
            else:
                self._masks[window] = make_mask(hidden[:, None], dtype=like.dtype, bias=added)
        return self._masks[window]

    def _hidden(self, window: int | None, device: torch.device) -> Bool[Tensor, "b T T"] | None:
        """Where the query (row) may not see the key (column); None: nowhere."""
        distance, hidden = self._distance(device)[None], []
        if self.segments is not None:
            hidden.append(self.segments[:, :, None] != self.segments[:, None])
        if self._order is not None:
            hidden.append(self._order[:, None] > self._order[:, :, None])
        elif self._causal:
            hidden.append(distance < 0)
        if window is not None:
            hidden.append(distance.abs() >= window)
        return reduce(torch.logical_or, hidden) if hidden else None

    def _distance(self, device: torch.device) -> Int[Tensor, "T T"]:
        """How far each key lies before each query."""
        places = torch.arange(self.length, device=device)
        return places[:, None] - places


class MaskedRow(PackedRows):
    """View of one row of N tokens at positions of their own, with any mask: trees, drafts."""

    def __init__(self, visible: Bool[Tensor, "N N"], positions: Int[Tensor, "N"]) -> None:
        """`visible` is true where the query (row) sees the key (column)."""
        super().__init__(rows=1, length=len(positions))
        self._visible, self._positions = visible, positions

    def run(self, mixer: SequenceMixer, x: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
        """Raises `ValueError`: a layer that carries a state along reads one line of tokens."""
        raise ValueError("recurrent layers and convolutions cannot read tokens in branches")

    def _attend_blocks(
        self, q: Tensor, k: Tensor, v: Tensor, *, scoring: Scoring, bias: Bias | None
    ) -> Tensor:
        """With a mask: branches are short, and no rule says who sees whom."""
        mask = self._mask(scoring.window, bias, like=q)
        return attend(q, k, v, scoring=scoring, mask=mask)

    def _hidden(self, window: int | None, device: torch.device) -> Tensor:
        hidden = ~self._visible[None]
        return hidden if window is None else hidden | (self._distance(device).abs() >= window)

    def _distance(self, device: torch.device) -> Tensor:
        return self._positions[:, None] - self._positions
