"""Word vectors from a text: skip-gram with negative sampling, and GloVe.

Takes: a `WordStream`, options, a seed. Gives: `WordVectors`. Both objectives are sums over few rows
of two matrices, so their gradients are written out and added to those rows alone. On one thread the
same seed gives the same bits.
Axes: V words, D numbers a word, B places of the text, W places around each, K negatives, P pairs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lmloop.errors import TrainingError
from lmloop.progress import Progress, Silent
from lmloop.tokens.vectors import WordVectors
from lmloop.tokens.words import WordStream

CHUNK_WORDS = 1 << 18
"""Words of the text whose pairs are made at once."""
NEGATIVE_POWER = 0.75
"""Of a word's count, for the chance to be drawn as a negative (Mikolov et al. 2013, 2.2)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SkipGramOptions:
    """Names and defaults of the original word2vec."""

    dimensions: int = 100
    window: int = 5
    """Largest distance; each place draws its own from 1 to this."""
    negatives: int = 5
    epochs: int = 5
    learning_rate: float = 0.025
    """Falls linearly to a 250th over all epochs."""
    subsample: float | None = 1e-3
    """Share of the text above which a word is left out at random; None keeps all."""
    batch_places: int = 256
    """Places whose gradients are summed before the rows move."""

    def __post_init__(self) -> None:
        _refuse_below_one(self, "dimensions", "window", "negatives", "epochs", "batch_places")
        _refuse_not_positive(self, "learning_rate", "subsample")


@dataclass(frozen=True, kw_only=True, slots=True)
class GloveOptions:
    """Names and defaults of Pennington et al. 2014, section 4.2."""

    dimensions: int = 100
    window: int = 10
    epochs: int = 50
    learning_rate: float = 0.05
    largest_weight: float = 100.0
    """Cooccurrences from which on a pair weighs 1 (x_max)."""
    weight_power: float = 0.75
    batch_pairs: int = 4096

    def __post_init__(self) -> None:
        _refuse_below_one(self, "dimensions", "window", "epochs", "batch_pairs")
        _refuse_not_positive(self, "learning_rate", "largest_weight", "weight_power")


def _refuse_below_one(options: object, *names: str) -> None:
    for name in names:
        if getattr(options, name) < 1:
            raise TrainingError(f"{name} is {getattr(options, name)}: allowed is 1 and more")


def _refuse_not_positive(options: object, *names: str) -> None:
    for name in names:
        value = getattr(options, name)
        if value is not None and not 0 < value < float("inf"):
            raise TrainingError(f"{name} is {value}: allowed is a number above 0")


def train_skip_gram(
    stream: WordStream,
    *,
    options: SkipGramOptions,
    seed: int,
    progress: Progress | None = None,
) -> WordVectors:
    """Vectors that tell a word's neighbours from words drawn at random.

    Mikolov et al. 2013, "Distributed Representations of Words and Phrases", with the subsampling of
    its published program. The words around one place share that place's negatives (Ji et al. 2016):
    the same expectation, a sixth of the rows. Raises `TrainingError`.
    """
    _refuse_too_few(stream)
    draw = np.random.default_rng(seed)
    shape = (len(stream.words), options.dimensions)
    start = (draw.random(shape, dtype=np.float32) - 0.5) / options.dimensions
    inputs, outputs = torch.from_numpy(start), torch.zeros(shape)
    total = options.epochs * len(stream.ids)
    with (progress or Silent()).task("skip-gram", total=total, unit="words") as task:
        for done, batch in _skip_gram_batches(stream, options, draw):
            rate = options.learning_rate * max(1 - done / total, 0.004)
            _step_skip_gram(inputs, outputs, batch, rate=rate)
            task.update(done)
    return _finish(stream, inputs)


@dataclass(frozen=True, slots=True)
class SkipGramBatch:
    """Ids of the rows that one step touches."""

    around: Tensor
    """[B, W] the words around each place; their rows of the input matrix are learnt."""
    counted: Tensor
    """[B, W] float: 1 where there is a word, else 0."""
    outputs: Tensor
    """[B, 1 + K] the word of the place, then its negatives."""
    valid: Tensor
    """[B, 1 + K] float: 0 where a negative is the word itself."""


def skip_gram_gradients(
    around: Tensor, outputs: Tensor, *, counted: Tensor, valid: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of the summed loss in nats, for the input rows and the output rows.

    around: [B, W, D]; outputs: [B, 1 + K, D], the true word first; counted [B, W] and valid
    [B, 1 + K] are 0 where a pair does not count. Loss of a pair: -log sigmoid(u·v), of a negative
    one -log sigmoid(-u·v) (Mikolov et al. 2013, equation 4).
    """
    slopes = torch.sigmoid(torch.bmm(around, outputs.transpose(1, 2)))
    slopes[:, :, 0] -= 1
    slopes *= counted[:, :, None] * valid[:, None, :]
    return torch.bmm(slopes, outputs), torch.bmm(slopes.transpose(1, 2), around)


def _step_skip_gram(inputs: Tensor, outputs: Tensor, batch: SkipGramBatch, *, rate: float) -> None:
    towards, away = skip_gram_gradients(
        inputs[batch.around], outputs[batch.outputs], counted=batch.counted, valid=batch.valid
    )
    inputs.index_add_(0, batch.around.flatten(), towards.flatten(0, 1), alpha=-rate)
    outputs.index_add_(0, batch.outputs.flatten(), away.flatten(0, 1), alpha=-rate)


def _skip_gram_batches(
    stream: WordStream, options: SkipGramOptions, draw: np.random.Generator
) -> Iterator[tuple[int, SkipGramBatch]]:
    """Batches of all epochs, each with the number of words gone through before it."""
    chances = np.cumsum(stream.counts.astype(np.float64) ** NEGATIVE_POWER)
    kept_share = _kept_shares(stream.counts, options.subsample)
    for epoch in range(options.epochs):
        for begin in range(0, len(stream.ids), CHUNK_WORDS):
            words, sentences = _cut_chunk(stream, begin)
            kept = draw.random(len(words)) < kept_share[words]
            length = len(words)
            words, sentences = words[kept], sentences[kept]
            # Neighbouring places touch the same rows; in one sum they would overshoot.
            places = draw.permutation(len(words))
            for at in range(0, len(places), options.batch_places):
                chosen = places[at : at + options.batch_places]
                done = epoch * len(stream.ids) + begin + length * at // len(places)
                yield done, _gather(words, sentences, chosen, chances, options, draw)


def _gather(
    words: NDArray[np.int32],
    sentences: NDArray[np.int64],
    places: NDArray[np.int64],
    chances: NDArray[np.float64],
    options: SkipGramOptions,
    draw: np.random.Generator,
) -> SkipGramBatch:
    distances = np.arange(1, options.window + 1)
    offsets = np.concatenate([-distances[::-1], distances])
    windows = draw.integers(1, options.window + 1, size=len(places))
    around = places[:, None] + offsets
    inside = np.clip(around, 0, len(words) - 1)
    counted = (around == inside) & (sentences[inside] == sentences[places][:, None])
    counted &= np.abs(offsets) <= windows[:, None]
    truth = words[places]
    drawn = draw.random((len(places), options.negatives)) * chances[-1]
    negatives = np.minimum(np.searchsorted(chances, drawn, side="right"), len(chances) - 1)
    outputs = np.concatenate([truth[:, None].astype(np.int64), negatives], axis=1)
    valid = np.concatenate(
        [np.ones((len(places), 1), dtype=np.bool_), negatives != truth[:, None]], axis=1
    )
    return SkipGramBatch(
        around=torch.from_numpy(words[inside].astype(np.int64)),
        counted=torch.from_numpy(counted.astype(np.float32)),
        outputs=torch.from_numpy(outputs),
        valid=torch.from_numpy(valid.astype(np.float32)),
    )


def _kept_shares(counts: NDArray[np.int64], subsample: float | None) -> NDArray[np.float64]:
    """[V] chance that a place of a word is kept: the published program's, not the paper's."""
    if subsample is None:
        return np.ones(len(counts))
    over = counts / (subsample * counts.sum())
    return np.asarray(np.minimum(1.0, (np.sqrt(over) + 1) / over), dtype=np.float64)


def _cut_chunk(stream: WordStream, begin: int) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Words from `begin` on, and the sentence of each."""
    words = stream.ids[begin : begin + CHUNK_WORDS]
    places = np.arange(begin, begin + len(words))
    return words, np.searchsorted(stream.starts, places, side="right")


def count_cooccurrences(
    stream: WordStream, *, window: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Pairs of words within `window` of each other in a sentence, each meeting at distance d 1/d.

    Gives rows [P], columns [P] and weights [P], both orders of a pair, sorted by row and column
    (Pennington et al. 2014, section 4.2).
    """
    size = len(stream.words)
    keys = np.zeros(0, dtype=np.int64)
    weights = np.zeros(0, dtype=np.float64)
    for begin in range(0, len(stream.ids), CHUNK_WORDS):
        words, sentences = _cut_chunk(stream, begin)
        # The window of the next chunk's first words reaches back into this one.
        tail = stream.ids[begin + len(words) : begin + len(words) + window]
        beyond = np.arange(begin + len(words), begin + len(words) + len(tail))
        words_on = np.concatenate([words, tail]).astype(np.int64)
        sentences_on = np.concatenate(
            [sentences, np.searchsorted(stream.starts, beyond, side="right")]
        )
        new_keys, new_weights = [keys], [weights]
        for distance in range(1, window + 1):
            count = min(len(words), len(words_on) - distance)
            if count < 1:
                break
            left, right = words_on[:count], words_on[distance : distance + count]
            same = sentences_on[:count] == sentences_on[distance : distance + count]
            low, high = np.minimum(left, right)[same], np.maximum(left, right)[same]
            new_keys.append(low * size + high)
            new_weights.append(np.full(len(low), 1.0 / distance))
        keys, weights = _merge(np.concatenate(new_keys), np.concatenate(new_weights))
    low, high = np.divmod(keys, size)
    apart = low != high
    # A word beside itself is met from both sides.
    weights = np.where(apart, weights, 2 * weights)
    rows = np.concatenate([low, high[apart]])
    columns = np.concatenate([high, low[apart]])
    order = np.lexsort((columns, rows))
    return rows[order], columns[order], np.concatenate([weights, weights[apart]])[order]


def _merge(
    keys: NDArray[np.int64], weights: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Each key once, sorted, with the sum of its weights."""
    order = np.argsort(keys, kind="stable")
    keys, weights = keys[order], weights[order]
    first = np.flatnonzero(np.diff(keys, prepend=-1))
    return keys[first], np.add.reduceat(weights, first) if len(first) else weights


def train_glove(
    stream: WordStream,
    *,
    options: GloveOptions,
    seed: int,
    progress: Progress | None = None,
) -> WordVectors:
    """Vectors whose products give the logarithms of how often words meet.

    Pennington et al. 2014, "GloVe", with AdaGrad; the sum of a word's two vectors. Raises
    `TrainingError`.
    """
    _refuse_too_few(stream)
    rows, columns, weights = count_cooccurrences(stream, window=options.window)
    if not len(rows):
        raise TrainingError("no two words stand in one sentence: give longer sentences")
    size = len(stream.words)
    draw = np.random.default_rng(seed)
    # One matrix for both sides, the bias as the last number of each row.
    start = draw.random((2 * size, options.dimensions + 1), dtype=np.float32) - 0.5
    table = torch.from_numpy(start / (options.dimensions + 1))
    squares = torch.ones_like(table)
    ids = torch.from_numpy(np.stack([rows, columns + size]))
    logs = torch.from_numpy(np.log(weights).astype(np.float32))
    capped = np.minimum(weights / options.largest_weight, 1.0) ** options.weight_power
    shares = torch.from_numpy(capped.astype(np.float32))
    total = options.epochs * len(rows)
    with (progress or Silent()).task("glove", total=total, unit="pairs") as task:
        for epoch in range(options.epochs):
            order = torch.from_numpy(draw.permutation(len(rows)))
            for at in range(0, len(rows), options.batch_pairs):
                chosen = order[at : at + options.batch_pairs]
                left, right = glove_gradients(
                    *table[ids[:, chosen]], logs=logs[chosen], shares=shares[chosen]
                )
                touched = ids[:, chosen].flatten()
                _step_adagrad(
                    table, squares, touched, torch.cat([left, right]), rate=options.learning_rate
                )
                task.update(epoch * len(rows) + at)
    return _finish(stream, table[:size, :-1] + table[size:, :-1])


def glove_gradients(
    left: Tensor, right: Tensor, *, logs: Tensor, shares: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of the sum over pairs of share · (w·c + b + b' - log x)² / 2.

    left, right: [P, D + 1], the bias last; logs and shares: [P] (Pennington et al. 2014,
    equation 8; the half is the published program's).
    """
    products = (left[:, :-1] * right[:, :-1]).sum(1)
    slopes = shares * (products + left[:, -1] + right[:, -1] - logs)
    towards_left, towards_right = slopes[:, None] * right, slopes[:, None] * left
    towards_left[:, -1] = towards_right[:, -1] = slopes
    return towards_left, towards_right


def _step_adagrad(
    table: Tensor, squares: Tensor, touched: Tensor, gradients: Tensor, *, rate: float
) -> None:
    """Every pair moves its rows by its own gradient, over the root of all squares so far."""
    squares.index_add_(0, touched, gradients.square())
    table.index_add_(0, touched, gradients / squares[touched].sqrt_(), alpha=-rate)


def _refuse_too_few(stream: WordStream) -> None:
    if len(stream.words) < 2:
        raise TrainingError(
            f"vectors of {len(stream.words)} word tell nothing: add text or lower min_count"
        )


def _finish(stream: WordStream, matrix: Tensor) -> WordVectors:
    if not torch.isfinite(matrix).all():
        raise TrainingError("the vectors became infinite: lower learning_rate or the batch")
    return WordVectors(stream.words, matrix.numpy())
