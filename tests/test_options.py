"""Recipe keys on the command line."""

from __future__ import annotations

import re
from typing import Any

import pytest

from lmloop.errors import RecipeError
from lmloop.options import parse_overrides


@pytest.mark.parametrize(
    ("arguments", "overrides"),
    [
        ([], {}),
        (["--pretrain.steps=200"], {"pretrain.steps": 200}),
        (["--pretrain.steps", "200"], {"pretrain.steps": 200}),
        (["--pretrain.budget=5m"], {"pretrain.budget": "5m"}),
        (["--seed=3", "--name", "other"], {"seed": 3, "name": "other"}),
        (["--model.tie_embeddings=false"], {"model.tie_embeddings": False}),
        (["--prepare.sources=['a.txt', 'b.txt']"], {"prepare.sources": ["a.txt", "b.txt"]}),
        (["--prepare.sources=a=b"], {"prepare.sources": "a=b"}),
        (["--finetune.learning_rate=1e-3"], {"finetune.learning_rate": 1e-3}),
        (["--a.b="], {"a.b": ""}),
    ],
)
def test_overrides_are_read(arguments: list[str], overrides: dict[str, Any]) -> None:
    assert parse_overrides(arguments) == overrides


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["pretrain.steps=200"], "pretrain.steps=200 is not known here"),
        (["--steps=200"], "--steps=200 is not known here"),
        (["-x"], "-x is not known here"),
        (["--pretrain.steps"], "--pretrain.steps has no value: write --pretrain.steps=VALUE"),
    ],
)
def test_anything_else_is_refused(arguments: list[str], told: str) -> None:
    with pytest.raises(RecipeError, match=re.escape(told)):
        parse_overrides(arguments)
