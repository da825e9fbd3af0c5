"""What of a run fits into the memory that there is, and what to change where it does not.

Takes: a model's shape, a recipe's section, bytes that are free. Gives: the largest micro-batch, or
keys to change. What is compared is the whole process where tensors lie in the machine's memory.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping

from lmloop.errors import TrainingError
from lmloop.learning import TrainConfig
from lmloop.model.config import ModelConfig
from lmloop.training.memory import Memory, plan_memory

Foresee = Callable[[ModelConfig, TrainConfig], Memory]
"""`plan_memory`, with what else is known of a run."""

USABLE_SHARE = 0.9
"""Of the free memory: what is foretold of a process is right to a tenth."""
WORTH = 0.99
"""A change that leaves more than this share of the peak is not advised."""


def usable_bytes(free: int) -> int:
    """What a run may take of so much free memory."""
    return int(free * USABLE_SHARE)


def choose_micro_batch(
    config: ModelConfig, section: TrainConfig, *, free: int, foresee: Foresee = plan_memory
) -> int:
    """The most tokens at once whose peak fits into `free` bytes: a divisor of the batch.

    Raises `TrainingError` where not even one row fits, with what would help.
    """
    chosen = _split_batch(config, section, free=free, foresee=foresee)
    memory = foresee(config, chosen)
    if memory.resident <= usable_bytes(free):
        return chosen.micro_batch_rows * chosen.row_tokens
    advice = advise(config, chosen, free=free, foresee=foresee)
    raise TrainingError(
        f"training needs {memory.resident / 1e6:,.0f} MB even with one row of {section.row_tokens} "
        f"tokens at once, and of {free / 1e6:,.0f} MB free {usable_bytes(free) / 1e6:,.0f} may be "
        "used: "
        f"{', then '.join(advice)}"
    )


def require_memory(
    config: ModelConfig, section: TrainConfig, *, free: int, foresee: Foresee = plan_memory
) -> None:
    """Raise `TrainingError`, with what would help, where a run surely exceeds `free` bytes.

    A run that fits but tightly is let go: what is free is not all that the system could give.
    """
    if section.micro_batch_tokens == "auto":
        section = section.model_copy(update={"micro_batch_tokens": section.row_tokens})
    peak = foresee(config, section).resident
    if peak > free:
        advice = advise(config, section, free=free, foresee=foresee)
        raise TrainingError(
            f"training needs {peak / 1e6:,.0f} MB and {free / 1e6:,.0f} MB are free: "
            f"{', then '.join(advice)}"
        )


def advise(
    config: ModelConfig, section: TrainConfig, *, free: int, foresee: Foresee = plan_memory
) -> list[str]:
    """What to change, one after the other, until a run fits into `free` bytes; each with its peak.

    What costs least comes first; what does not lower the peak is left out. Empty where the run fits
    as it is.
    """
    room = usable_bytes(free)
    told: list[str] = []
    peak = foresee(config, section).resident
    if peak <= room:
        return told
    split = _split_batch(config, section, free=free, foresee=foresee)
    changes: list[dict[str, object]] = [
        {"micro_batch_tokens": split.micro_batch_tokens},
        {"precision": "bfloat16"},
        {"checkpointing": "selective"},
        {"checkpointing": "full"},
        {"ema": None, "patience": None},
        {"state_bits": 8},
        {"optimizer": "muon"},
        {"optimizer": "sgd"},
    ]
    for change in changes:
        trial = section.model_copy(update=change)
        lower = foresee(config, trial).resident
        if lower < WORTH * peak:
            named = {key: value for key, value in change.items() if getattr(section, key) != value}
            told.append(f"{_spell(named)} needs {lower / 1e6:,.0f} MB")
            section, peak = trial, lower
        if peak <= room:
            return told
    return [*told, f"a model of {room / peak:.0%} of the parameters, or more memory"]


def _spell(change: Mapping[str, object]) -> str:
    """Keys as they are written into a recipe."""
    pairs = (
        f"no {key}" if value is None else f"{key} = {json.dumps(value)}"
        for key, value in change.items()
    )
    return " and ".join(pairs)


def _split_batch(
    config: ModelConfig, section: TrainConfig, *, free: int, foresee: Foresee
) -> TrainConfig:
    """The section with the largest micro-batch that fits; with one row where none does."""
    rows, trial = section.batch_rows, section
    for count in (each for each in range(rows, 0, -1) if rows % each == 0):
        trial = section.model_copy(update={"micro_batch_tokens": count * section.row_tokens})
        if foresee(config, trial).resident <= usable_bytes(free):
            break
    return trial
