"""What pre-training begins with: a new model as the recipe says, or a base that can go on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lmloop.errors import TrainingError
from lmloop.learning import PretrainConfig
from lmloop.model.init import initialise
from lmloop.model.transformer import Transformer
from lmloop.sections import ModelSection
from lmloop.training import beginning
from lmloop.training.beginning import make_model, open_base
from lmloop.training.ranks import ALONE, Ranks
from lmloop.training.shape import model_config
from lmloop.weights.checkpoint import load_model, save_model

from ..conftest import CONTEXT_LENGTH, VOCAB_SIZE, random_model, tiny_shape
from .conftest import SHAPE

UNTIED = SHAPE.model_copy(update={"tie_embeddings": False})
BASED = ModelSection(base="theirs", context_length=CONTEXT_LENGTH)


def make(shards: Path, *, ranks: Ranks = ALONE, **changes: Any) -> Transformer:
    config = PretrainConfig(**{"steps": 1, "batch_tokens": 64, "row_tokens": 32, **changes})
    sizes: dict[str, Any] = {"vocab_size": VOCAB_SIZE, "source_tokens": 0, "seed": 3}
    return make_model(config, UNTIED, shards=shards, ranks=ranks, **sizes)


def test_a_new_model_is_of_its_seed_and_of_the_text_where_the_recipe_says_so(
    shards_folder: Path,
) -> None:
    expected = Transformer(model_config(UNTIED, vocab_size=VOCAB_SIZE))
    initialise(expected, seed=3)
    made = make(shards_folder).state_dict()
    assert all(torch.equal(made[name], each) for name, each in expected.state_dict().items())
    begun = make(shards_folder, start="bigrams").state_dict()
    assert not torch.equal(begun["head.weight"], made["head.weight"])


def test_a_model_too_large_for_the_memory_is_refused_before_it_is_made(
    shards_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(beginning, "free_memory", lambda: 1000)
    monkeypatch.setattr(beginning, "resident_bytes", lambda: 0)
    monkeypatch.setattr(beginning, "Transformer", None)
    with pytest.raises(TrainingError, match=r"training needs .* MB and 0 MB are free: "):
        make(shards_folder)


def test_a_model_that_is_cut_has_the_memory_of_all_ranks(
    shards_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(beginning, "free_memory", lambda: 10**9)
    monkeypatch.setattr(beginning, "resident_bytes", lambda: 0)
    monkeypatch.setattr(
        beginning, "require_memory", lambda sizes, config, free, foresee: asked.append(free)
    )
    many = Ranks()
    many.size = 4
    make(shards_folder, ranks=many)
    make(shards_folder, ranks=many, sharding="full")
    assert asked == [10**9, 4 * 10**9]


def test_a_base_is_opened_in_fp32(tmp_path: Path) -> None:
    save_model(random_model(tiny_shape()).bfloat16(), tmp_path, stop_id=1, document_id=0)
    opened = open_base(tmp_path, BASED, vocab_size=50)
    assert opened.config == load_model(tmp_path).config
    assert {each.dtype for each in opened.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("changes", "shape", "vocab_size", "reason"),
    [
        (
            {},
            ModelSection(base="theirs", context_length=CONTEXT_LENGTH + 1),
            50,
            "is more than the 64 of model.base: lower it",
        ),
        ({}, BASED, 340, "'small' knows 50 ids and its tokenizer makes 340"),
        ({"head": "none"}, BASED, 50, "cannot go on learning next tokens"),
    ],
)
def test_a_base_that_does_not_fit_is_refused_in_one_line(
    tmp_path: Path, changes: dict[str, Any], shape: ModelSection, vocab_size: int, reason: str
) -> None:
    folder = tmp_path / "small"
    folder.mkdir()
    save_model(random_model(tiny_shape(**changes)), folder, stop_id=1, document_id=0)
    with pytest.raises(TrainingError, match=reason):
        open_base(folder, shape, vocab_size=vocab_size)


def test_a_base_with_weights_that_are_no_numbers_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "torn"
    folder.mkdir()
    model = random_model(tiny_shape())
    with torch.no_grad():
        model.norm.weight[3] = float("nan")
    save_model(model, folder, stop_id=1, document_id=0)
    with pytest.raises(TrainingError, match="'torn' has weights that are no numbers, first in nor"):
        open_base(folder, BASED, vocab_size=50)
