"""The memory of a training run, told before there is any of it.

Takes: a model's shape and a recipe's section. Gives: bytes a part, and how many there are at most
at once. A step has three moments that can be the fullest: the end of the way forward, when all
activations and the logits of a chunk exist; the end of the way back, when all gradients do; and the
update, which makes something of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace

from lmloop.learning import TrainConfig
from lmloop.model.activations import Batch, unkept_bytes
from lmloop.model.compiled import AMX, are_native, tiles
from lmloop.model.config import ModelConfig
from lmloop.model.cost import count_parameters
from lmloop.model.hardware import best_device, fast_dtype, settle_dtype
from lmloop.training.adapting import held_bytes
from lmloop.training.compact import SMALL
from lmloop.training.loss import CHUNK_ELEMENTS, GROUP_ELEMENTS
from lmloop.training.moments import BLOCK, PIECE
from lmloop.training.optim import is_hidden_matrix, take_apart
from lmloop.training.outline import outline, passing_bytes
from lmloop.training.resident import process_bytes
from lmloop.training.shares import (
    FULL,
    own_config,
    own_numbers,
    own_section,
    scattered_bytes,
    together_bytes,
)

_STATES = {"adamw": 2, "sgd": 1, "schedule-free": 3}
"""Numbers that a rule keeps beside each master."""
_ROUNDING = 17
"""Bytes for each number of a piece while it becomes codes."""
_WORKSPACE = 0.6
"""Of a chunk's gradients: oneDNN took 0.41 to 0.75 of them where that was seen."""


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
    way_back: int = 0
    """Gradients on their way through the last block, and that of the head's matrix."""
    unkept: int = 0
    """Of a pass without a way back: of frozen layers below all that learns, or of a teacher."""
    teacher: int = 0
    """Weights of the model that is learnt from."""
    together: int = 0
    """Of a model that is cut: weights that ranks bring together, and the whole of the first."""
    offloaded: int = 0
    """Of all these, what lies in the machine's memory while the model is on a GPU."""
    process: int = 0
    """Beside all tensors, of the process: see `resident.py`; 0 on a GPU."""

    @property
    def kept(self) -> int:
        """Bytes that are there all the time."""
        kept = self.weights + self.masters + self.optimizer + self.averages + self.gathered
        return kept + self.teacher + self.together - self.offloaded

    @property
    def peak(self) -> int:
        """Bytes of tensors at the fullest moment."""
        forward = max(self.activations + self.loss, self.unkept)
        again = self.activations + max(self.recomputed, self.way_back)
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


def plan_memory(
    config: ModelConfig,
    section: TrainConfig,
    *,
    source_tokens: int = 0,
    teacher: ModelConfig | None = None,
    ranks: int = 1,
) -> Memory:
    """Foresee the memory of a run; `source_tokens` is the length of an encoder's rows.

    With a `teacher`, the shape of the model that is learnt from. Of many `ranks` the first is told.

    Counts every token as learnt: fine-tuning learns fewer, so no batch of it is larger. Raises
    `TrainingError` as `rate_scales` does.
    """
    section = own_section(section, ranks)
    model = outline(config, section)
    learnt = {name: each for name, each in model.named_parameters() if each.requires_grad}
    by_muon = [
        name
        for name, each in learnt.items()
        if section.optimizer == "muon" and is_hidden_matrix(name, each)
    ]
    size = settle_dtype(section.precision).itemsize
    numbers = own_numbers(learnt, section, ranks)
    total = sum(numbers.values())
    rest = [numbers[name] for name in learnt.keys() - set(by_muon)]
    is_gathered = ranks > 1 or section.micro_batch_rows < section.batch_rows
    groups: Counter[tuple[int, int]] = Counter()
    for part in take_apart(model, by_muon):
        groups[part.rows.stop - part.rows.start, learnt[part.name].shape[1]] += 1
    grad_bytes = (
        FULL if is_gathered else max((each.itemsize for each in learnt.values()), default=0)
    )
    batch = _lay_out(section, source_tokens=source_tokens)
    if ranks > 1 and section.is_cut:  # each rank makes whole matrices orthogonal, as many as others
        groups = Counter({each: -(-count // ranks) for each, count in groups.items()})
    passing = passing_bytes(model, own_config(config, section, ranks), section, batch)
    masks = _mask_bytes(config, batch)
    activations, unkept = passing.kept + masks, passing.unkept + masks * (passing.unkept > 0)
    taught = fast_dtype()
    if teacher is not None:
        asked = replace(batch, element_bytes=taught.itemsize)
        unkept = max(unkept, unkept_bytes(teacher, asked) + _mask_bytes(teacher, asked))
    learns_head = model.head is not None and model.head.weight.requires_grad
    # A matrix of the head and the states have their gradients before the last block has.
    behind = size * config.hidden_size * (config.vocab_size * learns_head + batch.tokens)
    largest = max((each.nbytes for each in learnt.values()), default=0)
    recomputed = passing.recomputed
    own = sum(numbers[name] * each.itemsize for name, each in learnt.items())
    memory = Memory(
        weights=held_bytes(model) - sum(each.nbytes for each in learnt.values()) + own,
        masters=FULL * total,
        optimizer=_state_bytes(section, groups, rest=rest),
        averages=FULL * total * ((section.ema is not None) + (section.patience is not None)),
        gathered=FULL * total * is_gathered,
        activations=activations,
        loss=_loss_bytes(config, section, learns_head=learns_head, teacher=teacher),
        gradients=own,
        last_layer=(recomputed or activations // config.num_layers)
        + max(largest, scattered_bytes(model, section, ranks)),
        recomputed=recomputed + behind if recomputed else 0,
        way_back=0 if recomputed else passing.way_back + behind,
        unkept=unkept,
        together=together_bytes(model, section, ranks),
        teacher=0 if teacher is None else taught.itemsize * count_parameters(teacher),
        update=_update_bytes(section, groups, rest=rest, grad_bytes=grad_bytes),
    )
    if best_device().type != "cpu":
        return _offload(memory) if section.offload else memory
    passing_by = memory.peak - memory.kept
    beside = process_bytes(section, passing=passing_by, is_native=_is_native(size))
    return replace(memory, process=beside)


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


def _mask_bytes(config: ModelConfig, batch: Batch) -> int:
    """Masks that all layers share."""
    windows = {config.mixer(layer) for layer in range(config.num_layers)} & {"attention", "local"}
    masks = len(windows) * batch.row_tokens**2
    if config.encoder is not None:
        masks += batch.source_tokens**2
    return batch.rows * masks * batch.element_bytes


def _loss_bytes(
    config: ModelConfig, section: TrainConfig, *, learns_head: bool, teacher: ModelConfig | None
) -> int:
    """The head's part, as `chunked_cross_entropy` goes about it, or all logits at once."""
    if config.head == "none":
        return 0
    size = settle_dtype(section.precision).itemsize
    width, vocabulary = config.hidden_size, config.vocab_size
    tokens = section.micro_batch_rows * section.row_tokens
    lesson = 0 if teacher is None else fast_dtype().itemsize * tokens * teacher.hidden_size
    is_whole = config.head_bias or config.head == "transformed"
    if is_whole or config.logit_scale != 1.0 or config.logit_cap is not None:
        # Logits, their fp32 copy where they are not fp32, log-probabilities and their gradient;
        # with a teacher both models' chances as well, and how far they are apart.
        softened = 0 if teacher is None else 4 * FULL
        return lesson + tokens * vocabulary * (size + 2 * FULL + FULL * (size != FULL) + softened)
    chunk = min(tokens * vocabulary, max(CHUNK_ELEMENTS, vocabulary))
    group = min(tokens * vocabulary, max(GROUP_ELEMENTS, vocabulary))
    matrix, states = vocabulary * width * learns_head, size * tokens * width
    rounded = size != FULL
    # Gradients take the place of the logits of a group. Beside them chances of a chunk, which
    # PyTorch makes of an fp32 copy where logits are not that; later what a group adds. By AMX the
    # product of a chunk's gradients with the matrix takes a workspace.
    chances = FULL * chunk * (1 + rounded)
    if _is_native(size):
        chances = int(_WORKSPACE * size * chunk) if tiles() == AMX else 0
    if teacher is not None:  # both models' chances at a temperature beside what they are made of
        chances = max(chances + 2 * FULL * chunk, (3 * FULL + fast_dtype().itemsize) * chunk)
    making = size * group + max(chances, matrix * (size + FULL * rounded)) + states
    # Behind it the matrix's gradient is scaled, and rounded where that is due.
    taking = matrix * (FULL + size * rounded) + 2 * states
    return lesson + FULL * matrix + max(making, taking)


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
