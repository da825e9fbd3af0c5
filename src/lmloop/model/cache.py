"""What running sequences have computed, a slot each, and the view that one step has of it.

Every layer keeps what its mixer needs: attention keys and values of each token, recurrent layers
and convolutions a state of fixed size, cross-attention the keys and values of the source. Takes:
chunks (a slot, where its new tokens start, how many). Gives: a `View` of the new tokens. Axes: N
new tokens, H query heads, K key heads, S positions, d width of a head.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lmloop.model.config import ModelConfig
from lmloop.model.mixers import state_size
from lmloop.model.scores import Scoring, attend, make_mask
from lmloop.model.views import Bias, ReadSource, SequenceMixer

if TYPE_CHECKING:
    from jaxtyping import Float, Shaped


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


class KeysValues:
    """Keys and values [slots, K, S, d] of one layer."""

    def __init__(
        self,
        config: ModelConfig,
        *,
        slots: int,
        length: int,
        dtype: torch.dtype,
        device: torch.device | None,
    ) -> None:
        shape = (slots, config.num_kv_heads, length, config.head_dim)
        self.keys, self.values = (torch.zeros(shape, dtype=dtype, device=device) for _ in "kv")

    def tensors(self) -> list[Shaped[Tensor, "slots *kept"]]:
        """All that is kept, slots first."""
        return [self.keys, self.values]


class States:
    """The state [slots, S] of one layer."""

    def __init__(
        self, size: int, *, slots: int, dtype: torch.dtype, device: torch.device | None
    ) -> None:
        self.states = torch.zeros(slots, size, dtype=dtype, device=device)

    def tensors(self) -> list[Shaped[Tensor, "slots *kept"]]:
        """All that is kept, slots first."""
        return [self.states]


class SlotCache:
    """Room for `slots` sequences of `length` tokens each, and sources of `source_length`."""

    def __init__(
        self,
        config: ModelConfig,
        *,
        slots: int,
        length: int,
        dtype: torch.dtype,
        source_length: int | None = None,
        device: torch.device | None = None,
    ) -> None:
        """`device` is the model's; None is the processor."""
        self.layers: list[KeysValues | States] = []
        for layer in range(config.num_layers):
            size = state_size(config, layer=layer)
            self.layers.append(
                KeysValues(config, slots=slots, length=length, dtype=dtype, device=device)
                if size is None
                else States(size, slots=slots, dtype=dtype, device=device)
            )
        self.sources: list[KeysValues] = []
        if config.encoder is not None:
            longest = source_length or config.encoder.context_length
            self.sources = [
                KeysValues(config, slots=slots, length=longest, dtype=dtype, device=device)
                for _ in range(config.num_layers)
            ]
        self.source_lengths = torch.zeros(slots, dtype=torch.int64, device=device)

    def view(
        self, chunks: Sequence[Chunk], *, sources: Mapping[int, Float[Tensor, "M E"]] | None = None
    ) -> CacheView:
        """The view for one forward over the tokens of `chunks`, laid end to end.

        `sources` are the encoder's states [M, E] of the slots whose sequence begins.
        """
        return CacheView(self, chunks, sources or {})

    def fork(self, slot: int, *, into: int) -> None:
        """Let another slot go on from where this one is: beams, several answers to one prompt."""
        for store in (*self.layers, *self.sources):
            for tensor in store.tensors():
                tensor[into] = tensor[slot]
        self.source_lengths[into] = self.source_lengths[slot]


class CacheView:
    """One step's access to a `SlotCache`; a `View`."""

    def __init__(
        self, cache: SlotCache, chunks: Sequence[Chunk], sources: Mapping[int, Tensor]
    ) -> None:
        self._cache, self._sources = cache, sources
        positions = torch.cat([torch.arange(c.start, c.stop, device="cpu") for c in chunks])
        self.positions = positions.to(cache.source_lengths.device)
        """Position of each new token, int64 [N]."""
        self._groups = list(_group(chunks, self.positions))
        for begun, states in sources.items():
            cache.source_lengths[begun] = len(states)

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
        store = self._cache.layers[layer]
        assert isinstance(store, KeysValues)

        def attend_in(group: _Group) -> Tensor:
            group.write(store.keys, group.choose(k))
            group.write(store.values, group.choose(v))
            return attend(
                group.spread(q),
                group.read(store.keys, group.reach),
                group.read(store.values, group.reach),
                scoring=scoring,
                mask=group.mask(scoring.window, bias, dtype=q.dtype),
            ).transpose(1, 2)

        return self._collect(q, attend_in)

    def attend_source(
        self, layer: int, q: Float[Tensor, "N H d"], read: ReadSource, *, scoring: Scoring
    ) -> Float[Tensor, "N H d"]:
        """q [N, H, d] over the source of each slot; gives [N, H, d]."""
        store, lengths = self._cache.sources[layer], self._cache.source_lengths
        for slot, states in self._sources.items():
            keys, values = read(states)
            store.keys[slot, :, : len(states)] = keys.transpose(0, 1)
            store.values[slot, :, : len(states)] = values.transpose(0, 1)

        def attend_in(group: _Group) -> Tensor:
            longest = int(lengths[group.slots].max())
            places = torch.arange(longest, device=lengths.device)
            hidden = places >= lengths[group.slots, None, None, None]
            return attend(
                group.spread(q),
                group.read(store.keys, longest),
                group.read(store.values, longest),
                scoring=scoring,
                mask=make_mask(hidden, dtype=q.dtype),
            ).transpose(1, 2)

        return self._collect(q, attend_in)

    def run(self, mixer: SequenceMixer, x: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
        """Each sequence goes on from its state; where it begins, from zeros."""
        store = self._cache.layers[mixer.layer]
        assert isinstance(store, States)

        def run_in(group: _Group) -> Tensor:
            begun = group.positions[:, :1] > 0
            before = torch.where(begun, store.states[group.slots], store.states.new_zeros(()))
            y, after = mixer.run(group.choose(x).view(*group.positions.shape, -1), before)
            store.states[group.slots] = after
            return y

        return self._collect(x, run_in)

    def _collect(self, like: Tensor, compute: Callable[[_Group], Tensor]) -> Tensor:
        """What `compute` makes of each group, [n, T, ...], in the order of the tokens."""
        if len(self._groups) == 1:
            return compute(self._groups[0]).reshape(like.shape)
        output = torch.empty_like(like)
        for group in self._groups:
            output[group.rows] = compute(group).flatten(0, 1)
        return output


def _group(chunks: Sequence[Chunk], positions: Tensor) -> Iterator[_Group]:
    """Sequences with a single new token together: that is batched decoding; others one by one."""
    starts = [0, *accumulate(chunk.count for chunk in chunks)]
    single = [i for i, chunk in enumerate(chunks) if chunk.count == 1]
    if single:
        rows = (
            slice(None)
            if len(single) == len(chunks)
            else torch.tensor([starts[i] for i in single], device=positions.device)
        )
        slots = [chunks[i].slot for i in single]
        reach = max(chunks[i].stop for i in single)
        yield _Group(rows, slots, positions[rows, None], reach=reach)
    for i, chunk in enumerate(chunks):
        if chunk.count > 1:
            rows = slice(starts[i], starts[i + 1])
            yield _Group(rows, [chunk.slot], positions[None, rows], reach=chunk.stop)


class _Group:
    """Rows that run as one batch: n sequences with one token, or one sequence with many."""

    def __init__(
        self, rows: Tensor | slice, slots: Sequence[int], positions: Tensor, *, reach: int
    ) -> None:
        """Which tokens [n·T], of which sequences [n], at which positions [n, T] below `reach`."""
        self.rows, self.positions, self.reach = rows, positions, reach
        self.slots = torch.tensor(slots, device=positions.device)
        self._alone = slots[0] if len(slots) == 1 else None
        self._masks: dict[int | None, Tensor] = {}

    def choose(self, x: Float[Tensor, "N *D"]) -> Float[Tensor, "m *D"]:
        """The rows of this group."""
        return x[self.rows]

    def spread(self, heads: Float[Tensor, "N H d"]) -> Float[Tensor, "n H T d"]:
        """The rows of this group, a sequence each."""
        return self.choose(heads).view(*self.positions.shape, *heads.shape[1:]).transpose(1, 2)

    def write(self, kept: Float[Tensor, "slots K S d"], heads: Float[Tensor, "m K d"]) -> None:
        """Keep keys or values of the new tokens."""
        if self._alone is not None:  # without an index, which costs as much as a small layer
            first = self.reach - self.positions.shape[1]
            kept[self._alone, :, first : self.reach] = heads.transpose(0, 1)
        else:
            kept[self.slots, :, self.positions[:, 0]] = heads

    def read(self, kept: Float[Tensor, "slots K S d"], length: int) -> Float[Tensor, "n K s d"]:
        """The first `length` places of each sequence, of a single one without a copy."""
        if self._alone is not None:
            return kept[self._alone, :, :length][None]
        return kept[self.slots, :, :length]

    def mask(
        self, window: int | None, bias: Bias | None, *, dtype: torch.dtype
    ) -> Float[Tensor, "n h T reach"]:
        """What is added to scores, [n, h, T, reach]; made once for all layers with this window."""
        if window not in self._masks:
            # How far each kept token lies before each new one.
            distance = self.positions[:, :, None] - torch.arange(
                self.reach, device=self.positions.device
            )
            hidden = distance < 0 if window is None else (distance < 0) | (distance >= window)
            added = None if bias is None else bias(distance)
            self._masks[window] = make_mask(hidden[:, None], dtype=dtype, bias=added)
        return self._masks[window]
