"""Samples while training: the same words after a resume, and the same run with them and without."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from lmloop.errors import TrainingError
from lmloop.learning import FinetuneConfig, PretrainConfig
from lmloop.model.config import ModelConfig
from lmloop.tokens.tokenizer import Tokenizer
from lmloop.training.samples import Sample, make_sampler

from ..conftest import VOCAB_SIZE, tiny_shape
from . import conftest
from .conftest import Run, make_clock, make_config
from .test_loop import KilledError, kill_at

PROMPTS = ("the", "a cat")


@pytest.fixture
def shape() -> ModelConfig:
    return tiny_shape(vocab_size=VOCAB_SIZE, num_layers=1)


@pytest.fixture
def sample(shards_folder: Path, shape: ModelConfig) -> Sample:
    config = make_config(sample_prompts=PROMPTS, sample_tokens=6)
    made = make_sampler(config, shape, Tokenizer.open(shards_folder), is_chat=False)
    assert made is not None
    return made


@pytest.mark.parametrize("changes", [{}, {"ema": 0.5}, {"optimizer": "schedule-free"}])
def test_a_run_is_the_same_with_samples_and_without(
    make_run: Callable[..., Run], sample: Sample, changes: dict[str, object]
) -> None:
    config = make_config(**changes)
    plain, talking = make_run("plain", config=config), make_run("talking", config=config)
    states = []
    for run, said in ((plain, None), (talking, sample)):
        torch.manual_seed(0)
        run.go(sample=said)
        states.append(torch.get_rng_state())
    assert torch.equal(*states)
    assert talking.weights() == plain.weights()
    entries = talking.journal()
    words = {entry["step"]: entry.pop("samples") for entry in entries if "samples" in entry}
    assert entries == plain.journal()
    assert list(words) == [3, 6, 9]
    assert [each["prompt"] for each in words[3]] == list(PROMPTS)
    assert all(isinstance(each["text"], str) for each in words[3])


def test_dropout_draws_the_same_with_samples_and_without(
    make_run: Callable[..., Run], sample: Sample, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = replace(tiny_shape(vocab_size=VOCAB_SIZE, num_layers=1), dropout=0.5)
    monkeypatch.setattr(conftest, "tiny_shape", lambda **sizes: shape)
    plain, talking = make_run("plain"), make_run("talking")
    plain.go()
    talking.go(sample=sample)
    assert talking.weights() == plain.weights()


def test_a_resumed_run_says_the_same(make_run: Callable[..., Run], sample: Sample) -> None:
    whole, broken = make_run("whole"), make_run("broken")
    whole.go(sample=sample)
    with pytest.raises(KilledError):
        broken.go(sample=sample, before_step=kill_at(8), clock=make_clock())
    broken.go(sample=sample)
    words = [[entry.get("samples") for entry in run.journal()] for run in (whole, broken)]
    assert words[0] == words[1]
    assert whole.weights() == broken.weights()


def test_the_watch_hears_the_samples_and_the_figures(
    make_run: Callable[..., Run], sample: Sample
) -> None:
    heard: list[dict[str, object]] = []
    make_run().go(sample=sample, watch=lambda entry: heard.append(dict(entry)))
    assert [entry["step"] for entry in heard if "samples" in entry] == [3, 6, 9]
    assert all("tokens_per_second" in entry for entry in heard[1:])


def test_a_chat_model_is_asked_as_a_user_asks(shards_folder: Path, shape: ModelConfig) -> None:
    tokenizer = Tokenizer.open(shards_folder)
    config = FinetuneConfig(steps=1, sample_prompts=("hi",))
    assert make_sampler(config, shape, tokenizer, is_chat=True) is not None
    assert make_sampler(FinetuneConfig(steps=1), shape, tokenizer, is_chat=True) is None


def test_a_prompt_that_fills_the_model_is_refused(shards_folder: Path, shape: ModelConfig) -> None:
    config = make_config(sample_prompts=("the " * 200,))
    with pytest.raises(TrainingError, match="tokens; give 1 to"):
        make_sampler(config, shape, Tokenizer.open(shards_folder), is_chat=False)


def test_a_model_that_does_not_continue_text_is_refused(
    shards_folder: Path, shape: ModelConfig
) -> None:
    config = make_config(sample_prompts=PROMPTS)
    reader = replace(shape, causal=False)
    with pytest.raises(TrainingError, match="does not continue text"):
        make_sampler(config, reader, Tokenizer.open(shards_folder), is_chat=False)
    with pytest.raises(ValidationError, match="objective = 'masked' makes none"):
        PretrainConfig(steps=1, objective="masked", sample_prompts=PROMPTS)


def test_samples_decide_nothing_of_the_result() -> None:
    settings = make_config(sample_prompts=PROMPTS, sample_tokens=9).model_dump(mode="json")
    assert settings == make_config().model_dump(mode="json")
