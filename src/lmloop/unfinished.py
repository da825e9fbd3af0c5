"""Training that was broken off: what it was begun with, so that no other recipe goes on from it.

Takes: the folder of a run and a recipe's settings. Gives: a refusal that says what has changed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lmloop.errors import TrainingError
from lmloop.store.artifact import write_json

BEGUN = "begun.json"
"""Recipe, inputs and settings that a run was begun with."""


def begin_run(run: Path, *, name: str, inputs: Sequence[str], settings: Mapping[str, Any]) -> None:
    """Note what a run is begun with, or go on with it.

    `run` is the folder of this recipe's stage, `inputs` are fingerprints. Raises `TrainingError`
    where the same recipe has begun the same stage on the same inputs with other settings.
    """
    begun = {"name": name, "inputs": list(inputs), "settings": settings}
    if not (run / BEGUN).exists():
        stage = run.name.rpartition("-")[0]
        for other in sorted(run.parent.glob(f"{stage}-*")):
            before = _read(other / BEGUN)
            if before is None or other == run or not any(other.glob("snapshot-*")):
                continue
            if (before["name"], before["inputs"]) == (name, list(inputs)):
                changes = "; ".join(_differences(before["settings"], settings))
                raise TrainingError(
                    f"{stage} of {name} was broken off with other settings ({changes}): put them "
                    f"back to go on, or delete {other} to begin anew"
                )
    run.mkdir(parents=True, exist_ok=True)
    write_json(run / BEGUN, begun)


def _read(path: Path) -> dict[str, Any] | None:
    """What a run was begun with; None where nothing readable says so."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return found if {"name", "inputs", "settings"} <= found.keys() else None
    except (OSError, ValueError, AttributeError):
        return None


def _differences(
    before: Mapping[str, Any], after: Mapping[str, Any], path: str = ""
) -> Iterator[str]:
    """Keys whose values differ, with both values."""
    for key in sorted({*before, *after}):
        old, new = before.get(key), after.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            yield from _differences(old, new, f"{path}{key}.")
        elif old != new:
            yield f"{path}{key} {json.dumps(old)} -> {json.dumps(new)}"
