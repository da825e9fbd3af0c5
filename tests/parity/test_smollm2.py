"""Real weights: SmolLM2-135M-Instruct, pulled by name, against figures of its makers' code."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import lmloop
from lmloop.inference.load import LoadedModel, load
from lmloop.records import Turn

pytestmark = pytest.mark.slow

NAME = "smollm2-135m-instruct"
PROMPT = "The capital of France is"
QUESTION = [Turn("user", "Name the three primary colors.")]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    lmloop.pull(NAME, home=folder)
    return folder


@pytest.fixture(scope="module")
def model(home: Path) -> LoadedModel:
    (file,) = lmloop.pull(NAME, home=home).path.glob("*.gguf")
    return load(file, dtype=torch.float32)


def mean_nats(model: LoadedModel, ids: list[int]) -> float:
    log_p = model(torch.tensor([ids])).log_softmax(-1)[0, :-1]
    return -float(log_p.gather(-1, torch.tensor(ids[1:])[:, None]).mean())


def continue_text(model: LoadedModel, ids: list[int], *, tokens: int) -> str:
    engine = lmloop.Engine(model, max_running=1)
    sampling = lmloop.Sampling(max_tokens=tokens, temperature=0)
    return next(engine.generate([ids], sampling)).text


def test_a_text_costs_and_continues_as_published(model: LoadedModel) -> None:
    ids = model.require_tokenizer().encode_document(PROMPT)
    assert len(ids) == 5
    assert mean_nats(model, ids) == pytest.approx(3.6916, abs=1e-4)
    assert continue_text(model, ids, tokens=6) == " Paris.\n\nThe answer"


def test_a_question_costs_and_is_answered_as_published(model: LoadedModel) -> None:
    ids = model.template.encode(QUESTION)
    assert len(ids) == 36
    assert mean_nats(model, ids) == pytest.approx(4.8889, abs=1e-4)
    expected = "The three primary colors are:\n\nRed (R)\nBlue (B)\nYellow (Y)"
    assert continue_text(model, ids, tokens=60) == expected


def test_the_name_opens_the_pulled_artifact(home: Path) -> None:
    assert "by pull" in str(lmloop.show(NAME, home=home))
    by_name = lmloop.load(NAME, home=home)
    assert by_name.fingerprint == lmloop.pull(NAME, home=home).fingerprint
    answer = lmloop.generate(
        "Name the three primary colors.",
        model=NAME,
        home=home,
        sampling=lmloop.Sampling(temperature=0, max_tokens=60),
    )
    assert answer.text.startswith("The three primary colors are")
    assert answer.finish_reason == "stop"
