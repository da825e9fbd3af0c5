"""The entries of a config: sizes, values, and those that nobody knows."""

from __future__ import annotations

from typing import Any

import pytest

from lmloop.errors import ArtifactError
from lmloop.weights.entries import check_entries, read_stack, write_stack
from lmloop.weights.gpt import GPT2

from ..conftest import tiny_shape

SMALL = {"vocab_size": 50, "n_layer": 2, "n_embd": 24, "n_head": 4, "n_positions": 64}


def test_a_stack_is_read_by_its_tables() -> None:
    shape = read_stack(GPT2.stack, {**SMALL, "layer_norm_epsilon": 1e-5})
    assert (shape["num_layers"], shape["intermediate_size"], shape["norm"]) == (2, 96, "layer")
    told = write_stack(GPT2.stack, tiny_shape(context_length=64))
    assert {name: told[name] for name in ("vocab_size", "n_embd", "n_positions")} == {
        "vocab_size": 50,
        "n_embd": 24,
        "n_positions": 64,
    }
    assert write_stack(None, tiny_shape()) == {}


@pytest.mark.parametrize(
    "entry", [{"n_layer": 0}, {"n_embd": True}, {"layer_norm_epsilon": float("inf")}]
)
def test_an_entry_that_makes_no_sense_is_named(entry: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(entry))):
        read_stack(GPT2.stack, {**SMALL, "layer_norm_epsilon": 1e-5, **entry})


def test_an_entry_that_nobody_knows_is_refused() -> None:
    check_entries({"model_type": "gpt2", **SMALL}, GPT2)
    with pytest.raises(ArtifactError, match=r"entries \['n_mystery'\] of a gpt2 are not known"):
        check_entries({"model_type": "gpt2", "n_mystery": 3}, GPT2)
