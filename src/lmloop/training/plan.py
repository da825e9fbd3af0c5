"""What a recipe will cost, told before any work: parameters, memory, tokens, time and money.

Takes: a recipe's sections and the size of the text. Gives: a `Plan`; speed comes from a few steps
on this machine, so nothing has to be known about it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from statistics import fmean, harmonic_mean
from types import MappingProxyType

from lmloop.errors import RecipeError
from lmloop.learning import TrainConfig
from lmloop.model.config import ModelConfig
from lmloop.model.cost import cache_bytes_per_token, count_parameters, training_flops_per_token
from lmloop.model.hardware import free_memory
from lmloop.sections import ModelSection, parse_duration
from lmloop.training.calibrate import Speed, measure_speed
from lmloop.training.fitting import advise, choose_micro_batch, usable_bytes
from lmloop.training.memory import Memory, plan_memory
from lmloop.training.scaling import Expected
from lmloop.training.shape import model_config
from lmloop.training.shares import own_section

CALIBRATION_SECONDS = 2.0
"""Of all stages together."""
BYTES_PER_TOKEN = 3.4
"""Of English under a byte-level BPE of a few thousand entries; only for text not yet tokenized."""
VALIDATION_TOKENS = 32_768
"""Tokens of one validation, each about a third of a trained one."""
LARGEST_TRIED = 1 << 28
"""Bytes of memory for the layer that is tried where the model is too large: more takes minutes."""
MOST_LENGTHS = 64
"""Lengths that growing rows may have: more doublings would begin with rows of less than a token."""
NARROWEST = 64
"""Least width of a layer that stands for one that is too large to be tried."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """The text that is learnt from."""

    bytes: int
    tokens: int
    answer_tokens: int
    """Tokens that fine-tuning learns; all where it is not known."""
    is_tokenized: bool
    """Whether the tokens are counted, and not guessed from the bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StagePlan:
    """One training stage."""

    stage: str
    seconds: float
    steps: int
    tokens: int
    epochs: float
    """Passes over the text."""
    flops: float
    """Multiplications and additions of the model."""
    tokens_per_second: float
    memory: Memory
    micro_batch_tokens: int
    """Tokens in memory at once."""
    advice: tuple[str, ...]
    """What to change, one after the other, where it needs more memory than there is."""

    @property
    def flops_per_second(self) -> float:
        """Arithmetic of the model while it learns."""
        return self.flops / max(1, self.tokens) * self.tokens_per_second


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """All that is foreseen."""

    parameters: int
    checkpoint_bytes: int
    cache_bytes_per_token: int
    text: Text
    free_bytes: int
    stages: tuple[StagePlan, ...]
    expected: Expected | None = None
    """Loss behind pre-training on the validation text, in bits per byte; where it was fitted."""
    chosen: str | None = None
    """What `model = "auto"` chose, in words; where the recipe says that."""

    @property
    def seconds(self) -> float:
        """Of all training stages."""
        return sum(stage.seconds for stage in self.stages)

    def cost(self, price: float) -> float:
        """What the training stages cost at a price an hour."""
        return self.seconds / 3600 * price


def estimate_text(raw_bytes: int) -> Text:
    """Text that is not tokenized yet."""
    tokens = int(raw_bytes / BYTES_PER_TOKEN)
    return Text(bytes=raw_bytes, tokens=tokens, answer_tokens=tokens, is_tokenized=False)


def make_plan(
    shape: ModelSection,
    *,
    vocab_size: int,
    stages: Mapping[str, TrainConfig],
    text: Text,
    free: int | None = None,
    base: ModelConfig | None = None,
    teachers: Mapping[str, ModelConfig] = MappingProxyType({}),
    ranks: int = 1,
) -> Plan:
    """Foresee the training stages; takes about three seconds for the calibration.

    `free` are bytes of memory, those of this machine where it is None. A stage that does not fit is
    planned as its first advice would have it run. `base` is the shape of the model that the recipe
    begins with, `teachers` those that stages learn from; of many `ranks` on this machine the memory
    of the first is told. Raises `RecipeError` for a base whose shape is not given.
    """
    if shape.base is not None and base is None:
        raise RecipeError("a model that begins with model.base is planned by that one's shape")
    config = model_config(shape, vocab_size=vocab_size) if base is None else base
    free = (free_memory() if free is None else free) // ranks
    parameters = count_parameters(config)
    return Plan(
        parameters=parameters,
        checkpoint_bytes=2 * parameters,
        cache_bytes_per_token=cache_bytes_per_token(config),
        text=text,
        free_bytes=free,
        stages=tuple(
            _plan_stage(
                name,
                _freeze(name, section, shape),
                config,
                text,
                free=free,
                seconds=CALIBRATION_SECONDS / len(stages),
                teacher=teachers.get(name),
                ranks=ranks,
            )
            for name, section in stages.items()
        ),
    )


def _freeze(name: str, section: TrainConfig, shape: ModelSection) -> TrainConfig:
    """The section with the embedding frozen where the model's section says so."""
    if not shape.freeze_embedding or (name == "pretrain" and shape.vectors is None):
        return section
    return section.model_copy(update={"frozen": (*section.frozen, "embedding.weight")})


def _plan_stage(
    name: str,
    section: TrainConfig,
    config: ModelConfig,
    text: Text,
    *,
    free: int,
    seconds: float,
    teacher: ModelConfig | None,
    ranks: int,
) -> StagePlan:
    source = section.row_tokens if config.encoder is not None else 0
    advice: tuple[str, ...] = ()
    foresee = partial(plan_memory, source_tokens=source, teacher=teacher, ranks=ranks)
    if section.micro_batch_tokens == "auto":
        chosen = choose_micro_batch(config, section, free=free, foresee=foresee)
        section = section.model_copy(update={"micro_batch_tokens": chosen})
    else:
        advice = tuple(advise(config, section, free=free, foresee=foresee))
    share = text.answer_tokens / max(1, text.tokens) if name == "finetune" else 1.0
    measure = partial(
        _measure,
        config,
        is_small=not advice,
        share=share,
        source=source,
        free=free,
        teacher=teacher,
    )
    lengths = _row_lengths(section)
    parts = [measure(own_section(each, ranks), seconds=seconds / len(lengths)) for each in lengths]
    learning = [own_section(section, ranks)] * len(parts)
    speed = parts[-1]
    measured = VALIDATION_TOKENS * speed.token_seconds / 3
    a_step = [
        part.step_seconds(own) + measured / section.validate_every
        for part, own in zip(parts, learning, strict=True)
    ]
    if section.steps is not None:
        steps = section.steps
        budget = steps * fmean(a_step) + measured
    else:
        budget = parse_duration(section.budget) if section.budget else 0.0
        steps = int(budget / harmonic_mean(a_step))
    tokens = steps * section.batch_tokens
    a_token = fmean(
        training_flops_per_token(config, row_tokens=each.row_tokens, source_tokens=source)
        for each in lengths
    )
    return StagePlan(
        stage=name,
        seconds=budget,
        steps=steps,
        tokens=tokens,
        epochs=tokens / max(1, text.tokens),
        flops=tokens * a_token,
        tokens_per_second=section.batch_tokens
        / fmean(part.step_seconds(own) for part, own in zip(parts, learning, strict=True)),
        memory=foresee(config, section),
        micro_batch_tokens=learning[-1].micro_batch_rows * section.row_tokens,
        advice=advice,
    )


def _row_lengths(section: TrainConfig) -> list[TrainConfig]:
    """The section with rows of each length that they come to; each lasts as long as any other."""
    lengths = sorted({section.row_length(part / MOST_LENGTHS) for part in range(MOST_LENGTHS)})
    if lengths == [section.row_tokens]:
        return [section]
    uncut = section.model_copy(update={"first_row_tokens": None})
    return [uncut.model_copy(update={"row_tokens": length}) for length in lengths]


def _measure(
    config: ModelConfig,
    section: TrainConfig,
    *,
    is_small: bool,
    seconds: float,
    share: float,
    source: int,
    free: int,
    teacher: ModelConfig | None,
) -> Speed:
    """The speed of a model that fits; of one that does not, from its first layer by arithmetic.

    Where that layer is too large as well, a narrower one stands for it.
    """
    if is_small:
        return measure_speed(
            config,
            section,
            seconds=seconds,
            learnt_share=share,
            source_tokens=source,
            teacher=teacher,
        )
    thin = replace(config, num_layers=1, mixers=config.mixers[:1])
    a_row = section.model_copy(update={"micro_batch_tokens": section.row_tokens, "frozen": ()})
    thin = _thin_out(thin, a_row, free=min(free, LARGEST_TRIED), source=source)
    speed = measure_speed(thin, a_row, seconds=seconds, learnt_share=share, source_tokens=source)
    whole, part = (
        training_flops_per_token(each, row_tokens=section.row_tokens, source_tokens=source)
        for each in (config, thin)
    )
    grown = count_parameters(config) / count_parameters(thin)
    return Speed(
        token_seconds=speed.token_seconds * whole / part,
        update_seconds=speed.update_seconds * grown,
    )


def _thin_out(config: ModelConfig, section: TrainConfig, *, free: int, source: int) -> ModelConfig:
    """Halve the widths until the model fits into `free` bytes, or nothing is left to halve."""
    while plan_memory(config, section, source_tokens=source).peak > usable_bytes(free):
        narrower = _narrow(config)
        if narrower == config:
            break
        config = narrower
    return config


def _narrow(config: ModelConfig) -> ModelConfig:
    """The same with half the width, feed-forward and vocabulary."""

    def half(size: int) -> int:
        return size // 2 if size > NARROWEST else size

    return replace(
        config,
        hidden_size=half(config.hidden_size),
        intermediate_size=half(config.intermediate_size),
        vocab_size=half(config.vocab_size),
        encoder=None if config.encoder is None else _narrow(config.encoder),
    )
