"""Rotary positions as `config.json` spells them, in its older ways and its newer one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lmloop.errors import ArtifactError
from lmloop.model.rotary import RopeScaling

_TURNS = {
    "linear": ("", ""),
    "llama3": ("low_freq_factor", "high_freq_factor"),
    "yarn": ("beta_slow", "beta_fast"),
}
"""What each scaling calls the turns below and above which it scales in full or not at all."""
_YARN = {"beta_slow": 1.0, "beta_fast": 32.0}
"""Where a config does not say (YaRN, section 3.2)."""
ROPE_ENTRIES = ("rope_theta", "rope_parameters", "rope_scaling")


def write_rope(theta: float, scaling: RopeScaling | None, **more: Any) -> dict[str, Any]:
    """The entry `rope_parameters`."""
    told: dict[str, Any] = {"rope_type": "default", "rope_theta": theta, **more}
    if scaling is None:
        return told
    told |= {"rope_type": scaling.kind, "factor": scaling.factor}
    low, high = _TURNS[scaling.kind]
    if low:
        told |= {low: scaling.low, high: scaling.high}
        told["original_max_position_embeddings"] = scaling.original_length
    if scaling.attention_factor is not None:
        told["attention_factor"] = scaling.attention_factor
    return told


def read_rope(
    data: Mapping[str, Any], *, context_length: int, known: tuple[str, ...] = ()
) -> tuple[float, RopeScaling | None]:
    """Base and scaling; older configs have the base beside the scaling, newer ones within.

    `known` are entries beside those of rotary scaling that the caller reads. Raises `ArtifactError`
    for a scaling that is not known here.
    """
    told = data.get("rope_parameters") or data.get("rope_scaling") or {}
    theta = float(told.get("rope_theta", data.get("rope_theta", 10_000.0)))
    kind = told.get("rope_type", told.get("type", "default"))
    if kind == "default":
        return theta, None
    entries = {"rope_type", "type", "rope_theta", "factor", "attention_factor", *known}
    entries |= {"original_max_position_embeddings", *_TURNS.get(kind, ())}
    if kind not in _TURNS or set(told) - entries:
        raise ArtifactError(
            f"rope_type {kind!r} with {sorted(set(told) - entries)} cannot be opened: known here "
            f"are 'default', {', '.join(map(repr, _TURNS))}"
        )
    low, high = _TURNS[kind]
    original = told.get("original_max_position_embeddings") or context_length
    return theta, RopeScaling(
        kind=kind,
        factor=float(told["factor"]),
        original_length=int(original) if low else 0,
        low=float((_YARN | dict(told))[low]) if low else 1.0,
        high=float((_YARN | dict(told))[high]) if low else 4.0,
        attention_factor=told.get("attention_factor"),
    )
