"""What a recipe may say of the time after serving: watch, collect, update, gate, roll out.

A docstring stands under every field: it is the help on the command line as well.
"""

from __future__ import annotations

import re

from pydantic import Field, field_validator, model_validator

from lmloop.learning import TrainConfig
from lmloop.sections import NAME_PATTERN, Section, parse_duration

OWN_SETS = ("target", "general", "twin", "target_twin")
"""Names that the gate gives itself, so that no guard may be called so."""


class MonitorConfig(Section):
    """Traffic to signals and drift alarms."""

    window_requests: int = Field(default=100, ge=30)
    """Requests that are compared with the reference at a time."""
    reference_requests: int = Field(default=1000, ge=100)
    """Live requests that become the reference; until so many have come, it is training text."""
    false_alarms: float = Field(default=0.001, gt=0, le=0.05)
    """Chance that one window of unchanged traffic looks changed, all tests together."""
    windows_in_a_row: int = Field(default=2, ge=1)
    """So many changed windows, one after the other, raise an alarm."""
    min_effect: float = Field(default=0.1, ge=0, le=1)
    """Smaller changes raise no alarm, however certain: distances and differences of shares."""
    min_auc: float = Field(default=0.55, ge=0.5, le=1)
    """The same for how well a classifier tells the window's embeddings from the reference's."""


class CollectConfig(Section):
    """Ratings and corrections to a corpus that an update learns from."""

    review: bool = True
    """Only what `lmloop review` accepted is taken; without it, all that passes the rules."""
    require_consent: bool = True
    """Take only exchanges whose sender allowed it with the request."""
    thumbs: bool = True
    """Take answers that were rated up as well, beside corrections."""
    max_per_user: int = Field(default=50, ge=1)
    """Exchanges of one user that may be taken; those without a user count as one."""
    max_user_share: float = Field(default=0.25, gt=0, le=1)
    """Largest share of the corpus that one user may make up."""
    max_per_answer: int = Field(default=3, ge=1)
    """Exchanges that may teach the same answer, or nearly the same, whoever sent them."""
    max_characters: int = Field(default=4000, ge=1)
    """Longer exchanges are dropped."""
    min_exchanges: int = Field(default=48, ge=1)
    """Fewer new exchanges than this open no update; the gate needs its share of them held out."""
    heldout_share: float = Field(default=0.25, gt=0, lt=0.9)
    """Share that only the gate sees, chosen by hash; where the gate has a target file, none is."""


class UpdateConfig(TrainConfig):
    """Live model to candidate: learn what was collected, and old text against forgetting."""

    batch_tokens: int = Field(default=2048, ge=8)
    """Tokens of one optimiser step."""
    row_tokens: int = Field(default=256, ge=8)
    """Length of a packed row, at most the model's context length."""
    matrix_learning_rate: float = Field(default=0.01, gt=0)
    """Peak rate of Muon (hidden matrices)."""
    passes: int = Field(default=20, ge=1)
    """How often the mixture holds each collected exchange; without a budget it is read once."""
    replay_share: float = Field(default=0.95, ge=0, lt=1)
    """Share of the learnt tokens that are old training text."""
    decay_share: float = Field(default=0.8, ge=0, le=1)
    """Share of the budget at the end in which rates fall linearly."""
    validate_every: int = Field(default=100, ge=1)
    """Steps between two measurements of validation bits per byte."""
    save_every: int = Field(default=100, ge=1)
    """Steps between two snapshots: what `kill -9` can cost at most."""

    @property
    def has_budget(self) -> bool:
        """Whether budget, steps or replay is given."""
        return any(given is not None for given in (self.budget, self.steps, self.replay))

    @property
    def watches_feedback(self) -> bool:
        """Whether patience watches collected exchanges, some of which are then not learnt."""
        return self.patience_metric in ("loss", "accuracy")

    @model_validator(mode="after")
    def _check_one_budget(self) -> UpdateConfig:
        if sum(given is not None for given in (self.budget, self.steps, self.replay)) > 1:
            raise ValueError("give at most one of budget (wall clock), steps and replay")
        return self


class GateConfig(Section):
    """Thresholds that a candidate has to meet, sealed with a time before its training begins."""

    target: str | None = None
    """File of conversations that the candidate must be better on; none: held-out feedback."""
    guards: dict[str, str] = Field(default_factory=dict)
    """Further files, by name, that it must not be worse on, beside the corpus's held-out text."""
    min_gain: float = Field(default=0.01, ge=0)
    """Smallest relative fall of bits per byte on the target (0.01 = 1 %)."""
    max_loss: float = Field(default=0.01, gt=0)
    """Largest relative rise of bits per byte on every guard set, its interval included."""
    confidence: float = Field(default=0.95, gt=0.5, lt=1)
    """Of every interval."""
    min_documents: int = Field(default=10, ge=2)
    """A set of fewer documents decides nothing: the candidate is refused."""
    max_documents: int = Field(default=400, ge=10)
    """Documents of a set that are scored, chosen by hash."""
    max_bytes: int = Field(default=120_000, ge=1)
    """Bytes of text of a set that are scored: whole documents, and forty of them in any case."""
    max_slowdown: float = Field(default=0.15, gt=0)
    """Largest relative rise of the time for a token."""
    max_memory_growth: float = Field(default=0.1, ge=0)
    """Largest relative rise of the bytes of weights and of cache a token."""
    max_parity_difference: float = Field(default=0.005, gt=0)
    """Largest relative difference of bits per byte between served and fp32 arithmetic."""
    golden: tuple[str, ...] = Field(default=(), strict=False)
    """Prompts that must be answered with words, to their end, in two of three answers."""
    openers: int = Field(default=96, ge=4)
    """Held-out first turns that both models answer, at most."""
    min_answer_share: float = Field(default=0.6, gt=0, le=1)
    """Mean length of the candidate's answers over that of the live model's, at least."""
    require_lineage: bool = True
    """Refuse a candidate whose training text is not known."""

    @field_validator("guards")
    @classmethod
    def _check_names(cls, value: dict[str, str]) -> dict[str, str]:
        for name in value:
            if name in OWN_SETS or not re.fullmatch(NAME_PATTERN, name):
                raise ValueError(
                    f"{name!r} cannot name a guard: give lower case, digits, '.', '_' and '-', "
                    f"none of {', '.join(OWN_SETS)}"
                )
        return value


class RolloutConfig(Section):
    """Candidate to live model, a share of the sessions at a time."""

    shadow_requests: int = Field(default=20, ge=0)
    """Requests that the candidate answers unseen before it gets any session; 0 leaves this out."""
    canary_shares: tuple[int, ...] = Field(default=(5, 20), strict=False)
    """Percent of the sessions that the candidate gets, step by step, before all."""
    step_requests: int = Field(default=40, ge=1)
    """Requests that the candidate answers in each step before the next."""
    step_timeout: str = "10m"
    """Longest wait for them; then the step is judged by what has come."""
    watch_requests: int = Field(default=100, ge=0)
    """Requests after the last step that can still call the old model back."""
    false_alarms: float = Field(default=0.01, gt=0, le=0.2)
    """Chance that an equal candidate is called back, all steps and guards together."""
    max_slowdown: float = Field(default=0.5, gt=0)
    """Largest relative rise of the median time for a token on live traffic."""

    @field_validator("canary_shares")
    @classmethod
    def _check_shares(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if list(value) != sorted(set(value)) or not all(1 <= share <= 99 for share in value):
            raise ValueError("give rising whole percents from 1 to 99, such as [5, 20]")
        return value

    @field_validator("step_timeout")
    @classmethod
    def _check_timeout(cls, value: str) -> str:
        parse_duration(value)
        return value


class LoopConfig(Section):
    """When the circle turns by itself."""

    every: str = "1h"
    """Time between two rounds."""
    check_every: str = "10s"
    """Time between two looks at drift."""
    on_alarm: bool = True
    """A drift alarm opens a round at once."""
    on_feedback: int | None = Field(default=None, ge=1)
    """So many new exchanges ready for collection open a round at once."""
    updates: bool = True
    """Whether rounds train; without it the loop only watches, collects and reports."""

    @field_validator("every", "check_every")
    @classmethod
    def _check_duration(cls, value: str) -> str:
        parse_duration(value)
        return value

    @model_validator(mode="after")
    def _check_order(self) -> LoopConfig:
        if parse_duration(self.check_every) > parse_duration(self.every):
            raise ValueError("check_every is longer than every")
        return self
