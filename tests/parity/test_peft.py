"""Adapters beside PEFT: what it saves we compute alike, the other way round, merged and learnt."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lmloop.learning import PretrainConfig
from lmloop.model.nf4 import expand_from_nf4, shrink_to_nf4
from lmloop.model.transformer import Transformer
from lmloop.progress import Silent
from lmloop.sections import ModelSection
from lmloop.training.recipes import pretrain
from lmloop.weights.adapter_files import load_adapter, save_adapter
from lmloop.weights.adapters import Adapter, AdapterBank, LoraConfig, make_adapter
from lmloop.weights.checkpoint import load_model, save_model

from ..conftest import CONTEXT_LENGTH, VOCAB_SIZE

pytestmark = pytest.mark.slow

SIZES = {
    "vocab_size": 50,
    "num_hidden_layers": 2,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "initializer_range": 0.12,
    "bos_token_id": None,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "Llama": {},
    "Mistral": {"sliding_window": None},
    "Qwen2": {},
    "Qwen3": {},
}
KINDS: dict[str, dict[str, bool]] = {
    "LoRA": {},
    "rsLoRA": {"use_rslora": True},
    "DoRA": {"use_dora": True},
}
TARGETS: dict[str, Any] = {
    "q, v": ["q_proj", "v_proj"],
    "all": "all-linear",
    "pattern": r".*\.1\.(self_attn\.k_proj|mlp\.(up|down)_proj)",
}
TOKENS = torch.randint(2, 50, (2, 20), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def peft() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import peft

        return peft


@pytest.fixture(autouse=True)
def _quiet() -> Any:
    # transformers and PEFT warn of each other's old names.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.fixture(params=FAMILIES)
def base(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The folder of a random model that transformers made; biases drawn as well."""
    import transformers

    options = {**SIZES, **FAMILIES[request.param]}
    torch.manual_seed(0)
    config = getattr(transformers, f"{request.param}Config")(**options)
    model = getattr(transformers, f"{request.param}ForCausalLM")(config)
    randomise(parameter for parameter in model.parameters() if parameter.dim() == 1)
    model.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


@torch.no_grad()
def randomise(parameters: Any) -> None:
    generator = torch.Generator().manual_seed(1)
    for parameter in parameters:
        parameter += 0.2 * torch.randn(parameter.shape, generator=generator)


def open_theirs(folder: Path) -> Any:
    import transformers

    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def open_both(peft: Any, base: Path, kind: str, targets: str) -> tuple[Any, Transformer, Adapter]:
    """Their model with a random adapter, and ours with what they saved of it."""
    config = peft.LoraConfig(r=3, lora_alpha=7, target_modules=TARGETS[targets], **KINDS[kind])
    theirs = peft.get_peft_model(open_theirs(base), config)
    randomise(each for name, each in theirs.named_parameters() if "lora_" in name)
    theirs.save_pretrained(base / "adapter")
    ours = load_model(base)
    return theirs.eval(), ours, load_adapter(base / "adapter", ours)


def assert_equal(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("targets", TARGETS)
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_what_peft_saves_we_compute_alike_attached_and_merged(
    peft: Any, base: Path, kind: str, targets: str
) -> None:
    theirs, ours, adapter = open_both(peft, base, kind, targets)
    plain = ours(TOKENS)
    bank = AdapterBank(ours, adapter)
    assert not torch.allclose(ours(TOKENS), plain, atol=1e-2)
    assert_equal(ours(TOKENS), theirs(TOKENS).logits)
    bank.merge()
    merged = theirs.merge_and_unload()
    assert_equal(ours(TOKENS), merged(TOKENS).logits)
    theirs_state = merged.state_dict()["model.layers.1.self_attn.q_proj.weight"]
    ours_state = ours.state_dict()["blocks.1.mixer.part.qkv.weight"][: len(theirs_state)]
    torch.testing.assert_close(ours_state, theirs_state, rtol=0, atol=1e-6)


@pytest.mark.parametrize("targets", [("q_proj", "v_proj"), "all-linear"])
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_what_we_save_peft_opens_and_computes_alike(
    peft: Any, base: Path, kind: str, targets: Any
) -> None:
    ours = load_model(base)
    options = {name.removeprefix("use_"): value for name, value in KINDS[kind].items()}
    config = LoraConfig(rank=3, alpha=7, targets=targets, **options)
    adapter = make_adapter(ours, config, generator=torch.Generator().manual_seed(0))
    randomise(adapter.parameters())
    save_adapter(adapter, base, model=ours)
    theirs = peft.PeftModel.from_pretrained(open_theirs(base), base).eval()
    AdapterBank(ours, adapter)
    assert_equal(ours(TOKENS), theirs(TOKENS).logits)


@torch.no_grad()
def test_what_was_learnt_beside_four_bits_peft_opens_on_the_weights_they_stand_for(
    peft: Any, base: Path, tmp_path: Path
) -> None:
    ours = load_model(base)
    shrink_to_nf4(ours)
    adapter = make_adapter(ours, LoraConfig(rank=3), generator=torch.Generator().manual_seed(0))
    randomise(adapter.parameters())
    save_adapter(adapter, base, model=ours)
    bank = AdapterBank(ours, adapter)
    expected = ours(TOKENS)
    bank.detach()
    expand_from_nf4(ours, dtype=torch.float32)
    (tmp_path / "dense").mkdir()
    save_model(ours, tmp_path / "dense", stop_id=1, document_id=0)
    theirs = peft.PeftModel.from_pretrained(open_theirs(tmp_path / "dense"), base).eval()
    assert_equal(expected, theirs(TOKENS).logits)


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_is_learnt_of_one_loss(peft: Any, base: Path, kind: str) -> None:
    theirs, ours, adapter = open_both(peft, base, kind, "all")
    AdapterBank(ours, adapter)
    for model in (theirs, ours):
        logits = model(TOKENS)
        logits = logits if isinstance(logits, Tensor) else logits.logits
        F.cross_entropy(logits[:, :-1].flatten(0, 1), TOKENS[:, 1:].flatten()).backward()
    expected = {
        name.replace(".default", "").removesuffix(".weight"): parameter.grad
        for name, parameter in theirs.named_parameters()
        if "lora_" in name
    }
    found = {}
    for pairs in adapter.pairs.values():
        for name, pair in pairs.items():
            start = f"base_model.model.{name}.lora_"
            found |= {f"{start}A": pair.a.grad, f"{start}B": pair.b.grad}
            if pair.magnitude is not None:
                found[f"{start}magnitude_vector"] = pair.magnitude.grad
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        assert gradient is not None and gradient.abs().max() > 1e-6
        # Of sums over tokens the rounding is that of the largest, not of each.
        rounding = 1e-5 * float(expected[name].abs().max())
        torch.testing.assert_close(gradient, expected[name], rtol=0, atol=rounding)
    assert all(parameter.grad is None for parameter in ours.parameters())


@pytest.mark.parametrize("dora", [False, True])
def test_the_adapter_that_a_recipe_learns_opens_in_peft_and_gives_the_checkpoint(
    peft: Any, tmp_path: Path, shards_folder: Path, dora: bool
) -> None:
    import transformers

    torch.manual_seed(0)
    config = transformers.LlamaConfig(**{**SIZES, "vocab_size": VOCAB_SIZE})
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "base")
    (tmp_path / "tuned").mkdir()
    pretrain(
        PretrainConfig(
            steps=8,
            batch_tokens=64,
            row_tokens=32,
            precision="float32",
            learning_rate=0.05,
            lora_rank=4,
            dora=dora,
        ),
        ModelSection(base="base", context_length=CONTEXT_LENGTH),
        shards=shards_folder,
        folder=tmp_path / "tuned",
        run=tmp_path / "run",
        seed=0,
        validate=lambda model: 1.0,
        clock=lambda: 0.0,
        progress=Silent(),
        base=tmp_path / "base",
    )
    before = open_theirs(tmp_path / "base")(TOKENS).logits
    theirs = peft.PeftModel.from_pretrained(
        open_theirs(tmp_path / "base"), tmp_path / "tuned" / "adapter"
    ).eval()
    ours = load_model(tmp_path / "tuned")
    assert float((ours(TOKENS) - before).abs().max()) > 0.05
    expected = theirs(TOKENS).logits
    near = 1e-5 * float(expected.abs().max())  # one sums before it multiplies, the other after
    for found in (ours(TOKENS), open_theirs(tmp_path / "tuned")(TOKENS).logits):
        torch.testing.assert_close(found, expected, rtol=0, atol=near)
