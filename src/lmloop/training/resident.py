"""What a training process holds beside its tensors: interpreter, libraries, gaps in its heap.

Takes: a recipe's section and the bytes of tensors that come and go. Gives: bytes. Measured on Linux
with glibc and PyTorch for the CPU; of a GPU's memory nothing is known.
"""

from __future__ import annotations

from collections.abc import Mapping

from lmloop.learning import FinetuneConfig, TrainConfig
from lmloop.model.hardware import settle_dtype
from lmloop.model.recompute import Checkpointing

LIBRARIES = 357_000_000
"""Python, PyTorch, this package and the pages of their files that training touches."""
ROUNDING = 46_000_000
"""What PyTorch's products in bfloat16 keep for themselves."""
COMPILER = 77_000_000
"""PyTorch's compiler, which its checkpointing imports, whether or not anything is compiled."""
VALIDATION = 200_000_000
"""What validation takes while no step does, and most of it whatever the model: logits of 1,024
tokens of a vocabulary of 4,096, texts of many lengths, and the gaps between them."""
GAPS: Mapping[Checkpointing, float] = {"none": 0.4, "selective": 0.44, "full": 1.1}
"""Of the tensors that come and go with each step: what is freed stays in the process, and the next
tensor may not fit into the gap. A block that is computed again lies between gradients that stay."""
MORE_GAPS = 0.13
"""Where no passes are compiled: each makes more tensors on its way."""
LEAST_UNEVEN_GAPS, UNEVEN_GAPS = 203_000_000, 1.56
"""Both where each step has another number of learnt tokens: no gap fits twice."""


def process_bytes(section: TrainConfig, *, passing: int, is_native: bool) -> int:
    """Resident bytes of a process that trains, less those of its live tensors at the peak.

    `passing` are those of tensors that come and go with each step, at most; `is_native` says
    whether passes are compiled. The text is tokenized already: a process that prepares it as well
    keeps what that took.
    """
    imported = LIBRARIES + ROUNDING * (settle_dtype(section.precision).itemsize < 4)
    imported += COMPILER * (section.checkpointing != "none")
    gaps = (GAPS[section.checkpointing] + MORE_GAPS * (not is_native)) * passing
    if isinstance(section, FinetuneConfig):
        gaps = LEAST_UNEVEN_GAPS + UNEVEN_GAPS * passing
    return imported + int(max(gaps, VALIDATION - passing))
