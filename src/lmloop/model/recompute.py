"""Activation checkpointing: a block keeps little, and computes it again on the way back.

Takes: a block and what it is given. Gives: what the block gives, with the same gradients bit for
bit, dropout included: each block draws its noise again from where it drew it first. `full` keeps
what goes into a block; `selective` keeps the matrix products of its layers as well, so that only
scores, norms and activations are computed twice. Sources: Chen et al. 2016, Training Deep Nets with
Sublinear Memory Cost; Korthikanti et al. 2022, Reducing Activation Recomputation, section 5.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
    noop_context_fn,
)

from lmloop.model.views import Place, View

if TYPE_CHECKING:
    from jaxtyping import Float

Checkpointing = Literal["none", "selective", "full"]
_PRODUCTS = frozenset(
    (
        torch.ops.aten.mm.default,
        torch.ops.aten.addmm.default,
        torch.ops.aten._scaled_mm.default,
    )
)
"""Products of a layer's matrix. Scores are batched products (`bmm`), grow with the square of a
row's length, and are added to in place: they are computed again."""


def of_layer(checkpointing: Checkpointing, *, mixer: str) -> Checkpointing:
    """What a layer does: recurrences write into their products, so none of them can be kept."""
    is_recurrent = mixer in ("lstm", "gru")
    return "full" if checkpointing == "selective" and is_recurrent else checkpointing


def run_block(
    block: nn.Module,
    x: Float[Tensor, "N D"],
    place: Place,
    view: View,
    *,
    checkpointing: Checkpointing,
) -> Float[Tensor, "N D"]:
    """`block(x, place, view)`; what the view makes for all layers must be made before."""
    if checkpointing == "none" or not torch.is_grad_enabled():
        plain: Tensor = block(x, place, view)
        return plain
    contexts = partial(create_selective_checkpoint_contexts, _keep_products)
    again: Tensor = checkpoint(
        block,
        x,
        place,
        view,
        use_reentrant=False,
        context_fn=contexts if checkpointing == "selective" else noop_context_fn,
    )
    return again


def _keep_products(context: Any, operator: Any, *given: Any, **named: Any) -> CheckpointPolicy:
    """PyTorch asks for every operator; its arguments do not matter."""
    kept = operator in _PRODUCTS
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE
