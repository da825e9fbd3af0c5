"""The memory of a training run, told before there is any of it.

Takes: a model's shape and a recipe's section. Gives: bytes a part, and how many there are at most
at once. A step has three moments that can be the fullest: the end of the way forward, when all
activations and the logits of a chunk exist; the end of the way back, when all gradients do; and the
update, which makes something of them.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import torch

from lmloop.errors import TrainingError
from lmloop.learning import TrainConfig
from lmloop.model.activations import Batch, activation_bytes, recomputed_bytes
from lmloop.model.compiled import are_native
from lmloop.model.config import ModelConfig
from lmloop.model.hardware import best_device, settle_dtype
from lmloop.model.transformer import Transformer
from lmloop.training.compact import SMALL
from lmloop.training.loss import CHUNK_ELEMENTS, GROUP_ELEMENTS
from lmloop.training.moments import BLOCK, PIECE
from lmloop.training.optim import is_hidden_matrix, take_apart
from lmloop.training.resident import process_bytes
from lmloop.training.scales import rate_scales

USABLE_SHARE = 0.6
"""Of the free memory of a machine without a GPU: a process that keeps freed memory for the next
step held 13 to 54 % more than its tensors, because the gaps between them do not fit."""
WORTH = 0.99
"""A change that leaves more than this share of the peak is not advised."""
FULL = 4
"""Bytes of a number in fp32."""
_STATES = {"adamw": 2, "sgd": 1, "schedule-free": 3}
"""Numbers that a rule keeps beside each master."""
_ROUNDING = 17
"""Bytes for each number of a piece while it becomes codes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Bytes a part; those from `activations` on exist during a part of each step only."""

    weights: int
    """Of the model, in the precision of its arithmetic."""
    masters: int
    """fp32 copies of what learns."""
    optimizer: int
    """Momenta and squares."""
    averages: int
    """Moving average, and with patience the best weights so far."""
    gathered: int
    """fp32 gradients of the micro-batches so far; none where the batch is in one piece."""
    activations: int
    """What forward keeps of one micro-batch for the way back."""
    loss: int
    """Logits of a chunk, gradients of a group of chunks, that of the head's matrix."""
    gradients: int
    """Of one micro-batch."""
    last_layer: int
    """Activations of one layer and the gradient of its largest matrix, while all gradients come."""
    update: int
    """What the rules make of the gradients on the way."""
    recomputed: int = 0
    """Activations of a block that is computed again, and the gradient of the head's matrix."""
    offloaded: int = 0
    """Of all these, what lies in the machine's memory while the model is on a GPU."""
    process: int = 0
    """Beside all tensors, of the process: see `resident.py`; 0 on a GPU."""

    @property
    def kept(self) -> int:
        """Bytes that are there all the time."""
        kept = self.weights + self.masters + self.optimizer + self.averages + self.gathered
        return kept - self.offloaded

    @property
    def peak(self) -> int:
        """Bytes of tensors at the fullest moment."""
        forward = self.activations + self.loss
        again = self.activations + self.recomputed
        back = self.gradients + self.last_layer
        return self.kept + max(forward, again, back, self.moving)

    @property
    def moving(self) -> int:
        """Bytes while the weights are moved: gradients, and what the rules make of them.

        What was gathered is the gradient of the whole batch: the model's own is gone by then.
        """
        return self.update + (0 if self.gathered else self.gradients)

    @property
    def resident(self) -> int:
        """Bytes that the process holds at most; on a GPU the peak."""
        return self.peak + self.process

    @property
    def snapshot(self) -> int:
        """Bytes on the disk of one snapshot; a run has three of them while it writes one."""
        return self.masters + self.optimizer + self.averages

    def parts(self) -> dict[str, int]:
        """All parts by name."""
        return asdict(self)


def plan_memory(config: ModelConfig, section: TrainConfig, *, source_tokens: int = 0) -> Memory:
    """Foresee the memory of a run; `source_tokens` is the length of an encoder's rows.

    Counts every token as learnt: fine-tuning learns fewer, so no batch of it is larger. Raises
    `TrainingError` as `rate_scales` does.
    """
    with torch.device("meta"):
        model = Transformer(config)
    scales = rate_scales(model, frozen=section.frozen, layer_decay=section.layer_decay)
    shapes = {name: each.shape for name, each in model.named_parameters()}
    learnt = {name: shape.numel() for name, shape in shapes.items() if scales[name] > 0}
    by_muon = [
        name
        for name, each in model.named_parameters()
        if name in learnt and section.optimizer == "muon" and is_hidden_matrix(name, each)
    ]
    size = settle_dtype(section.precision).itemsize
    total = sum(learnt.values())
    rest = [learnt[name] for name in learnt.keys() - set(by_muon)]
    is_gathered = section.micro_batch_rows < section.batch_rows
    groups: Counter[tuple[int, int]] = Counter()
    for part in take_apart(model, by_muon):
        groups[part.rows.stop - part.rows.start, shapes[part.name][1]] += 1
    grad_bytes = FULL if is_gathered else size
    batch = _lay_out(section, source_tokens=source_tokens)
    activations = _activation_bytes(config, section, batch)
    recomputed = recomputed_bytes(config, batch, checkpointing=section.checkpointing)
    # A matrix of the head and the states have their gradients before the last block has.
    behind = size * config.hidden_size * (config.vocab_size + batch.tokens)
    largest = max(shape.numel() for shape in shapes.values())
    memory = Memory(
        weights=size * sum(shape.numel() for shape in shapes.values()),
        masters=FULL * total,
        optimizer=_state_bytes(section, groups, rest=rest),
        averages=FULL * total * ((section.ema is not None) + (section.patience is not None)),
        gathered=FULL * total * is_gathered,
        activations=activations,
        loss=_loss_bytes(config, section),
        gradients=size * total,
        last_layer=(recomputed or activations // config.num_layers) + size * largest,
        recomputed=recomputed + behind if recomputed else 0,
        update=_update_bytes(section, groups, rest=rest, grad_bytes=grad_bytes),
    )
    if best_device().type != "cpu":
        return _offload(memory) if section.offload else memory
    passing = memory.peak - memory.kept
    beside = process_bytes(section, passing=passing, updating=memory.moving)
    return replace(memory, process=beside)


def usable_bytes(free: int) -> int:
    """What tensors may take of so much free memory."""
    return int(free * (0.9 if torch.cuda.is_available() else USABLE_SHARE))


def choose_micro_batch(
    config: ModelConfig, section: TrainConfig, *, free: int, source_tokens: int = 0
) -> int:
    """The most tokens at once whose peak fits into `free` bytes: a divisor of the batch.

    Raises `TrainingError` where not even one row fits, with what would help.
    """
    chosen = _split_batch(config, section, free=free, source_tokens=source_tokens)
    memory = plan_memory(config, chosen, source_tokens=source_tokens)
    if memory.peak <= usable_bytes(free):
        return chosen.micro_batch_rows * chosen.row_tokens
    advice = advise(config, chosen, free=free, source_tokens=source_tokens)
    raise TrainingError(
        f"training needs {memory.peak / 1e6:,.0f} MB even with one row of {section.row_tokens} "
        f"tokens at once, and of {free / 1e6:,.0f} MB free {usable_bytes(free) / 1e6:,.0f} may be "
        "used: "
        f"{', then '.join(advice)}"
    )


def require_memory(
    config: ModelConfig, section: TrainConfig, *, free: int, source_tokens: int = 0
) -> None:
    """Raise `TrainingError`, with what would help, where a run surely exceeds `free` bytes.

    A run that fits but tightly is let go: what is free is not all that the system could give.
    """
    if section.lora_rank is not None:  # what is frozen then is not counted here
        return
    if section.micro_batch_tokens == "auto":
        section = section.model_copy(update={"micro_batch_tokens": section.row_tokens})
    peak = plan_memory(config, section, source_tokens=source_tokens).peak
    if peak > free:
        advice = advise(config, section, free=free, source_tokens=source_tokens)
        raise TrainingError(
            f"training needs {peak / 1e6:,.0f} MB and {free / 1e6:,.0f} MB are free: "
            f"{', then '.join(advice)}"
        )


def advise(
    config: ModelConfig, section: TrainConfig, *, free: int, source_tokens: int = 0
) -> list[str]:
    """What to change, one after the other, until a run fits into `free` bytes; each with its peak.

    What costs least comes first; what does not lower the peak is left out. Empty where the run fits
    as it is.
    """
    room = usable_bytes(free)
    told: list[str] = []
    peak = plan_memory(config, section, source_tokens=source_tokens).peak
    if peak <= room:
        return told
    split = _split_batch(config, section, free=free, source_tokens=source_tokens)
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
        lower = plan_memory(config, trial, source_tokens=source_tokens).peak
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
    config: ModelConfig, section: TrainConfig, *, free: int, source_tokens: int
) -> TrainConfig:
    """The section with the largest micro-batch that fits; with one row where none does."""
    rows, trial = section.batch_rows, section
    for count in (each for each in range(rows, 0, -1) if rows % each == 0):
        trial = section.model_copy(update={"micro_batch_tokens": count * section.row_tokens})
        if plan_memory(config, trial, source_tokens=source_tokens).peak <= usable_bytes(free):
            break
    return trial


def _offload(memory: Memory) -> Memory:
    """What is kept besides the weights, and the update, in the machine's memory."""
    moved = memory.masters + memory.optimizer + memory.averages + memory.gathered
    return replace(memory, offloaded=moved, update=0)


def _lay_out(section: TrainConfig, *, source_tokens: int) -> Batch:
    """The rows in memory at once, in the arithmetic of forward and backward."""
    return Batch(
        rows=section.micro_batch_rows,
        row_tokens=section.row_tokens,
        source_tokens=source_tokens,
        element_bytes=settle_dtype(section.precision).itemsize,
    )


def _state_bytes(
    section: TrainConfig, groups: Mapping[tuple[int, int], int], *, rest: Sequence[int]
) -> int:
    """Momenta and squares; `rest` are the sizes of the tensors that Muon does not move."""
    each = _STATES.get(section.optimizer, _STATES["adamw"])
    bits = section.state_bits
    total = each * sum(_moment_bytes(count, bits=bits, least=SMALL) for count in rest)
    stacked = (rows * columns * count for (rows, columns), count in groups.items())
    return total + sum(_moment_bytes(count, bits=bits, least=0) for count in stacked)


def _moment_bytes(count: int, *, bits: int, least: int) -> int:
    """Bytes of so many remembered numbers: a byte each and a scale a block, or fp32."""
    if bits != 8 or count < least:
        return FULL * count
    return count + FULL * -(-count // BLOCK)


def _activation_bytes(config: ModelConfig, section: TrainConfig, batch: Batch) -> int:
    """What autograd keeps, and the masks that all layers share."""
    length, source_tokens = batch.row_tokens, batch.source_tokens
    windows = {config.mixer(layer) for layer in range(config.num_layers)} & {"attention", "local"}
    masks = len(windows) * length * length
    if config.encoder is not None:
        masks += source_tokens * source_tokens
    kept = activation_bytes(config, batch, checkpointing=section.checkpointing)
    return kept + batch.rows * masks * batch.element_bytes


def _loss_bytes(config: ModelConfig, section: TrainConfig) -> int:
    """The head's part, as `chunked_cross_entropy` goes about it, or all logits at once."""
    if config.head == "none":
        return 0
    size = settle_dtype(section.precision).itemsize
    width, vocabulary = config.hidden_size, config.vocab_size
    tokens = section.micro_batch_rows * section.row_tokens
    is_whole = config.head_bias or config.head == "transformed"
    if is_whole or config.logit_scale != 1.0 or config.logit_cap is not None:
        # Logits, their fp32 copy where they are not fp32, log-probabilities and their gradient.
        return tokens * vocabulary * (size + 2 * FULL + FULL * (size != FULL))
    chunk = min(tokens * vocabulary, max(CHUNK_ELEMENTS, vocabulary))
    group = min(tokens * vocabulary, max(GROUP_ELEMENTS, vocabulary))
    matrix, states, rounded = vocabulary * width, size * tokens * width, size != FULL
    # Gradients take the place of the logits of a group. Beside them chances of a chunk, which
    # PyTorch makes of an fp32 copy where logits are not that; later what a group adds.
    chances = 0 if _is_native(size) else FULL * chunk * (1 + rounded)
    making = size * group + max(chances, matrix * (size + FULL * rounded)) + states
    # Behind it the matrix's gradient is scaled, and rounded where that is due.
    taking = matrix * (FULL + size * rounded) + 2 * states
    return FULL * matrix + max(making, taking)


def _is_native(size: int) -> bool:
    """Whether passes over numbers of so many bytes are the compiled ones, which make no copies."""
    return size != FULL and best_device().type == "cpu" and are_native()


def _update_bytes(
    section: TrainConfig,
    groups: Mapping[tuple[int, int], int],
    *,
    rest: Sequence[int],
    grad_bytes: int,
) -> int:
    """Scratch of the largest rule; `groups` counts Muon's matrices by shape."""
    is_compact, most = section.state_bits == 8, 0
    for (rows, columns), count in groups.items():
        # Gradients in fp32; beside them two bf16 matrices of their shape and two squares.
        inside = 2 * 2 * rows * columns + 2 * 2 * min(rows, columns) ** 2
        stacked = grad_bytes * rows * columns * (grad_bytes != FULL)
        numbers = count * rows * columns
        # Momenta in 8 bits are fp32 and rounded a piece at a time.
        rounding = (FULL + _ROUNDING) * min(numbers, PIECE) * is_compact
        most = max(most, FULL * numbers + max(count * max(inside, stacked), rounding))
    if section.optimizer == "schedule-free":  # a parameter at a time
        return most
    at_once = sum(count for count in rest if count < SMALL) if is_compact else sum(rest)
    most = max(most, FULL * at_once * (grad_bytes != FULL))
    # Both moments and a gradient beside what rounding takes.
    pieces = (min(count, PIECE) for count in rest if count >= SMALL)
    return max(most, is_compact * (_ROUNDING + 3 * FULL) * max(pieces, default=0))
