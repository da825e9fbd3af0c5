"""Which tensors are the same, and which hold several matrices."""

from __future__ import annotations

import pytest

from lmloop.model.names import fused_rows, stack_of, tied_names
from lmloop.model.transformer import Transformer

from .kinds import decoder, encoder, pair, seeing


def test_tied_tensors_are_those_that_share_their_storage() -> None:
    plain = decoder("qwen3"), decoder("qwen3", tie_embeddings=False)
    for config in (*plain, pair("gpt2"), decoder("gpt2", encoder=seeing())):
        state = Transformer(config).state_dict()
        for name, other in tied_names(config).items():
            assert state[name].data_ptr() == state[other].data_ptr()
        storages = {tensor.data_ptr() for tensor in state.values()}
        assert len(state) - len(tied_names(config)) == len(storages)


@pytest.mark.parametrize(
    ("name", "rows", "parts"),
    [
        ("blocks.0.mixer.part.qkv.weight", 64, [32, 16, 16]),
        ("blocks.0.mixer.part.qkv.bias", 64, [32, 16, 16]),
        ("blocks.0.feed_forward.part.up.weight", 80, [40, 40]),
        ("blocks.0.feed_forward.part.up.scale", 80, [40, 40]),
        ("blocks.0.feed_forward.part.down.weight", 24, [24]),
        ("blocks.0.cross.part.kv.weight", 32, [16, 16]),
        ("blocks.0.mixer.part.cell.weight_ih_l0", 96, [24] * 4),
        ("blocks.0.mixer.part.cell.weight_hh_l0", 72, [24] * 3),
    ],
)
def test_fused_rows(name: str, rows: int, parts: list[int]) -> None:
    assert fused_rows(decoder("qwen3"), name, rows) == parts


def test_a_layer_that_is_not_gated_has_one_matrix() -> None:
    assert fused_rows(decoder("gpt2"), "blocks.0.feed_forward.part.up.weight", 40) == [40]


def test_a_tensor_belongs_to_the_stack_of_its_name() -> None:
    config = pair("gpt2")
    assert stack_of(config, "encoder.blocks.0.mixer.norm.weight") is config.encoder
    assert stack_of(config, "blocks.0.mixer.norm.weight") is config
    alone = encoder("gpt2")
    assert stack_of(alone, "encoder.norm.weight") is alone
