"""The training log as curves: loss and validation bits per byte over steps and seconds.

Takes: each stage's journal, a JSON line a step. Gives: one curve a stage, the stages one behind the
other, thinned to what a picture can show.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

MOST_POINTS = 400
"""Points of a curve; more steps are averaged in groups."""


def read_curves(logs: Mapping[str, Path]) -> list[dict[str, Any]]:
    """A curve a stage: `stage`, and `loss` and `validation_bpb` with `steps`, `seconds`, `values`.

    Lines that are no JSON object (a killed run may leave one torn) are passed over; of a step that
    was run twice the later line counts. Steps and seconds run on from stage to stage.
    """
    curves, step, second = [], 0, 0.0
    for stage, path in logs.items():
        points = _read_steps(path)
        if not points:
            continue
        curve: dict[str, Any] = {"stage": stage}
        for key in ("loss", "validation_bpb"):
            having = [point for point in points if point.get(key) is not None]
            curve[key] = _thin(
                [step + int(point["step"]) for point in having],
                [second + float(point["seconds"]) for point in having],
                [float(point[key]) for point in having],
            )
        curves.append(curve)
        step += int(points[-1]["step"])
        second += float(points[-1]["seconds"])
    return curves


def _read_steps(path: Path) -> list[dict[str, Any]]:
    """The steps of one journal in order, each once."""
    steps: dict[int, dict[str, Any]] = {}
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict) and {"step", "seconds"} <= line.keys():
            steps[int(line["step"])] = line
    return [steps[number] for number in sorted(steps)]


def _thin(steps: list[int], seconds: list[float], values: list[float]) -> dict[str, Any]:
    """The curve with at most `MOST_POINTS` points; what is not finite becomes None (a gap)."""
    groups = np.array_split(np.arange(len(steps)), min(len(steps), MOST_POINTS) or 1)
    ends = [int(group[-1]) for group in groups if len(group)]
    means = [float(np.mean([values[i] for i in group])) for group in groups if len(group)]
    return {
        "steps": [steps[end] for end in ends],
        "seconds": [round(seconds[end], 3) for end in ends],
        "values": [round(mean, 5) if math.isfinite(mean) else None for mean in means],
    }
