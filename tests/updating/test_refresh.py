"""Training of an update: from the live model's weights, with the mixture's steps."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lmloop.compression.quantize import compress
from lmloop.errors import UpdateError
from lmloop.inference.load import load
from lmloop.model.transformer import Transformer
from lmloop.progress import Silent
from lmloop.records import Record
from lmloop.sections import CompressConfig
from lmloop.tokens.shards import Shards
from lmloop.tokens.tokenizer import Tokenizer
from lmloop.updating.mixture import write_mixture
from lmloop.updating.refresh import refresh
from lmloop.upkeep import UpdateConfig

from ..conftest import make_conversations

SIZES: dict[str, Any] = {"batch_tokens": 256, "row_tokens": 64, "precision": "float32"}


def same(model: Transformer) -> float:
    return 2.5


@pytest.fixture(scope="session")
def mixture(
    tokenizer: Tokenizer, splits: dict[str, list[Record]], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Eight exchanges, three times each, and as many learnt tokens of old text."""
    return make_mixture(tmp_path_factory.mktemp("mixture"), tokenizer, splits["train"])


@pytest.fixture(scope="session")
def watched_mixture(
    tokenizer: Tokenizer, splits: dict[str, list[Record]], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The same with two of the exchanges as the split that patience watches."""
    folder = tmp_path_factory.mktemp("watched")
    return make_mixture(folder, tokenizer, splits["train"], is_watched=True)


def make_mixture(
    folder: Path, tokenizer: Tokenizer, old: list[Record], *, is_watched: bool = False
) -> Path:
    write_mixture(
        make_conversations(8, seed=77),
        lambda: old,
        tokenizer=tokenizer,
        folder=folder,
        passes=3,
        replay_share=0.5,
        seed=0,
        is_watched=is_watched,
    )
    return folder


def run_refresh(
    base: Path,
    mixture: Path,
    folder: Path,
    *,
    validate: Callable[[Transformer], float] = same,
    **changes: Any,
) -> dict[str, Any]:
    folder.mkdir(exist_ok=True)
    ticks = iter(range(1_000_000))
    return refresh(
        UpdateConfig(**(SIZES | changes)),
        base=base,
        shards=mixture,
        folder=folder,
        run=folder.parent / f"run-{folder.name}",
        seed=0,
        validate=validate,
        clock=lambda: next(ticks) / 10,
        progress=Silent(),
    )


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def test_without_a_budget_the_mixture_is_read_once(
    model_folder: Path, mixture: Path, tmp_path: Path
) -> None:
    counts = run_refresh(model_folder, mixture, tmp_path / "new")
    tokens = Shards.open(mixture, "train").num_tokens
    assert 0 <= counts["tokens"] - tokens < 256
    assert counts["steps"] == counts["tokens"] // 256
    assert counts["validation_bits_per_byte"] == 2.5


@pytest.mark.parametrize("budget", [{"steps": 3}, {"budget": "1s"}])
def test_a_budget_overrules_the_mixture(
    model_folder: Path, mixture: Path, tmp_path: Path, budget: dict[str, Any]
) -> None:
    read_once = run_refresh(model_folder, mixture, tmp_path / "once")["steps"]
    assert 1 <= run_refresh(model_folder, mixture, tmp_path / "new", **budget)["steps"] < read_once


def test_an_update_goes_on_from_the_base_and_leaves_it_as_it_was(
    model_folder: Path, mixture: Path, tmp_path: Path
) -> None:
    before = weights(model_folder)
    rates = {"learning_rate": 1e-9, "matrix_learning_rate": 1e-9}
    run_refresh(model_folder, mixture, tmp_path / "new", **rates)
    assert weights(model_folder) == before
    first, second = (load(each, dtype=torch.float32) for each in (model_folder, tmp_path / "new"))
    tokens = torch.arange(20)[None]
    torch.testing.assert_close(first(tokens), second(tokens), rtol=1e-3, atol=1e-4)


def test_an_update_learns_the_mixture(model_folder: Path, mixture: Path, tmp_path: Path) -> None:
    rates = {"learning_rate": 0.01, "matrix_learning_rate": 0.01}
    run_refresh(model_folder, mixture, tmp_path / "new", steps=40, **rates)
    lines = (tmp_path / "new" / "journal.jsonl").read_text("utf-8").splitlines()
    losses = [json.loads(line)["loss"] for line in lines]
    assert sum(losses[-5:]) / 5 < losses[0] - 1


def test_a_killed_update_ends_in_the_weights_of_an_unbroken_one(
    model_folder: Path, mixture: Path, tmp_path: Path
) -> None:
    every = {"save_every": 2, "validate_every": 5}
    run_refresh(model_folder, mixture, tmp_path / "unbroken", **every)

    def die(model: Transformer) -> float:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_refresh(model_folder, mixture, tmp_path / "killed", validate=die, **every)
    assert list((tmp_path / "killed").iterdir()) == []
    run_refresh(model_folder, mixture, tmp_path / "killed", **every)
    assert weights(tmp_path / "killed") == weights(tmp_path / "unbroken")


def test_compressed_weights_are_refused(
    model_folder: Path, mixture: Path, shards_folder: Path, tmp_path: Path
) -> None:
    small = tmp_path / "small"
    small.mkdir()
    compress(
        CompressConfig(max_loss=10.0),
        model_folder=model_folder,
        shards=Shards.open(shards_folder, "heldout"),
        folder=small,
        progress=Silent(),
    )
    with pytest.raises(UpdateError, match="compressed weights, which cannot be trained"):
        run_refresh(small, mixture, tmp_path / "new")
    assert list((tmp_path / "new").iterdir()) == []


def test_an_update_takes_one_budget_at_most() -> None:
    assert not UpdateConfig().has_budget
    assert UpdateConfig(replay="journal.jsonl").has_budget
    with pytest.raises(ValueError, match="at most one of budget"):
        UpdateConfig(steps=3, budget="1m")


@pytest.mark.parametrize("metric", ["loss", "accuracy"])
def test_patience_can_watch_what_an_update_is_meant_to_learn(
    model_folder: Path, watched_mixture: Path, tmp_path: Path, metric: str
) -> None:
    asked = {"patience": 2, "patience_metric": metric, "validate_every": 2, "steps": 200}
    rates = {"learning_rate": 0.05, "matrix_learning_rate": 0.2}  # too high to get better for long
    counts = run_refresh(model_folder, watched_mixture, tmp_path / "new", **asked, **rates)
    lines = (tmp_path / "new" / "journal.jsonl").read_text("utf-8").splitlines()
    name = f"validation_{metric}"
    values = [each[name] for each in map(json.loads, lines) if name in each]
    best = max(values) if metric == "accuracy" else min(values)
    assert values.index(best) == len(values) - 3
    assert counts["steps"] == 2 * len(values) < 200
