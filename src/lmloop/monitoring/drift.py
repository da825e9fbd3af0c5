"""Drift: is a window of requests like the reference?

Takes: two samples and the thresholds of a recipe. Gives: a finding a signal, with its distance, its
p-value alone and among all, and whether it counts as a change. Pure.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lmloop.monitoring.classifier import separate
from lmloop.monitoring.sample import EMBEDDING, FLAGS, LABELS, NUMBERS, OF_THE_PROMPT, Sample
from lmloop.monitoring.statistics import (
    Groups,
    Numbers,
    bin_shares,
    design_effects,
    holm,
    jensen_shannon,
    ks_distance,
    ks_p,
    midranks,
    quantile_edges,
    stability_index,
)
from lmloop.upkeep import MonitorConfig

MIN_ROWS = 20
"""Signals that fewer requests of a sample have are not compared."""
MAX_LABELS = 12
"""Rarer words of a label count as one."""
OTHER = "other"

Test = Literal["kolmogorov_smirnov", "fisher", "classifier"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One signal of a window beside the reference's."""

    signal: str
    test: Test
    effect: float
    """KS distance, difference of two shares, Jensen-Shannon distance, or area under the curve."""
    p: float
    """Chance of such an effect without a change, of this test alone."""
    corrected: float = 1.0
    """The same among all tests of the window (Holm)."""
    changed: bool = False
    """Whether it is both certain and large enough."""
    before: float | Mapping[str, float] | None = None
    """Reference: a median, a share, or shares by word."""
    now: float | Mapping[str, float] | None = None
    """The same of the window."""
    more: Mapping[str, float] = field(default_factory=dict)
    """Quartiles of the reference (`low`, `high`), `stability_index` and `jensen_shannon`."""

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def compare(
    reference: Sample, window: Sample, *, config: MonitorConfig, seed: int = 0
) -> list[Finding]:
    """Test every signal that both samples have.

    Signals that depend on the weights are compared among requests that the reference's version
    answered. All p-values are corrected together: the chance that any signal of unchanged traffic
    counts as changed is at most `config.false_alarms`. `seed` draws folds and permutations.
    """
    same = window.select(window.weights == reference.main_weights())
    findings = []
    for name in (*NUMBERS, *FLAGS):
        pair = _pair_numbers(name, reference, window if name in OF_THE_PROMPT else same)
        if pair is not None:
            findings.append(_compare_flags(pair) if name in FLAGS else _compare_numbers(pair))
    for name in LABELS:
        found = _compare_labels(name, reference, window if name in OF_THE_PROMPT else same)
        findings += [] if found is None else [found]
    found = _compare_embeddings(reference, same, np.random.default_rng(seed))
    findings += [] if found is None else [found]
    return list(_judge(findings, config))


def _judge(findings: Sequence[Finding], config: MonitorConfig) -> Iterator[Finding]:
    corrected = holm([each.p for each in findings])
    for finding, p in zip(findings, corrected, strict=True):
        floor = config.min_auc if finding.signal == EMBEDDING else config.min_effect
        changed = p <= config.false_alarms and finding.effect >= floor
        yield replace(finding, corrected=p, changed=changed)


@dataclass(frozen=True, slots=True)
class _Pair:
    """A signal's known values in both samples, and how many independent ones they are worth."""

    name: str
    before: Numbers
    now: Numbers
    n: float
    m: float


def _pair_numbers(name: str, reference: Sample, window: Sample) -> _Pair | None:
    """The pair of a signal; None where one of the samples has too few values."""
    values, groups = [], []
    for sample in (reference, window):
        column = sample.numbers[name]
        known = ~np.isnan(column)
        if known.sum() < MIN_ROWS:
            return None
        values.append(column[known])
        groups.append(sample.groups[known])
    before, now = values
    n, m = _worth(before, now, groups, ranked=name not in FLAGS)
    return _Pair(name, before, now, n, m)


def _worth(
    before: Numbers, now: Numbers, groups: Sequence[Groups], *, ranked: bool
) -> tuple[float, float]:
    """Sizes of both samples after what their senders have in common is taken off."""
    if ranked:
        ranks = midranks(np.concatenate([before, now]))
        before, now = ranks[: len(before)], ranks[len(before) :]
    effects = design_effects((before, now), groups)
    return len(before) / effects[0], len(now) / effects[1]


def _compare_numbers(pair: _Pair) -> Finding:
    distance = ks_distance(pair.before, pair.now)
    edges = quantile_edges(pair.before)
    shares = bin_shares(pair.before, edges), bin_shares(pair.now, edges)
    low, middle, high = np.quantile(pair.before, (0.25, 0.5, 0.75))
    return Finding(
        signal=pair.name,
        test="kolmogorov_smirnov",
        effect=distance,
        p=ks_p(distance, n=pair.n, m=pair.m),
        before=float(middle),
        now=float(np.median(pair.now)),
        more={
            "low": float(low),
            "high": float(high),
            "stability_index": stability_index(*shares),
            "jensen_shannon": jensen_shannon(*shares),
        },
    )


def _compare_flags(pair: _Pair) -> Finding:
    before, now = float(pair.before.mean()), float(pair.now.mean())
    return Finding(
        signal=pair.name,
        test="fisher",
        effect=abs(now - before),
        p=_fisher(before, pair.n, now, pair.m),
        before=before,
        now=now,
    )


def _fisher(before: float, n: float, now: float, m: float) -> float:
    """Fisher's test of two shares of `n` and `m` values, which may be fractions."""
    # Imported here: a server that only shows what was found does without its half second.
    from scipy.stats import fisher_exact

    sizes = max(1, int(n)), max(1, int(m))
    hits = round(before * sizes[0]), round(now * sizes[1])
    table = [[hit, size - hit] for hit, size in zip(hits, sizes, strict=True)]
    return float(fisher_exact(table).pvalue)


def _compare_labels(name: str, reference: Sample, window: Sample) -> Finding | None:
    """Each word against all others, exactly; the smallest p-value times the number of words."""
    known = [sample.select(sample.labels[name] != "") for sample in (reference, window)]
    if min(map(len, known)) < MIN_ROWS:
        return None
    before, now = _common_words([sample.labels[name] for sample in known])
    words = sorted({*before, *now})
    groups = [sample.groups for sample in known]
    shares = np.array([[(column == word).mean() for word in words] for column in (before, now)])
    p_values = []
    for number, word in enumerate(words):
        hits = (before == word).astype(np.float64), (now == word).astype(np.float64)
        n, m = _worth(*hits, groups, ranked=False)
        p_values.append(_fisher(shares[0, number], n, shares[1, number], m))
    # With two words the second test is the first one again.
    tests = 1 if len(words) <= 2 else len(words)
    return Finding(
        signal=name,
        test="fisher",
        effect=jensen_shannon(shares[0], shares[1]),
        p=min(1.0, tests * min(p_values)),
        before=dict(zip(words, shares[0].tolist(), strict=True)),
        now=dict(zip(words, shares[1].tolist(), strict=True)),
    )


def _common_words(columns: Sequence[NDArray[np.str_]]) -> list[NDArray[np.str_]]:
    """The columns with all but the most frequent words replaced by `OTHER`."""
    words, counts = np.unique(np.concatenate(columns), return_counts=True)
    kept = words[np.argsort(-counts, kind="stable")[:MAX_LABELS]]
    return [np.where(np.isin(column, kept), column, OTHER) for column in columns]


def _compare_embeddings(
    reference: Sample, window: Sample, generator: np.random.Generator
) -> Finding | None:
    known = []
    for sample in (reference, window):
        rows = np.asarray(np.isfinite(sample.embeddings).all(axis=1), dtype=np.bool_)
        known.append(sample.select(rows))
    if min(map(len, known)) < MIN_ROWS:
        return None
    before, now = known
    found = separate(
        before.embeddings.astype(np.float64),
        now.embeddings.astype(np.float64),
        reference_groups=before.groups,
        window_groups=now.groups,
        generator=generator,
    )
    if found is None:
        return None
    return Finding(signal=EMBEDDING, test="classifier", effect=found.auc, p=found.p)
