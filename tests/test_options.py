"""Recipe keys on the command line."""

from __future__ import annotations

import re
from typing import Any

import pytest

from lmloop.errors import RecipeError, UsageError
from lmloop.options import choose_vector_options, parse_overrides
from lmloop.training.glove import GloveOptions
from lmloop.training.skip_gram import SkipGramOptions


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


def test_the_options_of_training_vectors_are_those_of_its_method() -> None:
    skip_gram = choose_vector_options(None, train=True, dimensions=7, window=None, threads=2)
    assert skip_gram == SkipGramOptions(dimensions=7, threads=2)
    assert choose_vector_options("glove", train=True, epochs=3) == GloveOptions(epochs=3)
    assert choose_vector_options(None, train=False, epochs=None) is None


@pytest.mark.parametrize(
    ("method", "train", "given", "told"),
    [
        (None, False, {"epochs": 3}, "--epochs needs --train"),
        ("glove", False, {}, "--method needs --train"),
        ("glove", True, {"threads": 2}, "--threads is an option of skip-gram"),
    ],
)
def test_options_that_serve_nothing_are_refused(
    method: str | None, train: bool, given: dict[str, int], told: str
) -> None:
    with pytest.raises(UsageError, match=told):
        choose_vector_options(method, train=train, **given)
