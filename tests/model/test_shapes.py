"""The shapes in the signatures of the core, checked while every kind of model runs."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
import typing
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
from beartype import beartype
from jaxtyping import (
    Bool,
    Float,
    Float32,
    Int,
    Int8,
    Int32,
    Shaped,
    TypeCheckError,
    UInt8,
    jaxtyped,
)
from torch import Tensor

import lmloop.model
import lmloop.weights
from lmloop.model.norms import RMSNorm

from .kinds import (
    DECODERS,
    decode,
    decoder,
    draw_model,
    draw_pictures,
    draw_tokens,
    encoder,
    pair,
    seeing,
)

SHAPES = {each.__name__: each for each in (Bool, Float, Float32, Int, Int8, Int32, Shaped, UInt8)}


def functions_of(module: ModuleType) -> Iterator[tuple[Any, str, Any]]:
    """Functions and methods that a module defines, with what holds each."""
    for owner in [module, *(each for _, each in inspect.getmembers(module, inspect.isclass))]:
        for name, found in vars(owner).items():
            if inspect.isfunction(found) and found.__module__ == module.__name__:
                yield owner, name, found


def modules() -> list[ModuleType]:
    return [
        importlib.import_module(each.name)
        for folder in (lmloop.model, lmloop.weights)
        for each in pkgutil.iter_modules(folder.__path__, f"{folder.__name__}.")
    ]


@pytest.fixture
def checked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of all functions with shapes, which are checked at every call from here on."""
    names = []
    for module in modules():
        for owner, name, function in functions_of(module):
            told = {
                argument: hint
                for argument, hint in function.__annotations__.items()
                if any(f"{shape}[" in str(hint) for shape in SHAPES)
            }
            if not told:
                continue
            monkeypatch.setattr(function, "__annotations__", told)
            known = {"Tensor": Tensor, **vars(module), **SHAPES}
            hints = typing.get_type_hints(function, known)
            monkeypatch.setattr(function, "__annotations__", hints)
            monkeypatch.setattr(owner, name, jaxtyped(typechecker=beartype)(function))
            names.append(f"{module.__name__}.{function.__qualname__}")
    return names


@pytest.mark.parametrize("kind", DECODERS)
def test_every_kind_keeps_the_shapes_of_its_signatures(kind: str, checked: list[str]) -> None:
    assert len(checked) > 50
    text = draw_tokens(2, 11)
    draw_model(decoder(kind)).train()(text).sum().backward()
    decode(draw_model(decoder(kind)), list(text), cuts=[6, 1, 4], sources=[None, None])
    draw_model(encoder(kind))(text, lengths=torch.tensor([11, 4]))
    model = draw_model(pair(kind))
    model(text, source=model.read(text[:, :7], lengths=torch.tensor([3, 7])))


def test_pictures_keep_the_shapes_of_the_signatures(checked: list[str]) -> None:
    model = draw_model(decoder("gpt2", encoder=seeing()))
    model(draw_tokens(2, 5), source=model.read(draw_pictures(2))).sum().backward()
    assert draw_model(seeing()).states(draw_pictures(3)).shape == (3, 10, 24)


def test_a_wrong_shape_is_found(checked: list[str]) -> None:
    with pytest.raises(TypeCheckError):
        RMSNorm(4, epsilon=0.0)(torch.zeros(2, 3, 4))


def test_tensors_in_public_signatures_have_shapes() -> None:
    """Also those of the classes behind them; dictionaries of tensors by name have none."""
    bare = []
    for module in modules():
        for owner, name, function in functions_of(module):
            if name.startswith("_") or isinstance(vars(owner).get(name), staticmethod):
                continue
            told = " ".join(map(str, function.__annotations__.values()))
            if re.search(r"(?<!str, )\bTensor\b(?!,)", told):
                bare.append(f"{module.__name__}.{function.__qualname__}")
    assert bare == []
