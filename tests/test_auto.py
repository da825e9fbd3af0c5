"""What `model = "auto"` chooses, and what it leaves as it was given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lmloop.auto import choose, complete, describe
from lmloop.config import build_recipe, load_recipe
from lmloop.errors import RecipeError, SourceError
from lmloop.recipe import Recipe
from lmloop.stages import STAGES

RATE = 3e11
"""Of two cores with AMX."""


def make_recipe(tmp_path: Path, **sections: Any) -> Recipe:
    source = tmp_path / "text.txt"
    source.write_text("to be or not to be\n" * 1000, encoding="utf-8")
    whole = {"name": "a", "model": "auto", "prepare": {"sources": [str(source)]}, **sections}
    return build_recipe({"pretrain": {"budget": "90s"}} | whole)


def test_ninety_seconds_of_two_cores_on_shakespeare_choose_what_the_search_found(
    tmp_path: Path,
) -> None:
    chosen = choose(make_recipe(tmp_path), text_bytes=4_551_478, rate=RATE)
    assert (chosen["model"]["num_layers"], chosen["model"]["hidden_size"]) == (4, 256)
    assert chosen["tokenize"]["train_bytes"] > 10_000_000
    hurried = make_recipe(tmp_path, pretrain={"budget": "1s"})
    assert choose(hurried, text_bytes=4_551_478, rate=RATE)["tokenize"]["train_bytes"] < 2_000_000
    assert 2560 <= chosen["tokenize"]["vocab_size"] <= 3200
    assert chosen["pretrain"]["batch_tokens"] == 2048
    assert chosen["pretrain"]["start"] == "bigrams"


@pytest.mark.parametrize("size", [2_000, 4_551_478, 10**10])
def test_more_time_never_chooses_less_of_anything(tmp_path: Path, size: int) -> None:
    keys = [("model", "hidden_size"), ("model", "num_layers"), ("pretrain", "batch_tokens")]
    before = dict.fromkeys(keys, 0)
    for budget in ("1s", "10s", "90s", "10m", "2h", "99h"):
        recipe = make_recipe(tmp_path, pretrain={"budget": budget})
        chosen = choose(recipe, text_bytes=size, rate=RATE)
        now = {key: chosen[key[0]][key[1]] for key in keys}
        assert all(now[key] >= before[key] for key in keys)
        before = now


def test_a_small_text_gets_a_small_model_however_long_it_may_learn(tmp_path: Path) -> None:
    recipe = make_recipe(tmp_path, pretrain={"budget": "24h"})
    small, large = (choose(recipe, text_bytes=size, rate=RATE) for size in (20_000, 10**9))
    assert small["model"]["hidden_size"] < large["model"]["hidden_size"]
    assert small["tokenize"]["vocab_size"] < large["tokenize"]["vocab_size"]


def test_the_largest_budget_meets_the_law_of_large_models(tmp_path: Path) -> None:
    """1e18 operations: some 90 million parameters and twenty tokens for each."""
    recipe = make_recipe(tmp_path, pretrain={"budget": "1h"})
    model = choose(recipe, text_bytes=10**10, rate=1e18 / 3600)["model"]
    blocks = 11.5 * model["num_layers"] * model["hidden_size"] ** 2
    assert 6e7 < blocks < 1.4e8


def test_what_the_recipe_says_stays_and_the_rest_fits_around_it(tmp_path: Path) -> None:
    settled = complete(
        make_recipe(
            tmp_path,
            model={"auto": True, "num_layers": 3, "context_length": 128},
            tokenize={"vocab_size": 700},
            pretrain={"steps": 200, "learning_rate": 0.01},
            prepare={"sources": [str(tmp_path / "text.txt")], "min_characters": 7},
        ),
        rate=RATE,
    )
    assert settled.model.num_layers == 3
    assert settled.model.num_heads * settled.model.head_dim == settled.model.hidden_size
    assert settled.pretrain.row_tokens == settled.finetune.row_tokens == 128
    assert settled.update.row_tokens == 128
    assert settled.tokenize.vocab_size == 700
    assert settled.pretrain.learning_rate == 0.01
    assert settled.prepare.min_characters == 7


@pytest.mark.parametrize(
    "given",
    [
        {"model": {"auto": True, "context_length": 130}},
        {"model": {"auto": True, "context_length": 9}},
        {"model": {"auto": True, "tie_embeddings": True}},
        {"model": {"auto": True, "positions": "sinusoidal"}},
        {"pretrain": {"budget": "9s", "row_tokens": 100}},
        {"pretrain": {"budget": "9s", "batch_tokens": 512}},
        {"finetune": {"budget": "9s", "row_tokens": 100}},
        {"update": {"row_tokens": 100}},
    ],
)
def test_odd_things_that_a_recipe_says_are_fitted_around(
    tmp_path: Path, given: dict[str, Any]
) -> None:
    settled = complete(make_recipe(tmp_path, **given), rate=RATE)
    for section, keys in given.items():
        for key, value in keys.items():
            assert key == "auto" or getattr(getattr(settled, section), key) == value
    for section in (settled.pretrain, settled.finetune, settled.update):
        assert section.batch_tokens % section.row_tokens == 0
        assert section.row_tokens <= settled.model.context_length


def test_a_settled_recipe_is_one_that_somebody_could_have_written(tmp_path: Path) -> None:
    settled = complete(make_recipe(tmp_path), rate=RATE)
    written = Recipe.model_validate(settled.model_dump(exclude_unset=True))
    assert not settled.model.auto
    assert complete(settled) is settled
    for stage in STAGES.values():
        assert stage.settings(settled) == stage.settings(written)
    assert f"{settled.model.num_layers} layers of {settled.model.hidden_size}" in describe(settled)


def test_the_machine_of_the_test_chooses_the_same_twice(tmp_path: Path) -> None:
    recipe = make_recipe(tmp_path)
    assert complete(recipe) == complete(recipe)


def test_auto_is_read_from_a_file_and_overridden_key_by_key(tmp_path: Path) -> None:
    make_recipe(tmp_path)
    file = tmp_path / "recipe.toml"
    file.write_text('name = "a"\nmodel = "auto"\n[prepare]\nsources = ["text.txt"]\n')
    recipe = load_recipe(file, {"model.num_layers": 5})
    assert recipe.model.auto
    assert recipe.model.num_layers == 5


def test_a_replay_is_refused_with_what_to_give_instead(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="give pretrain.budget or pretrain.steps"):
        complete(make_recipe(tmp_path, pretrain={"replay": "journal.jsonl"}))


@pytest.mark.parametrize("context", [8, 20, 130, 300, 1000])
def test_any_context_length_gets_rows_that_double_and_fill_batches(
    tmp_path: Path, context: int
) -> None:
    recipe = make_recipe(tmp_path, model={"auto": True, "context_length": context})
    section = complete(recipe, rate=RATE).pretrain
    assert context // 2 < section.row_tokens <= context or section.row_tokens == 512
    assert section.row_length(0.0) == max(8, section.row_tokens // 4)


@pytest.mark.parametrize(
    ("stage", "keys"),
    [
        ("pretrain", {"row_tokens": 1024}),
        ("pretrain", {"row_tokens": 384}),
        ("pretrain", {"row_tokens": 9}),
        ("pretrain", {"row_tokens": 256, "batch_tokens": 65536, "micro_batch_tokens": 32768}),
        ("finetune", {"row_tokens": 2048}),
        ("update", {"row_tokens": 100}),
    ],
)
def test_rows_that_are_given_get_a_context_and_a_batch_that_fit(
    tmp_path: Path, stage: str, keys: dict[str, int]
) -> None:
    section = {**keys} if stage == "update" else {"budget": "90s", **keys}
    settled = complete(make_recipe(tmp_path, **{stage: section}), rate=RATE)
    assert getattr(settled, stage).row_tokens == keys["row_tokens"]
    assert settled.model.context_length >= keys["row_tokens"]


@pytest.mark.parametrize("budget", ["1s", "90s", "1h", "99h"])
@pytest.mark.parametrize("model", ["auto", {"auto": True, "context_length": 130}])
def test_an_update_is_the_same_whatever_was_chosen_and_fits_every_model(
    tmp_path: Path, budget: str, model: Any
) -> None:
    """A round reads the recipe as it is: its [update] must hold for every shape."""
    recipe = make_recipe(tmp_path, pretrain={"budget": budget}, model=model)
    settled = complete(recipe, rate=1e14)
    assert settled.update == recipe.update
    assert settled.update.row_tokens <= settled.model.context_length


def test_pieces_that_are_given_fill_the_batch(tmp_path: Path) -> None:
    keys = {"budget": "90s", "micro_batch_tokens": 4096}
    chosen = choose(make_recipe(tmp_path, pretrain=keys), text_bytes=4_551_478, rate=RATE)
    assert chosen["pretrain"]["batch_tokens"] == 4096


@pytest.mark.parametrize(
    "keys", [{"tie_embeddings": True}, {"vectors": "words.vec"}, {"positions": "sinusoidal"}]
)
def test_a_model_that_bigrams_do_not_fit_begins_without(
    tmp_path: Path, keys: dict[str, Any]
) -> None:
    settled = complete(make_recipe(tmp_path, model={"auto": True, **keys}), rate=RATE)
    assert settled.pretrain.start == "random"


def test_heads_that_are_given_have_as_many_keys_and_values(tmp_path: Path) -> None:
    settled = complete(make_recipe(tmp_path, model={"auto": True, "num_heads": 3}), rate=RATE)
    assert (settled.model.num_heads, settled.model.num_kv_heads) == (3, 3)


@pytest.mark.parametrize(
    ("section", "keys", "told"),
    [
        ("pretrain", {"budget": "90s", "batch_tokens": 1000}, "batch_tokens = 1000 is no multiple"),
        ("model", {"auto": True, "num_heads": 1, "num_kv_heads": 3}, "num_kv_heads = 3"),
    ],
)
def test_what_does_not_go_together_is_told_in_a_line(
    tmp_path: Path, section: str, keys: dict[str, Any], told: str
) -> None:
    with pytest.raises(RecipeError, match=told) as caught:
        complete(make_recipe(tmp_path, **{section: keys}), rate=RATE)
    assert str(caught.value).startswith("model = 'auto': ")
    assert "\n" not in str(caught.value)


def test_steps_count_the_batch_that_is_chosen_for_them(tmp_path: Path) -> None:
    keys = {"steps": 20_000}
    chosen = choose(make_recipe(tmp_path, pretrain=keys), text_bytes=10**10, rate=RATE)
    keys["batch_tokens"] = chosen["pretrain"]["batch_tokens"]
    given = choose(make_recipe(tmp_path, pretrain=keys), text_bytes=10**10, rate=RATE)
    assert given["model"] == chosen["model"]


@pytest.mark.parametrize(
    ("section", "keys", "told"),
    [
        ("model", {"auto": True, "kind": "encoder"}, "model.kind"),
        ("pretrain", {"steps": 9, "objective": "prefix"}, "pretrain.objective"),
        ("tokenize", {"kind": "character"}, "tokenize.kind"),
        ("model", {"auto": True, "base": "smollm2"}, "base brings its own shape"),
    ],
)
def test_what_it_does_not_choose_for_is_refused(
    tmp_path: Path, section: str, keys: dict[str, Any], told: str
) -> None:
    with pytest.raises(RecipeError, match=told):
        make_recipe(tmp_path, **{section: keys})


def test_a_missing_source_is_named(tmp_path: Path) -> None:
    recipe = make_recipe(tmp_path, prepare={"sources": [str(tmp_path / "nothing.txt")]})
    with pytest.raises(SourceError, match=r"nothing\.txt"):
        complete(recipe)
