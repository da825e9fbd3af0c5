"""A search whose trainings are a formula: the way of a recipe with its work replaced."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from lmloop import pipeline
from lmloop.progress import Silent
from lmloop.recipe import Recipe
from lmloop.stages import STAGES, Inputs, Stage, Workshop
from lmloop.store.artifact import ArtifactStore
from lmloop.tuning import search
from lmloop.tuning.search import Tuned, tune

BEST_RATE = 0.01
RECIPE = """
name = "tiny"
prepare.sources = ["a"]
pretrain.steps = 9
finetune.steps = 9
"""
RATES = "pretrain.learning_rate=1e-4..1:log"


class FormulaStage(Stage):
    """A stage that reads no files."""

    def sources(self, recipe: Recipe, store: ArtifactStore) -> list[dict[str, str]]:
        return [] if self.needs else [{"kind": "raw", "source": "a", "fingerprint": "f" * 64}]


def figure(rate: float, share: float) -> float:
    """Bits per byte at a share of the budget: lowest for `BEST_RATE`, falling in time."""
    return 2 + abs(math.log10(rate / BEST_RATE)) + (1 - share)


@dataclass
class Search:
    """A recipe in a home, and what was done there."""

    folder: Path
    worked: list[str] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    during: Callable[[Recipe], object] = lambda recipe: None
    """What else happens in the middle of each training."""

    @property
    def home(self) -> Path:
        return self.folder / "home"

    def tune(self, *over: str, trials: int = 5, **changes: Any) -> Tuned:
        recipe = self.folder / "recipe.toml"
        if not recipe.exists():
            recipe.write_text(RECIPE)
        progress = Silent()
        progress.say = self.said.append  # type: ignore[method-assign]
        return tune(
            recipe,
            over=over or (RATES,),
            trials=trials,
            home=self.home,
            progress=progress,
            **changes,
        )

    def stages(self) -> dict[str, Stage]:
        return {
            name: FormulaStage(
                name=name,
                kind=stage.kind,
                needs=stage.needs,
                sections=stage.sections,
                work=self._work(name),
                numeric=False,
            )
            for name, stage in STAGES.items()
        }

    def _work(self, name: str) -> Callable[..., Mapping[str, Any]]:
        def work(shop: Workshop, inputs: Inputs, folder: Path, run: Path) -> Mapping[str, Any]:
            self.worked.append(name)
            (folder / "word.txt").write_text(f"{name} {shop.recipe.model_dump_json()}")
            run.mkdir(parents=True, exist_ok=True)
            if name not in ("pretrain", "finetune"):
                return {"train": {"answer_tokens": 1}}
            rate = getattr(shop.recipe, name).learning_rate
            for tenth in range(1, 10, 2):
                share = tenth / 10
                line = {"step": tenth, "share": share, "seconds": share, "tokens": tenth}
                shop.watch({**line, "loss": 1.0})
                shop.watch({**line, "step": tenth + 1, "validation_bpb": figure(rate, share)})
                if tenth == 5:
                    self.during(shop.recipe)
            value = figure(rate, 1)
            return {"validation_bits_per_byte": value, "parts": {"loss": -value}, "precision": "x"}

        return work


@pytest.fixture
def searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Search:
    # What these tests write need not survive a power cut.
    monkeypatch.setattr(os, "fsync", os.fstat)
    made = Search(tmp_path)
    stages = made.stages()
    monkeypatch.setattr(pipeline, "STAGES", stages)
    monkeypatch.setattr(pipeline, "code_version", lambda: "0")
    monkeypatch.setattr(search, "STAGES", stages)
    return made
