"""What is measured of a request equals what the whole text through the whole model gives."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lmloop.inference import engine as engine_module
from lmloop.inference import signals as module
from lmloop.inference.engine import Engine, Piece
from lmloop.inference.load import LoadedModel, load
from lmloop.inference.sampling import Sampling, choose
from lmloop.inference.signals import (
    EMBEDDING_SIZE,
    PROMPT_POSITIONS,
    Signals,
    measure,
    projection,
    spread_positions,
)
from lmloop.model.rows import PackedRows

GREEDY = Sampling(temperature=0, max_tokens=12)
DRAWN = Sampling(temperature=0.8, top_p=0.95, top_k=60, max_tokens=14, seed=3)
PROMPTS = ["do you like the sea", "火车", "where is green tea number 7?", "", "I saw a 🐢", "no"]


def ids_of(model: LoadedModel) -> list[list[int]]:
    """Short prompts, one of a single token, and one that is longer than what is scored of one."""
    ids = [model.require_tokenizer().encode_document(prompt) for prompt in PROMPTS]
    return [*ids, [7], list(range(5, 5 + PROMPT_POSITIONS + 12))]


def run(
    engine: Engine, prompts: Sequence[Sequence[int]], sampling: Sampling
) -> list[tuple[str, Piece]]:
    """Text and last piece of each answer; the prompts come in one after the other."""
    texts = dict.fromkeys(map(str, range(len(prompts))), "")
    last: dict[str, Piece] = {}
    waiting = list(enumerate(prompts))
    while waiting or engine.has_work():
        if waiting:
            number, prompt = waiting.pop(0)
            engine.add(str(number), prompt, sampling)
        for piece in engine.step():
            texts[piece.request_id] += piece.text
            if piece.finish_reason is None:
                assert piece.signals is None
            else:
                last[piece.request_id] = piece
    return [(texts[name], last[name]) for name in texts]


@torch.no_grad()
def choose_slowly(
    model: LoadedModel, prompt: Sequence[int], sampling: Sampling, piece: Piece
) -> list[int]:
    """Every token that was chosen for the answer that ended with `piece`, a stop token included."""
    generator = torch.Generator().manual_seed(sampling.seed or 0)
    chosen: list[int] = []
    by_token = piece.finish_reason == "stop" and not sampling.stop
    for _ in range(piece.num_tokens + by_token):
        logits = model(torch.tensor([[*prompt, *chosen]]))[0, -1]
        chosen.append(choose(logits, sampling, generator))
    assert (chosen[-1] in model.require_tokenizer().stop_ids) == by_token
    return chosen


@torch.no_grad()
def measure_slowly(model: LoadedModel, prompt: Sequence[int], chosen: Sequence[int]) -> Signals:
    """One forward over prompt and answer together, one log-softmax over all of it."""
    tokens = torch.tensor([*prompt, *chosen])
    positions = torch.arange(len(tokens))
    hidden = model.transformer.encode(tokens, positions, PackedRows(rows=1, length=len(tokens)))
    log_p = model(tokens[None])[0].double().log_softmax(-1)
    predicted = log_p[:-1].gather(-1, tokens[1:, None])[:, 0]
    answers = slice(len(prompt) - 1, len(tokens) - 1)
    spread = list(spread_positions(len(prompt) - 1, limit=PROMPT_POSITIONS))
    entropy = -(log_p[answers].exp() * log_p[answers]).sum(-1)
    mean = hidden[: len(prompt)].double().mean(0)
    embedding = (mean @ projection(model.config.hidden_size).double()).half()
    return Signals(
        -float(predicted[spread].mean()) if spread else None,
        float(predicted[answers].mean()),
        float(entropy.mean()),
        tuple(embedding.tolist()),
    )


def check(
    model: LoadedModel,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    answers: Sequence[tuple[str, Piece]],
) -> None:
    for prompt, (_, piece) in zip(prompts, answers, strict=True):
        expected = measure_slowly(model, prompt, choose_slowly(model, prompt, sampling, piece))
        found = piece.signals
        assert found is not None
        assert (found.prompt_nats is None) == (len(prompt) == 1)
        if len(prompt) > 1:
            assert found.prompt_nats == pytest.approx(expected.prompt_nats, abs=1e-4)
        assert found.log_probability == pytest.approx(expected.log_probability, abs=1e-4)
        assert found.entropy == pytest.approx(expected.entropy, abs=1e-4)
        assert found.embedding == pytest.approx(expected.embedding, rel=2e-3, abs=1e-3)


@pytest.mark.parametrize("sampling", [GREEDY, DRAWN], ids=["greedy", "drawn"])
@pytest.mark.parametrize(("prefill", "max_running"), [(512, 16), (3, 4), (1, 2)])
def test_signals_equal_one_forward_over_the_whole_text(
    loaded: LoadedModel,
    monkeypatch: pytest.MonkeyPatch,
    sampling: Sampling,
    prefill: int,
    max_running: int,
) -> None:
    monkeypatch.setattr(engine_module, "PREFILL_TOKENS", prefill)
    engine = Engine(loaded, max_running=max_running, signals=True)
    answers = run(engine, ids_of(loaded), sampling)
    check(loaded, ids_of(loaded), sampling, answers)


@pytest.mark.parametrize("numbers", [1, 1000, 10**9])
@pytest.mark.parametrize("rows", [1, 7, 1000])
def test_signals_do_not_depend_on_how_many_rows_are_measured_at_once(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch, rows: int, numbers: int
) -> None:
    monkeypatch.setattr(module, "ANSWER_ROWS", rows)
    for name in ("HELD_NUMBERS", "BLOCK_NUMBERS"):
        monkeypatch.setattr(module, name, numbers)
    prompts = ids_of(loaded)[-3:]
    answers = run(Engine(loaded, max_running=2, signals=True), prompts, GREEDY)
    check(loaded, prompts, GREEDY, answers)


@pytest.mark.parametrize("sampling", [GREEDY, DRAWN], ids=["greedy", "drawn"])
def test_the_stop_token_counts_as_a_step(loaded: LoadedModel, sampling: Sampling) -> None:
    prompts = ids_of(loaded)[:4]
    tokenizer = copy.copy(loaded.require_tokenizer())
    fixed = replace(loaded, tokenizer=tokenizer)
    tokenizer.stop_ids = ()
    free = run(Engine(fixed, signals=True), prompts, sampling)
    chosen = [choose_slowly(fixed, prompts[n], sampling, free[n][1]) for n in range(4)]
    # The first answer stops at its fifth token or before, the second at its very first one.
    tokenizer.stop_ids = (chosen[0][4], chosen[1][0])
    answers = run(Engine(fixed, max_running=3, signals=True), prompts, sampling)
    assert [piece.finish_reason for _, piece in answers[:2]] == ["stop", "stop"]
    assert answers[1][1].num_tokens == 0
    check(fixed, prompts, sampling, answers)


def test_the_tokens_of_a_stop_string_count(loaded: LoadedModel) -> None:
    prompts = ids_of(loaded)[:3]
    tokenizer = loaded.require_tokenizer()
    for prompt in prompts:
        ((text, _),) = run(Engine(loaded, signals=True), [prompt], GREEDY)
        letters = [place for place, letter in enumerate(text) if letter != "\ufffd"]
        stop = text[letters[len(letters) // 2]]
        sampling = replace(GREEDY, stop=(stop,))
        answers = run(Engine(loaded, signals=True), [prompt], sampling)
        ((_, piece),) = answers
        assert piece.finish_reason == "stop"
        chosen = choose_slowly(loaded, prompt, sampling, piece)
        assert stop in tokenizer.decode(chosen)
        check(loaded, [prompt], sampling, answers)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sampling", [GREEDY, DRAWN], ids=["greedy", "drawn"])
def test_answers_are_the_same_with_and_without_signals(
    model_folder: Path, dtype: torch.dtype, sampling: Sampling
) -> None:
    model = load(model_folder, dtype=dtype)
    with_signals = run(Engine(model, max_running=3, signals=True), ids_of(model), sampling)
    without = run(Engine(model, max_running=3), ids_of(model), sampling)
    assert all(piece.signals is None for _, piece in without)
    assert [(text, replace(piece, signals=None)) for text, piece in with_signals] == without


def test_a_cancelled_request_spoils_nothing_of_the_others(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "PREFILL_TOKENS", 8)
    prompts = ids_of(loaded)[:3]
    for steps in range(6):
        engine = Engine(loaded, max_running=4, signals=True)
        engine.add("gone", [9] * 20, GREEDY)
        for _ in range(steps):
            engine.step()
        engine.cancel("gone")
        check(loaded, prompts, GREEDY, run(engine, prompts, GREEDY))


def test_bfloat16_is_measured_in_full_precision(model_folder: Path) -> None:
    """The answer's mean is that of exact log-probabilities of the logits as they are."""
    model = load(model_folder, dtype=torch.bfloat16)
    rows: list[torch.Tensor] = []

    def keep(hidden: torch.Tensor) -> torch.Tensor:
        rows.append(type(model.transformer).project(model.transformer, hidden))
        return rows[-1]

    engine = Engine(model, signals=True)
    model.transformer.project = keep  # type: ignore[method-assign]
    ((_, piece),) = run(engine, ids_of(model)[:1], GREEDY)
    log_p = torch.cat(rows).double().log_softmax(-1)
    assert piece.signals is not None
    # Greedy: the chosen token is the most likely one. The prompt's rows went another way.
    assert len(log_p) == piece.num_tokens
    assert piece.signals.log_probability == pytest.approx(float(log_p.amax(-1).mean()), abs=1e-5)


@pytest.mark.parametrize("shift", [0.0, 95.0, -95.0, 300.0, -300.0])
@pytest.mark.parametrize("width", [0.0, 3.0, 60.0])
def test_any_finite_logits_are_measured(shift: float, width: float) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = (torch.randn(9, 70, generator=generator) * width) + shift
    tokens = torch.randint(70, (9,), generator=generator).tolist()
    log_p = logits.double().log_softmax(-1)
    measured = list(measure(logits, tokens))
    expected = log_p[torch.arange(9), tokens].tolist()
    assert [each[0] for each in measured] == pytest.approx(expected, abs=1e-4, rel=1e-6)
    entropies = torch.special.entr(log_p.exp()).sum(-1).tolist()
    assert [each[1] for each in measured] == pytest.approx(entropies, abs=1e-4)


def test_logits_are_left_as_they_are() -> None:
    logits = torch.tensor([[1.0, 2.0], [900.0, 1.0]])
    kept = logits.clone()
    list(measure(logits, [0, 1]))
    assert torch.equal(logits, kept)


def test_rows_of_one_block_may_need_different_ranges() -> None:
    logits = torch.tensor([[0.0, 1.0], [400.0, 401.0], [-400.0, -401.0]])
    expected = [math.log(1 / (1 + math.e))] * 2 + [math.log(1 / (1 + 1 / math.e))]
    assert [each[0] for each in measure(logits, [0, 0, 0])] == pytest.approx(expected, abs=1e-6)


def test_even_chances_have_the_entropy_of_their_number() -> None:
    ((log_probability, entropy),) = measure(torch.full((1, 8), 5.0), [3])
    assert log_probability == pytest.approx(-math.log(8))
    assert entropy == pytest.approx(math.log(8))


def test_what_is_not_finite_is_no_signal(loaded: LoadedModel) -> None:
    transformer = copy.deepcopy(loaded.transformer)
    with torch.no_grad():
        transformer.norm.weight[0] = torch.nan
    broken = replace(loaded, transformer=transformer)
    for _, piece in run(Engine(broken, signals=True), ids_of(loaded), GREEDY):
        assert piece.finish_reason is not None
        assert piece.signals is None


@given(count=st.integers(0, 500), limit=st.integers(1, 80))
def test_positions_are_spread_evenly(count: int, limit: int) -> None:
    places = list(spread_positions(count, limit=limit))
    assert len(places) == min(count, limit)
    # One from each of as many equal stretches.
    for index, place in enumerate(places):
        assert index * count // len(places) <= place
        assert place * len(places) < (index + 1) * count


def test_positions_are_the_middles_of_stretches() -> None:
    assert list(spread_positions(12, limit=3)) == [2, 6, 10]
    assert list(spread_positions(3, limit=3)) == [0, 1, 2]


def test_the_projection_is_fixed_and_keeps_lengths() -> None:
    matrix = projection(256)
    assert matrix.shape == (256, EMBEDDING_SIZE)
    assert torch.equal(matrix, projection(256))
    lengths = (torch.eye(256) @ matrix).norm(dim=1)
    assert float(lengths.mean()) == pytest.approx(1, abs=0.02)


def test_an_embedding_fits_float16_and_tells_prompts_apart(loaded: LoadedModel) -> None:
    prompts = [[5, 6, 7], [5, 6, 7], [90, 91, 92, 93]]
    engine = Engine(loaded, signals=True)
    signals = [piece.signals for _, piece in run(engine, prompts, GREEDY)]
    embeddings = [np.array(each.embedding) for each in signals if each is not None]
    assert [each.shape for each in embeddings] == [(EMBEDDING_SIZE,)] * 3
    assert all((each == each.astype(np.float16)).all() for each in embeddings)
    assert np.allclose(embeddings[0], embeddings[1], atol=1e-2)
    assert np.linalg.norm(embeddings[0] - embeddings[2]) > 0.5
