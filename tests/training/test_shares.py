"""What one of many ranks has, by hand."""

from __future__ import annotations

import pytest

from lmloop.training.memory import plan_memory
from lmloop.training.outline import outline
from lmloop.training.shares import own_config, own_numbers, own_section

from .live_bytes import make_section, make_shape

SHAPE = make_shape(64, 2, 301, num_kv_heads=2)


def test_rows_are_dealt_to_those_who_do_not_share_them() -> None:
    section = make_section(512, 64, micro_batch_tokens=256, tensor_parallel=2)
    assert own_section(section, 1).batch_rows == 8
    own = own_section(section, 4)
    assert (own.batch_rows, own.micro_batch_rows) == (4, 4)
    assert own_section(section, 8).micro_batch_rows == 2


def test_numbers_are_dealt_by_rows_rounded_up() -> None:
    parameters = dict(outline(SHAPE, make_section()).named_parameters())
    whole = own_numbers(parameters, make_section(), 4)
    assert whole == {name: each.numel() for name, each in parameters.items()}
    own = own_numbers(parameters, make_section(sharding="full"), 2)
    assert own["embedding.weight"] == 151 * 64
    assert own["blocks.0.feed_forward.part.down.weight"] == 32 * 192
    split = own_numbers(parameters, make_section(tensor_parallel=2), 2)
    assert split["embedding.weight"] == 301 * 64
    assert split["blocks.0.feed_forward.part.down.weight"] == 64 * 96


def test_heads_and_inner_features_are_a_ranks_own() -> None:
    own = own_config(SHAPE, make_section(tensor_parallel=2), 2)
    assert (own.num_heads, own.intermediate_size, own.hidden_size) == (1, 96, 64)
    assert own_config(SHAPE, make_section(), 2) == SHAPE


def test_a_rank_has_its_share_of_what_learns_and_gathers_in_any_case() -> None:
    section = make_section(512, 64, optimizer="adamw")
    alone, beside = plan_memory(SHAPE, section), plan_memory(SHAPE, section, ranks=2)
    assert (alone.gathered, beside.gathered) == (0, alone.masters)
    assert beside.masters == alone.masters
    assert beside.activations == pytest.approx(alone.activations / 2, rel=0.02)
    cut = plan_memory(SHAPE, section.model_copy(update={"sharding": "full"}), ranks=2)
    for part in ("masters", "optimizer", "gradients", "gathered"):
        assert getattr(cut, part) == pytest.approx(getattr(beside, part) / 2, rel=0.02)
    assert cut.together > alone.weights
    assert alone.together == beside.together == 0
