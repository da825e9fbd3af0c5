"""What the served model itself says of a request: surprise, certainty, and where the prompt lies.

Takes: hidden states of prompts and logits of answers, as the engine makes them. Gives: `Signals`
for a request's last piece. Nothing here changes an answer. Axes: n rows of one step, V vocabulary,
D width of the model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

EMBEDDING_SIZE = 64
"""Numbers of a prompt's embedding."""
PROMPT_POSITIONS = 16
"""Most prompt tokens whose nats are taken: a longer prompt costs no more than one of this length.

On prompts of small talk with 5 to 512 tokens the mean of so many is 0.4 nats off the mean of all,
without bias, where prompts differ by 0.9: a correlation of 0.91.
"""
ANSWER_ROWS = 128
"""Answers' tokens that are gathered for one pass over their logits."""
HELD_NUMBERS = 1 << 21
"""Most logits that are made or held for it at once; those of one step are always held."""
BLOCK_NUMBERS = (1 << 15) - 1
"""Logits of one operation: so few that no second thread is woken for them, which takes longer than
they do, and that what is made of them stays in the processor's cache."""
SAFE_TOTAL = 1e30
"""A sum of exponentials beyond this, or below its inverse, is taken again in a safe range."""
_PROJECTION_SEED = 0


@dataclass(frozen=True, slots=True)
class Signals:
    """What was measured of one request; all of it finite."""

    prompt_nats: float | None
    """Mean nats a predicted prompt token, that is all but the first, or `PROMPT_POSITIONS` of them,
    evenly spread. None for a prompt of one token."""
    log_probability: float
    """Mean natural log-probability of the answer's chosen tokens, the stop token included, at
    temperature 1 whatever they were drawn with."""
    entropy: float
    """Mean nats of the distributions they were chosen from, at temperature 1."""
    embedding: tuple[float, ...]
    """Mean last hidden state over the prompt, projected to `EMBEDDING_SIZE` numbers that float16
    holds exactly."""


@dataclass(slots=True, eq=False)
class Tally:
    """Sums of one request under way."""

    prompt: Sequence[int]
    hidden: Tensor | float = 0.0
    """Sum of the prompt's last hidden states, fp32 [D]."""
    num_scored: int = 0
    """Prompt tokens whose nats are summed."""
    prompt_nats: float = 0.0
    num_steps: int = 0
    log_probability: float = 0.0
    entropy: float = 0.0


class Meter:
    """Measures the requests of one engine, many rows at once: every operation has a price a call.

    Rows of answers wait until there are enough of them, or a request is over.
    """

    def __init__(
        self, project: Callable[[Tensor], Tensor], *, hidden_size: int, vocab_size: int
    ) -> None:
        self._project = project
        self._vocab_size = vocab_size
        self._matrix = projection(hidden_size)
        self._logits = torch.empty(0, vocab_size)
        """Room for logits of answers, fp32; those of `_answers` come first."""
        self._answers: list[tuple[Tally, int]] = []
        """The tokens that were chosen from them."""

    def read_prompts(self, hidden: Tensor, parts: Iterable[tuple[Tally, int, int, int]]) -> None:
        """Take a step's hidden states [n, D]; a part is a prompt's tally, the row of its first
        token that is in the step, that token's position in the prompt, and how many follow, itself
        included.
        """
        rows: list[tuple[Tally, int, int]] = []
        for tally, row, start, count in parts:
            tally.hidden = tally.hidden + hidden[row : row + count].sum(0, dtype=torch.float32)
            for place in spread_positions(len(tally.prompt) - 1, limit=PROMPT_POSITIONS):
                if start <= place < start + count:
                    rows.append((tally, row + place - start, tally.prompt[place + 1]))
        self._score_prompts(hidden, rows)

    def hold(self, logits: Tensor) -> Tensor:
        """Logits [n, V] of one step in fp32, valid until the next step's are held."""
        count = len(logits)
        if len(self._answers) + count > len(self._logits):
            self._score_answers()
        if count > len(self._logits):
            rows = max(count, min(ANSWER_ROWS, HELD_NUMBERS // self._vocab_size))
            self._logits = torch.empty(rows, self._vocab_size)
        return self._logits[len(self._answers) :][:count].copy_(logits)

    def note_answers(self, tallies: Iterable[Tally], tokens: Iterable[int]) -> None:
        """Take the tokens that were chosen from the logits held last, one of each row."""
        self._answers.extend(zip(tallies, tokens, strict=True))

    def finish(self, tally: Tally) -> Signals | None:
        """The signals of a request whose answer is whole; None where one is not finite."""
        self._score_answers()
        mean = torch.as_tensor(tally.hidden).cpu() / len(tally.prompt)
        signals = Signals(
            tally.prompt_nats / tally.num_scored if tally.num_scored else None,
            tally.log_probability / tally.num_steps,
            tally.entropy / tally.num_steps,
            tuple((mean @ self._matrix).half().tolist()),
        )
        sums = signals.prompt_nats or 0.0, signals.log_probability, signals.entropy
        return signals if all(map(math.isfinite, (*sums, *signals.embedding))) else None

    def _score_prompts(self, hidden: Tensor, rows: Sequence[tuple[Tally, int, int]]) -> None:
        """Nats of prompt tokens: of each its tally, the row that predicts it, and itself."""
        most = max(1, HELD_NUMBERS // self._vocab_size)
        for some in (rows[first : first + most] for first in range(0, len(rows), most)):
            chosen = torch.tensor([row for _, row, _ in some], device=hidden.device)
            logits = self._project(hidden[chosen]).float()
            measured = measure(logits, [token for _, _, token in some])
            for (tally, _, _), (log_probability, _) in zip(some, measured, strict=True):
                tally.num_scored += 1
                tally.prompt_nats -= log_probability

    def _score_answers(self) -> None:
        """Log-probability and entropy of all steps that wait."""
        waiting, self._answers = self._answers, []
        measured = measure(self._logits[: len(waiting)], [token for _, token in waiting])
        for (tally, _), (log_probability, entropy) in zip(waiting, measured, strict=True):
            tally.num_steps += 1
            tally.log_probability += log_probability
            tally.entropy += entropy


def spread_positions(count: int, *, limit: int) -> Sequence[int]:
    """At most `limit` of the places 0 … count - 1, the middles of as many equal stretches.

    Always the same for the same count, and no part of a prompt counts for more than another.
    """
    if count <= limit:
        return range(count)
    return [(2 * index + 1) * count // (2 * limit) for index in range(limit)]


def measure(logits: Tensor, tokens: Sequence[int]) -> Iterator[tuple[float, float]]:
    """Natural log-probability and entropy in nats of each of n tokens, given fp32 logits [n, V].

    With S = Σ exp(x) over a row x: log p = x[token] - log S, H = log S - Σ exp(x) x / S.
    """
    if not tokens:
        return
    chosen = logits.gather(-1, torch.tensor(tokens, device=logits.device)[:, None])[:, 0].tolist()
    rows = max(1, BLOCK_NUMBERS // logits.shape[-1])
    for first in range(0, len(tokens), rows):
        block, scores = logits[first : first + rows], chosen[first : first + rows]
        totals, weighted = _sum_weights(block)
        # Nearly always so: then nobody has to look for the largest logit of every row first.
        if not 1 / SAFE_TOTAL < min(totals) <= max(totals) < SAFE_TOTAL:
            largest = block.amax(-1, keepdim=True)
            scores = (largest.new_tensor(scores) - largest[:, 0]).tolist()
            totals, weighted = _sum_weights(block - largest)
        for score, total, part in zip(scores, totals, weighted, strict=True):
            log_total = math.log(total)
            yield score - log_total, log_total - part / total


def _sum_weights(logits: Tensor) -> tuple[list[float], list[float]]:
    """Of each row x of logits [n, V]: Σ exp(x) and Σ exp(x) x."""
    weights = logits.exp()
    totals = weights.sum(-1).tolist()
    return totals, weights.mul_(logits).sum(-1).tolist()


def projection(hidden_size: int) -> Tensor:
    """A fixed random matrix [D, `EMBEDDING_SIZE`] that keeps lengths and angles in expectation.

    Source: Johnson and Lindenstrauss 1984; the same for all models of one width.
    """
    generator = torch.Generator().manual_seed(_PROJECTION_SEED)
    matrix = torch.randn(hidden_size, EMBEDDING_SIZE, generator=generator)
    return matrix.div_(EMBEDDING_SIZE**0.5)
