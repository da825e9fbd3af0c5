"""The whole recipe: one frozen object of all sections, checked together.

Reading one from a file is `lmloop.config`'s part.
"""

from __future__ import annotations

from typing import Any, get_args

from pydantic import Field, model_validator

from lmloop.learning import FinetuneConfig, PretrainConfig, TaughtConfig, TrainConfig
from lmloop.sections import (
    NAME_PATTERN,
    CompressConfig,
    EvaluateConfig,
    ModelSection,
    PrepareConfig,
    ReportFigure,
    Section,
    ServeConfig,
    TokenizeConfig,
)
from lmloop.upkeep import (
    CollectConfig,
    GateConfig,
    LoopConfig,
    MonitorConfig,
    RolloutConfig,
    UpdateConfig,
)

OBJECTIVES = {
    "decoder": (
        *("causal", "masked", "causal+masked", "prefix", "fill-in-the-middle", "permutation"),
    ),
    "encoder": ("masked", "permutation"),
    "encoder-decoder": ("span-corruption",),
}
"""What each kind of model can be pre-trained with."""


class Recipe(Section):
    """One TOML file: a section a stage."""

    name: str = Field(pattern=NAME_PATTERN)
    """What the result is called in the registry: lower case, digits, `.`, `_`, `-`."""
    seed: int = Field(default=0, ge=0)
    """Seed of every random choice."""
    prepare: PrepareConfig
    tokenize: TokenizeConfig = TokenizeConfig()
    model: ModelSection = ModelSection()
    pretrain: PretrainConfig = PretrainConfig(budget="4m")
    finetune: FinetuneConfig = FinetuneConfig(budget="1m")
    evaluate: EvaluateConfig = EvaluateConfig()
    compress: CompressConfig = CompressConfig()
    serve: ServeConfig = ServeConfig()
    monitor: MonitorConfig = MonitorConfig()
    collect: CollectConfig = CollectConfig()
    update: UpdateConfig = UpdateConfig()
    gate: GateConfig = GateConfig()
    rollout: RolloutConfig = RolloutConfig()
    loop: LoopConfig = LoopConfig()

    @model_validator(mode="before")
    @classmethod
    def _read_auto(cls, data: Any) -> Any:
        """`model = "auto"` is a section of that alone."""
        if isinstance(data, dict) and data.get("model") == "auto":
            return {**data, "model": {"auto": True}}
        return data

    @model_validator(mode="before")
    @classmethod
    def _fit_update(cls, data: Any) -> Any:
        """Shorten the rows of an update that says nothing of them to a short context."""
        if not isinstance(data, dict):
            return data
        model, update = data.get("model", {}), data.get("update", {})
        if not (isinstance(model, dict) and isinstance(update, dict)):
            return data
        context = model.get("context_length")
        row, batch = (
            UpdateConfig.model_fields[name].default for name in ("row_tokens", "batch_tokens")
        )
        if not isinstance(context, int) or not 0 < context < row or "row_tokens" in update:
            return data
        fitting = {"row_tokens": context, "batch_tokens": batch - batch % context}
        return {**data, "update": {**fitting, **update}}

    @model_validator(mode="after")
    def _check_rows(self) -> Recipe:
        if self.model.auto:
            return self
        for stage in ("pretrain", "finetune", "update"):
            section: TrainConfig = getattr(self, stage)
            if section.row_tokens > self.model.context_length:
                raise ValueError(
                    f"{stage}.row_tokens = {section.row_tokens} exceeds "
                    f"model.context_length = {self.model.context_length}"
                )
            if section.batch_tokens % section.row_tokens:
                raise ValueError(
                    f"{stage}.batch_tokens = {section.batch_tokens} is no multiple of "
                    f"{stage}.row_tokens = {section.row_tokens}"
                )
        return self

    @model_validator(mode="after")
    def _check_base(self) -> Recipe:
        if self.model.base is None:
            return self
        if self.tokenize.model_fields_set:
            raise ValueError("model.base brings its own tokenizer: leave [tokenize] out")
        for key, objective in self.pretrain.objectives.items():
            if objective != "causal":
                raise ValueError(
                    f"{key} = {objective!r} begins with a new model: take 'causal' or leave "
                    "model.base out"
                )
        return self

    @model_validator(mode="after")
    def _check_teachers(self) -> Recipe:
        for stage in ("pretrain", "finetune"):
            section: TaughtConfig = getattr(self, stage)
            if section.teacher == self.name:
                raise ValueError(
                    f"{stage}.teacher = {self.name!r} is what this recipe makes: give the student "
                    "another name"
                )
        return self

    @property
    def _objective(self) -> str:
        """The one that all of pre-training has, or those that it has."""
        return " and ".join(sorted({*self.pretrain.objectives.values()}))

    @model_validator(mode="after")
    def _check_auto(self) -> Recipe:
        if not self.model.auto:
            return self
        for key, value, only in (
            ("model.kind", self.model.kind, "decoder"),
            ("pretrain.objective", self._objective, "causal"),
            ("tokenize.kind", self.tokenize.kind, "bpe"),
        ):
            if value != only:
                raise ValueError(
                    f"model = 'auto' chooses for {key} = {only!r}, and it is {value!r}: describe "
                    "the model instead"
                )
        return self

    @model_validator(mode="after")
    def _check_start(self) -> Recipe:
        """Pairs of tokens make an embedding and a head, each of which has its own part to say."""
        if self.pretrain.start == "random":
            return self
        told = f"pretrain.start = {self.pretrain.start!r}"
        if self.model.base is not None or self.model.vectors is not None:
            given = "base" if self.model.vectors is None else "vectors"
            raise ValueError(f"{told} and model.{given} both say what a model begins with: one")
        if self.model.tie_embeddings:
            raise ValueError(f"{told} needs two matrices: set model.tie_embeddings = false")
        if self._objective != "causal" or self.model.positions == "sinusoidal":
            other = self.model.positions == "sinusoidal"
            key = "model.positions" if other else "pretrain.objective"
            raise ValueError(f"{told} is for causal models of tokens alone: change {key}")
        return self

    @model_validator(mode="after")
    def _check_objective(self) -> Recipe:
        kind = self.model.kind
        for key, objective in self.pretrain.objectives.items():
            if objective not in OBJECTIVES[kind]:
                raise ValueError(
                    f"{key} = {objective!r} does not fit model.kind = {kind!r}: allowed is "
                    f"{', '.join(map(repr, OBJECTIVES[kind]))}"
                )
            if objective == "permutation":
                self._check_order_is_kept(key)
        for key, part in zip(self.pretrain.objectives, self.pretrain.by_task.values(), strict=True):
            self._check_special_tokens(key, part)
        return self

    @model_validator(mode="after")
    def _check_metric(self) -> Recipe:
        """Figures of evaluation ask for each next token, and for text to measure them on."""
        for stage in ("pretrain", "finetune", "update"):
            section: TrainConfig = getattr(self, stage)
            told = f"{stage}.patience_metric = {section.patience_metric!r}"
            if section.patience_metric not in get_args(ReportFigure):
                continue
            if stage == "pretrain" and not self.pretrain.is_scored_in_bytes:
                raise ValueError(
                    f"{told} needs a model that continues text, and {self._objective!r} makes "
                    "none: take 'validation', 'loss' or 'accuracy'"
                )
            other = section.patience_metric.removesuffix("_bits_per_byte")
            if other in ("rehearsal", "outside") and not getattr(self.prepare, other):
                raise ValueError(f"{told} needs prepare.{other}: name files")
        return self

    @model_validator(mode="after")
    def _check_tasks(self) -> Recipe:
        for name, task in self.pretrain.tasks.items():
            if task.text == "rehearsal" and not self.prepare.rehearsal:
                raise ValueError(
                    f"pretrain.tasks.{name}.text = 'rehearsal' needs prepare.rehearsal: name files"
                )
        return self

    def _check_special_tokens(self, key: str, part: PretrainConfig) -> None:
        missing = [each for each in part.special_tokens if each not in self.tokenize.extra_tokens]
        if missing:
            others = f" and {len(missing) - 1} more up to {missing[-1]!r}" if missing[1:] else ""
            raise ValueError(
                f"{key} = {self.pretrain.objectives[key]!r} needs {missing[0]!r}{others}: "
                "add to tokenize.extra_tokens"
            )

    def _check_order_is_kept(self, key: str) -> None:
        """Layers that take in the order of the row would show what is not revealed yet."""
        others = sorted(set(self.model.mixers) - {"attention"})
        if others:
            raise ValueError(
                f"{key} = 'permutation' needs attention in all layers: model.mixers "
                f"has {', '.join(map(repr, others))}"
            )
        if self.model.positions in ("relative", "none"):
            raise ValueError(
                f"{key} = 'permutation' asks for tokens by their positions: "
                f"model.positions = {self.model.positions!r} does not tell them, 'rotary', "
                "'learned' and 'sinusoidal' do"
            )
