"""Speech becomes text: windows of sound, and the rules by which Whisper's tokens follow.

Takes: samples at 16 kHz, and the two halves of a model as callables. Gives: text. Source: Radford
et al. 2022, Robust Speech Recognition via Large-Scale Weak Supervision. Axes: N samples, V entries
of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lmloop.corpus.audio import RATE
from lmloop.corpus.spectrogram import SECONDS, log_mel
from lmloop.errors import TokenizerError
from lmloop.tokens.tokenizer import Tokenizer

Memory = TypeVar("Memory")
"""What the encoder gives and the decoder reads, with whatever the decoder keeps beside it."""

PAUSE, SEARCHED = 0.2, 5.0
"""Seconds of the pause in which a window ends, and of the window's end in which it is sought."""


ENGLISH_VOCABULARY = 51_864
"""Ids of a Whisper that knows English alone; the others have more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What a Whisper says first, never says, and ends with, as ids."""

    start: tuple[int, ...]
    """Given, not chosen."""
    end: int
    suppressed: tuple[int, ...]
    """Never chosen."""
    suppressed_first: tuple[int, ...]
    """Not chosen as the first: a space alone, and the end."""
    max_tokens: int
    """Of the text of one window."""
    num_bins: int
    """Bands of the spectrogram."""


def read_rules(
    config: Mapping[str, Any], tokenizer: Tokenizer, *, language: str | None = None
) -> Rules:
    """Rules of a Whisper with Hugging Face's `config.json`; a `language` where it knows several.

    Raises `TokenizerError` where the tokenizer is none of Whisper's, or the language is missing.
    """
    if language is None and config.get("vocab_size", 0) > ENGLISH_VOCABULARY:
        raise TokenizerError("this model knows several languages: name the spoken one, as 'en'")
    spoken = () if language is None else (f"<|{language}|>", "<|transcribe|>")
    start = ("<|startoftranscript|>", *spoken, "<|notimestamps|>")
    return Rules(
        start=tuple(map(tokenizer.special_id, start)),
        end=tokenizer.special_id("<|endoftext|>"),
        suppressed=tuple(config.get("suppress_tokens") or ()),
        suppressed_first=tuple(config.get("begin_suppress_tokens") or ()),
        max_tokens=config["max_target_positions"] - len(start),
        num_bins=config["num_mel_bins"],
    )


@torch.inference_mode()
def transcribe(
    samples: NDArray[np.float32],
    *,
    encode: Callable[[Tensor], Memory],
    decode: Callable[[Memory, list[int]], Tensor],
    tokenizer: Tokenizer,
    rules: Rules,
) -> str:
    """The text of samples [N] of any length, the likeliest token each time.

    `encode` turns a spectrogram [M, 3000] into a memory. `decode` reads ids that follow all it has
    read for this memory before, and gives the logits [V] of the next one.
    """
    texts = []
    for window in cut_speech(samples):
        memory = encode(torch.from_numpy(log_mel(window, num_bins=rules.num_bins)))
        ids = decode_greedily(partial(decode, memory), rules)
        texts.append(tokenizer.decode(ids).strip())
    return " ".join(filter(None, texts))


def decode_greedily(logits: Callable[[list[int]], Tensor], rules: Rules) -> list[int]:
    """The ids of one window's text, without start and end.

    `logits` reads ids that follow all it has read before, and gives those [V] of the next one.
    """
    chosen: list[int] = []
    new = list(rules.start)
    while len(chosen) < rules.max_tokens:
        following = choose_next(logits(new), rules, first=not chosen)
        if following == rules.end:
            break
        chosen.append(following)
        new = [following]
    return chosen


def choose_next(logits: Tensor, rules: Rules, *, first: bool) -> int:
    """The likeliest id that may follow."""
    barred = [*rules.suppressed, *(rules.suppressed_first if first else ())]
    allowed = logits.float().index_fill(0, torch.tensor(barred, dtype=torch.long), -torch.inf)
    return int(allowed.argmax())


def cut_speech(samples: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
    """Windows of at most 30 seconds over samples [N], each but the last cut where it is quietest.

    Whisper reads 30 seconds at a time; a cut anywhere would go through a word.
    """
    length, searched, pause = (int(each * RATE) for each in (SECONDS, SEARCHED, PAUSE))
    while len(samples) > length:
        loudness = np.square(samples[length - searched : length], dtype=np.float64).cumsum()
        quietest = int(np.argmin(loudness[pause:] - loudness[:-pause]))
        end = length - searched + quietest + pause // 2
        yield samples[:end]
        samples = samples[end:]
    yield samples
