"""Figures of a report while a model learns: the same as the report's, the same every time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import get_args

import pytest
import torch

from lmloop.errors import CorpusError
from lmloop.evaluation import probes
from lmloop.evaluation.answers import hold_exchanges, measure_answers
from lmloop.evaluation.probes import HIGHEST_IS_BEST, Probe, make_probe
from lmloop.evaluation.ranking import measure_ranking
from lmloop.inference.load import LoadedModel
from lmloop.progress import Silent
from lmloop.records import Record
from lmloop.sections import EvaluateConfig, ReportFigure
from lmloop.tokens.tokenizer import Tokenizer

from ..conftest import CONTEXT_LENGTH

CONFIG = EvaluateConfig(candidates=3, ranking_questions=6, openers=5, max_tokens=8)
SEED = 3


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """As few questions as the report of these tests asks."""
    monkeypatch.setattr(probes, "CANDIDATES", CONFIG.candidates)
    monkeypatch.setattr(probes, "QUESTIONS", CONFIG.ranking_questions)
    monkeypatch.setattr(probes, "OPENERS", CONFIG.openers)
    asked = probes.Sampling(max_tokens=CONFIG.max_tokens, temperature=0.7, top_p=0.9)
    monkeypatch.setattr(probes, "ANSWERS", asked)


@pytest.fixture
def make(tokenizer: Tokenizer, splits: dict[str, list[Record]]) -> Callable[..., Probe]:
    def make(name: str, records: list[Record] | None = None) -> Probe:
        known = splits["validation"] if records is None else records
        return make_probe(
            name, known, tokenizer=tokenizer, context_length=CONTEXT_LENGTH, seed=SEED
        )

    return make


@pytest.mark.parametrize("name", HIGHEST_IS_BEST)
def test_a_probe_is_the_figure_of_the_report_and_stays_the_same(
    make: Callable[..., Probe], loaded: LoadedModel, splits: dict[str, list[Record]], name: str
) -> None:
    records, probe = splits["validation"], make(name)
    before = torch.random.get_rng_state()
    found = [probe(loaded.transformer) for _ in range(2)]
    assert torch.equal(torch.random.get_rng_state(), before)
    metrics, _ = measure_ranking(CONFIG, loaded, records, seed=SEED, progress=Silent())
    exchanges = hold_exchanges(CONFIG, loaded, records, list, seed=SEED, progress=Silent())
    told = {each.name: each for each in [*metrics, *measure_answers(exchanges)]}
    assert found == [told[name].value] * 2
    # "low means always the same phrases" is said of variety.
    assert ("lower is better" in told[name].explanation) is not HIGHEST_IS_BEST[name]


def test_what_a_recipe_may_name_is_what_there_is() -> None:
    elsewhere = {"rehearsal_bits_per_byte", "outside_bits_per_byte"}
    assert {*get_args(ReportFigure)} == {*HIGHEST_IS_BEST} | elsewhere


def test_no_more_of_a_large_split_is_read_than_is_needed(
    make: Callable[..., Probe],
    tokenizer: Tokenizer,
    splits: dict[str, list[Record]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(probes, "RECORDS", 4)

    def read() -> Iterator[Record]:
        yield from splits["validation"][:4]
        pytest.fail("a fifth record is read")

    probe = make_probe(
        "hits_at_1", read(), tokenizer=tokenizer, context_length=CONTEXT_LENGTH, seed=SEED
    )
    assert callable(probe)


@pytest.mark.parametrize("name", ["hits_at_1", "stop_share"])
def test_a_split_with_nothing_to_ask_is_told_before_training(
    make: Callable[..., Probe], name: str
) -> None:
    with pytest.raises(CorpusError, match=f"patience_metric = '{name}' needs") as caught:
        make(name, [])
    assert "\n" not in str(caught.value)
