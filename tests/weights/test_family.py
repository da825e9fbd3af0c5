"""Names in tables: the longest beginning counts, numbers are filled in."""

from __future__ import annotations

import pytest
import torch

from lmloop.model.config import Experts
from lmloop.weights.family import PLUS_ONE, TRANSPOSED, Family, Stack

from ..model.kinds import decoder

FAMILY = Family(
    architecture="TestForCausalLM",
    bare="TestModel",
    prefix="model.",
    stack=Stack(sizes={}),
    names={
        "embedding": ("model.wte",),
        "blocks.{}.mixer": ("model.h.{}.mix",),
        "blocks.{}.mixer.part.qkv": ("model.h.{}.q", "model.h.{}.kv"),
        "blocks.{}.feed_forward.part.up": (
            "model.h.{}.experts.{expert}.gate.weight",
            "model.h.{}.experts.{expert}.up.weight",
        ),
    },
    changes={"blocks.{}.mixer.part.qkv": TRANSPOSED},
)


def test_names_are_filled_in() -> None:
    config = decoder("qwen3")
    assert FAMILY.names_of("embedding.weight", config) == ["model.wte.weight"]
    assert FAMILY.names_of("blocks.12.mixer.norm.weight", config) == ["model.h.12.mix.norm.weight"]
    assert FAMILY.names_of("blocks.3.mixer.part.qkv.scale", config) == [
        "model.h.3.q.weight_scale",
        "model.h.3.kv.weight_scale",
    ]


def test_every_expert_has_names() -> None:
    config = decoder("experts", experts=Experts(count=2, active=1, size=4))
    assert FAMILY.names_of("blocks.0.feed_forward.part.up", config) == [
        f"model.h.0.experts.{expert}.{part}.weight" for expert in (0, 1) for part in ("gate", "up")
    ]


def test_a_model_without_a_head_has_names_without_the_prefix() -> None:
    assert FAMILY.names_of("embedding.bias", decoder("qwen3", head="none")) == ["wte.bias"]


def test_a_tensor_that_no_table_has_is_an_error() -> None:
    with pytest.raises(KeyError, match="norm.weight"):
        FAMILY.names_of("norm.weight", decoder("qwen3"))


def test_changes_are_undone_on_the_way_out() -> None:
    tensor, config = torch.arange(6.0).view(2, 3), decoder("qwen3")
    assert FAMILY.change_of("blocks.1.mixer.part.qkv.weight") is TRANSPOSED
    assert FAMILY.change_of("embedding.weight") is None
    for change in (TRANSPOSED, PLUS_ONE):
        assert not torch.equal(change.read(tensor, config), tensor)
        assert torch.equal(change.write(change.read(tensor, config), config), tensor)
