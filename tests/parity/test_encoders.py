"""Encoders beside transformers: states and masked-LM logits, with padding and segment types."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lmloop.model.transformer import Transformer
from lmloop.weights.checkpoint import load_model, save_model

from .conftest import save_again

pytestmark = pytest.mark.slow

SIZES = {
    "vocab_size": 50,
    "num_hidden_layers": 4,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
}
BERT = {**SIZES, "pad_token_id": 0, "type_vocab_size": 3}
ROBERTA = {**SIZES, "pad_token_id": 1, "type_vocab_size": 2, "layer_norm_eps": 1e-5}
MODERN = {
    **SIZES,
    "pad_token_id": 0,
    **dict.fromkeys(("bos_token_id", "cls_token_id"), 2),
    **dict.fromkeys(("eos_token_id", "sep_token_id"), 3),
    "local_attention": 12,
}
GLOBAL, LOCAL = "full_attention", "sliding_attention"
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("Bert", BERT),
    "roberta": ("Roberta", ROBERTA),
    "modernbert": ("ModernBert", MODERN),
    "modernbert, untied, other layers": (
        "ModernBert",
        MODERN
        | {
            "tie_word_embeddings": False,
            "layer_types": [LOCAL, GLOBAL, GLOBAL, LOCAL],
            "rope_parameters": {
                GLOBAL: {"rope_theta": 5e4, **YARN},
                LOCAL: {"rope_type": "default", "rope_theta": 200.0},
            },
        },
    ),
}
TOKENS = torch.randint(4, 50, (3, 48), generator=torch.Generator().manual_seed(0))
LENGTHS = torch.tensor([48, 29, 7])
TYPES = (torch.arange(48) >= 5).long().repeat(3, 1)


def draw(transformers: Any, case: str, *, head: str = "ForMaskedLM") -> Any:
    """A random model in which every norm and bias matters."""
    name, entries = CASES[case]
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**entries)
    model = getattr(transformers, f"{name}{head}")(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            is_norm = parameter.dim() == 1 and name.endswith("weight")
            parameter.normal_(1.0 if is_norm else 0.0, 0.2)
    return model


def inputs_of(case: str, padding: int) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
    """Tokens, and what else both are given."""
    outside = torch.arange(48) >= LENGTHS[:, None]
    tokens = TOKENS.masked_fill(outside, padding)
    theirs, ours = {"attention_mask": (~outside).long()}, {"lengths": LENGTHS}
    if "modern" in case:
        return tokens, theirs, ours
    types = TYPES if case == "bert" else TYPES * 0
    return tokens, theirs | {"token_type_ids": types}, ours | {"types": types}


def require_close(found: Tensor, expected: Tensor, *, tolerance: float = 1e-5) -> None:
    """Equal at the tokens; what stands at padding means nothing."""
    inside = torch.arange(48) < LENGTHS[:, None]
    torch.testing.assert_close(found[inside], expected[inside], rtol=tolerance, atol=tolerance)


@torch.no_grad()
def require_alike(ours: Transformer, theirs: Any, case: str) -> None:
    tokens, given, ours_given = inputs_of(case, theirs.config.pad_token_id)
    expected = theirs(tokens, output_hidden_states=True, **given)
    require_close(ours.states(tokens, **ours_given), theirs.base_model(tokens, **given)[0])
    require_close(ours(tokens, **ours_given), expected.logits)


@pytest.mark.parametrize("case", CASES)
def test_what_transformers_saves_we_compute_alike(
    transformers: Any, tmp_path: Path, case: str
) -> None:
    theirs = draw(transformers, case)
    theirs.save_pretrained(tmp_path)
    require_alike(load_model(tmp_path), theirs, case)


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_what_we_save_transformers_opens_and_computes_alike(
    transformers: Any, tmp_path: Path, case: str
) -> None:
    first = draw(transformers, case)
    ours = save_again(first, tmp_path, stop_id=3, document_id=first.config.pad_token_id)
    again, told = transformers.AutoModelForMaskedLM.from_pretrained(
        tmp_path / "ours", dtype=torch.float32, output_loading_info=True
    )
    assert type(again) is type(first)
    assert not any(told.values())
    tokens, given, _ = inputs_of(case, first.config.pad_token_id)
    require_close(again(tokens, **given).logits, first(tokens, **given).logits, tolerance=0.0)
    assert load_model(tmp_path / "ours").config == ours.config


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_models_without_a_head_go_both_ways(transformers: Any, tmp_path: Path, case: str) -> None:
    first = draw(transformers, case, head="Model")
    first.save_pretrained(tmp_path / "theirs")
    ours = load_model(tmp_path / "theirs")
    tokens, given, ours_given = inputs_of(case, first.config.pad_token_id)
    expected = first(tokens, **given).last_hidden_state
    require_close(ours.states(tokens, **ours_given), expected)
    (tmp_path / "ours").mkdir()
    save_model(ours, tmp_path / "ours", stop_id=3, document_id=first.config.pad_token_id)
    again = transformers.AutoModel.from_pretrained(tmp_path / "ours", dtype=torch.float32)
    assert type(again) is type(first)
    require_close(again(tokens, **given).last_hidden_state, expected, tolerance=0.0)


def test_berts_first_spelling_opens(transformers: Any, tmp_path: Path) -> None:
    theirs = draw(transformers, "bert", head="ForPreTraining")
    theirs.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = {
        name.replace("Norm.weight", "Norm.gamma").replace("Norm.bias", "Norm.beta"): tensor
        for name, tensor in load_file(path).items()
    }
    assert "cls.seq_relationship.weight" in tensors
    tensors["bert.embeddings.position_ids"] = torch.arange(64)[None]
    tensors["cls.predictions.decoder.bias"] = tensors["cls.predictions.bias"].clone()
    tensors["cls.predictions.decoder.weight"] = theirs.bert.embeddings.word_embeddings.weight.data
    save_file(tensors, path, metadata={"format": "pt"})
    theirs_masked = transformers.BertForMaskedLM.from_pretrained(tmp_path, dtype=torch.float32)
    require_alike(load_model(tmp_path), theirs_masked.eval(), "bert")


def test_modernberts_first_spelling_opens(transformers: Any, tmp_path: Path) -> None:
    theirs = draw(transformers, "modernbert")
    theirs.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    entries = json.loads(path.read_text())
    for name in ("layer_types", "rope_parameters"):
        del entries[name]
    entries |= {"global_attn_every_n_layers": 3, "global_rope_theta": 9e3, "local_rope_theta": 50.0}
    entries |= {"layer_norm_eps": 1e-5, "position_embedding_type": "absolute"}
    path.write_text(json.dumps(entries))
    again = transformers.ModernBertForMaskedLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert again.config.rope_parameters[LOCAL]["rope_theta"] == 50.0
    require_alike(load_model(tmp_path), again.eval(), "modernbert")
