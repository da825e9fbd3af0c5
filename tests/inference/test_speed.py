"""Decoding speed by a clock that the test turns: what is timed, what is counted, what is not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from lmloop.inference.engine import Engine
from lmloop.inference.load import LoadedModel
from lmloop.inference.speed import compare_speed, decode_speed
from lmloop.progress import Silent

from ..conftest import random_model

PROMPT = [0, 3, 5, 6]


class Clock:
    """Moves on by one second with each step of any engine."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.steps = 0
        step = Engine.step

        def counted(engine: Engine) -> object:
            self.steps += 1
            return step(engine)

        monkeypatch.setattr(Engine, "step", counted)

    def __call__(self) -> float:
        return float(self.steps)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[], float]:
    return Clock(monkeypatch)


@pytest.mark.parametrize("streams", [1, 16])
def test_a_step_gives_each_stream_a_token(loaded: LoadedModel, clock: Clock, streams: int) -> None:
    speed = decode_speed(loaded, PROMPT, streams=streams, clock=clock, steps=10)
    assert speed == streams
    # One step more read the prompts, and its time does not count.
    assert clock.steps == 11


def test_answers_that_fill_the_context_are_begun_again(loaded: LoadedModel, clock: Clock) -> None:
    steps = 2 * loaded.config.context_length
    assert decode_speed(loaded, PROMPT, streams=2, clock=clock, steps=steps) == 2.0
    # 64 positions less 4 of the prompt: 60 tokens, the first of them by the step that reads it.
    assert clock.steps == steps + 3


def test_a_long_prompt_is_cut_so_that_one_step_reads_all(loaded: LoadedModel, clock: Clock) -> None:
    assert decode_speed(loaded, [5] * 60, streams=16, clock=clock, steps=4) == 16.0
    assert clock.steps == 5


def test_the_shortest_context_leaves_room_to_decode(loaded: LoadedModel, clock: Clock) -> None:
    tiny = random_model(replace(loaded.config, context_length=8))
    model = replace(loaded, transformer=tiny)
    assert decode_speed(model, [5] * 20, streams=2, clock=clock, steps=7) == 2.0


def test_a_model_that_would_stop_at_once_is_measured_all_the_same(
    loaded: LoadedModel, clock: Clock
) -> None:
    silent = random_model(loaded.config)
    with torch.no_grad():
        # All logits are zero then, and the first of the vocabulary is the document token.
        silent.norm.weight.zero_()
    model = replace(loaded, transformer=silent)
    stops = loaded.require_tokenizer().stop_ids
    speeds = compare_speed(loaded, model, PROMPT, clock=clock, progress=Silent(), rounds=1)
    assert speeds == {"1": {"before": 1.0, "after": 1.0}, "16": {"before": 16.0, "after": 16.0}}
    assert loaded.require_tokenizer().stop_ids == stops != ()


def test_models_are_measured_in_turns(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    other = replace(loaded)
    turns: list[tuple[str, int]] = []
    speeds = iter([1.0, 20.0, 3.0, 10.0, 2.0, 30.0] * 2)

    def measured(model: LoadedModel, prompt: object, *, streams: int, clock: object) -> float:
        turns.append(("before" if model is loaded else "after", streams))
        return next(speeds)

    monkeypatch.setattr("lmloop.inference.speed.decode_speed", measured)
    found = compare_speed(loaded, other, PROMPT, clock=lambda: 0.0, progress=Silent(), rounds=3)
    assert turns == [("before", 1), ("after", 1)] * 3 + [("before", 16), ("after", 16)] * 3
    assert found == {"1": {"before": 2.0, "after": 20.0}, "16": {"before": 2.0, "after": 20.0}}
