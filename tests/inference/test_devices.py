"""Answers, scores and vectors of a model on another device: nothing is made on the wrong one."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lmloop.evaluation.ranking import score_replies
from lmloop.inference import load as module
from lmloop.inference.engine import Engine
from lmloop.inference.load import LoadedModel, load
from lmloop.inference.sampling import Sampling
from lmloop.inference.score import cut_windows, score_windows
from lmloop.inference.seq2seq import generate

from ..conftest import random_model
from ..elsewhere import ELSEWHERE, Elsewhere
from ..model.kinds import pair


@pytest.fixture
def there(loaded: LoadedModel) -> LoadedModel:
    """The loaded model, moved."""
    return replace(loaded, transformer=copy.deepcopy(loaded.transformer).to(ELSEWHERE))


@pytest.mark.parametrize("signals", [False, True])
def test_the_engine_answers_where_the_model_is(there: LoadedModel, signals: bool) -> None:
    prompts = [[5, 6, 7, 8], [9], [10, 11]]
    drawn = [Sampling(max_tokens=3, seed=1), Sampling(max_tokens=2, temperature=0)]
    with Elsewhere():
        engine = Engine(there, max_running=4, signals=signals)
        answers = list(engine.generate(prompts, [*drawn, drawn[0]]))
    assert all(len(answer.tokens) <= 3 for answer in answers)


def test_scores_and_vectors_are_made_where_the_model_is(there: LoadedModel) -> None:
    documents = [np.arange(2, 12), np.arange(3, 8)]
    with Elsewhere():
        windows = list(cut_windows(documents, context_length=6))
        assert len(score_windows(there.transformer, windows)) == len(windows)
        assert score_replies(there.transformer, [5, 6], [[7, 8], [9]]).shape == (2,)
        assert there(torch.tensor([[5, 6]])).device == ELSEWHERE
        assert there.encode(torch.tensor([[5, 6]])).device == ELSEWHERE
        assert there.embed(["do you like the sea", "no"]).device.type == "cpu"


@pytest.mark.parametrize("kind", ["qwen3", "relative", "first transformer"])
def test_a_pair_answers_where_it_is(kind: str) -> None:
    model = random_model(pair(kind)).to(ELSEWHERE).eval()
    sources = [torch.tensor([5, 6, 7]), torch.tensor([8, 9])]
    with Elsewhere():
        said = generate(model, sources, start_id=1, stop_id=2, max_tokens=3, beams=2)
    assert len(said) == 2


def test_a_model_is_opened_on_the_best_device(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "best_device", lambda: ELSEWHERE)
    assert load(model_folder).transformer.device == ELSEWHERE
    assert load(model_folder, device=torch.device("cpu")).transformer.device.type == "cpu"
