"""What a Whisper hears and says by pieces is what it computes at once."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lmloop.inference.speech import hear, say, transcribe_speech
from lmloop.inference.transcribe import Rules
from lmloop.model.transformer import Transformer

from ..conftest import random_model, tiny_shape
from .test_transcribe import SPECIAL, make_tokenizer


def make_whisper() -> Transformer:
    learned = {"positions": "learned", "norm": "layer", "qk_norm": False}
    ears = {"context_length": 1500, "audio_bins": 5, "causal": False, "head": "none"}
    encoder = tiny_shape(**learned, **ears, num_layers=1)
    return random_model(tiny_shape(**learned, vocab_size=261, encoder=encoder)).eval()


@torch.no_grad()
def test_ids_in_pieces_have_the_logits_of_the_whole() -> None:
    model = make_whisper()
    spectrogram = torch.randn(5, 3000, generator=torch.Generator().manual_seed(0))
    heard = hear(model, spectrogram)
    ids = [7, 3, 40, 9, 9]
    expected = model(torch.tensor([ids]), source=model.read(spectrogram[None]))[0]
    for start, stop in [(0, 2), (2, 3), (3, 5)]:
        found = say(model, heard, ids[start:stop])
        torch.testing.assert_close(found, expected[stop - 1], rtol=1e-4, atol=1e-5)


def test_the_likeliest_ids_become_the_text_of_each_window() -> None:
    model, tokenizer = make_whisper(), make_tokenizer(*SPECIAL)
    rules = Rules(
        start=(257, 260),
        end=256,
        suppressed=(*range(97), *range(256, 261)),  # no end, and no spaces, which are cut off
        suppressed_first=(),
        max_tokens=3,
        num_bins=5,
    )
    sound = np.random.default_rng(0).normal(0, 0.1, 40 * 16_000).astype(np.float32)
    text = transcribe_speech(model, sound, tokenizer=tokenizer, rules=rules)
    again = transcribe_speech(model, sound, tokenizer=tokenizer, rules=rules)
    assert text == again != ""


def test_a_model_without_ears_is_refused() -> None:
    with pytest.raises(ValueError, match="no encoder"):
        hear(random_model(tiny_shape()), torch.zeros(5, 3000))
