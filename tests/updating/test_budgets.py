"""Time and memory beside the live model's, by a clock that the test turns."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import cycle

import pytest

from lmloop.inference.load import LoadedModel
from lmloop.progress import Silent
from lmloop.updating import budgets
from lmloop.updating.budgets import (
    FEWEST_ROUNDS,
    MOST_ROUNDS,
    check_memory,
    check_speed,
    weight_bytes,
)
from lmloop.updating.checks import Check
from lmloop.upkeep import GateConfig

from ..conftest import random_model
from .gate_world import watch_work

CONFIG = GateConfig(max_slowdown=0.15, max_memory_growth=0.1)
PROMPT = [0, 3, 5]


def reshape(loaded: LoadedModel, **changes: int) -> LoadedModel:
    return replace(loaded, transformer=random_model(replace(loaded.config, **changes)))


def measure(
    monkeypatch: pytest.MonkeyPatch,
    loaded: LoadedModel,
    seconds: Callable[[bool, int], float],
) -> tuple[Check, list[tuple[bool, int]]]:
    """The check, where `seconds(is_candidate, streams)` is a token's time; who ran when."""
    candidate = replace(loaded)
    turns: list[tuple[bool, int]] = []

    def decode_speed(model: LoadedModel, prompt: object, *, streams: int, **_: object) -> float:
        turns.append((model is candidate, streams))
        return 1 / seconds(model is candidate, streams)

    monkeypatch.setattr(budgets, "decode_speed", decode_speed)
    check = check_speed(
        CONFIG, PROMPT, candidate=candidate, live=loaded, clock=lambda: 0.0, progress=Silent()
    )
    return check, turns


def test_equal_speed_needs_few_rounds_and_each_model_begins_half_of_them(
    monkeypatch: pytest.MonkeyPatch, loaded: LoadedModel
) -> None:
    check, turns = measure(monkeypatch, loaded, lambda is_candidate, streams: 1.0)
    assert check.passed
    assert [each.count for each in check.measures] == [FEWEST_ROUNDS, FEWEST_ROUNDS]
    alone = [is_candidate for is_candidate, streams in turns if streams == 1]
    # One unmeasured round, then live and candidate begin in turns.
    assert alone == [False, True] + [False, True, True, False] * 3


@pytest.mark.parametrize("streams", [1, 16])
def test_a_third_more_time_in_either_size_is_slower(
    monkeypatch: pytest.MonkeyPatch, loaded: LoadedModel, streams: int
) -> None:
    def seconds(is_candidate: bool, size: int) -> float:
        return 1.3 if is_candidate and size == streams else 1.0

    check, _ = measure(monkeypatch, loaded, seconds)
    assert not check.passed
    assert check.reason.startswith("slower: processor time a token in ")
    assert "+30% (+30% to +30%, 6 rounds)" in check.reason


def test_a_disturbed_machine_takes_more_rounds_and_the_middle_decides(
    monkeypatch: pytest.MonkeyPatch, loaded: LoadedModel
) -> None:
    noise: Iterator[float] = cycle([1.0, 1.9, 1.1, 0.6, 1.05])

    def seconds(is_candidate: bool, size: int) -> float:
        return next(noise) if is_candidate else 1.0

    check, _ = measure(monkeypatch, loaded, seconds)
    assert check.passed
    assert all(FEWEST_ROUNDS < each.count <= MOST_ROUNDS for each in check.measures if each.count)


def test_a_ratio_on_the_limit_ends_after_so_many_rounds(
    monkeypatch: pytest.MonkeyPatch, loaded: LoadedModel
) -> None:
    noise = cycle([1.1, 1.25])
    check, _ = measure(
        monkeypatch, loaded, lambda is_candidate, size: next(noise) if is_candidate else 1.0
    )
    assert [each.count for each in check.measures] == [MOST_ROUNDS] * 2


def test_the_work_of_real_models_is_compared(
    monkeypatch: pytest.MonkeyPatch, loaded: LoadedModel
) -> None:
    monkeypatch.setattr(budgets, "STEPS", 3)
    deeper = reshape(loaded, num_layers=3)
    with watch_work() as clock:
        models = {"candidate": deeper, "live": loaded}
        check = check_speed(CONFIG, PROMPT, clock=clock, progress=Silent(), **models)
        turned = {"candidate": loaded, "live": deeper}
        assert check_speed(CONFIG, PROMPT, clock=clock, progress=Silent(), **turned).passed
    assert not check.passed
    assert [each.value for each in check.measures] == pytest.approx([0.5, 0.5])


def test_the_same_shape_takes_the_same_memory(loaded: LoadedModel) -> None:
    check = check_memory(CONFIG, candidate=loaded, live=loaded)
    assert check.passed
    assert "cache a token 256 → 256 bytes (+0%); allowed is +10%" in check.reason


@pytest.mark.parametrize(
    ("changes", "larger"),
    [
        ({"num_layers": 3}, ["weights", "cache a token"]),
        ({"num_kv_heads": 4}, ["cache a token"]),
        ({"intermediate_size": 80}, ["weights"]),
    ],
)
def test_more_memory_is_refused(
    loaded: LoadedModel, changes: dict[str, int], larger: list[str]
) -> None:
    check = check_memory(CONFIG, candidate=reshape(loaded, **changes), live=loaded)
    assert not check.passed
    assert check.reason.startswith("more memory: ")
    limit = CONFIG.max_memory_growth
    assert [each.what for each in check.measures if each.value > limit] == [
        f"bytes of {name}" for name in larger
    ]


def test_a_shared_matrix_counts_once(loaded: LoadedModel) -> None:
    matrix = loaded.config.vocab_size * loaded.config.hidden_size * 4
    assert loaded.config.tie_embeddings
    apart = replace(loaded, transformer=random_model(replace(loaded.config, tie_embeddings=False)))
    assert weight_bytes(apart) - weight_bytes(loaded) == matrix
