"""Every family beside transformers: what it saves we compute alike, and the other way round."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lmloop.errors import ArtifactError
from lmloop.model.cache import Chunk, SlotCache
from lmloop.model.transformer import Transformer
from lmloop.weights.checkpoint import load_model, save_model

from .conftest import save_again

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
LAYER_TYPES = ["sliding_attention", "full_attention", "sliding_attention"]
WINDOWS = {"use_sliding_window": True, "sliding_window": 7}
EXPERTS = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 12}
GEMMA: dict[str, Any] = {
    "sliding_window": 7,
    "layer_types": LAYER_TYPES,
    "query_pre_attn_scalar": 12,
    "attn_logit_softcapping": 2.0,
    "final_logit_softcapping": 3.0,
}
GEMMA3: dict[str, Any] = {
    **GEMMA,
    "attn_logit_softcapping": None,
    "rope_parameters": {
        "full_attention": ROPES["default"],
        "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
    },
}
ALL_HEADS = {"num_key_value_heads": None, "head_dim": None, "rope_parameters": None}
GPT2: dict[str, Any] = {**ALL_HEADS, "intermediate_size": None}
NEOX = {**ALL_HEADS, "rope_parameters": ROPES["default"] | {"partial_rotary_factor": 0.25}}
CONFIGS = {"Gemma3": "Gemma3TextConfig"}
HEADS = {"GPT2": "GPT2LMHeadModel"}
BARE = {"Gemma3": "Gemma3TextModel"}
"""Classes that are not called as the others are."""
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {"tie_word_embeddings": False}),
    "llama, tied, all heads": ("Llama", {"tie_word_embeddings": True, "num_key_value_heads": 4}),
    "mistral": ("Mistral", {"sliding_window": None}),
    "mistral, windows": ("Mistral", {"sliding_window": 7}),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True, "head_dim": 8}),
    "qwen2, windows": ("Qwen2", {**WINDOWS, "max_window_layers": 1, "head_dim": 8}),
    "qwen3": ("Qwen3", {"tie_word_embeddings": True}),
    "qwen3, windows": ("Qwen3", {**WINDOWS, "layer_types": LAYER_TYPES}),
    "qwen3_moe": ("Qwen3Moe", {**EXPERTS, "norm_topk_prob": True}),
    "qwen3_moe, windows": ("Qwen3Moe", {**EXPERTS, **WINDOWS}),
    "phi3": ("Phi3", {"head_dim": None}),
    "phi3, windows, half turned": (
        "Phi3",
        {
            "head_dim": None,
            "sliding_window": 7,
            "rope_parameters": ROPES["default"] | {"partial_rotary_factor": 0.5},
        },
    ),
    "gemma2": ("Gemma2", GEMMA),
    "gemma2, uncapped": (
        "Gemma2",
        {**GEMMA, "attn_logit_softcapping": None, "final_logit_softcapping": None},
    ),
    "gemma3": ("Gemma3", GEMMA3),
    "gemma3, linear": (
        "Gemma3",
        {
            **GEMMA3,
            "rope_parameters": GEMMA3["rope_parameters"] | {"full_attention": ROPES["linear"]},
        },
    ),
    "gpt2": ("GPT2", GPT2),
    "gpt2, untied": ("GPT2", {**GPT2, "n_inner": 40, "tie_word_embeddings": False}),
    "gpt_neox": ("GPTNeoX", NEOX),
    "gpt_neox, in turn": (
        "GPTNeoX",
        {
            **NEOX,
            "use_parallel_residual": False,
            "attention_bias": False,
            "rope_parameters": ROPES["yarn"] | {"partial_rotary_factor": 0.5},
        },
    ),
    **{
        f"llama, {kind}": ("Llama", {"rope_parameters": rope})
        for kind, rope in ROPES.items()
        if kind != "default"
    },
}
ONE_WAY = tuple(CASES)
FAMILIES_ONCE = [case for case in CASES if case.isidentifier()]
CASES["gemma3, both ways"] = ("Gemma3", {**GEMMA3, "use_bidirectional_attention": True})
TOKENS = torch.randint(2, 50, (2, 60), generator=torch.Generator().manual_seed(0))


def draw(transformers: Any, case: str, *, bare: bool = False) -> Any:
    """Their random model of a case, biases and norms drawn as well."""
    name, changes = CASES[case]
    suffix, classes = ("Model", BARE) if bare else ("ForCausalLM", HEADS)
    options = {**SIZES, "rope_parameters": ROPES["default"], **changes}
    options = {key: each for key, each in options.items() if each is not None or key not in SIZES}
    torch.manual_seed(0)
    config = getattr(transformers, CONFIGS.get(name, f"{name}Config"))(**options)
    # Only attention that is spelt out has caps of scores.
    config._attn_implementation = "eager" if name == "Gemma2" else "sdpa"
    model = getattr(transformers, classes.get(name, name + suffix))(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def assert_same(case: str, ours: Tensor, theirs: Tensor) -> None:
    """Bit for bit, but for Gemma, whose norms lose a bit when one is added and taken away."""
    tolerance = 1e-6 if case.startswith("gemma") else 0.0
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


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


@pytest.mark.parametrize("case", ONE_WAY)
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


@pytest.mark.parametrize("case", ONE_WAY)
@torch.no_grad()
def test_what_we_save_transformers_opens_and_continues_alike(
    transformers: Any, tmp_path: Path, case: str
) -> None:
    first = draw(transformers, case)
    ours = save_again(first, tmp_path, stop_id=1, document_id=0)
    again = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "ours", dtype=torch.float32
    )
    assert type(again) is type(first)
    again.set_attn_implementation(first.config._attn_implementation)
    assert_same(case, again(TOKENS).logits, first(TOKENS).logits)
    prompt = TOKENS[:1, :9]
    expected = first.generate(prompt, max_new_tokens=24, do_sample=False)[0, 9:].tolist()
    tokens = prompt[0].tolist()
    for _ in range(len(expected)):
        tokens.append(int(ours(torch.tensor([tokens]))[0, -1].argmax()))
    assert tokens[9:] == expected


@pytest.mark.parametrize("case", [*FAMILIES_ONCE, "gemma3, both ways"])
@torch.no_grad()
def test_a_model_without_a_head_goes_there_and_back(
    transformers: Any, tmp_path: Path, case: str
) -> None:
    first = draw(transformers, case, bare=True)
    first.save_pretrained(tmp_path / "theirs")
    ours = load_model(tmp_path / "theirs")
    expected = first(TOKENS).last_hidden_state
    torch.testing.assert_close(ours.states(TOKENS), expected, rtol=1e-5, atol=1e-5)
    (tmp_path / "ours").mkdir()
    save_model(ours, tmp_path / "ours", stop_id=1, document_id=0)
    again = transformers.AutoModel.from_pretrained(tmp_path / "ours", dtype=torch.float32)
    assert type(again) is type(first)
    again.set_attn_implementation(first.config._attn_implementation)
    assert_same(case, again(TOKENS).last_hidden_state, expected)


EMBEDDING = {"gpt2": "transformer.wte.weight", "gpt_neox": "gpt_neox.embed_in.weight"}
"""Where a family does not call it `model.embed_tokens.weight`."""
TIES = {
    "tied, no head in the file": (True, "absent"),
    "tied, and the head there once more": (True, "copy"),
    "tied, and only the head there": (True, "alone"),
    "tied, and a head of its own": (True, "own"),
    "untied": (False, "own"),
    "untied, two heads alike": (False, "copy"),
    "untied, no head in the file": (False, "absent"),
    "not told, no head in the file": (None, "absent"),
    "not told, a head of its own": (None, "own"),
}
"""What `tie_word_embeddings` says (None: it is left out), and which head lies in the file."""


def head_name(case: str) -> str:
    return "embed_out.weight" if case == "gpt_neox" else "lm_head.weight"


def write_tie(theirs: Any, folder: Path, case: str, *, told: bool | None, head: str) -> None:
    """Lay embedding and head out as a folder may have them."""
    theirs.save_pretrained(folder)
    entries = json.loads((folder / "config.json").read_text())
    entries["tie_word_embeddings"] = told
    if told is None:
        del entries["tie_word_embeddings"]
    (folder / "config.json").write_text(json.dumps(entries))
    tensors = load_file(folder / "model.safetensors")
    embedding = EMBEDDING.get(case, "model.embed_tokens.weight")
    own = 0.12 * torch.randn(tensors[embedding].shape, generator=torch.Generator().manual_seed(1))
    found = {"absent": None, "own": own}.get(head, tensors[embedding].clone())
    tensors.pop(head_name(case), None)
    if found is not None:
        tensors[head_name(case)] = found
    if head == "alone":
        del tensors[embedding]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("tie", TIES)
@pytest.mark.parametrize("case", FAMILIES_ONCE)
@torch.no_grad()
def test_embedding_and_head_are_tied_as_transformers_ties_them(
    transformers: Any, tmp_path: Path, case: str, tie: str
) -> None:
    told, head = TIES[tie]
    first = draw(transformers, case)
    write_tie(first, tmp_path / "theirs", case, told=told, head=head)
    theirs, info = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "theirs", dtype=torch.float32, output_loading_info=True
    )
    if info["missing_keys"]:  # they draw a head at random, which is nobody's model
        with pytest.raises(ArtifactError, match=f"lacks the tensor '{head_name(case)}'"):
            load_model(tmp_path / "theirs")
        return
    theirs.set_attn_implementation(first.config._attn_implementation)
    expected = theirs(TOKENS).logits
    ours = load_model(tmp_path / "theirs")
    torch.testing.assert_close(ours(TOKENS), expected, rtol=1e-5, atol=1e-5)
    (tmp_path / "ours").mkdir()
    save_model(ours, tmp_path / "ours", stop_id=1, document_id=0)
    again = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "ours", dtype=torch.float32
    )
    again.set_attn_implementation(first.config._attn_implementation)
    assert_same(case, again(TOKENS).logits, expected)


@pytest.mark.parametrize("case", ONE_WAY)
@torch.no_grad()
def test_a_model_in_several_files_opens_as_in_one(
    transformers: Any, tmp_path: Path, case: str
) -> None:
    theirs = draw(transformers, case)
    theirs.save_pretrained(tmp_path, max_shard_size=16_000)
    files = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert len(files) > 2 and files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    expected = theirs(TOKENS).logits
    torch.testing.assert_close(load_model(tmp_path)(TOKENS), expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_gpt2_opens_as_it_was_published(transformers: Any, tmp_path: Path) -> None:
    """Its names lack the prefix of the class with a head, and its masks lie beside its weights."""
    theirs = draw(transformers, "gpt2")
    theirs.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    older = {name.removeprefix("transformer."): each for name, each in tensors.items()}
    older["h.0.attn.bias"] = torch.ones(1, 1, 128, 128)
    save_file(older, tmp_path / "model.safetensors")
    torch.testing.assert_close(
        load_model(tmp_path)(TOKENS), theirs(TOKENS).logits, rtol=1e-5, atol=1e-5
    )
