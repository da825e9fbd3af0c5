"""A model cut into pieces: each rank keeps its rows of every tensor, and of the optimizer's state.

Takes: a model that is whole on each rank. Gives: a `Sharded`, which brings a block's weights
together for as long as the block is computed (FSDP2, PyTorch's `fully_shard`). Sources: Rajbhandari
et al. 2020, ZeRO, stage 3; Zhao et al. 2023, PyTorch FSDP.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from lmloop.errors import TrainingError
from lmloop.learning import TrainConfig
from lmloop.model.names import fused_rows
from lmloop.model.transformer import Transformer
from lmloop.tokens.loader import Batch
from lmloop.training.batch import Teach, batch_loss
from lmloop.training.muon import Muon, Part
from lmloop.training.parallel import ManyRanks
from lmloop.training.pieces import Grid, Piece, Spread
from lmloop.training.placement import Whole
from lmloop.training.shard_files import load_shards, save_shards
from lmloop.training.snapshot import Position
from lmloop.training.tensor_parallel import PARTIAL, check_split, split_of, split_tensors


class Sharded(Whole):
    """Each rank's own of a model; see `Whole` for what it offers."""

    in_step = True

    def __init__(self, model: Transformer, ranks: ManyRanks, config: TrainConfig) -> None:
        super().__init__(deepcopy(model), ranks)
        self._ranks: ManyRanks = ranks
        self.copies = config.tensor_parallel
        self._grid = _make_grid(ranks.size, self.copies)
        if self.copies > 1:
            check_split(model.config, self.copies)
        self._spreads = {
            name: _spread(model, name, each, is_split=self.copies > 1)
            for name, each in model.named_parameters()
        }
        self._dealt: dict[str, Spread] = {}
        # Weights to measure and to keep are whole, with the first rank alone.
        self._whole = model if ranks.is_first else model.to("meta")
        self._step = _Step(self.model)
        device = self.model.embedding.weight.device.type
        sizes = (self._grid.data, self._grid.tensor_parallel)
        mesh = init_device_mesh(device, sizes, mesh_dim_names=("data", "tensor"))
        self._tensor_mesh = mesh["tensor"]
        if self.copies > 1:
            split_tensors(self.model, self._tensor_mesh)
        _shard(self._step, mesh["data"])

    def loss(self, batch: Batch, *, smoothing: float = 0.0, teach: Teach | None = None) -> Tensor:
        """See `Whole`; all ranks bring the blocks' weights together on the way."""

        def work() -> Tensor:
            loss: Tensor = self._step(batch, smoothing, teach)
            return loss

        return self._ranks.together(work)

    def learn(self, loss: Tensor, share: float) -> float:
        """See `Whole`: gradients are added up over ranks on the way, so they count before."""
        # Those who share a batch have each counted it, and each find the whole of its gradient.
        self._ranks.together((loss * (share * self.copies)).backward)
        return 1.0

    def own(self, tensor: Tensor) -> Tensor:
        """See `Whole`."""
        return tensor.to_local() if isinstance(tensor, DTensor) else tensor

    def add_up(self, gathered: Mapping[str, Tensor], flat: Tensor) -> None:
        """See `Whole`: done on the way back, but for what own heads have to say of all."""
        for name, gradient in gathered.items() if self.copies > 1 else ():
            if name.endswith(PARTIAL):
                self._ranks.add_up(gradient, self._tensor_mesh.get_group())

    def norm(self, norms: Mapping[str, Tensor]) -> float:
        """See `Whole`."""
        counted = [norm for name, norm in norms.items() if self._is_counted(name)]
        squares = torch.stack(counted).double().square().sum() if counted else 0.0
        return float(self._ranks.total(float(squares)) ** 0.5)

    def make_muon(
        self,
        masters: Mapping[str, Tensor],
        parts: Iterable[Part],
        *,
        rates: Mapping[str, float],
        momentum: float,
        state_bits: int,
    ) -> Muon:
        """See `Whole`; in 32 bits, whatever is asked for: `place` lets no other through."""
        muon = ShardedMuon(
            masters,
            parts,
            rates=rates,
            momentum=momentum,
            ranks=self._ranks,
            grid=self._grid,
            spreads=self._spreads,
        )
        self._dealt = muon.spreads()
        return muon

    @torch.no_grad()
    def gather(self, weights: Mapping[str, Tensor]) -> Transformer:
        """See `Whole`; the model of the other ranks is without storage."""
        for name, kept in self.model.named_parameters():  # tied ones once, as `meta` unties them
            whole = self._whole.get_parameter(name).requires_grad_(kept.requires_grad)
            if name in weights:
                self._collect(name, weights[name], whole)
        return self._whole

    def save(
        self,
        folder: Path,
        position: Position,
        tensors: Mapping[str, Tensor],
        *,
        before: int | None = None,
    ) -> None:
        """See `Whole`; each rank writes what it has."""
        save_shards(
            folder,
            position,
            tensors,
            spread_of=self._spread_of,
            ranks=self._ranks,
            before=before,
        )

    def load(
        self, folder: Path, *, tell: Callable[[str], None]
    ) -> tuple[Position, dict[str, Tensor]] | None:
        """See `Whole`; a snapshot of any number of ranks will do."""
        return load_shards(folder, spread_of=self._spread_of, ranks=self._ranks, tell=tell)

    def _is_counted(self, name: str) -> bool:
        return self._spreads[name].is_counted(self._grid, self._ranks.rank)

    def _collect(self, name: str, own: Tensor, whole: Tensor) -> None:
        """Put a tensor together on the first rank."""
        grid, spread, size = self._grid, self._spreads[name], self._ranks.size
        empty = own.new_empty(0)
        is_counted = self._is_counted(name)
        sent = [own if rank == 0 and is_counted else empty for rank in range(size)]
        shapes = [
            spread.own_shape(grid, rank) if spread.is_counted(grid, rank) else (0,)
            for rank in range(size)
        ]
        counts = [torch.Size(shape).numel() * self._ranks.is_first for shape in shapes]
        for rank, got in enumerate(self._ranks.exchange(sent, counts)):
            if len(got):
                for piece in spread.pieces(grid, rank):
                    spread.find(whole, piece).copy_(got.view(shapes[rank])[piece.rows])

    def _spread_of(self, key: str, axes: int) -> tuple[Spread, Grid] | None:
        """How a named tensor of the optimizer's state lies; None: each rank has all of it."""
        if key in self._dealt:
            return self._dealt[key], Grid(self._ranks.size)
        # "adamw.exp_avg.blocks.0.norm.weight": the longest end that is a parameter's name.
        while axes and key not in self._spreads and "." in key:
            key = key.partition(".")[2]
        return (self._spreads[key], self._grid) if axes and key in self._spreads else None


class ShardedMuon(Muon):
    """Muon for matrices that lie in pieces: each rank makes its share of them orthogonal.

    Pieces of a matrix's gradient travel to the one rank that has its momentum, pieces of the update
    travel back: each number of a gradient is sent once, and of an update once (in bfloat16).
    """

    def __init__(
        self,
        masters: Mapping[str, Tensor],
        parts: Iterable[Part],
        *,
        rates: Mapping[str, float],
        momentum: float,
        ranks: ManyRanks,
        grid: Grid,
        spreads: Mapping[str, Spread],
    ) -> None:
        self._ranks, self._grid, self._spreads = ranks, grid, spreads
        super().__init__(masters, parts, rates=rates, momentum=momentum)

    def spreads(self) -> dict[str, Spread]:
        """How momenta lie, by their names in the state: dealt out to the ranks in their order."""
        return {
            f"momentum.{r}x{c}": Spread((len(group), r, c), (len(group),))
            for (r, c), group in self._groups.items()
        }

    def _own(self, group: Sequence[Part]) -> Sequence[Part]:
        return self._dealt(group, self._ranks.rank)

    def _dealt(self, group: Sequence[Part], rank: int) -> Sequence[Part]:
        """Matrices of a group that a rank makes orthogonal."""
        share = -(-len(group) // self._ranks.size)
        return group[rank * share : (rank + 1) * share]

    def _collect(self, grads: Mapping[str, Tensor], group: Sequence[Part]) -> Tensor:
        sent = [
            self._join(
                grads[part.name][piece.rows]
                for part in self._dealt(group, rank)
                for piece in self._pieces(part, self._ranks.rank)
            )
            for rank in range(self._ranks.size)
        ]
        own = self._own(group)
        places = [
            [(matrix, piece) for matrix, part in enumerate(own) for piece in self._pieces(part, r)]
            for r in range(self._ranks.size)
        ]
        got = self._ranks.exchange(sent, [_count(each) for each in places])
        result = torch.zeros(len(own), *group[0].shape, device=sent[0].device)
        for numbers, place in zip(got, places, strict=True):
            for (matrix, piece), part in zip(place, _cut(numbers, place), strict=True):
                _rectangle(result[matrix], piece).copy_(part)
        return result

    def _move(self, group: Sequence[Part], update: Tensor, size: float) -> None:
        own = self._own(group)
        sent = [
            self._join(
                (
                    _rectangle(change, piece)
                    for part, change in zip(own, update, strict=True)
                    for piece in self._pieces(part, rank)
                ),
                dtype=update.dtype,
            )
            for rank in range(self._ranks.size)
        ]
        places = [
            [
                (part, piece)
                for part in self._dealt(group, rank)
                for piece in self._pieces(part, self._ranks.rank)
            ]
            for rank in range(self._ranks.size)
        ]
        got = self._ranks.exchange(sent, [_count(each) for each in places])
        for numbers, place in zip(got, places, strict=True):
            for (part, piece), change in zip(place, _cut(numbers, place), strict=True):
                matrix = self._masters[part.name][piece.rows]
                matrix.add_(change.float(), alpha=-size * self._rates[part.name])

    def _pieces(self, part: Part, rank: int) -> list[Piece]:
        """What a rank has of a matrix: at most one rectangle."""
        pieces = self._spreads[part.name].pieces(self._grid, rank)
        return [piece for piece in pieces if piece.matrix == part.index]

    def _join(self, parts: Iterable[Tensor], dtype: torch.dtype = torch.float32) -> Tensor:
        """All numbers of several tensors one after the other."""
        device = next(iter(self._masters.values())).device
        start = torch.empty(0, dtype=dtype, device=device)
        return torch.cat([start, *(part.to(dtype).flatten() for part in parts)])


class _Step(nn.Module):
    """One pass from a batch to its loss: what lies outside the blocks is together meanwhile."""

    def __init__(self, model: Transformer) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch, smoothing: float, teach: Teach | None) -> Tensor:
        """See `batch_loss`; a teacher is whole on each rank."""
        return batch_loss(self.model, batch, smoothing=smoothing, teach=teach)


def _make_grid(size: int, ways: int) -> Grid:
    """Ranks as a table; `TrainingError` where they make none."""
    if size % ways:
        raise TrainingError(
            f"tensor_parallel = {ways} does not divide the number of ranks, {size}: change one"
        )
    return Grid(size // ways, ways)


def _spread(model: Transformer, name: str, parameter: Tensor, *, is_split: bool) -> Spread:
    """How a parameter lies on the ranks."""
    shape = tuple(parameter.shape)
    rows = fused_rows(model.config, name, shape[0])
    matrices = tuple(rows) if sum(rows) == shape[0] else shape[:1]
    return Spread(shape, matrices, split_of(name) if is_split else None)


def _shard(step: _Step, mesh: DeviceMesh) -> None:
    """Cut each block, and what is left as one; gradients are added up in fp32, and not averaged."""
    policy = MixedPrecisionPolicy(reduce_dtype=torch.float32)
    stacks = (step.model.encoder, step.model)
    for block in (block for stack in stacks if stack is not None for block in stack.blocks):
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(step, mesh=mesh, mp_policy=policy)
    for module in step.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)


def _rectangle(matrix: Tensor, piece: Piece) -> Tensor:
    """The numbers of a whole matrix that a piece has."""
    (row, column), (rows, columns) = piece.offsets, piece.sizes
    return matrix[row : row + rows, column : column + columns]


def _count(places: Sequence[tuple[object, Piece]]) -> int:
    return sum(piece.count for _, piece in places)


def _cut(numbers: Tensor, places: Sequence[tuple[object, Piece]]) -> Iterable[Tensor]:
    """Numbers that came one after the other, as the pieces that they are of."""
    parts = torch.split(numbers, [piece.count for _, piece in places])
    return (part.view(piece.sizes) for part, (_, piece) in zip(parts, places, strict=True))
