"""The engine: whatever runs together, each answer is what it would be alone."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lmloop.errors import (
    ArtifactError,
    ContextLengthError,
    RequestError,
    TokenizerError,
    UsageError,
)
from lmloop.inference import engine as module
from lmloop.inference.engine import Engine, Piece
from lmloop.inference.load import LoadedModel, load
from lmloop.inference.sampling import Sampling, choose
from lmloop.model.transformer import Transformer

from ..conftest import tiny_shape

GREEDY = Sampling(temperature=0, max_tokens=12)
PROMPTS = ["do you like the sea", "火车", "where is green tea number 7?", "", "I saw a 🐢", "no"]


def ids_of(model: LoadedModel, prompts: Sequence[str] = PROMPTS) -> list[list[int]]:
    return [model.require_tokenizer().encode_document(prompt) for prompt in prompts]


@torch.no_grad()
def answer_slowly(
    model: LoadedModel, prompt: Sequence[int], sampling: Sampling
) -> tuple[list[int], str]:
    """The whole text through the whole model for every token, without stop strings."""
    generator = torch.Generator().manual_seed(sampling.seed or 0)
    tokens = list(prompt)
    while len(tokens) - len(prompt) < sampling.max_tokens:
        if len(tokens) == model.config.context_length:
            break
        token = choose(model(torch.tensor([tokens]))[0, -1], sampling, generator)
        if token in model.require_tokenizer().stop_ids:
            return tokens[len(prompt) :], "stop"
        tokens.append(token)
    return tokens[len(prompt) :], "length"


def run(engine: Engine, *, steps: int = 500) -> dict[str, list[Piece]]:
    """Step until there is nothing to do; pieces by request."""
    pieces: dict[str, list[Piece]] = {}
    for _ in range(steps):
        if not engine.has_work():
            return pieces
        for piece in engine.step():
            pieces.setdefault(piece.request_id, []).append(piece)
    raise AssertionError(f"still at work after {steps} steps")


def text_of(pieces: Sequence[Piece]) -> str:
    return "".join(piece.text for piece in pieces)


@pytest.mark.parametrize("max_running", [1, 2, 16])
@pytest.mark.parametrize("prefill", [1, 3, 512])
def test_greedy_answers_equal_a_full_recomputation(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch, max_running: int, prefill: int
) -> None:
    monkeypatch.setattr(module, "PREFILL_TOKENS", prefill)
    prompts = ids_of(loaded)
    answers = list(Engine(loaded, max_running=max_running).generate(prompts, GREEDY))
    for prompt, answer in zip(prompts, answers, strict=True):
        tokens, reason = answer_slowly(loaded, prompt, GREEDY)
        assert list(answer.tokens) == tokens
        assert answer.finish_reason == reason
        assert answer.text == loaded.require_tokenizer().decode(tokens)


@pytest.mark.parametrize("seed", [1, 2])
def test_drawn_answers_equal_a_full_recomputation(loaded: LoadedModel, seed: int) -> None:
    sampling = Sampling(temperature=0.9, top_p=0.9, top_k=50, max_tokens=10, seed=seed)
    prompts = ids_of(loaded)
    answers = list(Engine(loaded, max_running=3).generate(prompts, sampling))
    for prompt, answer in zip(prompts, answers, strict=True):
        assert list(answer.tokens) == answer_slowly(loaded, prompt, sampling)[0]


def test_the_same_seed_gives_the_same_answer_in_any_company(loaded: LoadedModel) -> None:
    prompt, *others = ids_of(loaded)
    sampling = Sampling(temperature=1.0, max_tokens=15, seed=7)
    (alone,) = Engine(loaded).generate([prompt], sampling)
    engine = Engine(loaded, max_running=2)
    for number, other in enumerate(others):
        engine.add(f"other {number}", other, replace(sampling, seed=number))
        engine.step()
    engine.add("mine", prompt, sampling)
    assert text_of(run(engine)["mine"]) == alone.text


def test_without_a_seed_answers_differ(loaded: LoadedModel) -> None:
    sampling = Sampling(temperature=1.0, max_tokens=20)
    prompts = [ids_of(loaded)[0]] * 4
    assert len({answer.tokens for answer in Engine(loaded).generate(prompts, sampling)}) > 1


def test_each_prompt_may_have_a_sampling_of_its_own(loaded: LoadedModel) -> None:
    prompt = ids_of(loaded)[0]
    seeds = [Sampling(temperature=1.0, max_tokens=15, seed=seed) for seed in range(3)]
    together = list(Engine(loaded).generate([prompt] * 3, seeds))
    alone = [next(Engine(loaded).generate([prompt], each)) for each in seeds]
    assert together == alone
    assert len({answer.tokens for answer in together}) == 3
    with pytest.raises(UsageError, match="2 prompts have 3 samplings"):
        next(Engine(loaded).generate([prompt] * 2, seeds))


def test_prompts_may_be_text_or_ids_and_are_answered_in_order(loaded: LoadedModel) -> None:
    tokenizer = loaded.require_tokenizer()
    texts = list(Engine(loaded, max_running=2).generate(PROMPTS, GREEDY))
    arrays = [np.array(ids) for ids in ids_of(loaded)]
    ids = list(Engine(loaded, max_running=2).generate(arrays, GREEDY))  # type: ignore[arg-type]
    assert texts == ids
    assert tokenizer.encode_document("")[0] == tokenizer.document_id


def test_an_answer_is_given_while_later_ones_still_grow(loaded: LoadedModel) -> None:
    engine = Engine(loaded, max_running=1)
    answers = engine.generate(ids_of(loaded), GREEDY)
    next(answers)
    assert engine.has_work()
    assert len(list(answers)) == len(PROMPTS) - 1
    assert not engine.has_work()


def test_answers_that_nobody_waits_for_are_given_up(loaded: LoadedModel) -> None:
    engine = Engine(loaded, max_running=2)
    answers = engine.generate(ids_of(loaded), GREEDY)
    next(answers)
    answers.close()  # type: ignore[attr-defined]
    assert not engine.has_work()
    fresh = list(Engine(loaded).generate(ids_of(loaded), GREEDY))
    assert list(engine.generate(ids_of(loaded), GREEDY)) == fresh


def test_a_prompt_that_is_refused_leaves_nothing_behind(loaded: LoadedModel) -> None:
    engine = Engine(loaded)
    with pytest.raises(RequestError):
        list(engine.generate([[1, 2], []], GREEDY))
    assert not engine.has_work()


def test_an_engine_at_work_refuses_to_generate_for_another(loaded: LoadedModel) -> None:
    engine = Engine(loaded)
    engine.add("mine", [1, 2], GREEDY)
    with pytest.raises(UsageError, match="at work already"):
        next(engine.generate([[1]], GREEDY))
    assert set(run(engine)) == {"mine"}


def test_more_requests_than_slots_wait_and_are_served_in_turn(loaded: LoadedModel) -> None:
    engine = Engine(loaded, max_running=2)
    prompts = ids_of(loaded)
    for number, prompt in enumerate(prompts):
        engine.add(str(number), prompt, GREEDY)
    assert (engine.num_running, engine.num_waiting) == (0, 6)
    engine.step()
    assert (engine.num_running, engine.num_waiting) == (2, 4)
    pieces = run(engine)
    assert (engine.num_running, engine.num_waiting) == (0, 0)
    for number, prompt in enumerate(prompts):
        expected, _ = answer_slowly(loaded, prompt, GREEDY)
        assert text_of(pieces[str(number)]) == loaded.require_tokenizer().decode(expected)


def test_a_long_prompt_does_not_hold_up_the_answers_of_others(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PREFILL_TOKENS", 4)
    engine = Engine(loaded)
    engine.add("short", [3, 5], GREEDY)
    engine.step()
    engine.add("long", [3] * 30, GREEDY)
    steps = list(itertools.takewhile(lambda pieces: pieces, (engine.step() for _ in range(7))))
    # Thirty tokens in chunks of four take eight steps; each of them gave the other answer a token.
    assert [[piece.request_id for piece in pieces] for pieces in steps] == [["short"]] * 7


def test_prompts_that_arrive_together_share_what_a_step_may_read(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PREFILL_TOKENS", 4)
    engine = Engine(loaded)
    for name in ("a", "b"):
        engine.add(name, [3] * 8, GREEDY)
    steps = [[piece.request_id for piece in engine.step()] for _ in range(4)]
    assert steps == [[], ["a"], ["a"], ["a", "b"]]


@pytest.fixture(scope="module")
def speaker(loaded: LoadedModel) -> LoadedModel:
    """A model that says whole characters only: ids of cut ones point nowhere."""
    transformer, tokenizer = copy.deepcopy(loaded.transformer), loaded.require_tokenizer()
    with torch.no_grad():
        for token in range(tokenizer.vocab_size):
            if tokenizer.decode([token]) in ("", "\ufffd"):
                transformer.embedding.weight[token] = 0
    return replace(loaded, transformer=transformer)


def find_text(speaker: LoadedModel) -> tuple[list[int], str]:
    """A prompt, and the text of its greedy answer of 30 tokens."""
    prompt = speaker.require_tokenizer().encode_document("where is the sea?")
    tokens, reason = answer_slowly(speaker, prompt, replace(GREEDY, max_tokens=30))
    text = speaker.require_tokenizer().decode(tokens)
    assert reason == "length"
    assert len(set(text)) > 4, f"{text!r} repeats itself: choose another prompt"
    return prompt, text


def test_a_stop_string_ends_the_answer_before_it(speaker: LoadedModel) -> None:
    prompt, text = find_text(speaker)
    for begin, length in ((4, 1), (4, 5), (0, 3)):
        stop = text[begin : begin + length]
        sampling = Sampling(temperature=0, max_tokens=30, stop=("never", stop))
        (answer,) = Engine(speaker).generate([prompt], sampling)
        assert (answer.text, answer.finish_reason) == (text[: text.index(stop)], "stop")


def test_text_held_back_for_a_stop_is_given_when_the_answer_is_full(
    speaker: LoadedModel,
) -> None:
    prompt, text = find_text(speaker)
    sampling = Sampling(temperature=0, max_tokens=30, stop=(text[-3:] + "~never~",))
    engine = Engine(speaker)
    engine.add("a", prompt, sampling)
    pieces = run(engine)["a"]
    assert (text_of(pieces), pieces[-1].finish_reason) == (text, "length")
    assert len(pieces[-1].text) >= 3


def with_favourite(model: LoadedModel, token: int) -> LoadedModel:
    """A model that always says `token`: its embedding is what every hidden state looks like."""
    transformer = copy.deepcopy(model.transformer)
    with torch.no_grad():
        for block in transformer.blocks:
            block.mixer.part.output.weight.zero_()  # type: ignore[union-attr]
            block.feed_forward.part.down.weight.zero_()  # type: ignore[union-attr]
        transformer.embedding.weight.fill_(1.0)
        transformer.embedding.weight[token] = 2.0
        transformer.norm.weight.fill_(1.0)
    return replace(model, transformer=transformer)


@pytest.mark.parametrize("stop", [0, 1])
def test_the_stop_and_the_document_token_end_an_answer_and_are_not_part_of_it(
    loaded: LoadedModel, stop: int
) -> None:
    engine = Engine(with_favourite(loaded, stop))
    engine.add("a", [3, 5], GREEDY)
    assert run(engine) == {"a": [Piece("a", "", 0, "stop")]}


def test_a_full_context_ends_an_answer(loaded: LoadedModel) -> None:
    letter = loaded.require_tokenizer().encode("a")
    model = with_favourite(loaded, letter[0])
    context = model.config.context_length
    for length in (context - 1, context - 5):
        (answer,) = Engine(model).generate([[3] * length], Sampling(temperature=0, max_tokens=999))
        assert answer.tokens == tuple(letter * (context - length))
        assert answer.finish_reason == "length"


def test_as_many_tokens_as_asked_for_end_an_answer(loaded: LoadedModel) -> None:
    letter = loaded.require_tokenizer().encode("a")
    engine = Engine(with_favourite(loaded, letter[0]))
    engine.add("a", [3], replace(GREEDY, max_tokens=3))
    assert run(engine)["a"] == [
        Piece("a", "a", 1, None),
        Piece("a", "a", 2, None),
        Piece("a", "a", 3, "length"),
    ]


@pytest.mark.parametrize("beyond", [0, 1, 100])
def test_a_prompt_that_leaves_no_room_for_an_answer_is_refused(
    loaded: LoadedModel, beyond: int
) -> None:
    context = loaded.config.context_length
    engine = Engine(loaded)
    with pytest.raises(ContextLengthError, match=f"has {context + beyond} tokens") as caught:
        engine.add("a", [1] * (context + beyond), GREEDY)
    assert caught.value.code == "context_length_exceeded"
    assert not engine.has_work()


@pytest.mark.parametrize("tokens", [[], [-1], [1, 340], [10**6]])
def test_a_prompt_that_the_model_does_not_know_is_refused(
    loaded: LoadedModel, tokens: list[int]
) -> None:
    engine = Engine(loaded)
    with pytest.raises(RequestError, match="The prompt"):
        engine.add("a", tokens, GREEDY)
    assert not engine.has_work()


def test_a_request_is_cancelled_while_it_waits_reads_or_answers(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PREFILL_TOKENS", 4)
    prompts = ids_of(loaded)
    long = [3] * 20
    for steps in (0, 1, 2, 7):
        engine = Engine(loaded, max_running=1)
        engine.add("gone", long, GREEDY)
        engine.add("kept", prompts[0], GREEDY)
        for _ in range(steps):
            engine.step()
        engine.cancel("gone")
        engine.cancel("never there")
        pieces = run(engine)
        assert set(pieces) == {"kept"}
        expected, _ = answer_slowly(loaded, prompts[0], GREEDY)
        assert text_of(pieces["kept"]) == loaded.require_tokenizer().decode(expected)
    engine = Engine(loaded, max_running=1)
    engine.add("first", long, GREEDY)
    engine.step()
    engine.add("gone", long, GREEDY)
    engine.cancel("gone")
    assert set(run(engine)) == {"first"}


def test_cancelling_the_only_request_leaves_nothing_to_do(loaded: LoadedModel) -> None:
    engine = Engine(loaded)
    engine.add("a", [1, 2, 3], GREEDY)
    engine.step()
    engine.cancel("a")
    assert not engine.has_work()
    assert engine.step() == []


def test_an_answer_in_bfloat16_runs(model_folder: Path) -> None:
    model = load(model_folder, dtype=torch.bfloat16)
    answers = list(Engine(model, max_running=2).generate(ids_of(model), GREEDY))
    assert [len(answer.tokens) <= 12 for answer in answers] == [True] * len(PROMPTS)


def test_a_model_without_tokenizer_has_no_engine(loaded: LoadedModel) -> None:
    with pytest.raises(TokenizerError, match="no tokenizer"):
        Engine(replace(loaded, tokenizer=None))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"causal": False}, "it does not continue it: use .encode"),
        ({"head": "none"}, "it does not continue it: use .encode"),
        ({"encoder": tiny_shape(causal=False, head="none")}, "answers a source"),
    ],
)
def test_a_model_that_does_not_continue_text_is_refused(changes: Any, told: str) -> None:
    model = LoadedModel(
        Transformer(tiny_shape(**changes)), tokenizer=None, fingerprint="unversioned"
    )
    with pytest.raises(ArtifactError, match=told):
        Engine(model)


def test_room_for_what_is_known_to_come_changes_no_answer(loaded: LoadedModel) -> None:
    prompts = ids_of(loaded)
    needed = max(map(len, prompts)) + GREEDY.max_tokens + 1
    assert needed < loaded.config.context_length
    held, said = [], []
    for length in (None, needed):
        engine = Engine(loaded, max_running=4, context_length=length)
        held.append(sum(each.numel() for each in engine._cache.layers[0].tensors()))
        said.append([answer.text for answer in engine.generate(prompts, GREEDY)])
    assert said[0] == said[1]
    assert held[1] * loaded.config.context_length == held[0] * needed
    with pytest.raises(ContextLengthError):
        engine.add("long", [1] * needed, GREEDY)
