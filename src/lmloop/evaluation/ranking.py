"""hits@1: does the model find the true reply among replies that were given elsewhere?

Takes: held-out conversations. Gives: questions (a context, the true reply, others drawn from other
conversations) and how often the true one is ranked first. A context is read once for all of its
candidates: they branch off behind it and do not see each other. Axes: N packed tokens, H query
heads, K key heads, d width of a head.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lmloop.evaluation.metrics import Metric, bootstrap_ratio
from lmloop.inference.load import LoadedModel
from lmloop.inference.score import token_nats
from lmloop.model.rows import MaskedRow
from lmloop.model.transformer import Transformer
from lmloop.progress import Progress
from lmloop.records import Conversation, Record, Turn
from lmloop.sections import EvaluateConfig
from lmloop.tokens.chat import ChatTemplate

LONGEST_REPLY = 0.25
"""Replies longer than this share of the model's context are no candidates: contexts need room."""
REPLIES_AT_ONCE = 64
SIZE_STEP = 256
"""Numbers of tokens in a forward are multiples of this."""
SCORINGS = ("gain", "mean", "total")
"""Ways to rank candidates, the headline first; see `Ranking.hits`."""
_NOTHING_SAID = (Turn("user", ""),)
"""The context that tells nothing: what a reply is worth by itself is measured behind it."""


@dataclass(frozen=True, slots=True)
class Question:
    """A context with candidates; the first candidate is the true reply."""

    conversation: int
    context: list[int]
    """Ids up to where the assistant begins to speak."""
    candidates: list[int]
    """Numbers of replies in `Questions.replies`."""


@dataclass(frozen=True, slots=True)
class Questions:
    """What the model is asked, every question with the same number of candidates."""

    replies: list[list[int]]
    """Ids of each different reply, its stop token included."""
    asked: list[Question]

    @property
    def num_candidates(self) -> int:
        """Replies to choose from in each question; 0 where there is no question."""
        return len(self.asked[0].candidates) if self.asked else 0


@dataclass(frozen=True, slots=True)
class Ranking:
    """Log-probabilities in nats that the model gives each question's candidates, fp64."""

    given_context: NDArray[np.float64]
    """Total of the reply's tokens behind the context [questions, candidates]."""
    alone: NDArray[np.float64]
    """Total of the same reply behind an empty user turn [questions, candidates]."""
    lengths: NDArray[np.int64]
    """Tokens of the reply [questions, candidates]."""

    def hits(self, scoring: str) -> NDArray[np.float64]:
        """1 where the true reply scores highest, 1/n where n share the first place [questions].

        `scoring`: "gain" = given_context - alone (pointwise mutual information), "mean" =
        given_context a token, "total" = given_context.
        """
        scores = {
            "gain": self.given_context - self.alone,
            "mean": self.given_context / self.lengths,
            "total": self.given_context,
        }[scoring]
        first = scores == scores.max(axis=1, keepdims=True)
        return np.asarray(first[:, 0] / np.maximum(first.sum(axis=1), 1), dtype=np.float64)


def make_questions(
    conversations: Sequence[Conversation],
    template: ChatTemplate,
    *,
    candidates: int,
    limit: int,
    context_length: int,
    seed: int,
) -> Questions:
    """Draw at most `limit` questions with `candidates` replies, fewer where the text has no more.

    No other candidate comes from the question's conversation or has the true reply's text, be it
    in other case or spacing. An older part of a long context is left out, whole turns at a time.
    """
    longest = int(context_length * LONGEST_REPLY)
    replies = _Replies(conversations, template, longest=longest)
    random = np.random.default_rng(seed)
    asked: list[Question] = []
    for place in random.permutation(len(replies.places)):
        conversation, turn, true = replies.places[place]
        before = conversations[conversation].turns[:turn]
        context = fit_context(template, before, max_tokens=context_length - longest)
        if context is not None:
            others = replies.draw(candidates - 1, random, conversation=conversation)
            asked.append(Question(conversation, context, [true, *others]))
        if len(asked) == limit:
            break
    count = min((len(question.candidates) for question in asked), default=0)
    if count < 2:
        return Questions(replies.ids, [])
    return Questions(
        replies.ids, [Question(q.conversation, q.context, q.candidates[:count]) for q in asked]
    )


class _Replies:
    """All different replies of the conversations that are short enough, and where they stand."""

    def __init__(
        self, conversations: Sequence[Conversation], template: ChatTemplate, *, longest: int
    ) -> None:
        self.ids: list[list[int]] = []
        self.places: list[tuple[int, int, int]] = []
        """Conversation, turn and number of each reply to a user."""
        self._owners: list[set[int]] = []
        numbers: dict[str, int] = {}
        for index, conversation in enumerate(conversations):
            for place in _reply_places(conversation.turns):
                text = conversation.turns[place].content
                key = " ".join(text.split()).casefold()
                if key not in numbers:
                    ids = [*template.tokenizer.encode(text), template.tokenizer.stop_ids[0]]
                    if len(ids) > longest:
                        continue
                    numbers[key] = len(self.ids)
                    self.ids.append(ids)
                    self._owners.append(set())
                self._owners[numbers[key]].add(index)
                self.places.append((index, place, numbers[key]))

    def draw(self, count: int, random: np.random.Generator, *, conversation: int) -> list[int]:
        """At most `count` different replies that nobody gave in this conversation."""
        drawn: list[int] = []
        for number in random.permutation(len(self.ids)):
            if len(drawn) == count:
                break
            if conversation not in self._owners[number]:
                drawn.append(int(number))
        return drawn


def _reply_places(turns: Sequence[Turn]) -> list[int]:
    """Where the assistant answers a user."""
    return [
        place
        for place in range(1, len(turns))
        if turns[place].role == "assistant" and turns[place - 1].role == "user"
    ]


def fit_context(
    template: ChatTemplate, turns: Sequence[Turn], *, max_tokens: int
) -> list[int] | None:
    """Ids of the latest turns that fit, from a user's turn on; None where the last does not fit.

    A system turn at the head is always kept.
    """
    head = tuple(turns[:1]) if turns[0].role == "system" else ()
    starts = [place for place, turn in enumerate(turns) if turn.role == "user"]

    def encode(start: int) -> list[int]:
        return template.encode((*head, *turns[start:]))

    # Later starts are shorter, so the first that fits is found by halving.
    place = bisect_left(starts, -max_tokens, key=lambda start: -len(encode(start)))
    return encode(starts[place]) if place < len(starts) else None


def rank(
    model: Transformer, questions: Questions, template: ChatTemplate, *, progress: Progress
) -> Ranking:
    """Score every candidate of every question, in the model's dtype."""
    nothing = template.encode(_NOTHING_SAID)
    used = sorted({number for question in questions.asked for number in question.candidates})
    alone = np.zeros(len(questions.replies))
    with progress.task("hits@1", total=len(questions.asked), unit="questions") as task:
        for start in range(0, len(used), REPLIES_AT_ONCE):
            part = used[start : start + REPLIES_AT_ONCE]
            alone[part] = score_replies(model, nothing, [questions.replies[i] for i in part])
        given = []
        for done, question in enumerate(questions.asked, start=1):
            replies = [questions.replies[number] for number in question.candidates]
            given.append(score_replies(model, question.context, replies))
            task.update(done)
    numbers = np.array([question.candidates for question in questions.asked])
    lengths = np.array([len(reply) for reply in questions.replies])
    return Ranking(np.stack(given), alone[numbers], lengths[numbers])


@torch.inference_mode()
def score_replies(
    model: Transformer, context: Sequence[int], replies: Sequence[Sequence[int]]
) -> NDArray[np.float64]:
    """Total log-probability in nats of each reply behind the same context, fp64 [replies].

    One forward over context and all replies, each at the positions right behind the context.
    """
    tokens, positions = list(context), list(range(len(context)))
    branches, rows = [0] * len(context), []
    for branch, reply in enumerate(replies, start=1):
        # The last context token predicts every reply's first; a reply's last predicts nothing.
        rows += [len(context) - 1, *range(len(tokens), len(tokens) + len(reply) - 1)]
        tokens += reply[:-1]
        positions += range(len(context), len(context) + len(reply) - 1)
        branches += [branch] * (len(reply) - 1)
    targets = [token for reply in replies for token in reply]
    place = partial(_rounded, device=model.device)
    places = place(positions)
    view = MaskedRow(_see_trunk_and_own(place(branches, fill=-1), places), places)
    hidden = model.encode(place(tokens), places, view)[place(rows)]
    nats = token_nats(model, hidden, place(targets))[: len(targets)].cpu().double().numpy()
    ends = np.cumsum([len(reply) for reply in replies])[:-1]
    return np.array([-part.sum() for part in np.split(nats, ends)])


def _rounded(values: list[int], *, device: torch.device, fill: int = 0) -> Tensor:
    """The values and, up to the next multiple of `SIZE_STEP`, the filler; int64.

    The CPU library writes a new kernel for each new size, which takes longer than using it.
    """
    return torch.tensor(values + [fill] * (-len(values) % SIZE_STEP), device=device)


def _see_trunk_and_own(branches: Tensor, positions: Tensor) -> Tensor:
    """bool [N, N]: a token sees the trunk (branch 0) and its own branch, up to itself."""
    own = branches[:, None] == branches
    return ((branches == 0) | own) & (positions <= positions[:, None])


def measure_ranking(
    config: EvaluateConfig,
    model: LoadedModel,
    records: Sequence[Record],
    *,
    seed: int,
    progress: Progress,
) -> tuple[list[Metric], dict[str, Any]]:
    """hits@1 of the true reply and how it was asked; no metric where there are too few replies."""
    conversations = [each for each in records if isinstance(each, Conversation)]
    if not conversations:
        return [], {"questions": 0}
    questions = make_questions(
        conversations,
        model.template,
        candidates=config.candidates,
        limit=config.ranking_questions,
        context_length=model.config.context_length,
        seed=seed,
    )
    if not questions.asked:
        return [], {"questions": 0}
    ranking = rank(model.transformer, questions, model.template, progress=progress)
    hits = {scoring: ranking.hits(scoring) for scoring in SCORINGS}
    metric = Metric(
        name="hits_at_1",
        value=float(hits[SCORINGS[0]].mean()),
        unit="share",
        interval=_interval(questions, hits[SCORINGS[0]], seed=seed),
        reference=1 / questions.num_candidates,
        reference_name="chance",
        explanation=f"how often the true reply ranks first among {questions.num_candidates}, "
        "scored by log p(reply after context) - log p(reply alone); higher is better",
    )
    return [metric], {
        "questions": len(questions.asked),
        "candidates": questions.num_candidates,
        "scoring": SCORINGS[0],
        "hits_at_1": {scoring: float(values.mean()) for scoring, values in hits.items()},
    }


def _interval(questions: Questions, hits: NDArray[np.float64], *, seed: int) -> tuple[float, float]:
    """95 % interval, drawn by conversation: questions of the same one resemble each other."""
    owners = np.array([question.conversation for question in questions.asked])
    counts = np.bincount(owners)
    sums = np.bincount(owners, weights=hits)
    return bootstrap_ratio(sums[counts > 0], counts[counts > 0], seed=seed)
