"""Evaluate a checkpoint on text that no training has seen, and write the report.

Takes: a loaded model, held-out shards and records, a way to read the training records, training
logs. Gives: a folder with the report, and its figures for the manifest.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lmloop.errors import ArtifactError
from lmloop.evaluation.answers import Exchange, answer_openers, choose_openers
from lmloop.evaluation.curves import read_curves
from lmloop.evaluation.metrics import Metric, bootstrap_ratio, distinct, repeats, share, words
from lmloop.evaluation.perplexity import bits_per_byte, document_nats
from lmloop.evaluation.ranking import make_questions, rank
from lmloop.evaluation.report import Report, write_report
from lmloop.inference.load import LoadedModel
from lmloop.inference.sampling import Sampling
from lmloop.model.cost import count_parameters
from lmloop.progress import Progress, Silent
from lmloop.records import Conversation, Record
from lmloop.sections import EvaluateConfig
from lmloop.tokens.shards import Shards

COPY_WORDS = 8
"""An answer that shares more words in a row than this with the training text counts as copied."""
RANKED_BY = "gain"
"""How hits@1 ranks candidates; see `Ranking.hits`."""


def evaluate(
    config: EvaluateConfig,
    *,
    model: LoadedModel,
    base: LoadedModel | None,
    shards: Shards,
    records: Sequence[Record],
    train_records: Callable[[], Iterable[Record]],
    training_logs: Sequence[Path],
    folder: Path,
    seed: int,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Measure `model` on the held-out `shards` and `records`; write the report into `folder`.

    `base` is the pre-trained model before fine-tuning, measured beside it in bits per byte. Gives
    the figures by name. Raises `ArtifactError` where the model's predictions are not finite.
    """
    progress = progress or Silent()
    prediction = measure_prediction(model, base, shards, seed=seed, progress=progress)
    ranking, ranking_facts = measure_ranking(config, model, records, seed=seed, progress=progress)
    exchanges = hold_conversation(config, model, records, seed=seed, progress=progress)
    exchanges, human_copies = _find_copies(exchanges, train_records, progress=progress)
    metrics = [prediction, *ranking, *measure_answers(exchanges, human_copies)]
    facts = {
        "model": _describe(model),
        "base": None if base is None else _describe(base),
        "heldout": {
            "documents": shards.num_documents,
            "tokens": shards.num_tokens,
            "raw_bytes": shards.raw_bytes,
        },
        "precision": {
            "bits per byte": "float32",
            "hits@1 and answers": str(_dtype(model)).removeprefix("torch."),
        },
        "settings": config.model_dump(),
        "seed": seed,
        "ranking": ranking_facts,
        "answers": len(exchanges),
    }
    curves = read_curves(training_logs)
    write_report(
        Report(facts=facts, metrics=metrics, curves=curves, exchanges=exchanges), folder
    )
    return _counts(metrics, facts)


def measure_prediction(
    model: LoadedModel, base: LoadedModel | None, shards: Shards, *, seed: int, progress: Progress
) -> Metric:
    """Bits per byte in fp32, as transformers finds it when it scores the exported folder."""
    raw_bytes = shards.document_bytes
    nats = _exact_nats(model, shards, name="bits per byte", progress=progress)
    value = bits_per_byte(nats, raw_bytes)
    if not math.isfinite(value):
        raise ArtifactError(
            f"checkpoint {model.fingerprint[:12]} gives no finite predictions (bits per byte is "
            f"{value}): its training diverged; train again with a lower learning rate"
        )
    base_value = None
    if base is not None:
        base_nats = _exact_nats(base, shards, name="bits per byte (base)", progress=progress)
        base_value = bits_per_byte(base_nats, raw_bytes)
    low, high = bootstrap_ratio(nats / math.log(2), raw_bytes, seed=seed)
    return Metric(
        name="bits_per_byte",
        value=value,
        unit="bits",
        interval=(low, high),
        base=base_value,
        explanation="bits needed to write a byte of unseen text, roles and stops included; "
        "lower is better",
    )


def _exact_nats(
    model: LoadedModel, shards: Shards, *, name: str, progress: Progress
) -> np.ndarray[Any, np.dtype[np.float64]]:
    return document_nats(
        copy.deepcopy(model.transformer).float(),
        shards,
        document_id=model.require_tokenizer().document_id,
        context_length=model.config.context_length,
        progress=progress,
        name=name,
    )


def measure_ranking(
    config: EvaluateConfig,
    model: LoadedModel,
    records: Sequence[Record],
    *,
    seed: int,
    progress: Progress,
) -> tuple[list[Metric], dict[str, Any]]:
    """hits@1 of the true reply, and how it was asked; None where conversations are too few."""
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
    facts: dict[str, Any] = {
        "questions": len(questions.asked),
        "candidates": questions.num_candidates,
    }
    if not questions.asked:
        return [], facts
    ranking = rank(model.transformer, questions, model.template, progress=progress)
    facts["scoring"] = RANKED_BY
    facts["hits_at_1"] = {each: float(ranking.hits(each).mean()) for each in SCORINGS}
    # Questions of one conversation resemble each other: the interval draws conversations.
    owners = np.array([question.conversation for question in questions.asked])
    hits, counts = (
        np.bincount(owners, weights=weights) for weights in (ranking.hits(RANKED_BY), None)
    )
    asked = counts > 0
    metric = Metric(
        name="hits_at_1",
        value=facts["hits_at_1"][RANKED_BY],
        unit="share",
        interval=bootstrap_ratio(hits[asked], counts[asked], seed=seed),
        reference=1 / questions.num_candidates,
        reference_name="chance",
        explanation=f"how often the true reply is first among {questions.num_candidates}, ranked "
        "by how much the context raises its log-probability; higher is better",
    )
    return [metric], facts
