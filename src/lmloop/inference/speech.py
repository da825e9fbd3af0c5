"""The two halves of a Whisper as transcribing needs them: it hears a window, then says each id.

Takes: a model and samples at 16 kHz. Gives: text. Axes: N samples, M bands, T frames, E width of
the encoder, t tokens, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lmloop.inference.transcribe import Rules, transcribe
from lmloop.model.cache import Chunk, SlotCache
from lmloop.model.transformer import Transformer
from lmloop.tokens.tokenizer import Tokenizer

if TYPE_CHECKING:
    from jaxtyping import Float


@dataclass(slots=True)
class Heard:
    """One window of sound, and what has been said of it."""

    states: Float[Tensor, "T E"]
    cache: SlotCache
    position: int = 0


def transcribe_speech(
    model: Transformer, samples: NDArray[np.float32], *, tokenizer: Tokenizer, rules: Rules
) -> str:
    """The text of samples [N] of any length; raise `ValueError` for a model that cannot hear."""
    return transcribe(
        samples,
        encode=partial(hear, model),
        decode=partial(say, model),
        tokenizer=tokenizer,
        rules=rules,
    )


def hear(model: Transformer, spectrogram: Float[Tensor, "M T"]) -> Heard:
    """The encoder's states of one window, with room for all that can be said of it."""
    dtype = model.embedding.weight.dtype
    states = model.read(spectrogram[None].to(model.device, dtype)).states
    length = model.config.context_length
    cache = SlotCache(
        model.config,
        slots=1,
        length=length,
        dtype=dtype,
        source_length=len(states),
        device=model.device,
    )
    return Heard(states, cache)


def say(model: Transformer, heard: Heard, new: list[int]) -> Float[Tensor, "V"]:
    """Logits of the id that follows `new`, which follow all ids that were given before."""
    sources = None if heard.position else {0: heard.states}
    view = heard.cache.view([Chunk(0, heard.position, len(new))], sources=sources)
    heard.position += len(new)
    given = torch.tensor(new, device=model.device)
    hidden = model.encode(given, view.positions, view)
    return model.project(hidden[-1:])[0].cpu()
