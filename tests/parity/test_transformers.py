"""What we save is what transformers reads, and the other way round."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lmloop.inference.load import load
from lmloop.inference.score import cut_windows, score_windows
from lmloop.records import Turn
from lmloop.tokens.chat import ChatTemplate
from lmloop.tokens.tokenizer import Tokenizer
from lmloop.weights.checkpoint import load_model, save_model

from ..conftest import random_model, tiny_shape

SHAPES: dict[str, dict[str, Any]] = {
    "tied": {},
    "untied": {"tie_embeddings": False, "rope_theta": 1e6, "norm_epsilon": 1e-5},
    "a key head for each query head": {"num_kv_heads": 4, "tie_embeddings": False},
    "one key head": {"num_kv_heads": 1, "num_layers": 3},
}
TOKENS = torch.randint(0, 50, (3, 40), generator=torch.Generator().manual_seed(0))


def logits_of(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        result = model(tokens)
    return result if isinstance(result, torch.Tensor) else result.logits


@pytest.mark.parametrize("name", SHAPES)
def test_what_we_save_transformers_computes_alike(
    transformers: Any, tmp_path: Path, name: str
) -> None:
    model = random_model(tiny_shape(**SHAPES[name]))
    save_model(model, tmp_path, stop_id=1, document_id=0)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert type(theirs).__name__ == "Qwen3ForCausalLM"
    torch.testing.assert_close(
        logits_of(theirs, TOKENS), logits_of(model, TOKENS), rtol=1e-5, atol=2e-5
    )


@pytest.mark.parametrize("name", SHAPES)
def test_what_transformers_saves_we_compute_alike(
    transformers: Any, tmp_path: Path, name: str
) -> None:
    config = tiny_shape(**SHAPES[name])
    torch.manual_seed(0)
    theirs = transformers.Qwen3ForCausalLM(
        transformers.Qwen3Config(
            vocab_size=config.vocab_size,
            num_hidden_layers=config.num_layers,
            hidden_size=config.hidden_size,
            num_attention_heads=config.num_heads,
            num_key_value_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            intermediate_size=config.intermediate_size,
            max_position_embeddings=config.context_length,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
            rms_norm_eps=config.norm_epsilon,
            tie_word_embeddings=config.tie_embeddings,
            initializer_range=0.3,
        )
    ).eval()
    theirs.save_pretrained(tmp_path)
    ours = load_model(tmp_path)
    assert ours.config == config
    torch.testing.assert_close(
        logits_of(ours, TOKENS), logits_of(theirs, TOKENS), rtol=1e-5, atol=2e-5
    )


def test_transformers_stops_where_we_stop(transformers: Any, model_folder: Path) -> None:
    theirs = transformers.AutoModelForCausalLM.from_pretrained(model_folder)
    assert theirs.generation_config.eos_token_id == [1, 0]
    assert theirs.generation_config.pad_token_id == 0


def test_bits_of_a_text_are_the_same(
    transformers: Any, model_folder: Path, tokenizer: Tokenizer
) -> None:
    ids = np.array([*tokenizer.encode_document("where is the sea? 火车 is far away"), 0])
    windows = list(cut_windows([ids], context_length=64))
    (nats,) = score_windows(load(model_folder, dtype=torch.float32).transformer, windows)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    rows = torch.from_numpy(ids)[None]
    with torch.no_grad():
        mean = theirs(rows, labels=rows).loss.item()
    assert nats == pytest.approx(mean * (len(ids) - 1), rel=1e-5)
    assert math.isfinite(nats)


TURNS = [
    Turn("system", "be brief"),
    Turn("user", "do you like café music?\n\nyes or no"),
    Turn("assistant", "no idea 🙂, the train  is  late "),
    Turn("user", "火车 number 12345?  "),
]


@pytest.mark.parametrize("count", [1, 2, 3, 4])
@pytest.mark.parametrize("prompt", [True, False])
def test_the_chat_template_gives_the_same_ids(
    transformers: Any, model_folder: Path, tokenizer: Tokenizer, count: int, prompt: bool
) -> None:
    theirs = transformers.AutoTokenizer.from_pretrained(model_folder)
    turns = TURNS[:count]
    messages = [{"role": turn.role, "content": turn.content} for turn in turns]
    template = ChatTemplate.of(tokenizer)
    rendered = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)
    assert rendered == template.render(turns, add_generation_prompt=prompt)
    ids = theirs.apply_chat_template(messages, add_generation_prompt=prompt, return_dict=False)
    assert ids == template.encode(turns, add_generation_prompt=prompt)


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "do you like tea",
        "I'll DON'T it's",
        "a\r\n\n b\t\tc   d",
        "x=1;y[2]",
        "é🐢火车\u200d",
    ],
)
def test_plain_text_gives_the_same_ids(
    transformers: Any, model_folder: Path, tokenizer: Tokenizer, text: str
) -> None:
    theirs = transformers.AutoTokenizer.from_pretrained(model_folder)
    assert theirs(text)["input_ids"] == tokenizer.encode(text)
    assert theirs.decode(tokenizer.encode(text)) == text


def test_the_special_tokens_are_those_of_the_tokenizer(
    transformers: Any, model_folder: Path, tokenizer: Tokenizer
) -> None:
    theirs = transformers.AutoTokenizer.from_pretrained(model_folder)
    assert (theirs.bos_token_id, theirs.eos_token_id) == (0, 1)
    assert len(theirs) == tokenizer.vocab_size
    assert theirs.model_max_length == 64
