"""Every family beside transformers: what it saves we compute alike, and the other way round."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lmloop.model.cache import Chunk, SlotCache
from lmloop.model.checkpoint import load_model, save_model
from lmloop.model.transformer import Transformer

pytestmark = pytest.mark.slow

SIZES = {
    "vocab_size": 50,
    "num_hidden_layers": 3,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 48,
    "max_position_embeddings": 128,
    "initializer_range": 0.12,
    "bos_token_id": None,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
ROPES: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default", "rope_theta": 1e4},
    "linear": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0},
    "llama3": {
        "rope_type": "llama3",
        "rope_theta": 1e4,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    },
    "yarn": {
        "rope_type": "yarn",
        "rope_theta": 1e4,
        "factor": 4.0,
        "original_max_position_embeddings": 32,
    },
}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {"tie_word_embeddings": False}),
    "llama, tied, all heads": ("Llama", {"tie_word_embeddings": True, "num_key_value_heads": 4}),
    "mistral": ("Mistral", {"sliding_window": None}),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True, "head_dim": 8}),
    "qwen3": ("Qwen3", {"tie_word_embeddings": True}),
    **{
        f"llama, {kind}": ("Llama", {"rope_parameters": rope})
        for kind, rope in ROPES.items()
        if kind != "default"
    },
}
TOKENS = torch.randint(2, 50, (2, 60), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def transformers() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import transformers

        return transformers


def draw(transformers: Any, case: str) -> Any:
    """Their random model of a case, biases and norms drawn as well."""
    name, changes = CASES[case]
    options = {**SIZES, "rope_parameters": ROPES["default"], **changes}
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**options)
    model = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model


@torch.no_grad()
def decode_cached(model: Transformer, tokens: Tensor) -> Tensor:
    """Logits [T, V] of one text [T], the first half at once, then a token a step."""
    cache = SlotCache(model.config, slots=1, length=len(tokens), dtype=torch.float32)
    half = len(tokens) // 2
    rows = []
    for start, stop in [(0, half), *((at, at + 1) for at in range(half, len(tokens)))]:
        view = cache.view([Chunk(0, start, stop - start)])
        rows.append(model.project(model.encode(tokens[start:stop], view.positions, view)))
    return torch.cat(rows)


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_what_transformers_saves_we_compute_alike(
    transformers: Any, tmp_path: Path, case: str
) -> None:
    theirs = draw(transformers, case)
    theirs.save_pretrained(tmp_path)
    ours = load_model(tmp_path)
    expected = theirs(TOKENS, output_hidden_states=True)
    torch.testing.assert_close(ours(TOKENS), expected.logits, rtol=1e-5, atol=1e-5)
    positions = torch.arange(60)
    cache = SlotCache(ours.config, slots=1, length=60, dtype=torch.float32)
    hidden = ours.encode(TOKENS[0], positions, cache.view([Chunk(0, 0, 60)]))
    torch.testing.assert_close(hidden, expected.hidden_states[-1][0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        decode_cached(ours, TOKENS[0]), expected.logits[0], rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_what_we_save_transformers_opens_and_continues_alike(
    transformers: Any, tmp_path: Path, case: str
) -> None:
    first = draw(transformers, case)
    first.save_pretrained(tmp_path / "theirs")
    ours = load_model(tmp_path / "theirs")
    (tmp_path / "ours").mkdir()
    save_model(ours, tmp_path / "ours", stop_id=1, document_id=0)
    again = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "ours", dtype=torch.float32
    )
    assert type(again) is type(first)
    assert torch.equal(again(TOKENS).logits, first(TOKENS).logits)
    prompt = TOKENS[:1, :9]
    expected = first.generate(prompt, max_new_tokens=24, do_sample=False)[0, 9:].tolist()
    tokens = prompt[0].tolist()
    for _ in range(len(expected)):
        tokens.append(int(ours(torch.tensor([tokens]))[0, -1].argmax()))
    assert tokens[9:] == expected
