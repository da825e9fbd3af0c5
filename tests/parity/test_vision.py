"""Pictures into words beside transformers: what it saves we compute alike, and back again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from lmloop.corpus.pictures import PictureRules, prepare_picture, read_picture
from lmloop.inference.seq2seq import generate
from lmloop.weights.checkpoint import load_model

from .conftest import save_again

pytestmark = pytest.mark.slow

ENCODER = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "image_size": 12,
    "patch_size": 4,
}
DECODER = {"vocab_size": 16, "n_embd": 32, "n_layer": 3, "n_head": 2, "n_positions": 64}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}),
    "gray, without biases, untied": (
        {"num_channels": 1, "qkv_bias": False},
        {"tie_word_embeddings": False, "n_inner": 40},
    ),
}
SPECIAL = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2, "decoder_start_token_id": 3}
STEPS = 24
POOLER = {"encoder.pooler.dense.weight", "encoder.pooler.dense.bias"}
"""What the states do not depend on: it is not written."""
TARGETS = torch.randint(4, 16, (5, 25), generator=torch.Generator().manual_seed(1))


def draw_pictures(channels: int) -> Tensor:
    return torch.randn(5, channels, 12, 12, generator=torch.Generator().manual_seed(2))


def shake(model: Any) -> None:
    """Draw what a fresh model has all alike."""
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if "wpe" in name:
                tensor.normal_()
            elif tensor.dim() == 1 or "token" in name or "position" in name:
                tensor.add_(0.3 * torch.randn_like(tensor))
            else:
                # Enough of the picture that texts of different ones differ.
                tensor.mul_(40 if "crossattention.c_proj" in name else 5)


def draw(transformers: Any, case: str) -> Any:
    """Their random model of a case."""
    encoder, decoder = CASES[case]
    torch.manual_seed(0)
    config = transformers.VisionEncoderDecoderConfig.from_encoder_decoder_configs(
        transformers.ViTConfig(**ENCODER | encoder), transformers.GPT2Config(**DECODER | decoder)
    )
    model = transformers.VisionEncoderDecoderModel(config).eval()
    shake(model)
    return model


def require_close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_what_transformers_saves_we_compute_alike(
    transformers: Any, tmp_path: Path, case: str
) -> None:
    theirs = draw(transformers, case)
    theirs.save_pretrained(tmp_path)
    ours = load_model(tmp_path)
    pictures = draw_pictures(theirs.config.encoder.num_channels)
    expected = theirs(pictures, decoder_input_ids=TARGETS, output_hidden_states=True)
    source = ours.read(pictures)
    require_close(source.states.view(5, 10, 32), expected.encoder_last_hidden_state)
    require_close(ours.states(TARGETS, source=source), expected.decoder_hidden_states[-1])
    require_close(ours(TARGETS, source=source), expected.logits)


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_what_we_save_transformers_opens_and_computes_alike(
    transformers: Any, tmp_path: Path, case: str
) -> None:
    first = draw(transformers, case)
    ours = save_again(first, tmp_path, stop_id=1, document_id=0, start_id=3)
    again, report = type(first).from_pretrained(
        tmp_path / "ours", dtype=torch.float32, output_loading_info=True
    )
    assert {*report.pop("missing_keys")} <= POOLER
    assert not any(report.values())
    pictures = draw_pictures(first.config.encoder.num_channels)
    expected = first(pictures, decoder_input_ids=TARGETS).logits
    assert torch.equal(again(pictures, decoder_input_ids=TARGETS).logits, expected)
    assert load_model(tmp_path / "ours").config == ours.config


@pytest.mark.parametrize("prompt", [[], [5, 9, 4]])
@pytest.mark.parametrize("beams", [1, 4])
@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_captions_and_answers_are_those_of_transformers(
    transformers: Any, tmp_path: Path, case: str, beams: int, prompt: list[int]
) -> None:
    theirs = draw(transformers, case)
    # A tied head says the token before again, and never stops.
    head = torch.randn(16, 32, generator=torch.Generator().manual_seed(7))
    theirs.decoder.lm_head.weight = torch.nn.Parameter(0.4 * head)
    theirs.save_pretrained(tmp_path)
    ours = load_model(tmp_path)
    pictures = draw_pictures(theirs.config.encoder.num_channels)
    asked = {"start_id": 3, "max_tokens": STEPS, "prompts": [prompt] * 5}
    endless = generate(ours, list(pictures), stop_id=-1, **asked)
    stop = endless[0][12]
    settings = {**SPECIAL, "eos_token_id": stop, "max_new_tokens": STEPS, "num_beams": beams}
    rows = theirs.generate(
        pictures,
        decoder_input_ids=torch.tensor([[3, *prompt]] * 5),
        generation_config=transformers.GenerationConfig(**settings),
    )
    answers = rows[:, 1 + len(prompt) :].tolist()
    expected = [row[: [*row, stop].index(stop)] for row in answers]
    assert len({*map(tuple, endless)}) > 2
    assert min(map(len, expected)) < STEPS
    assert generate(ours, list(pictures), stop_id=stop, beams=beams, **asked) == expected


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA"])
@pytest.mark.parametrize("sides", [(224, 224), (301, 97), (20, 31)])
def test_a_file_becomes_the_numbers_that_their_image_processor_makes(
    transformers: Any, tmp_path: Path, sides: tuple[int, int], mode: str
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (*sides, 4), dtype=np.uint8)
    image = Image.fromarray(noise, "RGBA").convert(mode)
    image.save(tmp_path / "picture.png")
    rules = PictureRules(size=24, mean=(0.5, 0.4, 0.3), std=(0.5, 0.25, 0.2))
    processor = transformers.ViTImageProcessorPil(**rules.describe())
    expected = processor(image.convert("RGB"), return_tensors="np").pixel_values[0]
    found = prepare_picture(read_picture(tmp_path / "picture.png", channels=3), rules)
    # One step of 255 at most: Pillow 13 resizes, and rounds, the other side first for some shapes.
    np.testing.assert_allclose(found, expected, rtol=0, atol=1.001 / 255 / 0.2)
    assert (np.abs(found - expected) > 1e-5).mean() < 0.2
    assert abs((found - expected).mean()) < 1e-3


@torch.no_grad()
def test_a_vit_alone_is_the_same_both_ways(transformers: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = transformers.ViTModel(transformers.ViTConfig(**ENCODER)).eval()
    shake(theirs)
    ours = save_again(theirs, tmp_path, stop_id=1, document_id=0)
    pictures = draw_pictures(3)
    expected = theirs(pictures).last_hidden_state
    require_close(ours.states(pictures), expected)
    again = transformers.ViTModel.from_pretrained(tmp_path / "ours", add_pooling_layer=False)
    assert torch.equal(again(pictures).last_hidden_state, expected)
