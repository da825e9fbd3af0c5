"""How GPT-2 and GPT-NeoX lay their tensors and spell their configs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lmloop.errors import ArtifactError
from lmloop.model.config import ModelConfig
from lmloop.model.transformer import Transformer
from lmloop.weights.checkpoint import assemble, take_apart
from lmloop.weights.families import FAMILIES, read_config, write_config

from ..conftest import random_model, tiny_shape


def shape_of(name: str, **changes: Any) -> ModelConfig:
    heads = {"num_heads": 2, "num_kv_heads": 2, "head_dim": 12}
    return tiny_shape(**{"family": name, **FAMILIES[name].stack.shape, **heads, **changes})


def written(name: str, **changes: Any) -> dict[str, Any]:
    return write_config(shape_of(name), stop_id=1, pad_id=0, dtype="float32") | changes


def open_again(model: Transformer, tensors: dict[str, torch.Tensor]) -> Transformer:
    return assemble(model.config, tensors, path=Path("made"))


def test_gpt2_has_inputs_before_outputs() -> None:
    model = random_model(shape_of("gpt2"))
    theirs, state = take_apart(model), model.state_dict()
    ours = state["blocks.0.feed_forward.part.up.weight"]
    assert torch.equal(theirs["transformer.h.0.mlp.c_fc.weight"], ours.t())
    assert theirs["transformer.h.0.attn.c_attn.weight"].shape == (24, 72)
    assert torch.equal(theirs["transformer.wpe.weight"], state["input.positions"])


def test_gpt2_opens_without_the_prefix_and_with_masks() -> None:
    model = random_model(shape_of("gpt2"))
    bare = {name.removeprefix("transformer."): each for name, each in take_apart(model).items()}
    bare |= {"h.0.attn.bias": torch.ones(1, 1, 9, 9), "h.0.attn.masked_bias": torch.tensor(-1e4)}
    tokens = torch.tensor([[1, 2, 3]])
    assert torch.equal(open_again(model, bare)(tokens), model(tokens))


def test_neox_has_query_key_and_value_of_each_head_together() -> None:
    model = random_model(shape_of("gpt_neox", qkv_bias=True))
    theirs = take_apart(model)["gpt_neox.layers.0.attention.query_key_value.bias"]
    q, k, v = model.state_dict()["blocks.0.mixer.part.qkv.bias"].split(24)
    expected = torch.cat([q[:12], k[:12], v[:12], q[12:], k[12:], v[12:]])
    assert torch.equal(theirs, expected)


@pytest.mark.parametrize("name", ["gpt2", "gpt_neox"])
def test_a_tensor_that_cannot_be_laid_otherwise_is_told_by_name(name: str) -> None:
    model = random_model(shape_of(name))
    theirs = take_apart(model)
    fused = next(each for each in theirs if each.endswith(("c_attn.weight", "key_value.weight")))
    with pytest.raises(ArtifactError, match=f"{fused} is"):
        open_again(model, theirs | {fused: torch.ones(5, 1, 7)})


def test_older_configs_have_the_familys_defaults() -> None:
    gpt2 = written("gpt2", n_inner=None)
    assert read_config(gpt2).intermediate_size == 4 * 24
    neox = written("gpt_neox", rotary_pct=0.5, rotary_emb_base=500, rope_parameters=None)
    for name in ("attention_bias", "use_parallel_residual", "hidden_act", "rope_theta"):
        del neox[name]
    config = read_config(neox)
    assert (config.rotary_share, config.rope_theta) == (0.5, 500.0)
    assert (config.qkv_bias, config.output_bias, config.parallel) == (True, True, True)
