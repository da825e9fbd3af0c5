"""The forgetting report: two models on the same held-out sets."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lmloop.evaluation.perplexity import bits_per_byte_of
from lmloop.inference.load import LoadedModel
from lmloop.progress import Silent
from lmloop.records import Record
from lmloop.tokens.shards import Shards
from lmloop.updating.forgetting import forgetting_report

from ..conftest import CONTEXT_LENGTH, make_conversations, random_model


def report(
    before: LoadedModel, after: LoadedModel, sets: dict[str, Sequence[Record]], folder: Path
) -> dict[str, Any]:
    changes = forgetting_report(
        before, after, sets, folder=folder, confidence=0.95, seed=0, progress=Silent()
    )
    whole: dict[str, Any] = json.loads((folder / "forgetting.json").read_text("utf-8"))
    assert changes == {each["name"]: each["change"] for each in whole["sets"]}
    return whole


@pytest.fixture
def worse(loaded: LoadedModel) -> LoadedModel:
    """Other random weights of the same shape and tokenizer."""
    return replace(loaded, transformer=random_model(loaded.config, seed=1), fingerprint="f" * 64)


def test_a_model_has_forgotten_nothing_of_itself(loaded: LoadedModel, tmp_path: Path) -> None:
    talks = make_conversations(5, seed=3)
    (each,) = report(loaded, loaded, {"general": talks}, tmp_path)["sets"]
    assert each["before"] == each["after"]
    assert (each["change"], each["interval"], each["worse_documents"]) == (0, [0, 0], 0)
    assert each["documents"] == 5
    assert each["raw_bytes"] == sum(talk.raw_bytes for talk in talks)


def test_the_figures_are_those_of_the_shards_on_disk(
    loaded: LoadedModel,
    worse: LoadedModel,
    shards_folder: Path,
    splits: dict[str, list[Record]],
    tmp_path: Path,
) -> None:
    (each,) = report(loaded, worse, {"heldout": splits["heldout"]}, tmp_path)["sets"]
    shards = Shards.open(shards_folder, "heldout")
    for name, model in (("before", loaded), ("after", worse)):
        expected = bits_per_byte_of(
            model.transformer,
            shards,
            document_id=model.require_tokenizer().document_id,
            context_length=CONTEXT_LENGTH,
        )
        assert each[name] == pytest.approx(expected, rel=1e-6)
    assert each["change"] == pytest.approx(each["after"] / each["before"] - 1)
    low, high = each["interval"]
    assert low < each["change"] < high


def test_the_markdown_tells_every_set_in_a_line(
    loaded: LoadedModel, worse: LoadedModel, tmp_path: Path
) -> None:
    sets = {
        "general": make_conversations(4, seed=3),
        "single": make_conversations(1, seed=4),
        "empty": [],
    }
    whole = report(loaded, worse, sets, tmp_path)
    assert [each["name"] for each in whole["sets"]] == ["general", "single"]
    assert whole["sets"][1]["interval"] is None
    text = (tmp_path / "forgetting.md").read_text("utf-8")
    general, single = (line for line in text.splitlines() if line.startswith(("| gen", "| sin")))
    assert f"{whole['sets'][0]['before']:.4f}" in general
    assert " to " in general
    assert " to " not in single
    assert "ffffffffffff" in text


def test_a_model_that_predicts_nothing_finite_is_told_as_such(
    loaded: LoadedModel, tmp_path: Path
) -> None:
    broken = random_model(loaded.config)
    with torch.no_grad():
        broken.norm.weight.fill_(math.nan)
    after = replace(loaded, transformer=broken)
    (each,) = report(loaded, after, {"general": make_conversations(3, seed=3)}, tmp_path)["sets"]
    assert (each["before"], each["after"], each["change"], each["interval"]) == (None,) * 4
    assert "not finite" in (tmp_path / "forgetting.md").read_text("utf-8")
