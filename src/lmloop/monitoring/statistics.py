"""The statistics of drift: distances between two samples, and how surprising they are.

Takes: numbers, counts and groups as arrays. Gives: distances, p-values and design effects. Pure;
scipy lends the special functions only. Legend: n and m are sizes of the two samples.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import kolmogorov, xlogy

Numbers = NDArray[np.float64]
Groups = NDArray[np.int64]

NUM_BINS = 10
SMALLEST_SHARE = 1e-4
"""Stands in for an empty bin, as in most uses of the population stability index."""


def ks_distance(first: Numbers, second: Numbers) -> float:
    """Largest difference of the two distribution functions (Kolmogorov-Smirnov), 0 to 1.

    Both functions are taken behind each distinct value, so tied values cannot raise it.
    """
    values = np.union1d(first, second)
    below_first = np.searchsorted(np.sort(first), values, side="right") / len(first)
    below_second = np.searchsorted(np.sort(second), values, side="right") / len(second)
    return float(np.abs(below_first - below_second).max())


def ks_p(distance: float, *, n: float, m: float) -> float:
    """Chance of this distance or a larger one between two samples of one distribution.

    Kolmogorov's limit at d·√(nm / (n + m)) (Smirnov 1939); with ties it errs on the safe side.
    Sizes may be fractions: those of correlated values are (see `design_effect`).
    """
    return float(kolmogorov(distance * np.sqrt(n * m / (n + m))))


def quantile_edges(reference: Numbers, *, bins: int = NUM_BINS) -> Numbers:
    """Inner edges that cut the reference into bins of like size; fewer where values are tied."""
    return np.unique(np.quantile(reference, np.arange(1, bins) / bins))


def bin_shares(values: Numbers, edges: Numbers) -> Numbers:
    """Share of the values in each bin; a value on an edge belongs to the bin below it."""
    places = np.searchsorted(edges, values, side="left")
    return np.bincount(places, minlength=len(edges) + 1) / len(values)


def stability_index(reference: Numbers, window: Numbers) -> float:
    """Population stability index of two lists of shares: Σ (w - r) ln(w / r).

    Lewis, "An Introduction to Credit Scoring" (1994); it is the symmetric Kullback-Leibler
    divergence of Jeffreys (1946). Empty bins count as `SMALLEST_SHARE`.
    """
    r, w = np.maximum(reference, SMALLEST_SHARE), np.maximum(window, SMALLEST_SHARE)
    return float(((w - r) * np.log(w / r)).sum())


def jensen_shannon(first: Numbers, second: Numbers) -> float:
    """Jensen-Shannon distance of two lists of shares, 0 to 1.

    The root of the divergence in bits (Lin 1991; a metric: Endres and Schindelin 2003).
    """
    middle = (first + second) / 2

    def divergence(shares: Numbers) -> float:
        known = middle > 0
        return float((xlogy(shares, shares)[known] - xlogy(shares, middle)[known]).sum())

    bits = (divergence(first) + divergence(second)) / 2 / np.log(2)
    return float(np.sqrt(min(max(bits, 0.0), 1.0)))


def area_under_curve(negatives: Numbers, positives: Numbers) -> float:
    """Chance that a positive's score is above a negative's, ties half: AUC = U / nm.

    U is the statistic of Mann and Whitney (1947).
    """
    ordered = np.sort(negatives)
    below = np.searchsorted(ordered, positives, side="left")
    not_above = np.searchsorted(ordered, positives, side="right")
    return float((below + not_above).mean() / 2 / len(negatives))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected so that the chance of any false finding is at most the level.

    Holm, "A simple sequentially rejective multiple test procedure" (1979); any dependence between
    the tests is allowed.
    """
    count = len(p_values)
    corrected = [1.0] * count
    highest = 0.0
    for rank, index in enumerate(sorted(range(count), key=p_values.__getitem__)):
        highest = max(highest, min(1.0, p_values[index] * (count - rank)))
        corrected[index] = highest
    return corrected


def midranks(values: Numbers) -> Numbers:
    """Rank of each value from 1; tied values share the mean of theirs."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return np.asarray((ends - (counts - 1) / 2)[places], dtype=np.float64)


def design_effects(samples: Sequence[Numbers], groups: Sequence[Groups]) -> tuple[float, ...]:
    """How many times fewer independent values each sample is worth, at least 1.

    1 + (Σg² / Σg - 1)·ρ for groups of g values each (Kish, "Survey Sampling", 1965, 8.2), with the
    correlation ρ inside a group by analysis of variance (Donner 1986) over all samples, each
    around its own mean: a shift between the samples is no correlation.
    """
    sizes, squares_within, squares_between, shrunk = [], 0.0, 0.0, 0.0
    for values, group in zip(samples, groups, strict=True):
        _, places = np.unique(group, return_inverse=True)
        counts = np.bincount(places)
        means = np.bincount(places, weights=values) / counts
        sizes.append(counts)
        squares_within += float(((values - means[places]) ** 2).sum())
        squares_between += float((counts * (means - values.mean()) ** 2).sum())
        shrunk += float((counts**2).sum() / counts.sum())
    total = sum(int(counts.sum()) for counts in sizes)
    num_groups = sum(map(len, sizes))
    if num_groups == total:
        return (1.0,) * len(sizes)
    free = num_groups - len(sizes)
    correlation = 1.0
    if free > 0 and squares_within + squares_between > 0:
        within = squares_within / (total - num_groups)
        between = squares_between / free
        typical = (total - shrunk) / free
        correlation = max(0.0, (between - within) / (between + (typical - 1) * within))
    return tuple(1 + float((counts**2).sum() / counts.sum() - 1) * correlation for counts in sizes)
