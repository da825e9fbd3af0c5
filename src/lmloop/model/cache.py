"""Keys and values of running sequences, a slot each, and the view that one step has of them.

Takes: chunks (a slot, where its new tokens start, how many). Gives: attention of the new tokens
over everything their slot holds. Axes: N new tokens, H query heads, K key heads, S positions,
d width of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from lmloop.model.config import DecoderConfig


@dataclass(frozen=True, slots=True)
class Chunk:
    """New tokens of one sequence in this step."""

    slot: int
    start: int
    """Position of the first new token."""
    count: int

    @property
    def stop(self) -> int:
        """Position after the last new token."""
        return self.start + self.count


class SlotCache:
    """Room for `slots` sequences of `length` tokens each."""

    def __init__(
        self, config: DecoderConfig, *, slots: int, length: int, dtype: torch.dtype
    ) -> None:
        shape = (config.num_layers, slots, config.num_kv_heads, length, config.head_dim)
        self.keys = torch.zeros(shape, dtype=dtype)
        self.values = torch.zeros(shape, dtype=dtype)

    def view(self, chunks: Sequence[Chunk]) -> CacheView:
        """The view for one forward over the tokens of `chunks`, laid end to end."""
        return CacheView(self, chunks)


class CacheView:
    """One step's access to a `SlotCache`; an `AttentionView`."""

    def __init__(self, cache: SlotCache, chunks: Sequence[Chunk]) -> None:
        self._cache = cache
        self._slots = torch.tensor([c.slot for c in chunks for _ in range(c.count)])
        self.positions = torch.cat([torch.arange(c.start, c.stop) for c in chunks])
        """Position of each new token, int64 [N]."""
        starts = torch.tensor([0] + [c.count for c in chunks]).cumsum(0).tolist()
        self._long = [(c, starts[i]) for i, c in enumerate(chunks) if c.count > 1]
        # Sequences with a single new token attend together: that is batched decoding.
        single = [starts[i] for i, c in enumerate(chunks) if c.count == 1]
        self._rows = torch.tensor(single, dtype=torch.int64)
        if single:
            seen = self.positions[self._rows] + 1
            self._reach = int(seen.max())
            self._visible = torch.arange(self._reach) < seen[:, None, None, None]

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q [N, H, d], k and v [N, K, d]; gives [N, H, d]."""
        keys, values = self._cache.keys[layer], self._cache.values[layer]
        keys[self._slots, :, self.positions] = k
        values[self._slots, :, self.positions] = v
        output = torch.empty_like(q)
        if len(self._rows):
            slots = self._slots[self._rows]
            output[self._rows] = _attend(
                q[self._rows, :, None],
                keys[slots, :, : self._reach],
                values[slots, :, : self._reach],
                visible=self._visible,
            )[:, :, 0]
        for chunk, first in self._long:
            rows = slice(first, first + chunk.count)
            visible = torch.arange(chunk.stop) <= self.positions[rows, None]
            attended = _attend(
                q[rows].transpose(0, 1)[None],
                keys[None, chunk.slot, :, : chunk.stop],
                values[None, chunk.slot, :, : chunk.stop],
                visible=visible[None, None],
            )
            output[rows] = attended[0].transpose(0, 1)
        return output


def _attend(q: Tensor, k: Tensor, v: Tensor, *, visible: Tensor) -> Tensor:
    """q [n, H, T, d], k and v [n, K, S, d], visible [n, 1, T, S] -> [n, H, T, d]."""
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=visible, enable_gqa=q.shape[1] != k.shape[1]
    )
