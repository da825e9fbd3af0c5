"""Whisper's rules: what is never said, where a text ends, where a long sound is cut."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import tokenizers
import torch
from tokenizers import decoders, models, pre_tokenizers
from torch import Tensor

from lmloop.corpus.audio import RATE
from lmloop.errors import TokenizerError
from lmloop.inference.transcribe import (
    Rules,
    choose_next,
    cut_speech,
    decode_greedily,
    read_rules,
    transcribe,
)
from lmloop.tokens.tokenizer import Tokenizer

SPECIAL = ("<|endoftext|>", "<|startoftranscript|>", "<|de|>", "<|transcribe|>", "<|notimestamps|>")
RULES = Rules(
    start=(9, 8), end=7, suppressed=(1,), suppressed_first=(2, 7), max_tokens=4, num_bins=80
)


def make_tokenizer(*special: str) -> Tokenizer:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = tokenizers.Tokenizer(models.BPE({each: i for i, each in enumerate(letters)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(list(special))
    return Tokenizer(backend, config={"bos_token": special[0], "eos_token": special[0]})


def scores(*ids: int, size: int = 10) -> Tensor:
    """Logits with the ids from the likeliest down."""
    logits = torch.zeros(size)
    for place, each in enumerate(ids):
        logits[each] = 10.0 - place
    return logits


def test_rules_are_read_from_config_and_tokenizer() -> None:
    tokenizer = make_tokenizer(*SPECIAL)
    config = {"max_target_positions": 448, "num_mel_bins": 80, "suppress_tokens": [1, 2]}
    rules = read_rules(config | {"begin_suppress_tokens": None}, tokenizer)
    assert rules == Rules(
        start=(257, 260),
        end=256,
        suppressed=(1, 2),
        suppressed_first=(),
        max_tokens=446,
        num_bins=80,
    )
    german = read_rules(config, tokenizer, language="de")
    assert (german.start, german.max_tokens) == ((257, 258, 259, 260), 444)
    with pytest.raises(TokenizerError, match=r"no token '<\|fr\|>'"):
        read_rules(config, tokenizer, language="fr")


def test_suppressed_ids_are_never_chosen() -> None:
    assert choose_next(scores(1, 2, 7, 3), RULES, first=True) == 3
    assert choose_next(scores(1, 2, 7, 3), RULES, first=False) == 2
    open_rules = replace(RULES, suppressed=(), suppressed_first=())
    assert choose_next(scores(1, 2), open_rules, first=True) == 1


def test_logits_are_left_as_they_are() -> None:
    logits = scores(1)
    choose_next(logits, RULES, first=True)
    assert torch.equal(logits, scores(1))


def test_the_start_is_given_once_and_then_each_chosen_id() -> None:
    given: list[list[int]] = []

    def logits(new: list[int]) -> Tensor:
        given.append(new)
        return scores(*([7] if len(given) == 3 else [1, 3 + len(given)]))

    assert decode_greedily(logits, RULES) == [4, 5]
    assert given == [[9, 8], [4], [5]]


def test_a_text_without_end_stops_at_its_limit() -> None:
    assert decode_greedily(lambda new: scores(5), RULES) == [5, 5, 5, 5]


def test_a_short_sound_is_one_window() -> None:
    samples = np.ones(30 * RATE, np.float32)
    (window,) = cut_speech(samples)
    assert window is samples


def test_a_long_sound_is_cut_in_its_pauses_and_nothing_is_lost() -> None:
    samples = np.random.default_rng(0).normal(0, 0.1, 70 * RATE).astype(np.float32)
    samples[27 * RATE : 27 * RATE + RATE // 4] *= 0.01
    samples[53 * RATE : 53 * RATE + RATE // 4] *= 0.01
    windows = [*cut_speech(samples)]
    assert np.array_equal(np.concatenate(windows), samples)
    ends = np.cumsum([len(each) for each in windows]) / RATE
    assert ends.tolist() == pytest.approx([27.125, 53.125, 70], abs=0.03)
    assert max(len(each) for each in windows) <= 30 * RATE


def test_steady_noise_is_cut_within_the_last_seconds() -> None:
    samples = np.ones(65 * RATE, np.float32)
    lengths = [len(each) / RATE for each in cut_speech(samples)]
    assert sum(lengths) == 65
    assert all(25 <= each <= 30 for each in lengths[:-1])


def test_every_window_is_encoded_and_its_text_joined() -> None:
    tokenizer = make_tokenizer(*SPECIAL)
    rules = read_rules({"max_target_positions": 9, "num_mel_bins": 8}, tokenizer)
    said = [" Hi.", "", "  you "]
    seen: list[torch.Size] = []

    def encode(spectrogram: Tensor) -> list[int]:
        seen.append(spectrogram.shape)
        return [*tokenizer.encode(said[len(seen) - 1]), rules.end]

    def decode(memory: list[int], new: list[int]) -> Tensor:
        return scores(memory.pop(0), size=261)

    samples = np.ones(70 * RATE, np.float32)
    text = transcribe(samples, encode=encode, decode=decode, tokenizer=tokenizer, rules=rules)
    assert text == "Hi. you"
    assert seen == [(8, 3000)] * 3
