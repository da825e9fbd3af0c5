"""All initialisation in one function.

| parameter                         | start                                             |
|-----------------------------------|---------------------------------------------------|
| embedding                         | normal, standard deviation 0.02                   |
| qkv, gate_up                      | normal, 1 / sqrt(fan in)                          |
| output, down (into the residual)  | zero: every block begins as the identity          |
| norms                             | one                                               |
| biases                            | zero                                              |
| head, where untied                | zero                                              |
"""

from __future__ import annotations

import torch

from lmloop.model.transformer import Transformer


@torch.no_grad()
def initialise(model: Transformer, *, seed: int) -> None:
    """Fill every parameter of `model` in place, the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:
            parameter.fill_(0.0 if name.endswith("bias") else 1.0)
        elif name.startswith("embedding"):
            parameter.normal_(0.0, 0.02, generator=generator)
        elif name.endswith(("output.weight", "down.weight", "head.weight")):
            parameter.zero_()
        else:
            parameter.normal_(0.0, parameter.shape[1] ** -0.5, generator=generator)
