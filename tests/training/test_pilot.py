"""Small runs on the recipe's own text."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from lmloop.errors import TrainingError
from lmloop.learning import PretrainConfig
from lmloop.model.cost import count_parameters
from lmloop.model.init import initialise
from lmloop.sections import ModelSection
from lmloop.tokens.loader import PackedLoader
from lmloop.tokens.shards import Shards
from lmloop.tokens.tokenizer import Tokenizer
from lmloop.training import pilot as module
from lmloop.training.pilot import run_pilots, small_shapes
from lmloop.training.scaling import count_repeated

from .conftest import Said, embedding_norm

SHAPE = ModelSection(
    num_layers=1,
    hidden_size=32,
    num_heads=2,
    num_kv_heads=1,
    head_dim=16,
    intermediate_size=48,
    context_length=32,
)


def test_small_models_keep_layers_heads_and_vocabulary() -> None:
    made = small_shapes(SHAPE, vocab_size=300)
    assert [each.head_dim for each in made] == [4, 6, 8]
    assert [each.hidden_size for each in made] == [8, 12, 16]
    assert [each.intermediate_size for each in made] == [12, 18, 24]
    assert {(each.num_layers, each.num_heads, each.vocab_size) for each in made} == {(1, 2, 300)}


def test_a_model_that_is_narrow_already_is_refused() -> None:
    with pytest.raises(TrainingError, match="head_dim = 8 is too narrow"):
        small_shapes(SHAPE.model_copy(update={"head_dim": 8}), vocab_size=300)


def test_each_width_is_trained_for_two_lengths(
    shards_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FEWEST_STEPS", 2)
    monkeypatch.setattr(module, "PROBE_SECONDS", 0.0)
    tokenizer, split = Tokenizer.open(shards_folder), Shards.open(shards_folder, "train")
    section = PretrainConfig(budget="1h", batch_tokens=32, row_tokens=16, precision="float32")
    loader = PackedLoader(
        split, row_tokens=16, document_id=tokenizer.document_id, answers_only=False, seed=0
    )
    runs = run_pilots(
        section,
        SHAPE,
        vocab_size=tokenizer.vocab_size,
        loader=loader,
        unique_tokens=100,
        seconds=0.001,
        begin=partial(initialise, seed=0),
        validate=embedding_norm,
        progress=Said(),
    )
    sizes = [
        count_parameters(each) for each in small_shapes(SHAPE, vocab_size=tokenizer.vocab_size)
    ]
    tokens = [count_repeated(32 * steps, unique=100) for steps in (2, 8)]
    assert [(run.parameters, run.tokens) for run in runs] == [
        (size, each) for size in sizes for each in tokens
    ]
    assert all(run.loss > 0 for run in runs)
