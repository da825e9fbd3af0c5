"""The whole recipe: what every one needs, and what its sections ask of each other."""

from __future__ import annotations

import re
from typing import Any

import pytest
from pydantic import ValidationError

from lmloop.recipe import Recipe
from lmloop.sections import ServeConfig
from lmloop.upkeep import GateConfig

SOURCES = {"sources": ["data"]}


def recipe(**changes: Any) -> Recipe:
    return Recipe.model_validate({"name": "chat", "prepare": SOURCES, **changes})


def test_a_recipe_needs_a_name_and_sources_and_nothing_else() -> None:
    made = recipe()
    assert made.prepare.sources == ("data",)
    assert made.pretrain.budget is not None
    assert (made.serve, made.gate) == (ServeConfig(), GateConfig())
    for data in ({"name": "chat"}, {"prepare": SOURCES}):
        with pytest.raises(ValidationError, match="Field required"):
            Recipe.model_validate(data)


def test_what_is_no_mapping_is_no_recipe() -> None:
    for data in ([], "chat", 3, None):
        with pytest.raises(ValidationError):
            Recipe.model_validate(data)


@pytest.mark.parametrize("name", ["", "Chat", "a/b", "../a", ".a", "a b", "a\n", "x" * 97])
def test_a_name_that_no_path_or_url_can_hold_is_refused(name: str) -> None:
    with pytest.raises(ValidationError, match="should match pattern"):
        recipe(name=name)


@pytest.mark.parametrize("name", ["chat", "chat-v1.2_b", "0", "x" * 96])
def test_a_plain_name_is_taken(name: str) -> None:
    assert recipe(name=name).name == name


@pytest.mark.parametrize("stage", ["pretrain", "finetune", "update"])
def test_a_row_fits_the_context_and_a_batch_holds_whole_rows(stage: str) -> None:
    fitting = {"steps": 1, "row_tokens": 64, "batch_tokens": 128}
    stages = {"pretrain": fitting, "finetune": fitting, "update": fitting}
    recipe(model={"context_length": 64}, **stages)
    for change, message in (
        ({"row_tokens": 128}, f"{stage}.row_tokens = 128 exceeds model.context_length = 64"),
        ({"batch_tokens": 100}, f"{stage}.batch_tokens = 100 is no multiple"),
    ):
        with pytest.raises(ValidationError, match=message):
            recipe(model={"context_length": 64}, **{**stages, stage: {**fitting, **change}})


@pytest.mark.parametrize(
    ("context", "update", "row", "batch"),
    [
        (64, {}, 64, 2048),
        (100, {"steps": 5}, 100, 2000),
        (64, {"batch_tokens": 128}, 64, 128),
        (64, {"row_tokens": 32}, 32, 2048),
        (256, {}, 256, 2048),
        (512, {}, 256, 2048),
    ],
)
def test_an_update_that_says_nothing_of_its_rows_fits_a_short_context(
    context: int, update: dict[str, int], row: int, batch: int
) -> None:
    fitting = {"steps": 1, "row_tokens": 32, "batch_tokens": 128}
    made = recipe(
        model={"context_length": context}, pretrain=fitting, finetune=fitting, update=update
    )
    assert (made.update.row_tokens, made.update.batch_tokens) == (row, batch)


def test_the_mapping_that_a_recipe_is_made_from_stays_as_it_was() -> None:
    fitting = {"steps": 1, "row_tokens": 32, "batch_tokens": 128}
    data: dict[str, Any] = {
        "name": "chat",
        "prepare": SOURCES,
        "model": {"context_length": 64},
        "pretrain": fitting,
        "finetune": fitting,
        "update": {"steps": 5},
    }
    Recipe.model_validate(data)
    assert data["update"] == {"steps": 5}


MASKED = {"steps": 1, "objective": "masked"}


@pytest.mark.parametrize(
    ("kind", "objective", "extra"),
    [
        ("decoder", "causal", []),
        ("decoder", "masked", ["<|mask|>"]),
        ("decoder", "causal+masked", ["<|mask|>"]),
        ("decoder", "prefix", []),
        ("decoder", "fill-in-the-middle", ["<|prefix|>", "<|suffix|>", "<|middle|>"]),
        ("decoder", "permutation", ["<|mask|>"]),
        ("encoder", "masked", ["<|mask|>", "<|more|>"]),
        ("encoder", "permutation", ["<|mask|>"]),
        ("encoder-decoder", "span-corruption", [f"<|extra_{span}|>" for span in range(30)]),
    ],
)
def test_an_objective_fits_a_kind_of_model_and_its_tokens(
    kind: str, objective: str, extra: list[str]
) -> None:
    made = recipe(
        model={"kind": kind},
        pretrain={"steps": 1, "objective": objective},
        tokenize={"extra_tokens": extra},
    )
    assert made.tokenize.extra_tokens == tuple(extra)


@pytest.mark.parametrize(
    ("kind", "objective", "allowed"),
    [
        ("decoder", "span-corruption", "'fill-in-the-middle', 'permutation'$"),
        ("encoder", "causal", "'masked', 'permutation'$"),
        ("encoder", "causal+masked", "'masked', 'permutation'$"),
        ("encoder-decoder", "masked", "'span-corruption'$"),
    ],
)
def test_an_objective_that_does_not_fit_the_kind_is_told_with_those_that_do(
    kind: str, objective: str, allowed: str
) -> None:
    with pytest.raises(ValidationError) as caught:
        recipe(model={"kind": kind}, pretrain={"steps": 1, "objective": objective})
    (error,) = caught.value.errors()
    told = f"pretrain.objective = '{objective}' does not fit model.kind = '{kind}'"
    assert told in error["msg"]
    assert re.search(allowed, error["msg"])


@pytest.mark.parametrize(
    ("objective", "extra", "told"),
    [
        ("masked", [], "'masked' needs '<|mask|>': add"),
        (
            "fill-in-the-middle",
            ["<|prefix|>"],
            "needs '<|suffix|>' and 1 more up to '<|middle|>': add",
        ),
        (
            "span-corruption",
            ["<|extra_0|>"],
            "needs '<|extra_1|>' and 28 more up to '<|extra_29|>'",
        ),
    ],
)
def test_special_tokens_that_an_objective_lacks_are_named_with_their_key(
    objective: str, extra: list[str], told: str
) -> None:
    kind = "encoder-decoder" if objective == "span-corruption" else "decoder"
    with pytest.raises(ValidationError) as caught:
        recipe(
            model={"kind": kind},
            pretrain={"steps": 1, "objective": objective},
            tokenize={"extra_tokens": extra},
        )
    message = caught.value.errors()[0]["msg"]
    assert told in message
    assert message.endswith("to tokenize.extra_tokens")


@pytest.mark.parametrize(
    ("model", "told"),
    [
        ({"num_layers": 2, "mixers": ("attention", "gru")}, "model.mixers has 'gru'"),
        ({"num_layers": 1, "mixers": ("local",), "window": 4}, "model.mixers has 'local'"),
        ({"positions": "relative"}, "model.positions = 'relative' does not tell them"),
        ({"positions": "none"}, "model.positions = 'none' does not tell them"),
    ],
)
def test_a_permutation_needs_layers_that_take_in_its_order_and_positions(
    model: dict[str, Any], told: str
) -> None:
    given = {"tokenize": {"extra_tokens": ["<|mask|>"]}, "model": model}
    recipe(pretrain=MASKED, **given)
    with pytest.raises(ValidationError, match=told):
        recipe(pretrain={**MASKED, "objective": "permutation"}, **given)


def test_a_base_brings_its_tokenizer_and_learns_next_tokens() -> None:
    base = {"base": "smollm2-135m-instruct"}
    assert recipe(model=base).model.base == "smollm2-135m-instruct"
    with pytest.raises(ValidationError, match=r"brings its own tokenizer: leave \[tokenize\] out"):
        recipe(model=base, tokenize={"vocab_size": 500})
    with pytest.raises(ValidationError, match="begins with a new model: take 'causal'"):
        recipe(model=base, pretrain={"steps": 1, "objective": "prefix"})


def test_a_recipe_is_not_its_own_teacher() -> None:
    with pytest.raises(ValidationError, match="give the student another name"):
        recipe(finetune={"steps": 1, "teacher": "chat"})
    assert recipe(finetune={"steps": 1, "teacher": "other"}).finetune.teacher == "other"


def test_a_task_is_checked_as_an_objective_is() -> None:
    masked = {"steps": 1, "tasks": {"next": {}, "hidden": {"objective": "masked"}}}
    told = r"pretrain\.tasks\.hidden\.objective = 'masked' needs '<\|mask\|>'"
    with pytest.raises(ValidationError, match=told):
        recipe(pretrain=masked)
    extra = {"extra_tokens": ["<|mask|>"]}
    assert recipe(pretrain=masked, tokenize=extra).pretrain.tasks["hidden"].share == 1.0
    spans = {"steps": 1, "tasks": {"spans": {"objective": "span-corruption"}}}
    with pytest.raises(ValidationError, match="does not fit model.kind = 'decoder'"):
        recipe(pretrain=spans)
    with pytest.raises(ValidationError, match="begins with a new model"):
        recipe(pretrain={"steps": 1, "tasks": {"a": {"objective": "prefix"}}}, model={"base": "x"})
    old = {"steps": 1, "tasks": {"old": {"text": "rehearsal"}}}
    with pytest.raises(ValidationError, match=r"tasks\.old\.text = 'rehearsal' needs"):
        recipe(pretrain=old)
