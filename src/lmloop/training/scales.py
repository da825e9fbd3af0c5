"""How fast each parameter learns beside the others: frozen ones not at all, lower layers slower.

Takes: a model, patterns, a factor a layer. Gives: a number a parameter that its rate is
multiplied with.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from fnmatch import fnmatchcase

from lmloop.errors import TrainingError
from lmloop.model.transformer import Transformer


def rate_scales(
    model: Transformer, *, frozen: Sequence[str] = (), layer_decay: float = 1.0
) -> dict[str, float]:
    """Scale of the rate of each parameter, by name; 0 where it is frozen.

    What stands behind the last block learns at the full rate, block i of L at
    layer_decay^(L − 1 − i), the embedding at layer_decay^L (Howard & Ruder 2018, ULMFiT, section
    3.2). Raises `TrainingError` for a pattern that fits nothing, or if nothing is left to learn.
    """
    names = [name for name, _ in model.named_parameters()]
    for pattern in frozen:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise TrainingError(
                f"frozen = {pattern!r} fits no parameter: they are called such as "
                f"{', '.join(map(repr, names[:3]))} and {names[-1]!r}"
            )
    scales = {
        name: 0.0
        if any(fnmatchcase(name, pattern) for pattern in frozen)
        else layer_decay ** _depth(model, name)
        for name in names
    }
    if not any(scales.values()):
        raise TrainingError(f"frozen = {list(frozen)} leaves nothing to learn: take a pattern out")
    return scales


def _depth(model: Transformer, name: str) -> int:
    """How many layers lie between a parameter and the end of its stack."""
    in_encoder = name.startswith("encoder.")
    stack = model.encoder if in_encoder and model.encoder is not None else model
    name = name.removeprefix("encoder.")
    block = re.match(r"blocks\.(\d+)\.", name)
    if block is not None:
        return len(stack.blocks) - 1 - int(block[1])
    below = name.startswith(("embedding.", "input.", "relative."))
    return len(stack.blocks) if below else 0
