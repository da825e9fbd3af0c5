"""What early stopping may look at: the figures by hand, and which way is better."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from lmloop.errors import TrainingError
from lmloop.learning import TrainConfig
from lmloop.model.transformer import Transformer
from lmloop.tokens.loader import PackedLoader
from lmloop.tokens.shards import Shards
from lmloop.tokens.tokenizer import Tokenizer
from lmloop.training import batch as module
from lmloop.training.figures import Figure, open_figure

from ..conftest import VOCAB_SIZE, random_model, tiny_shape
from .conftest import Run, make_config

MakeRun = Callable[..., Run]


def open_one(shards: Path, name: str, *, answers_only: bool = False) -> Figure:
    config = make_config(patience=1, patience_metric=name)
    found = open_figure(config, shards, seed=0, answers_only=answers_only, arrangement=None)
    assert found is not None
    return found


def test_without_a_name_patience_watches_what_the_run_validates_by(shards_folder: Path) -> None:
    config = make_config(patience=1)
    watched = open_figure(config, shards_folder, seed=0, answers_only=False, arrangement=None)
    assert watched is None


@pytest.mark.parametrize("answers_only", [False, True])
def test_loss_and_accuracy_are_those_of_all_logits(
    shards_folder: Path, monkeypatch: pytest.MonkeyPatch, answers_only: bool
) -> None:
    monkeypatch.setattr(module, "CHUNK_ELEMENTS", 3 * VOCAB_SIZE)
    model = random_model(tiny_shape(vocab_size=VOCAB_SIZE))
    loader = PackedLoader(
        Shards.open(shards_folder, "validation"),
        row_tokens=16,
        document_id=Tokenizer.open(shards_folder).document_id,
        answers_only=answers_only,
        seed=0,
    )
    rows = loader.rows(0, loader.rows_per_epoch)
    with torch.no_grad():
        states = module.learnt_states(model, rows)
        logits = model.project(states)
    targets = torch.from_numpy(rows.targets[rows.learnt])
    wanted = float((logits.argmax(-1) == targets).double().mean())
    nats = float(torch.nn.functional.cross_entropy(logits, targets))
    accuracy = open_one(shards_folder, "accuracy", answers_only=answers_only)
    loss = open_one(shards_folder, "loss", answers_only=answers_only)
    assert (accuracy.name, loss.name) == ("validation_accuracy", "validation_loss")
    assert accuracy.measure(model) == pytest.approx(wanted)
    assert loss.measure(model) == pytest.approx(nats, rel=1e-4)


def test_a_model_that_says_one_token_is_right_as_often_as_that_comes(shards_folder: Path) -> None:
    model = random_model(tiny_shape(vocab_size=VOCAB_SIZE, tie_embeddings=False))
    split = Shards.open(shards_folder, "validation")
    tokens = split.read(0, split.num_tokens)
    often = int(np.bincount(tokens).argmax())
    project = Transformer.project

    def say_it(states: torch.Tensor) -> torch.Tensor:
        logits = project(model, states).zero_()
        logits[:, often] = 1.0
        return logits

    model.project = say_it  # type: ignore[method-assign]
    share = open_one(shards_folder, "accuracy").measure(model)
    assert share == pytest.approx(float((tokens == often).mean()), abs=0.03)
    assert share > 0.02


@pytest.mark.parametrize(("highest", "kept"), [(True, 6), (False, 3)])
def test_the_weights_of_the_best_figure_are_kept_whichever_way_it_goes(
    make_run: MakeRun, highest: bool, kept: int
) -> None:
    figures, shown = iter([1.0, 5.0, 3.0, 2.0]), []

    def measure(model: Transformer) -> float:
        shown.append(model.embedding.weight.detach().clone())
        return next(figures)

    figure = Figure(name="validation_accuracy", measure=measure, highest_is_best=highest)
    run = make_run(config=make_config(patience=5), figure=figure)
    result = run.go()
    measured = {
        entry["step"]: entry["validation_accuracy"]
        for entry in run.journal()
        if "validation_accuracy" in entry
    }
    assert measured == {3: 1.0, 6: 5.0, 9: 3.0}
    assert all("validation_bpb" in entry for entry in run.journal() if entry["step"] in measured)
    assert run.model is not None
    best = run.model.embedding.weight
    assert torch.equal(best, shown[kept // 3 - 1])
    assert result.validation_bits_per_byte == pytest.approx(best.detach().norm().item())


def test_a_figure_of_evaluation_is_not_made_here(shards_folder: Path) -> None:
    with pytest.raises(TrainingError, match="'hits_at_1' is a figure of evaluation") as caught:
        open_one(shards_folder, "hits_at_1")
    assert "\n" not in str(caught.value)


def test_a_metric_to_watch_needs_patience() -> None:
    with pytest.raises(ValueError, match="patience_metric needs patience"):
        TrainConfig(steps=1, patience_metric="accuracy")
