"""Figures of a report as functions of a model that still learns.

Takes: a figure's name, records that are not trained on, a tokenizer. Gives: a function of the
model. It asks the same of it every time, a bounded number of questions, and draws from generators
of its own: the same weights give the same figure, also after a resume.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from itertools import islice

from lmloop.errors import CorpusError
from lmloop.evaluation.answers import answer_openers, choose_openers, measure_answers
from lmloop.evaluation.ranking import SCORINGS, make_questions, rank
from lmloop.inference.load import LoadedModel
from lmloop.inference.sampling import Sampling
from lmloop.model.transformer import Transformer
from lmloop.progress import Silent
from lmloop.records import Conversation, Record
from lmloop.tokens.chat import ChatTemplate
from lmloop.tokens.tokenizer import Tokenizer

Probe = Callable[[Transformer], float]
RANKING = "hits_at_1"
HIGHEST_IS_BEST = {
    RANKING: True,
    "stop_share": True,
    "empty_share": False,
    "repetition_share": False,
    "distinct_1": True,
    "distinct_2": True,
    "distinct_3": True,
}
"""Figures of the report that have a better end and need no look at the training text."""
RECORDS, CANDIDATES, QUESTIONS, OPENERS = 2000, 20, 100, 32
"""Read at most; replies to choose from, and contexts they are asked in; first turns to answer. Not
the recipe's `[evaluate]`, which decides nothing of training."""
ANSWERS = Sampling(max_tokens=64, temperature=0.7, top_p=0.9)


def make_probe(
    name: str,
    records: Iterable[Record],
    *,
    tokenizer: Tokenizer,
    context_length: int,
    seed: int,
) -> Probe:
    """One of `HIGHEST_IS_BEST` on the first records of a split.

    Raises `CorpusError` where they have nothing to measure it on.
    """
    known = list(islice(records, RECORDS))
    make = _make_ranking if name == RANKING else _make_answers
    return make(name, known, tokenizer=tokenizer, context_length=context_length, seed=seed)


def _make_ranking(
    name: str,
    records: list[Record],
    *,
    tokenizer: Tokenizer,
    context_length: int,
    seed: int,
) -> Probe:
    template = ChatTemplate.of(tokenizer)
    questions = make_questions(
        [each for each in records if isinstance(each, Conversation)],
        template,
        candidates=CANDIDATES,
        limit=QUESTIONS,
        context_length=context_length,
        seed=seed,
    )
    if not questions.asked:
        raise CorpusError(
            f"patience_metric = {name!r} needs conversations with different replies, and the "
            "validation split has none: raise prepare.validation_share or take 'validation'"
        )

    def measure(model: Transformer) -> float:
        ranking = rank(model, questions, template, progress=Silent())
        return float(ranking.hits(SCORINGS[0]).mean())

    return measure


def _make_answers(
    name: str,
    records: list[Record],
    *,
    tokenizer: Tokenizer,
    context_length: int,
    seed: int,
) -> Probe:
    if not records:
        raise CorpusError(
            f"patience_metric = {name!r} needs text to answer, and the validation split is empty: "
            "raise prepare.validation_share or take 'validation'"
        )

    def measure(model: Transformer) -> float:
        loaded = LoadedModel(model, tokenizer, "unversioned")
        openers = choose_openers(records, loaded, limit=OPENERS, max_tokens=ANSWERS.max_tokens)
        exchanges = answer_openers(loaded, openers, sampling=ANSWERS, seed=seed, progress=Silent())
        (value,) = (each.value for each in measure_answers(exchanges) if each.name == name)
        return math.nan if value is None else value

    return measure
