"""A model that begins with what a text says of pairs of tokens: which follows which, how often.

Takes: a new model of next tokens, ids in order. Gives: its embedding and head filled in place. The
blocks of a new model add nothing yet, so that it is a bigram model of low rank from its first step
on, and learns the rest. Axes: V vocabulary, D width, P pairs.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array
from torch import Tensor

from lmloop.errors import TrainingError
from lmloop.model.init import initialise
from lmloop.model.transformer import Transformer
from lmloop.tokens.shards import Shards

SMOOTHING = 20.0
"""How many times a token counts as seen before any other, after frequencies, on top of its own."""
COMMON, LEAST, MOST = 0.1, 0.3, 3.0
"""Share of a state that says how frequent tokens are; bounds of a row's weight in the fit."""
LARGEST, FILLED = 0.88, 0.85
"""Most of a state's square that is of the token itself, and that of all but the largest 5 %."""
ROUNDS = 2
"""Power iterations of the singular value decomposition."""
COUNTED = 1 << 25
"""Tokens of the text that are counted at most."""


def count_pairs(ids: NDArray[np.int64], *, vocab_size: int) -> tuple[NDArray[np.int64], ...]:
    """Rows, columns and counts [P] of the pairs of neighbours that occur, sorted."""
    keys, counts = np.unique(ids[:-1] * vocab_size + ids[1:], return_counts=True)
    return *np.divmod(keys, vocab_size), counts


def begin(model: Transformer, shards: Shards, *, start: str, seed: int) -> None:
    """Fill a new model as a recipe's `start` says, from the split that it is to learn."""
    initialise(model, seed=seed)
    if start == "bigrams":
        ids = shards.read(0, min(shards.num_tokens, COUNTED))
        begin_with_bigrams(model, ids, seed=seed)


@torch.no_grad()
def begin_with_bigrams(model: Transformer, ids: NDArray[np.int64], *, seed: int) -> None:
    """Let `model` predict from `ids`, token by token, what follows the one before.

    log P(b | a), smoothed by P(b) (MacKay and Peto 1995, section 2), is log P(b) + log(1 + c(a, b)
    / (αP(b))) up to a number a row, which no softmax sees. The second part is zero for all pairs
    that do not occur; of it the D - 2 largest directions are kept (Levy and Goldberg 2014; Halko
    et al. 2009), the first part is one direction more, and one makes all states equally long, so
    that the last norm changes none. Raises `TrainingError` where the model has no head of its own
    for such states.
    """
    config = model.config
    if model.head is None or config.tie_embeddings or config.hidden_size < 8:
        raise TrainingError("bigrams need a head beside the embedding, and a width of 8 or more")
    draw = torch.Generator().manual_seed(seed)
    vocabulary, width = config.vocab_size, config.hidden_size
    frequency = np.bincount(ids, minlength=vocabulary) + 0.5
    chances = torch.from_numpy(frequency / frequency.sum()).float()
    weights = torch.from_numpy(np.sqrt(frequency / frequency.mean())).float().clamp(LEAST, MOST)
    rows, columns, counts = count_pairs(ids, vocab_size=vocabulary)
    gains = np.log1p(counts / (SMOOTHING * chances.numpy()[columns])) * weights.numpy()[rows]
    places = (rows, columns)
    matrix = csr_array((gains.astype(np.float32), places), shape=(vocabulary, vocabulary))
    rank = min(width, vocabulary) - 2
    before, sizes, after = _decompose(matrix, rank, draw=draw)
    states, heads = _lay_out(
        before / weights[:, None] * sizes.sqrt(), after * sizes.sqrt(), chances.log(), width=width
    )
    # No number of a state is special to norms and products behind: turn them all.
    turn, _ = torch.linalg.qr(torch.randn(width, rank + 2, generator=draw))
    model.embedding.weight.copy_(states @ turn.T)
    model.head.weight.copy_(heads @ turn.T)


def _lay_out(before: Tensor, after: Tensor, logs: Tensor, *, width: int) -> tuple[Tensor, Tensor]:
    """States and heads [V, r + 2] whose products are `before` · `after` and, for all, `logs` [V].

    Each state has the square D: of how frequent tokens are, of the token, and of nothing.
    """
    usual = before.square().sum(1).quantile(0.95).clamp(min=1e-6)
    grow = (FILLED * width / usual).sqrt()
    before, after = before * grow, after / grow
    before *= (LARGEST * width / before.square().sum(1, keepdim=True)).sqrt().clamp(max=1.0)
    rest = width * (1 - COMMON) - before.square().sum(1, keepdim=True)
    common = (COMMON * width) ** 0.5
    states = torch.cat([torch.full_like(rest, common), rest.clamp(min=0).sqrt(), before], dim=1)
    heads = [(logs - logs.mean())[:, None] / common, torch.zeros_like(rest), after]
    return states, torch.cat(heads, dim=1)


def _decompose(matrix: csr_array, rank: int, *, draw: torch.Generator) -> tuple[Tensor, ...]:
    """The largest singular values [r] of a sparse [V, V], between their vectors, [V, r] each.

    Source: Halko, Martinsson and Tropp 2009, algorithms 4.4 and 5.1.
    """
    turned = matrix.T.tocsr()

    def project(sparse: csr_array, basis: Tensor) -> Tensor:
        return torch.from_numpy(sparse @ basis.numpy())

    basis, _ = torch.linalg.qr(project(matrix, torch.randn(matrix.shape[1], rank, generator=draw)))
    for _ in range(ROUNDS):
        other, _ = torch.linalg.qr(project(turned, basis))
        basis, _ = torch.linalg.qr(project(matrix, other))
    left, sizes, right = torch.linalg.svd(project(turned, basis).T, full_matrices=False)
    return basis @ left, sizes, right.T
