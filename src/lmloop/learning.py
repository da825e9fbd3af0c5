"""What a recipe may say of training: how long, how much at once, by which method, and what for.

A docstring stands under every field: it is the help on the command line as well.
"""

from __future__ import annotations

import math
import re
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from lmloop.sections import ReportFigure, Section, parse_duration


class TrainConfig(Section):
    """What pre-training and fine-tuning have in common."""

    budget: str | None = Field(default=None)
    """Wall-clock budget such as `"90s"`, `"5m"`, `"2h"`; give this, `steps` or `replay`."""
    steps: int | None = Field(default=None, ge=1)
    """Step budget: reproducible bit for bit; give this, `budget` or `replay`."""
    replay: str | None = None
    """Journal of an earlier run whose decisions are repeated exactly; or `budget`, or `steps`."""
    batch_tokens: int = Field(default=8192, ge=8)
    """Tokens of one optimiser step."""
    row_tokens: int = Field(default=512, ge=8)
    """Length of a packed row, at most the model's context length."""
    precision: Literal["auto", "bfloat16", "float32", "fp8"] = "auto"
    """Arithmetic of forward and backward; `auto` takes bfloat16 where it is the faster one; `fp8`
    is bfloat16 but for the products of the layers' matrices, on GPUs that have it."""
    micro_batch_tokens: Annotated[int, Field(ge=8)] | Literal["auto"] | None = None
    """Tokens in memory at once; their gradients add up to those of the batch. Absent: all; `auto`:
    as many as fit the free memory when the run begins."""
    checkpointing: Literal["none", "selective", "full"] = "none"
    """What is computed again on the way back instead of kept: nothing, all but the products of the
    layers' matrices, or each block whole; the result is the same."""
    optimizer: Literal["muon", "adamw", "sgd", "schedule-free"] = "muon"
    """`muon`: Muon for the hidden matrices, AdamW for the rest; the others for all."""
    state_bits: Literal[8, 32] = 32
    """Bits of each number that the optimizer remembers of gradients; 8 forgets a little."""
    offload: bool = False
    """Keep master weights and what the optimizer remembers in the machine's memory, not in the
    GPU's, and update there."""
    learning_rate: float = Field(default=0.002, gt=0)
    """Peak rate of all that Muon does not move."""
    matrix_learning_rate: float = Field(default=0.02, gt=0)
    """Peak rate of Muon (hidden matrices)."""
    momentum: float = Field(default=0.95, ge=0, lt=1)
    """Of Muon and SGD: how much of the direction so far a step keeps."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled weight decay (L2) of the hidden matrices."""
    l1: float = Field(default=0.0, ge=0)
    """Decoupled pull of each number of the hidden matrices towards zero (L1)."""
    schedule: Literal["wsd", "cosine", "linear", "constant"] | None = None
    """Curve of the rates behind the warm-up; absent: `wsd`, constant for `schedule-free`."""
    warmup_share: float = Field(default=0.02, ge=0, lt=1)
    """Share of the budget in which rates rise from zero."""
    decay_share: float = Field(default=0.5, ge=0, le=1)
    """Share of the budget at the end in which rates fall linearly (`wsd`)."""
    final_share: float = Field(default=0.0, ge=0, le=1)
    """Share of the peak rates that is left at the end."""
    gradient_clip: float = Field(default=1.0, gt=0)
    """Largest norm of the whole gradient."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Share of each target that is spread over the whole vocabulary."""
    ema: float | None = Field(default=None, gt=0, lt=1)
    """The checkpoint is a moving average of the weights; so much of it stays at a step (0.999)."""
    frozen: tuple[str, ...] = Field(default=(), strict=False)
    """Patterns of parameters that stay as they are, such as `"embedding.*"` or `"blocks.[0-3].*"`.
    """
    lora_rank: int | None = Field(default=None, ge=1, le=65_536)
    """Learn a small product of this rank beside each matrix, and nothing else; absent: all learns.
    """
    lora_alpha: float = Field(default=16.0, gt=0)
    """The product is multiplied with this over its rank."""
    lora_dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of the numbers that go into the product that training forgets at random."""
    lora_targets: tuple[str, ...] = Field(default=(), strict=False)
    """Ends of the names of the matrices, as `"q_proj"`; empty: all but the output projection."""
    dora: bool = False
    """Learn the length of each row of the sum by itself (needs `lora_rank`)."""
    base_bits: Literal[4] | None = None
    """Hold the matrices beside which the product is learnt in so many bits (needs `lora_rank`)."""
    layer_decay: float = Field(default=1.0, gt=0, le=1)
    """Each layer's rates are those of the layer above times this; the embedding's come last."""
    patience: int | None = Field(default=None, ge=1)
    """End after so many validations in a row that are no better, and keep the best weights."""
    patience_metric: Literal["validation", "loss", "accuracy", ReportFigure] = "validation"
    """What must get better for `patience`: the usual validation, the loss of what is learnt (the
    answers, in fine-tuning), how often the likeliest token is the right one, or a figure of the
    evaluation's report, measured on validation splits."""
    on_unsound: Literal["stop", "skip", "rollback"] = "stop"
    """What follows a loss or a gradient that is no number, or a spike: end with an error, leave the
    batch out, or go back to the last snapshot and on behind the batch."""
    spike: float | None = Field(default=None, gt=1)
    """A loss so many times the median of the last 50 is unsound; absent: none is."""
    validate_every: int = Field(default=200, ge=1)
    """Steps between two measurements on the validation split."""
    save_every: int = Field(default=200, ge=1)
    """Steps between two snapshots: what `kill -9` can cost at most."""

    sharding: Literal["none", "full"] = Field(default="none", exclude=True)
    """What each of many ranks (torchrun) holds: the whole model, or its share of the weights and of
    the optimizer's state (`full`)."""
    tensor_parallel: int = Field(default=1, ge=1, exclude=True)
    """So many ranks compute one part of a batch together, each its own heads and inner features;
    more than 1 implies `sharding = "full"`."""
    trackers: tuple[Literal["tensorboard", "mlflow", "wandb"], ...] = Field(
        default=(), strict=False, exclude=True
    )
    """Other programs that log the run, in files below the home; they decide nothing of it."""
    sample_prompts: tuple[str, ...] = Field(default=(), strict=False, exclude=True, max_length=16)
    """Beginnings that the model continues at every validation, to be read beside the curves;
    when fine-tuning, what a user says. They decide nothing of the run."""
    sample_tokens: int = Field(default=40, ge=1, exclude=True)
    """Longest continuation of a sample."""

    @field_validator("budget")
    @classmethod
    def _check_budget(cls, value: str | None) -> str | None:
        if value is not None:
            parse_duration(value)
        return value

    @model_validator(mode="after")
    def _check_one_budget(self) -> TrainConfig:
        if sum(given is not None for given in (self.budget, self.steps, self.replay)) != 1:
            raise ValueError("give exactly one of budget (wall clock), steps and replay")
        return self

    @model_validator(mode="after")
    def _check_micro_batch(self) -> TrainConfig:
        at_once = self.micro_batch_tokens
        if isinstance(at_once, int) and (at_once % self.row_tokens or self.batch_tokens % at_once):
            raise ValueError(
                f"micro_batch_tokens = {at_once} must be a multiple of row_tokens = "
                f"{self.row_tokens} and divide batch_tokens = {self.batch_tokens}"
            )
        return self

    @model_validator(mode="after")
    def _check_lora(self) -> TrainConfig:
        asked = {
            "lora_alpha",
            "lora_dropout",
            "lora_targets",
            "dora",
            "base_bits",
        } & self.model_fields_set
        if asked and self.lora_rank is None:
            raise ValueError(f"{sorted(asked)[0]} needs lora_rank: add it, such as lora_rank = 16")
        return self

    @model_validator(mode="after")
    def _check_fp8(self) -> TrainConfig:
        if self.precision == "fp8" and self.lora_rank is not None:
            raise ValueError(
                "precision = 'fp8' is for all of a model, and lora_rank learns beside it: take one "
                "out"
            )
        if self.precision == "fp8" and self.tensor_parallel > 1:
            raise ValueError(
                "precision = 'fp8' multiplies whole matrices, and tensor_parallel cuts them: take "
                "one out"
            )
        return self

    @model_validator(mode="after")
    def _check_patience(self) -> TrainConfig:
        if self.patience_metric != "validation" and self.patience is None:
            raise ValueError("patience_metric needs patience: add it, such as patience = 3")
        return self

    @model_validator(mode="after")
    def _check_schedule_free(self) -> TrainConfig:
        if self.optimizer == "schedule-free":
            if self.schedule not in (None, "constant"):
                raise ValueError(
                    "optimizer = 'schedule-free' needs no schedule: leave schedule out"
                )
            if self.ema is not None:
                raise ValueError("optimizer = 'schedule-free' keeps its own average: leave ema out")
            if self.state_bits == 8:
                raise ValueError(
                    "optimizer = 'schedule-free' keeps weights, which need 32 bits: leave "
                    "state_bits out, or take 'adamw'"
                )
        return self

    @property
    def curve(self) -> str:
        """Name of the schedule behind the warm-up."""
        if self.schedule is not None:
            return self.schedule
        return "constant" if self.optimizer == "schedule-free" else "wsd"

    @property
    def batch_rows(self) -> int:
        """Packed rows of one optimizer step."""
        return self.batch_tokens // self.row_tokens

    def row_length(self, share: float) -> int:
        """Tokens a row that see each other when `share` of the budget is spent."""
        return self.row_tokens

    @property
    def micro_batch_rows(self) -> int:
        """Packed rows in memory at once; all of a batch until `auto` is decided."""
        at_once = self.micro_batch_tokens
        return (at_once if isinstance(at_once, int) else self.batch_tokens) // self.row_tokens

    @property
    def is_cut(self) -> bool:
        """Whether each of many ranks has a part of the model only."""
        return self.sharding == "full" or self.tensor_parallel > 1


class TaughtConfig(TrainConfig):
    """Training in which another model may have a word."""

    teacher: str | None = None
    """Model whose chances are learnt besides the text: a live model, a fingerprint, a folder, a
    `.gguf` file or a name that was pulled. It must have this tokenizer."""
    teacher_share: float = Field(default=0.5, gt=0, le=1)
    """Weight of the divergence from the teacher; the text has the rest."""
    teacher_temperature: float = Field(default=1.0, gt=0)
    """What both models' logits are divided by before they are compared; above 1 it is heard more of
    what the teacher holds unlikely."""

    @model_validator(mode="after")
    def _check_teacher(self) -> TaughtConfig:
        asked = {"teacher_share", "teacher_temperature"} & self.model_fields_set
        if asked and self.teacher is None:
            raise ValueError(f"{sorted(asked)[0]} needs teacher: name a model")
        return self


_NEXT_TOKEN = ("causal", "causal+masked", "prefix", "fill-in-the-middle")
"""Objectives that make a model of next tokens."""


class ObjectiveSection(Section):
    """One objective and what it needs to know."""

    objective: Literal[
        "causal",
        "masked",
        "causal+masked",
        "prefix",
        "fill-in-the-middle",
        "permutation",
        "span-corruption",
    ] = "causal"
    """What is learnt: the next token, hidden ones, either, what follows a prefix, a middle, tokens
    in a drawn order, or spans that left the encoder's text."""
    mask_rate: float = Field(default=0.15, gt=0, lt=1)
    """Share of tokens that is predicted (masked, permutation) or leaves (span-corruption)."""
    mask_words: bool = False
    """Hide whole words (masked and causal+masked)."""
    causal_share: float = Field(default=0.5, ge=0, le=1)
    """Share of texts that stay causal (causal+masked)."""
    middle_share: float = Field(default=0.5, ge=0, le=1)
    """Share of texts whose middle is put last (fill-in-the-middle)."""
    span_length: float = Field(default=3.0, ge=1)
    """Tokens of a span on average (span-corruption)."""


class TaskConfig(ObjectiveSection):
    """One of several things that pre-training learns with the same weights."""

    share: float = Field(default=1.0, gt=0)
    """How many of the rows are of it, beside the shares of the other tasks."""
    weight: float = Field(default=1.0, gt=0)
    """How much a target of it counts beside those of the other tasks."""
    text: Literal["sources", "rehearsal"] = "sources"
    """Which text of `[prepare]` it reads."""


class PretrainConfig(TaughtConfig, ObjectiveSection):
    """Token ids to a base model: one objective on everything, or several tasks."""

    rehearsal_share: float = Field(default=0.2, gt=0, lt=1)
    """Share of the rows that are of `prepare.rehearsal`, where a recipe has it."""
    tasks: dict[str, TaskConfig] = Field(default={})
    """Several things to learn at once, a section `[pretrain.tasks.NAME]` each, in the place of one
    objective."""
    start: Literal["random", "bigrams"] = "random"
    """What a new model knows: nothing, or how often which token follows which (`causal`, with
    `model.tie_embeddings = false`)."""
    first_row_tokens: Annotated[int, Field(ge=8)] | None = None
    """Rows are cut to this length at first, then to twice that, and at last not at all (`causal`);
    absent: they are never cut."""

    @model_validator(mode="after")
    def _check_tasks(self) -> PretrainConfig:
        others = {*ObjectiveSection.model_fields, "rehearsal_share"} & self.model_fields_set
        if self.tasks and others:
            raise ValueError(f"each of tasks has its own {sorted(others)[0]}: leave it out here")
        for name in self.tasks:
            if re.fullmatch(r"[a-z0-9][a-z0-9_-]*", name) is None:
                raise ValueError(f"{name!r} is no name of a task: write lower case letters")
        return self

    @property
    def by_task(self) -> dict[str, PretrainConfig]:
        """A section of one objective each, by the tasks' names; itself as "" where it has none.

        Where others learn the next token, hidden ones are predicted one place earlier as well, so
        that the head does the same for all (GPT-BERT).
        """
        if not self.tasks:
            return {"": self}
        parts = {}
        for name, task in self.tasks.items():
            keys = {key: getattr(task, key) for key in ObjectiveSection.model_fields}
            if task.objective == "masked" and self.is_scored_in_bytes:
                keys |= {"objective": "causal+masked", "causal_share": 0.0}
            parts[name] = self.model_copy(update={**keys, "tasks": {}})
        return parts

    @property
    def objectives(self) -> dict[str, str]:
        """What is learnt, by the key that says it."""
        if not self.tasks:
            return {"pretrain.objective": self.objective}
        named = self.tasks.items()
        return {f"pretrain.tasks.{name}.objective": task.objective for name, task in named}

    @model_validator(mode="after")
    def _check_samples(self) -> PretrainConfig:
        if self.sample_prompts and not self.is_scored_in_bytes:
            told = ", ".join(f"{key} = {value!r}" for key, value in self.objectives.items())
            raise ValueError(
                f"sample_prompts need a model that continues text, and {told} makes none: "
                "leave them out"
            )
        return self

    @model_validator(mode="after")
    def _check_first_rows(self) -> PretrainConfig:
        first = self.first_row_tokens
        if first is None:
            return self
        times, rest = divmod(self.row_tokens, first)
        if rest or not times or times & (times - 1):
            raise ValueError(
                f"first_row_tokens = {first} must come to row_tokens = {self.row_tokens} by "
                "doubling: take its half, a quarter or an eighth"
            )
        others = sorted({*self.objectives.values()} - {"causal"})
        if others:
            raise ValueError(
                f"first_row_tokens cuts rows of objective = 'causal', and here is {others[0]!r}: "
                "leave it out"
            )
        return self

    def row_length(self, share: float) -> int:
        """Each length lasts for as much of the budget as any other."""
        if self.first_row_tokens is None:
            return self.row_tokens
        lengths = int(math.log2(self.row_tokens // self.first_row_tokens)) + 1
        return self.first_row_tokens << min(lengths - 1, int(share * lengths))

    @property
    def is_scored_in_bytes(self) -> bool:
        """Whether the model can then be asked for each next token, and so for bits per byte."""
        return any(objective in _NEXT_TOKEN for objective in self.objectives.values())

    @property
    def special_tokens(self) -> tuple[str, ...]:
        """What the objectives need beyond the usual special tokens."""
        needed = [token for part in self.by_task.values() for token in part._own_special_tokens()]
        return tuple(dict.fromkeys(needed))

    def _own_special_tokens(self) -> tuple[str, ...]:
        if self.objective in ("masked", "causal+masked", "permutation"):
            return ("<|mask|>",)
        if self.objective == "fill-in-the-middle":
            return "<|prefix|>", "<|suffix|>", "<|middle|>"
        if self.objective != "span-corruption":
            return ()
        # A row of one text, of which each token stays, or leaves with 1 / span_length of a span.
        spans_a_token = self.mask_rate / self.span_length
        text = self.row_tokens / (1 - self.mask_rate + spans_a_token)
        return tuple(f"<|extra_{span}|>" for span in range(math.ceil(text * spans_a_token) + 1))


class FinetuneConfig(TaughtConfig):
    """Base model to chat model: loss on the assistant's answers only."""
