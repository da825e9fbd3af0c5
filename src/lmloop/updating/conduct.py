"""The checks of conduct: both models answer the same people, and their answers are laid together.

Takes: two models of one tokenizer, held-out text and golden prompts. Gives: answers in pairs, and
checks: long enough, ended by the model itself, without repetition, golden prompts answered.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from lmloop.evaluation.answers import Exchange, Opener, answer_openers, choose_openers
from lmloop.evaluation.metrics import repeats, words
from lmloop.inference.load import LoadedModel
from lmloop.inference.sampling import Sampling
from lmloop.progress import Progress
from lmloop.records import Record, Turn
from lmloop.updating.checks import Check, Measure
from lmloop.updating.statistics import chance_of_more, relative_change
from lmloop.upkeep import GateConfig

SAMPLING = Sampling(max_tokens=96, temperature=0.7, top_p=0.9)
"""How people are answered unless they ask otherwise."""
GOLDEN_ANSWERS = 3
"""Answers to each golden prompt; most of them have to be good."""
FEWEST_OPENERS = 4
"""Fewer held-out openers say nothing of answers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """One question and both models' answers, drawn with the same seed."""

    live: Exchange
    candidate: Exchange

    def to_json(self) -> dict[str, object]:
        """As written into a verdict."""
        return {
            "opener": self.live.opener,
            "live": self.live.answer,
            "candidate": self.candidate.answer,
            "live_finish_reason": self.live.finish_reason,
            "candidate_finish_reason": self.candidate.finish_reason,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Conduct:
    """All answers of both."""

    openers: tuple[Pair, ...]
    golden: tuple[Pair, ...]
    """`GOLDEN_ANSWERS` pairs for each golden prompt, in order."""


def choose_questions(
    config: GateConfig, records: Sequence[Record], model: LoadedModel
) -> tuple[list[Opener], list[Opener]]:
    """Openers of held-out `records`, and each golden prompt as often as it is to be answered."""
    openers = choose_openers(records, model, limit=config.openers, max_tokens=SAMPLING.max_tokens)
    golden = [_ask(prompt, model) for prompt in config.golden for _ in range(GOLDEN_ANSWERS)]
    return openers, golden


def _ask(prompt: str, model: LoadedModel) -> Opener:
    if model.require_tokenizer().chat_template is None:
        tokens = model.require_tokenizer().encode_document(prompt)
    else:
        tokens = model.template.encode([Turn("user", prompt)])
    return Opener(prompt, tokens, None)


def compare_answers(
    openers: Sequence[Opener],
    golden: Sequence[Opener],
    *,
    candidate: LoadedModel,
    live: LoadedModel,
    seed: int,
    progress: Progress,
) -> Conduct:
    """Let both answer the same questions with the same seeds."""
    asked = [*openers, *golden]
    answers = [
        answer_openers(model, asked, sampling=SAMPLING, seed=seed, progress=progress)
        for model in (live, candidate)
    ]
    pairs = tuple(Pair(live=old, candidate=new) for old, new in zip(*answers, strict=True))
    return Conduct(openers=pairs[: len(openers)], golden=pairs[len(openers) :])


def check_answers(config: GateConfig, conduct: Conduct, *, seed: int) -> Check:
    """Whether the candidate still answers: not much shorter, and no oftener with nothing."""
    pairs = conduct.openers
    if len(pairs) < FEWEST_OPENERS:
        reason = f"answers decide nothing: the held-out text has {len(pairs)} openers"
        return Check(name="answers", passed=False, reason=reason, numbers={"openers": len(pairs)})
    lengths = np.asarray(
        [[pair.candidate.num_tokens, pair.live.num_tokens] for pair in pairs], dtype=np.float64
    )
    # A pair in which the live model says nothing tells nothing of length.
    lengths = lengths[lengths[:, 1] > 0]
    if len(lengths) < FEWEST_OPENERS:
        reason = "answers decide nothing: the live model gives none"
        return Check(name="answers", passed=False, reason=reason, numbers={"openers": len(pairs)})
    change = relative_change(lengths[:, 0], lengths[:, 1], confidence=config.confidence, seed=seed)
    share, low, high = 1 + change.value, 1 + change.low, 1 + change.high
    empty = _count(pairs, lambda each: not each.answer.strip())
    failures = [
        *(["shorter answers"] if low < config.min_answer_share else []),
        *(["more empty answers"] if empty.is_worse(config) else []),
    ]
    means = lengths.mean(axis=0)
    told = (
        f"mean length {means[1]:.1f} → {means[0]:.1f} tokens, {share:.0%} ({low:.0%} to "
        f"{high:.0%}), wanted is {config.min_answer_share:.0%}; {empty} empty; {len(pairs)} openers"
    )
    length = Measure(
        what="mean length over the live model's",
        value=share,
        unit="share",
        low=low,
        high=high,
        limit=config.min_answer_share,
        count=change.documents,
    )
    return Check(
        name="answers",
        passed=not failures,
        reason=f"{' and '.join(failures)}: {told}" if failures else told,
        measures=(length, *empty.measures("empty answers")),
    )


def check_endings(config: GateConfig, conduct: Conduct) -> Check:
    """Whether answers end by themselves and do not repeat, and golden prompts are answered."""
    endless = _count(conduct.openers, lambda each: each.finish_reason != "stop")
    repeated = _count(conduct.openers, lambda each: repeats(each.answer))
    failures = [
        *(["answers that do not end"] if endless.is_worse(config) else []),
        *(["answers that repeat"] if repeated.is_worse(config) else []),
    ]
    unanswered = _unanswered(conduct.golden)
    if unanswered:
        failures.append(f"golden prompt {unanswered[0]!r} is not answered with words to its end")
    told = f"{endless} cut by length, {repeated} repeat four words; {len(conduct.openers)} openers"
    if conduct.golden:
        prompts = len(conduct.golden) // GOLDEN_ANSWERS
        told += f"; {prompts - len(unanswered)} of {prompts} golden prompts answered"
    return Check(
        name="endings",
        passed=not failures,
        reason=f"{' and '.join(failures)}: {told}" if failures else told,
        measures=(
            *endless.measures("answers cut by length"),
            *repeated.measures("answers that repeat four words"),
        ),
        numbers={"golden_unanswered": unanswered},
    )


def _unanswered(pairs: Sequence[Pair]) -> list[str]:
    """Golden prompts to which fewer than most answers have words and an end."""
    found = []
    for start in range(0, len(pairs), GOLDEN_ANSWERS):
        answers = [pair.candidate for pair in pairs[start : start + GOLDEN_ANSWERS]]
        good = sum(each.finish_reason == "stop" and bool(words(each.answer)) for each in answers)
        if 2 * good <= len(answers):
            found.append(answers[0].opener)
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shares:
    """How often something bad happens to both models."""

    live: float
    candidate: float
    chance: float
    """Of a rise like this between models that are alike."""
    count: int

    def __str__(self) -> str:
        return f"{self.live:.0%} → {self.candidate:.0%}"

    def is_worse(self, config: GateConfig) -> bool:
        """Whether it happens oftener to the candidate, beyond chance."""
        return self.chance < (1 - config.confidence) / 2

    def measures(self, what: str) -> tuple[Measure, ...]:
        return tuple(
            Measure(what=f"{what}, {who}", value=value, unit="share", count=self.count)
            for who, value in (("live", self.live), ("candidate", self.candidate))
        )


def _count(pairs: Sequence[Pair], is_bad: Callable[[Exchange], bool]) -> _Shares:
    now = [is_bad(pair.candidate) for pair in pairs]
    before = [is_bad(pair.live) for pair in pairs]
    total = max(1, len(pairs))
    return _Shares(
        live=sum(before) / total,
        candidate=sum(now) / total,
        chance=chance_of_more(now, before),
        count=len(pairs),
    )
