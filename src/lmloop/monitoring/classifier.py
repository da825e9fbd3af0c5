"""How well a classifier tells two samples of embeddings apart, and how surprising that is.

Takes: embeddings of a reference and of a window, with groups. Gives: the area under the curve of a
cross-fitted linear classifier, and a p-value. Legend: n requests of one sample, N of both, u
groups, D dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaincc

from lmloop.monitoring.statistics import Groups, Numbers, area_under_curve

NUM_FOLDS = 5
RIDGE = 0.2
"""Added to the covariance, as a share of its mean variance."""
MIN_SENDERS = 10.0
"""Samples of fewer senders tell nothing (see `_count_senders`)."""


@dataclass(frozen=True, slots=True)
class Separation:
    """How far apart two samples of embeddings lie."""

    auc: float
    """Chance that the classifier finds a window's request more window-like than a reference's."""
    p: float
    """Chance that means lie so far apart without a change."""


def separate(
    reference: Numbers,
    window: Numbers,
    *,
    reference_groups: Groups,
    window_groups: Groups,
    generator: np.random.Generator,
) -> Separation | None:
    """Compare embeddings [n, D] of two samples; None where one of them has too few senders.

    The classifier is Fisher's linear discriminant with a ridge, cross-fitted: senders, not
    requests, are dealt to `NUM_FOLDS` folds. Its p-value is that of the distance of the two means
    in the classifier's metric (Hotelling's T² with a ridge), see `_distance_p`. The area itself has
    no usable law: folds train on each other's test data, so that by the law of Mann and Whitney
    seven times too many unchanged windows lie beyond three standard deviations.
    """
    groups = [np.unique(each, return_inverse=True)[1] for each in (reference_groups, window_groups)]
    if min(map(_count_senders, groups)) < MIN_SENDERS:
        return None
    whitened = _whiten(np.concatenate([reference, window]).astype(np.float64))
    samples = whitened[: len(reference)], whitened[len(reference) :]
    return Separation(
        auc=_cross_fitted_auc(samples, groups, generator), p=_distance_p(samples, groups)
    )


def _count_senders(groups: Groups) -> float:
    """How many senders of like activity would weigh so unequally: (Σg)² / Σg² (Kish 1965)."""
    sizes = np.bincount(groups)
    return float(sizes.sum() ** 2 / (sizes**2).sum())


def _whiten(rows: Numbers) -> Numbers:
    """Rows [N, D] turned so that their covariance is near the identity; labels play no part."""
    centred = rows - rows.mean(0)
    covariance = centred.T @ centred / len(rows)
    spread = np.trace(covariance) / len(covariance)
    if spread <= 0:
        return np.zeros_like(centred)
    ridged = covariance + RIDGE * spread * np.eye(len(covariance))
    whitened: Numbers = np.linalg.solve(np.linalg.cholesky(ridged), centred.T).T
    return whitened


def _cross_fitted_auc(
    samples: tuple[Numbers, Numbers], groups: list[Groups], generator: np.random.Generator
) -> float:
    """Mean over folds of the area under the curve of scores that the other folds taught.

    In whitened space the discriminant's direction is the difference of the means.
    """
    folds = [(generator.permutation(int(each.max()) + 1) % NUM_FOLDS)[each] for each in groups]
    areas = []
    for number in range(NUM_FOLDS):
        asked = [fold == number for fold in folds]
        means = [rows[~chosen].mean(0) for rows, chosen in zip(samples, asked, strict=True)]
        direction = means[1] - means[0]
        scores = [rows[chosen] @ direction for rows, chosen in zip(samples, asked, strict=True)]
        areas.append(area_under_curve(scores[0], scores[1]))
    return float(np.mean(areas))


def _distance_p(samples: tuple[Numbers, Numbers], groups: list[Groups]) -> float:
    """Chance of this distance between two means or a larger one, had nothing changed.

    The squared distance of normal means is a sum of weighted chi-squares whose weights are the
    eigenvalues of the means' covariance; its tail is that of the gamma law with the same three
    moments (Pearson 1959; Solomon and Stephens 1977). The covariance is robust against likeness
    within groups (Liang and Zeger 1986) and against unlike samples: each sample gives its own
    size, both together the shape.
    """
    parts = [_contributions(rows, each) for rows, each in zip(samples, groups, strict=True)]
    sizes = [float((part**2).sum()) for part in parts]
    if min(sizes) <= 0:
        return 1.0
    shape: NDArray[np.float64] = sum(
        (len(part) / size * part.T @ part for part, size in zip(parts, sizes, strict=True)),
        start=np.zeros((samples[0].shape[1],) * 2),
    )
    shape /= np.trace(shape)
    # A covariance from few values looks less round than it is (Bai and Saranadasa 1996).
    second = max(float((shape**2).sum()) - 1 / sum(map(len, parts)), 1 / len(shape))
    third = float((shape @ shape * shape).sum())
    skewness = np.sqrt(8) * third / second**1.5
    gap = samples[1].mean(0) - samples[0].mean(0)
    score = (float(gap @ gap) / sum(sizes) - 1) / np.sqrt(2 * second)
    return _gamma_tail(score, skewness=float(skewness))


def _contributions(rows: Numbers, groups: Groups) -> Numbers:
    """What each group adds to the error of the mean [u, D]; the squares sum to its variance."""
    count = int(groups.max()) + 1
    centred = rows - rows.mean(0)
    parts = np.zeros((count, rows.shape[1]))
    np.add.at(parts, groups, centred)
    result: Numbers = parts / len(rows) * np.sqrt(count / (count - 1))
    return result


def _gamma_tail(score: float, *, skewness: float) -> float:
    """Chance of `score` or more under the gamma law with mean 0, deviation 1 and this skewness."""
    shape = 4 / skewness**2
    return float(gammaincc(shape, max(shape + score * np.sqrt(shape), 0.0)))
