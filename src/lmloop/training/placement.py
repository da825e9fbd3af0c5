"""Where a model and what its optimizer keeps lie: whole on each rank.

Takes: a model and the ranks of a run. Gives: a `Placement`, through which the loop learns, measures
and saves. `sharding.Sharded` is the same for a model that is cut into pieces.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from lmloop.errors import TrainingError
from lmloop.learning import PretrainConfig, TrainConfig
from lmloop.model.transformer import Transformer
from lmloop.tokens.loader import Batch
from lmloop.training.batch import Teach, batch_loss
from lmloop.training.compact import CompactMuon
from lmloop.training.muon import Muon, Part
from lmloop.training.ranks import Ranks
from lmloop.training.snapshot import Position, load_snapshot, save_snapshot


class Whole:
    """The whole model on each rank; what it offers is what `Sharded` does otherwise."""

    copies = 1
    """How many ranks compute one part of a batch together."""
    in_step = False
    """Whether all ranks must go through each pass together, sound or not."""

    def __init__(self, model: Transformer, ranks: Ranks) -> None:
        self.model, self._ranks = model, ranks

    def loss(self, batch: Batch, *, smoothing: float = 0.0, teach: Teach | None = None) -> Tensor:
        """Nats a learnt target of this rank's part of a batch."""
        return batch_loss(self.model, batch, smoothing=smoothing, teach=teach)

    def learn(self, loss: Tensor, share: float) -> float:
        """Leave gradients with the model; gives the share of the batch that they still lack."""
        loss.backward()  # type: ignore[no-untyped-call]
        return share

    def own(self, tensor: Tensor) -> Tensor:
        """What this rank has of a parameter or its gradient."""
        return tensor

    def add_up(self, gathered: Mapping[str, Tensor], flat: Tensor) -> None:
        """Add up over ranks what each has gathered, by name and in one piece."""
        self._ranks.add_up(flat)

    def norm(self, norms: Mapping[str, Tensor]) -> float:
        """The norm of a whole of which these are the norms of this rank's parts."""
        return float(torch.stack(list(norms.values())).norm())

    def make_muon(
        self,
        masters: Mapping[str, Tensor],
        parts: Iterable[Part],
        *,
        rates: Mapping[str, float],
        momentum: float,
        state_bits: int,
    ) -> Muon:
        """Muon for matrices that lie like this."""
        kind = CompactMuon if state_bits == 8 else Muon
        return kind(masters, parts, rates=rates, momentum=momentum)

    def gather(self, weights: Mapping[str, Tensor]) -> Transformer:
        """The model on the first rank as `weights`, of which each rank gives its own, make it."""
        return self.model

    def save(
        self,
        folder: Path,
        position: Position,
        tensors: Mapping[str, Tensor],
        *,
        before: int | None = None,
    ) -> None:
        """Write a snapshot of what all ranks have; `before` as `save_snapshot` has it."""
        if self._ranks.is_first:
            save_snapshot(folder, position, tensors, before=before)

    def load(
        self, folder: Path, *, tell: Callable[[str], None]
    ) -> tuple[Position, dict[str, Tensor]] | None:
        """The newest sound snapshot, as far as this rank needs it.

        Raises `TrainingError` where that is not the same on all ranks.
        """
        found = load_snapshot(folder, tell=tell)
        steps = self._ranks.collect("none" if found is None else str(found[0].step))
        if len(set(steps)) > 1:
            raise TrainingError(
                f"the ranks see snapshots of different steps ({', '.join(steps)}) in {folder}: "
                "give them all a --home on one shared disk"
            )
        return found


def place(model: Transformer, config: TrainConfig, ranks: Ranks) -> Whole:
    """Lay a model out as the recipe says; one process alone has it whole in any case.

    All ranks go on from the weights of the first: what each has computed to begin with differs in
    the last bits on unlike processors, and would stay apart. Raises `TrainingError` for what cannot
    be dealt out to so many ranks.
    """
    for each in (*model.parameters(), *model.buffers()):
        ranks.share(each)
    if ranks.size == 1 or not config.is_cut:
        return Whole(model, ranks)
    if config.lora_rank is not None:
        raise TrainingError(
            "sharding and tensor_parallel are for all of a model, and lora_rank learns beside it: "
            "take one out"
        )
    if config.state_bits == 8 or config.offload:
        raise TrainingError(
            "sharding and tensor_parallel deal out the optimizer's state as it is: leave out "
            f"{'state_bits = 8' if config.state_bits == 8 else 'offload'}"
        )
    if isinstance(config, PretrainConfig) and config.tasks:
        raise TrainingError(
            "sharding and tensor_parallel need as many pieces of a batch on each rank, and tasks "
            "have each their own: take one out"
        )
    from lmloop.training.parallel import ManyRanks
    from lmloop.training.sharding import Sharded

    assert isinstance(ranks, ManyRanks), "several ranks, and not known to each other"
    return Sharded(model, ranks, config)
