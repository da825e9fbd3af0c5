"""Both views offer what layers ask of one, in the same words."""

from __future__ import annotations

import inspect

import pytest

from lmloop.model.cache import CacheView
from lmloop.model.mixers import Convolution, Recurrent
from lmloop.model.rows import MaskedRow, PackedRows
from lmloop.model.views import Place, SequenceMixer, View


@pytest.mark.parametrize("view", [CacheView, PackedRows, MaskedRow])
@pytest.mark.parametrize("name", ["attend", "attend_source", "run"])
def test_a_view_takes_what_layers_give_it(view: type, name: str) -> None:
    asked = inspect.signature(getattr(View, name)).parameters
    given = inspect.signature(getattr(view, name)).parameters
    assert [(p.name, p.kind) for p in given.values()] == [(p.name, p.kind) for p in asked.values()]


@pytest.mark.parametrize("mixer", [Recurrent, Convolution])
def test_a_mixer_runs_as_views_ask(mixer: type) -> None:
    asked = inspect.signature(SequenceMixer.run).parameters
    assert list(inspect.signature(mixer.run).parameters) == list(asked)


def test_without_positions_a_layer_is_told_nothing() -> None:
    assert Place() == (None, None)
