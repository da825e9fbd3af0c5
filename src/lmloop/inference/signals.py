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
PROMPT_ROWS = 128
"""Prompt tokens that are gathered for one product with the head."""
ANSWER_ROWS = 64
"""Answers' tokens that are gathered for one pass over their logits."""
BLOCK_NUMBERS = 1 << 17
"""Logits of one pass: so few that what is made of them stays in the processor's cache."""
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
    num_read: int = 0
    """Prompt tokens whose nats are asked for so far."""
    num_scored: int = 0
    """Those of them whose nats are summed."""
    prompt_nats: float = 0.0
    num_steps: int = 0
    log_probability: float = 0.0
    entropy: float = 0.0


class Meter:
    """Measures the requests of one engine, many rows at once: every operation has a price a call.

    Rows wait until there are enough of them, or a request that they belong to is over.
    """

    def __init__(self, project: Callable[[Tensor], Tensor], *, hidden_size: int) -> None:
        self._project = project
        self._matrix = projection(hidden_size)
        self._prompts: list[tuple[Tally, Tensor, list[int]]] = []
        """Hidden states [n, D] of prompts and the tokens that follow them."""
        self._answers: list[tuple[Sequence[Tally], Tensor, Sequence[int]]] = []
        """Logits [n, V] of steps and the tokens chosen from them."""

    def read_prompt(self, tally: Tally, hidden: Tensor, *, start: int) -> None:
        """Take hidden states [n, D] of the prompt's tokens from position `start` on."""
        tally.hidden = tally.hidden + hidden.sum(0, dtype=torch.float32)
        stop = start + len(hidden)
        spread = spread_positions(len(tally.prompt) - 1, limit=PROMPT_POSITIONS)
        positions = [place for place in spread if start <= place < stop]
        if positions:
            states = hidden[[place - start for place in positions]]
            self._prompts.append((tally, states, [tally.prompt[each + 1] for each in positions]))
            tally.num_read += len(positions)
        if sum(len(targets) for _, _, targets in self._prompts) >= PROMPT_ROWS:
            self._score_prompts()

    def note_answers(self, tallies: Sequence[Tally], logits: Tensor, tokens: Sequence[int]) -> None:
        """Take one step of n answers: fp32 logits [n, V], kept, and the tokens chosen from them."""
        self._answers.append((tallies, logits, tokens))
        if sum(len(tokens) for _, _, tokens in self._answers) >= ANSWER_ROWS:
            self._score_answers()

    def finish(self, tally: Tally) -> Signals | None:
        """The signals of a request whose answer is whole; None where one is not finite."""
        if tally.num_scored < tally.num_read:
            self._score_prompts()
        self._score_answers()
        mean = torch.as_tensor(tally.hidden) / len(tally.prompt)
        signals = Signals(
            tally.prompt_nats / tally.num_scored if tally.num_scored else None,
            tally.log_probability / tally.num_steps,
            tally.entropy / tally.num_steps,
            tuple((mean @ self._matrix).half().tolist()),
        )
        sums = signals.prompt_nats or 0.0, signals.log_probability, signals.entropy
        return signals if all(map(math.isfinite, (*sums, *signals.embedding))) else None

    def _score_prompts(self) -> None:
        """Nats of all prompt tokens that wait, with one product with the head for all of them."""
        waiting, self._prompts = self._prompts, []
        tokens = [token for _, _, tokens in waiting for token in tokens]
        logits = self._project(torch.cat([states for _, states, _ in waiting])).float()
        rows = max(1, BLOCK_NUMBERS // logits.shape[-1])
        blocks = (logits[first : first + rows] for first in range(0, len(tokens), rows))
        tallies = (tally for tally, _, tokens in waiting for _ in tokens)
        for tally, (log_probability, _) in zip(tallies, measure(blocks, tokens), strict=True):
            tally.num_scored += 1
            tally.prompt_nats -= log_probability

    def _score_answers(self) -> None:
        """Log-probability and entropy of all steps that wait."""
        waiting, self._answers = self._answers, []
        tokens = [token for _, _, tokens in waiting for token in tokens]
        measured = measure(_join([logits for _, logits, _ in waiting]), tokens)
        tallies = (tally for tallies, _, _ in waiting for tally in tallies)
        for tally, (log_probability, entropy) in zip(tallies, measured, strict=True):
            tally.num_steps += 1
            tally.log_probability += log_probability
            tally.entropy += entropy


def _join(steps: Sequence[Tensor]) -> Iterator[Tensor]:
    """Logits of steps in blocks: a few rows are put together, many stay where they are."""
    block: list[Tensor] = []
    for number, logits in enumerate(steps, start=1):
        block.append(logits)
        if sum(map(torch.numel, block)) >= BLOCK_NUMBERS // 2 or number == len(steps):
            yield block[0] if len(block) == 1 else torch.cat(block)
            block = []


def spread_positions(count: int, *, limit: int) -> Sequence[int]:
    """At most `limit` of the places 0 … count - 1, the middles of as many equal stretches.

    Always the same for the same count, and no part of a prompt counts for more than another.
    """
    if count <= limit:
        return range(count)
    return [(2 * index + 1) * count // (2 * limit) for index in range(limit)]


def measure(blocks: Iterable[Tensor], tokens: Sequence[int]) -> Iterator[tuple[float, float]]:
    """Natural log-probability and entropy in nats of each of n tokens, given blocks of their rows
    of fp32 logits: together [n, V].

    With S = Σ exp(x) over a row x: log p = x[token] - log S, H = log S - Σ exp(x) x / S.
    """
    first = 0
    for block in blocks:
        logits = block
        totals, weighted = _sum_weights(logits)
        # Nearly always so: then nobody has to look for the largest logit of every row first.
        if not 1 / SAFE_TOTAL < min(totals) <= max(totals) < SAFE_TOTAL:
            logits = logits - logits.amax(-1, keepdim=True)
            totals, weighted = _sum_weights(logits)
        chosen = torch.tensor(tokens[first : first + len(logits)])[:, None]
        scores = logits.gather(-1, chosen)[:, 0].tolist()
        first += len(logits)
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
