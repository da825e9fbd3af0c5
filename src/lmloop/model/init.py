"""All initialisation in one function.

| parameter                                      | start                              |
|------------------------------------------------|------------------------------------|
| embedding; vectors of positions, types, pictures | normal, standard deviation 0.02  |
| output, down (into the residual)               | zero: a block begins as identity   |
| head, where untied; relative bias              | zero                               |
| every other matrix                             | normal, 1 / sqrt(fan in)           |
| norms                                          | one                                |
| biases                                         | zero                               |
| β of cosine attention                          | as the shape says                  |
"""

from __future__ import annotations

import torch
from torch import nn

_ZERO = ("output.weight", "down.weight", "part.down", "head.weight", "relative.weight")
_SMALL = ("embedding.weight", "embedding.leading", "input.positions", "input.types")


@torch.no_grad()
def initialise(model: nn.Module, *, seed: int) -> None:
    """Fill every parameter of `model` in place, the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if name.endswith("beta"):
            continue
        if parameter.dim() == 1:
            parameter.fill_(0.0 if "bias" in name.rpartition(".")[2] else 1.0)
        elif name.endswith(_SMALL):
            parameter.normal_(0.0, 0.02, generator=generator)
        elif name.endswith(_ZERO):
            parameter.zero_()
        else:
            # Matrices of experts lie behind each other; a convolution's inputs are two axes.
            is_experts = name.endswith("part.up")
            fan_in = parameter.shape[-1] if is_experts else parameter[0].numel()
            parameter.normal_(0.0, fan_in**-0.5, generator=generator)
