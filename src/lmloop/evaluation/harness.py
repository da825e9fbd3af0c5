"""Evaluate a checkpoint on text that no training has seen, and write the report.

Takes: a loaded model, held-out shards and records, a way to read the training records, training
logs. Gives: a folder with the report, and its figures for the manifest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lmloop.evaluation.answers import hold_exchanges, measure_answers
from lmloop.evaluation.curves import read_curves
from lmloop.evaluation.metrics import Metric
from lmloop.evaluation.perplexity import measure_elsewhere, measure_prediction
from lmloop.evaluation.ranking import measure_ranking
from lmloop.evaluation.report import Report, write_report
from lmloop.inference.load import LoadedModel
from lmloop.model.cost import count_parameters
from lmloop.progress import Progress
from lmloop.records import Record
from lmloop.sections import EvaluateConfig
from lmloop.tokens.shards import Shards


def evaluate(
    config: EvaluateConfig,
    *,
    model: LoadedModel,
    base: LoadedModel | None,
    shards: Shards,
    others: Mapping[str, Shards],
    records: Sequence[Record],
    train_records: Callable[[], Iterable[Record]],
    training_logs: Mapping[str, Path],
    folder: Path,
    seed: int,
    progress: Progress,
) -> dict[str, Any]:
    """Measure `model` on the held-out `shards` and `records`; write the report into `folder`.

    `base` is the model before training or fine-tuning, measured beside it in bits per byte; so are
    the `others`, text of other kinds.
    `training_logs` are the journals by stage. Gives the figures by name. Raises `ArtifactError`
    where the model's predictions are not finite.
    """
    prediction, arithmetic = measure_prediction(model, base, shards, seed=seed, progress=progress)
    elsewhere = [
        measure_elsewhere(name, model, base, other, seed=seed, progress=progress)
        for name, other in others.items()
    ]
    ranking, asked = measure_ranking(config, model, records, seed=seed, progress=progress)
    exchanges = hold_exchanges(config, model, records, train_records, seed=seed, progress=progress)
    report = Report(
        facts={
            "model": _describe(model),
            "base": None if base is None else _describe(base),
            "heldout": {
                "documents": shards.num_documents,
                "tokens": shards.num_tokens,
                "raw_bytes": shards.raw_bytes,
            },
            "arithmetic": arithmetic,
            "ranking": asked,
            "settings": config.model_dump(),
            "seed": seed,
        },
        metrics=[prediction, *elsewhere, *ranking, *measure_answers(exchanges)],
        curves=read_curves(training_logs),
        exchanges=exchanges,
    )
    write_report(report, folder)
    if base is not None:
        for metric in (prediction, *elsewhere):
            progress.say(_compare(metric))
    return _counts(report)


def _compare(metric: Metric) -> str:
    """A figure beside that of the base, in a line."""
    told = metric.name.replace("_", " ")
    if not metric.base or metric.value is None:
        return f"{told}: {metric.value}"
    change = metric.value / metric.base - 1
    return f"{told}: {metric.value:.4f}, of the base {metric.base:.4f} ({change:+.1%})"


def _describe(model: LoadedModel) -> dict[str, Any]:
    return {
        "fingerprint": model.fingerprint,
        "parameters": count_parameters(model.config),
        "context_length": model.config.context_length,
        "vocab_size": model.config.vocab_size,
    }


def _counts(report: Report) -> dict[str, Any]:
    """The figures by name, for the manifest."""
    counts: dict[str, Any] = {metric.name: metric.value for metric in report.metrics}
    for metric in report.metrics:
        if metric.unit == "bits":
            counts[f"base_{metric.name}"] = metric.base
    counts["ranking_questions"] = report.facts["ranking"]["questions"]
    counts["answers"] = len(report.exchanges)
    return counts
