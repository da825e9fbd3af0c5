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
LEAST_GAPS = 85_000_000
"""Of the heap, however small the model: validation runs between two steps and finds no room in what
they left."""
GAPS: Mapping[Checkpointing, float] = {"none": 0.27, "selective": 0.33, "full": 0.5}
"""Of the tensors that come and go with each step: what is freed stays in the process, and the next
tensor may not fit into the gap. A block that is computed again lies between gradients that stay."""
LEAST_UNEVEN_GAPS, UNEVEN_GAPS = 203_000_000, 1.56
"""Both where each step has another number of learnt tokens: no gap fits twice."""
UPDATE_GAPS = 1.8
"""Of Muon's update, times its share of what comes and goes: its stacks of matrices are large, and
gradients lie scattered over the room that the way back left."""


def process_bytes(section: TrainConfig, *, passing: int, updating: int) -> int:
    """Resident bytes of a process that trains, less those of its live tensors at the peak.

    `passing` are those of tensors that come and go with each step, at most; `updating` those among
    them that are there while the weights are moved. The text is tokenized already: a process that
    prepares it as well keeps what that took.
    """
    imported = LIBRARIES + ROUNDING * (settle_dtype(section.precision).itemsize < 4)
    imported += COMPILER * (section.checkpointing != "none")
    least, share = LEAST_GAPS, GAPS[section.checkpointing]
    if isinstance(section, FinetuneConfig):
        least, share = LEAST_UNEVEN_GAPS, UNEVEN_GAPS
    gaps = least + share * passing
    if section.optimizer == "muon":
        gaps += UPDATE_GAPS * updating**2 / max(1, passing)
    return imported + int(gaps)
