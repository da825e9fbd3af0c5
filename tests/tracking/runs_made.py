"""Runs by hand, for the tests of pages and pictures."""

from __future__ import annotations

from typing import Any

from lmloop.store.runs import Run


def make_step(
    step: int, loss: float | None, validation: float | None = None, **more: Any
) -> dict[str, Any]:
    figures = {"loss": loss, "norm": 1.0, "validation_bpb": validation, "validation_loss": None}
    speed = {"bpb": None, "tokens_per_second": None, "peak_share": None, "samples": []}
    place = {"step": step, "share": step / 10, "seconds": step * 2.0, "tokens": step * 1000}
    return {**place, **figures, **speed, **more}


def make_run(*steps: dict[str, Any], **changes: Any) -> Run:
    own = {"id": "pretrain-0", "name": "tiny", "stage": "pretrain", "state": "running"}
    return Run(**{**own, "note": None, "started": 0.0, "heard": 1.0, "steps": steps, **changes})
