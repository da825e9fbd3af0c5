"""Word vectors that tell a word's neighbours from others: skip-gram with negative sampling.

Takes: a `WordStream`, options, a seed. Gives: `WordVectors`. The loss is a sum over few rows of two
matrices, so its gradients are written out and added to those rows alone. The same seed gives the
same bits: one thread draws the places while another moves the rows.
Axes: V words, D numbers a word, B places of the text, W places around each, K negatives.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from lmloop.progress import Progress, Silent
from lmloop.tokens.vectors import WordVectors
from lmloop.tokens.words import CHUNK_WORDS, WordStream
from lmloop.training.rows import (
    add_rows,
    finish,
    on_one_thread,
    one_ahead,
    refuse_below_one,
    refuse_not_positive,
    refuse_too_few,
)

Real = TypeVar("Real", bound=np.floating)
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
    threads: int = 1
    """Above 1 they move the same rows without waiting for each other (Niu et al. 2011, Hogwild!):
    faster, and not the same bits twice."""

    def __post_init__(self) -> None:
        refuse_below_one(
            self, "dimensions", "window", "negatives", "epochs", "batch_places", "threads"
        )
        refuse_not_positive(self, "learning_rate", "subsample")


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
    refuse_too_few(stream)
    draw = np.random.default_rng(seed)
    shape = (len(stream.words), options.dimensions)
    inputs = draw.random(shape, dtype=np.float32) - np.float32(0.5)
    inputs /= options.dimensions
    outputs = np.zeros(shape, dtype=np.float32)
    pieces = range(0, len(stream.ids), CHUNK_WORDS)
    begins = [
        epoch * len(stream.ids) + begin for epoch in range(options.epochs) for begin in pieces
    ]
    total = options.epochs * len(stream.ids)
    batches = _Batches(stream, options)

    def learn(begin: int, generator: np.random.Generator) -> int:
        for done, batch in one_ahead(batches.draw(begin, generator)):
            rate = options.learning_rate * max(1 - done / total, 0.004)
            _step(inputs, outputs, batch, rate=np.float32(rate))
        return begin

    shown = (progress or Silent()).task("skip-gram", total=total, unit="words")
    with on_one_thread(), shown as task, ThreadPoolExecutor(options.threads) as workers:
        for begin in workers.map(learn, begins, draw.spawn(len(begins))):
            task.update(begin)
    return finish(stream, inputs)


@dataclass(frozen=True, slots=True)
class SkipGramBatch:
    """Ids of the rows that one step touches."""

    around: NDArray[np.int64]
    """[B, W] the words around each place; their rows of the input matrix are learnt."""
    counted: NDArray[np.float32]
    """[B, W] 1 where there is a word, else 0."""
    outputs: NDArray[np.int64]
    """[B, 1 + K] the word of the place, then its negatives."""
    valid: NDArray[np.float32]
    """[B, 1 + K] 0 where a negative is the word itself, else 1."""


def skip_gram_gradients(
    around: NDArray[Real], outputs: NDArray[Real], *, counted: NDArray[Real], valid: NDArray[Real]
) -> tuple[NDArray[Real], NDArray[Real]]:
    """Gradients of the summed loss in nats, for the input rows and the output rows.

    around: [B, W, D]; outputs: [B, 1 + K, D], the true word first; counted [B, W] and valid
    [B, 1 + K] are 0 where a pair does not count. Loss of a pair: -log sigmoid(u·v), of a negative
    one -log sigmoid(-u·v) (Mikolov et al. 2013, equation 4).
    """
    # NumPy's products of many small matrices take half the time of torch.bmm's.
    slopes = expit(around @ outputs.swapaxes(1, 2))
    slopes[:, :, 0] -= 1
    slopes *= counted[:, :, None] * valid[:, None, :]
    return slopes @ outputs, slopes.swapaxes(1, 2) @ around


def _step(
    inputs: NDArray[np.float32],
    outputs: NDArray[np.float32],
    batch: SkipGramBatch,
    *,
    rate: np.float32,
) -> None:
    towards, away = skip_gram_gradients(
        inputs.take(batch.around, axis=0),
        outputs.take(batch.outputs, axis=0),
        counted=batch.counted * -rate,
        valid=batch.valid,
    )
    add_rows(inputs, batch.around, towards)
    add_rows(outputs, batch.outputs, away)


class _Batches:
    """Draws the places of the text that the steps learn from."""

    def __init__(self, stream: WordStream, options: SkipGramOptions) -> None:
        self._stream, self._options = stream, options
        self._chances = np.cumsum(stream.counts.astype(np.float64) ** NEGATIVE_POWER)
        self._kept_shares = _kept_shares(stream.counts, options.subsample)

    def draw(self, begin: int, draw: np.random.Generator) -> Iterator[tuple[int, SkipGramBatch]]:
        """Batches of one chunk, each with the number of words gone through before it.

        `begin` counts words over all epochs.
        """
        words, sentences = self._stream.cut(begin % len(self._stream.ids), CHUNK_WORDS)
        length = len(words)
        kept = draw.random(length) < self._kept_shares[words]
        words, sentences = words[kept], sentences[kept]
        chosen = list(self._choose_places(len(words), draw))
        for at, number in enumerate(draw.permutation(len(chosen))):
            window, places = chosen[number]
            batch = self._gather(words, sentences, places, window, draw)
            yield begin + length * at // len(chosen), batch

    def _choose_places(
        self, count: int, draw: np.random.Generator
    ) -> Iterator[tuple[int, NDArray[np.int64]]]:
        """Every place once, in batches of one window, so that no place is padded to the largest."""
        # Neighbouring places touch the same rows; in one sum they would overshoot.
        order = draw.permutation(count)
        windows = draw.integers(1, self._options.window + 1, size=count)
        for window in range(1, self._options.window + 1):
            places = order[windows == window]
            for at in range(0, len(places), self._options.batch_places):
                yield window, places[at : at + self._options.batch_places]

    def _gather(
        self,
        words: NDArray[np.int32],
        sentences: NDArray[np.int64],
        places: NDArray[np.int64],
        window: int,
        draw: np.random.Generator,
    ) -> SkipGramBatch:
        distances = np.arange(1, window + 1)
        around = places[:, None] + np.concatenate([-distances[::-1], distances])
        inside = np.clip(around, 0, len(words) - 1)
        counted = (around == inside) & (sentences[inside] == sentences[places][:, None])
        drawn = draw.random((len(places), self._options.negatives)) * self._chances[-1]
        negatives = np.searchsorted(self._chances, drawn, side="right")
        outputs = np.empty((len(places), 1 + self._options.negatives), dtype=np.int64)
        outputs[:, 0] = words[places]
        np.minimum(negatives, len(self._chances) - 1, out=outputs[:, 1:])
        valid = outputs != outputs[:, :1]
        valid[:, 0] = True
        return SkipGramBatch(
            around=words[inside].astype(np.int64),
            counted=counted.astype(np.float32),
            outputs=outputs,
            valid=valid.astype(np.float32),
        )


def _kept_shares(counts: NDArray[np.int64], subsample: float | None) -> NDArray[np.float64]:
    """[V] chance that a place of a word is kept: the published program's, not the paper's."""
    if subsample is None:
        return np.ones(len(counts))
    over = counts / (subsample * counts.sum())
    return np.asarray(np.minimum(1.0, (np.sqrt(over) + 1) / over), dtype=np.float64)
