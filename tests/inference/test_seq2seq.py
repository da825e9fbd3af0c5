"""Answers of encoder-decoders: each step by hand, and the best of all by counting them out."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor

from lmloop.inference.seq2seq import generate
from lmloop.model.transformer import Transformer

from ..conftest import random_model, tiny_shape

START, STOP = 2, 1


def make_model(*, vocab_size: int = 50) -> Transformer:
    encoder = tiny_shape(vocab_size=vocab_size, causal=False, head="none")
    shape = tiny_shape(vocab_size=vocab_size, encoder=encoder, tie_embeddings=False)
    return random_model(shape).eval()


def make_sources(*lengths: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randint(0, 4, (length,), generator=generator) for length in lengths]


def ask(
    model: Transformer,
    sources: list[Tensor],
    *,
    max_tokens: int,
    stop_id: int = STOP,
    beams: int = 1,
    length_penalty: float = 1.0,
) -> list[list[int]]:
    return generate(
        model,
        sources,
        start_id=START,
        stop_id=stop_id,
        max_tokens=max_tokens,
        beams=beams,
        length_penalty=length_penalty,
    )


@torch.no_grad()
def chances(model: Transformer, source: Tensor, said: list[int]) -> Tensor:
    """Log-probabilities [T, V] of each next token, without any cache."""
    tokens = torch.tensor([[START, *said]])
    return model(tokens, source=model.read(source[None]))[0].log_softmax(-1)


def test_answers_go_on_from_prompts_of_different_lengths() -> None:
    model, sources = make_model(vocab_size=12), make_sources(6, 3, 9)
    prompts = [[5, 6, 7], [], [8]]
    for beams in (1, 3):
        settings = {"start_id": START, "stop_id": STOP, "max_tokens": 7, "beams": beams}
        together = generate(model, sources, prompts=prompts, **settings)
        for source, prompt, answer in zip(sources, prompts, together, strict=True):
            assert generate(model, [source], prompts=[prompt], **settings) == [answer]
    answer = generate(model, sources[:1], prompts=prompts[:1], **{**settings, "beams": 1})[0]
    likeliest = chances(model, sources[0], [5, 6, 7, *answer]).argmax(-1)[3:].tolist()
    assert [*answer, STOP][:7] == likeliest[:7]


def test_a_prompt_has_a_source_and_leaves_room() -> None:
    encoder = tiny_shape(causal=False, head="none")
    model = random_model(tiny_shape(encoder=encoder, positions="learned", context_length=4)).eval()
    settings = {"start_id": START, "stop_id": -1, "max_tokens": 9}
    (answer,) = generate(model, make_sources(3), prompts=[[5, 6]], **settings)
    assert len(answer) == 2
    with pytest.raises(ValueError, match="4 tokens leaves no room"):
        generate(model, make_sources(3), prompts=[[5, 6, 7, 8]], **settings)
    with pytest.raises(ValueError, match="1 prompts for 2 sources"):
        generate(model, make_sources(3, 4), prompts=[[5]], **settings)


def test_the_likeliest_token_is_taken_each_time_until_the_stop() -> None:
    model, sources = make_model(vocab_size=12), make_sources(6, 3, 9, 1)
    endless = ask(model, sources, max_tokens=12, stop_id=-1)
    for source, answer in zip(sources, endless, strict=True):
        assert len(answer) == 12
        assert chances(model, source, answer[:-1]).argmax(-1).tolist() == answer
    stop = endless[0][4]
    answers = ask(model, sources, max_tokens=12, stop_id=stop)
    assert answers == [each[: [*each, stop].index(stop)] for each in endless]
    assert len(answers[0]) <= 4


@pytest.mark.parametrize("penalty", [0.0, 1.0])
def test_enough_beams_find_the_best_of_all_answers(penalty: float) -> None:
    model, (source,) = make_model(vocab_size=4), make_sources(5)
    scores = {}
    for length in range(4):
        for said in product([0, 2, 3], repeat=length):
            whole = [*said, STOP][:3]
            rows = chances(model, source, list(said))
            score = sum(float(rows[place, token]) for place, token in enumerate(whole))
            scores[said] = score / len(whole) ** penalty
    (answer,) = ask(model, [source], max_tokens=3, beams=40, length_penalty=penalty)
    assert tuple(answer) == max(scores, key=lambda said: scores[said])


@pytest.mark.parametrize("beams", [1, 3])
def test_an_answer_does_not_depend_on_its_company(beams: int) -> None:
    model, sources = make_model(), make_sources(7, 2, 4)
    together = ask(model, sources, max_tokens=9, beams=beams)
    for source, answer in zip(sources, together, strict=True):
        assert ask(model, [source], max_tokens=9, beams=beams) == [answer]


def test_more_beams_find_what_is_at_least_as_likely() -> None:
    model, sources = make_model(vocab_size=12), make_sources(4, 8, 3)

    def likelihoods(beams: int) -> list[float]:
        found = ask(model, sources, max_tokens=6, beams=beams, length_penalty=0.0)
        totals = []
        for source, said in zip(sources, found, strict=True):
            whole = torch.tensor([*said, STOP][:6])
            totals.append(float(chances(model, source, said)[range(len(whole)), whole].sum()))
        return totals

    one, many = likelihoods(1), likelihoods(30)
    assert all(b >= a - 1e-5 for a, b in zip(one, many, strict=True))
    assert sum(many) > sum(one) + 0.1


def test_no_source_has_no_answer() -> None:
    assert ask(make_model(), [], max_tokens=3) == []


def test_what_makes_no_sense_is_refused() -> None:
    sources = make_sources(3)
    with pytest.raises(ValueError, match="0 beams"):
        ask(make_model(), sources, max_tokens=3, beams=0)
    decoder = random_model(tiny_shape())
    with pytest.raises(ValueError, match="no encoder"):
        ask(decoder, sources, max_tokens=3)
