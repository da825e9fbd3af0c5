"""How the next token is chosen from the model's logits."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lmloop.errors import RequestError

GREEDY_TEMPERATURE = 1e-3
"""Below this the most likely token is taken: dividing by less would overflow."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """What a caller asks of one answer."""

    max_tokens: int = 256
    """Longest answer, in tokens."""
    temperature: float = 1.0
    """0 takes the most likely token always."""
    top_p: float = 1.0
    """Only the most likely tokens that make up this share are drawn from."""
    top_k: int | None = None
    """Only so many of the most likely tokens are drawn from."""
    stop: tuple[str, ...] = ()
    """Texts that end the answer; they are not part of it."""
    seed: int | None = None
    """Makes the answer reproducible."""

    def __post_init__(self) -> None:
        """Raise `RequestError` for what nothing can be drawn with."""
        allowed = {
            "max_tokens": (self.max_tokens >= 1, "at least 1"),
            "temperature": (0 <= self.temperature < math.inf, "0 or more"),
            "top_p": (0 < self.top_p <= 1, "above 0 and at most 1"),
            "top_k": (self.top_k is None or self.top_k >= 1, "at least 1, or absent"),
        }
        for name, (sound, rule) in allowed.items():
            if not sound:
                raise RequestError(f"{name} is {getattr(self, name)}: give {rule}.", param=name)


def choose(logits: Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    """One id from logits [V].

    Source of the nucleus: Holtzman et al. 2020, The Curious Case of Neural Text Degeneration.
    """
    if sampling.temperature < GREEDY_TEMPERATURE:
        return int(logits.argmax())
    scaled = logits.float() / sampling.temperature
    if sampling.top_k is not None or sampling.top_p < 1:
        ordered, ids = scaled.sort(descending=True)
        if sampling.top_k is not None:
            ordered, ids = ordered[: sampling.top_k], ids[: sampling.top_k]
        chances = ordered.softmax(-1)
        # A token is kept while those before it have not yet reached the share: the first always is.
        beyond = chances.cumsum(-1) - chances >= sampling.top_p
        chances[1:][beyond[1:]] = 0
        return int(ids[torch.multinomial(chances, 1, generator=generator)])
    return int(torch.multinomial(scaled.softmax(-1), 1, generator=generator))
