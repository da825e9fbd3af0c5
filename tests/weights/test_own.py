"""Shapes that no other program knows: every entry comes back, and none is believed."""

from __future__ import annotations

import json
from typing import Any

import pytest

from lmloop.weights.families import read_config, write_config

from ..model.kinds import DECODERS, decoder, encoder, pair


@pytest.mark.parametrize("make", [decoder, encoder, pair])
@pytest.mark.parametrize("kind", DECODERS)
def test_any_shape_comes_back(kind: str, make: type) -> None:
    config = make(kind, family="lmloop")
    if config.encoder is not None:
        config = make(kind, family="lmloop")
    told = json.loads(json.dumps(write_config(config, stop_id=1, pad_id=0, dtype="float32")))
    assert told["architectures"][0].startswith("LmloopFor")
    assert read_config(told) == config


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"num_layers": "many"}, "shape.num_layers"),
        ({"mixers": ["lstm"]}, "1 mixers for 2 layers"),
        ({"mixers": ["transformer", "lstm"]}, "shape.mixers.0"),
        ({"surprise": 1}, "unknown entries"),
        ({"num_heads": 3}, "no multiple"),
        ({"experts": {"count": 2}}, "shape.experts"),
    ],
)
def test_a_wrong_entry_is_told(changes: dict[str, Any], told: str) -> None:
    data = write_config(decoder("lstm", family="lmloop"), stop_id=1, pad_id=0, dtype="float32")
    data["shape"] = {**data["shape"], **changes}
    with pytest.raises(ValueError, match=told):
        read_config(data)
