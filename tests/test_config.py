"""How a recipe is read, overridden and refused."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmloop.config import (
    Place,
    build_recipe,
    calm_threads,
    database_setting,
    find_key,
    home_directory,
    keep_trackers_local,
    load_recipe,
    parse_value,
    rank_setting,
    silence_telemetry,
)
from lmloop.errors import RecipeError, TrainingError

GOOD = """
name = "chat"
[prepare]
sources = ["talks.jsonl"]
[pretrain]
budget = "4m"
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "recipe.toml"
    path.write_text(textwrap.dedent(text), encoding="utf-8")
    return path


def refuse(folder: Path, text: str, overrides: dict[str, Any] | None = None) -> str:
    """The one line that a recipe is refused with."""
    path = write(folder, text)
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, overrides)
    line = str(caught.value)
    assert "\n" not in line
    assert str(path) in line
    return line


def test_a_recipe_is_read_with_its_defaults(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, GOOD))
    assert recipe.name == "chat"
    assert recipe.prepare.sources == ("talks.jsonl",)
    assert recipe.pretrain.budget == "4m"
    assert recipe.tokenize.vocab_size == 4096


def test_a_byte_order_mark_is_read_over(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_bytes(b"\xef\xbb\xbf" + GOOD.encode())
    assert load_recipe(path).name == "chat"


def test_a_value_of_toml_that_json_lacks_is_refused_not_raised(tmp_path: Path) -> None:
    assert "seed: Input should be a valid integer" in refuse(tmp_path, "seed = 2020-01-01" + GOOD)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("nmae = 1" + GOOD, "unknown key nmae; did you mean name?"),
        (GOOD + "bugdet = '5m'", "unknown key pretrain.bugdet; did you mean pretrain.budget?"),
        (GOOD + "[pretrian]\nsteps = 5", "unknown key pretrian; did you mean pretrain?"),
        (GOOD + "[compress]\nzzz = 1", "unknown key compress.zzz; known here: bits, max_loss"),
    ],
)
def test_an_unknown_key_is_told_with_the_nearest_known_one(
    tmp_path: Path, text: str, said: str
) -> None:
    assert said in refuse(tmp_path, text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (GOOD + "steps = 5", "pretrain: give exactly one of budget (wall clock), steps"),
        (GOOD + "learning_rate = 'high'", "pretrain.learning_rate: Input should be a valid number"),
        (GOOD + "learning_rate = 'high'", "given 'high'"),
        (GOOD + "learning_rate = inf", "pretrain.learning_rate: Input should be a finite number"),
        (GOOD + "warmup_share = 1.5", "less than 1, given 1.5"),
        (GOOD + "[tokenize]\nvocab_size = '4096'", "tokenize.vocab_size: Input should be a valid"),
        (GOOD + "[tokenize]\nvocab_size = true", "given True"),
        ("name = 'chat'", "prepare: Field required"),
        ("name = 'chat'\nprepare = 3", "prepare: is a section with keys of its own: sources, "),
        (
            GOOD.replace('["talks.jsonl"]', '"talks.jsonl"'),
            "prepare.sources: Input should be a list, given 'talks.jsonl'",
        ),
        (GOOD.replace('"4m"', '"soon"'), "pretrain.budget: 'soon' is no duration"),
        (GOOD.replace("chat", "Chat Bot"), "name: String should match pattern"),
    ],
)
def test_a_wrong_value_is_told_with_its_key_and_what_was_given(
    tmp_path: Path, text: str, said: str
) -> None:
    assert said in refuse(tmp_path, text)


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    line = refuse(tmp_path, "seeed = 1" + GOOD + "warmup_share = 2.0\nlr = 3")
    assert "did you mean seed?" in line
    assert "pretrain.warmup_share" in line
    assert "unknown key pretrain.lr" in line


def test_a_long_value_is_shortened_in_the_message(tmp_path: Path) -> None:
    line = refuse(tmp_path, GOOD + f"learning_rate = '{'very ' * 500}'")
    assert len(line) - len(str(tmp_path)) < 300


@pytest.mark.parametrize("text", ["name = ", "[a]\n[a]", "a = " + "[" * 50_000])
def test_what_is_no_toml_is_refused(tmp_path: Path, text: str) -> None:
    assert "is no valid TOML" in refuse(tmp_path, text)


def test_what_is_no_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_bytes(b"name = '\xff'")
    with pytest.raises(RecipeError, match="is no valid TOML"):
        load_recipe(path)


@pytest.mark.parametrize("name", ["absent.toml", "folder", "recipe.toml/below", "x" * 300])
def test_a_path_that_is_no_readable_file_is_refused(tmp_path: Path, name: str) -> None:
    write(tmp_path, GOOD)
    (tmp_path / "folder").mkdir()
    with pytest.raises(RecipeError, match="cannot be read .*: give the path of a TOML file"):
        load_recipe(tmp_path / name)


def test_an_override_wins_over_the_file_and_makes_missing_sections(tmp_path: Path) -> None:
    overrides = {"seed": 7, "tokenize.vocab_size": 512, "prepare.sources": ["a", "b"]}
    recipe = load_recipe(write(tmp_path, GOOD), overrides)
    assert recipe.seed == 7
    assert recipe.tokenize.vocab_size == 512
    assert recipe.prepare.sources == ("a", "b")


def test_a_mapping_that_is_overridden_stays_as_it_was() -> None:
    data: dict[str, Any] = {"name": "chat", "prepare": {"sources": ["a"]}, "pretrain": {"steps": 1}}
    recipe = build_recipe(data, {"pretrain.budget": "9m", "prepare.min_turns": 1})
    assert recipe.pretrain.budget == "9m"
    assert data == {"name": "chat", "prepare": {"sources": ["a"]}, "pretrain": {"steps": 1}}


def test_the_later_sections_are_read_and_refused_like_the_others(tmp_path: Path) -> None:
    text = GOOD + "[gate]\nmin_gain = 0.02\nguards = {law = 'law.jsonl'}\n[loop]\nevery = '2h'"
    recipe = load_recipe(write(tmp_path, text), {"rollout.canary_shares": [10], "update.steps": 9})
    assert (recipe.gate.min_gain, recipe.gate.guards) == (0.02, {"law": "law.jsonl"})
    assert (recipe.loop.every, recipe.rollout.canary_shares) == ("2h", (10,))
    assert recipe.update.steps == 9
    assert "did you mean gate.min_gain?" in refuse(tmp_path, GOOD + "[gate]\nmin_gian = 1")
    assert "did you mean monitor?" in refuse(tmp_path, GOOD + "[monitr]")


@pytest.mark.parametrize(
    ("in_file", "key", "value", "steps", "budget"),
    [
        ("budget = '4m'", "pretrain.steps", 200, 200, None),
        ("steps = 10", "pretrain.budget", "5m", None, "5m"),
        ("replay = 'journal.jsonl'", "pretrain.steps", 3, 3, None),
        ("steps = 10", "pretrain.budget", None, 10, None),
    ],
)
def test_an_override_of_one_budget_takes_the_place_of_the_other(
    tmp_path: Path, in_file: str, key: str, value: object, steps: int | None, budget: str | None
) -> None:
    path = write(tmp_path, GOOD.replace('budget = "4m"', in_file))
    recipe = load_recipe(path, {key: value})
    assert (recipe.pretrain.steps, recipe.pretrain.budget) == (steps, budget)


def test_two_overrides_that_exclude_each_other_are_refused(tmp_path: Path) -> None:
    line = refuse(tmp_path, GOOD, {"pretrain.steps": 200, "pretrain.budget": "5m"})
    assert "give exactly one of budget (wall clock), steps" in line


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("pretrain.stpes", "unknown key pretrain.stpes; did you mean pretrain.steps?"),
        ("name.first", "name.first cannot be set: name is a value"),
        ("a.b.c", "unknown key a"),
        ("", "unknown key"),
        ("two\nlines", "unknown key two lines"),
    ],
)
def test_an_override_that_fits_nowhere_is_refused(tmp_path: Path, key: str, said: str) -> None:
    assert said in refuse(tmp_path, GOOD, {key: 5})


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("200", 200),
        ("2e-3", 0.002),
        ("true", True),
        ("5m", "5m"),
        ("'5'", "5"),
        ('["a", "b"]', ["a", "b"]),
        ("a b", "a b"),
        ("", ""),
        ("'open", "'open"),
        ("1\nseed = 2", "1\nseed = 2"),
    ],
)
def test_an_override_is_toml_where_it_is_toml_and_else_itself(text: str, value: object) -> None:
    assert parse_value(text) == value


@settings(derandomize=True, deadline=None)
@given(st.text())
def test_every_text_is_a_value(text: str) -> None:
    parse_value(text)


@settings(derandomize=True, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(["name", "seed", "prepare", "pretrain", "pretrian", "model", "x\ny"]),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(st.sampled_from(["steps", "sources", "y"]), inner, max_size=3)
            ),
            max_leaves=6,
        ),
    )
)
def test_any_mapping_is_a_recipe_or_refused_in_one_line(data: dict[str, Any]) -> None:
    try:
        build_recipe(data)
    except RecipeError as error:
        assert len(str(error).splitlines()) == 1


def test_a_key_is_found_with_its_type_and_an_unknown_one_named_with_the_nearest() -> None:
    assert find_key("pretrain.learning_rate").annotation is float
    assert find_key("seed").annotation is int
    with pytest.raises(RecipeError, match=r"unknown key model.num_layer; did you mean model.num_l"):
        find_key("model.num_layer")
    with pytest.raises(RecipeError, match="seed.more: seed is a value and has no keys"):
        find_key("seed.more")


def test_the_home_is_what_was_given_then_the_environment_then_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "person"))
    monkeypatch.setenv("LMLOOP_HOME", str(tmp_path / "named"))
    assert home_directory("given") == tmp_path / "given"
    assert home_directory("~/given") == tmp_path / "person" / "given"
    assert home_directory() == tmp_path / "named"
    monkeypatch.setenv("LMLOOP_HOME", "")
    assert home_directory() == tmp_path / ".lmloop"


def test_the_database_is_where_the_environment_says_or_else_in_the_home(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LMLOOP_DATABASE", "postgresql://me@host/name")
    assert database_setting() == "postgresql://me@host/name"
    for absent in (lambda: monkeypatch.setenv("LMLOOP_DATABASE", ""), monkeypatch.undo):
        absent()
        assert database_setting() is None


@pytest.mark.parametrize("alone", [{}, {"WORLD_SIZE": "1", "RANK": "0"}])
def test_a_process_that_torchrun_has_not_started_is_alone(
    monkeypatch: pytest.MonkeyPatch, alone: dict[str, str]
) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in alone.items():
        monkeypatch.setenv(name, value)
    assert rank_setting() is None


def test_the_place_among_many_processes_is_what_torchrun_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    assert rank_setting() == Place(rank=5, size=8, local_rank=1)
    monkeypatch.delenv("RANK")
    with pytest.raises(TrainingError, match="^WORLD_SIZE = 8 .*'RANK' .*torchrun, or unset"):
        rank_setting()
    monkeypatch.setenv("RANK", "first")
    with pytest.raises(TrainingError, match="first.* is wrong or missing"):
        rank_setting()


def test_telemetry_is_silent_whatever_the_environment_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("DO_NOT_TRACK", "SCARF_NO_ANALYTICS", "HF_HUB_DISABLE_TELEMETRY"):
        monkeypatch.setenv(name, "0")
    monkeypatch.setenv("DAFT_ANALYTICS_ENABLED", "1")
    monkeypatch.setenv("DAFT_PROGRESS_BAR", "1")
    silence_telemetry()
    assert os.environ["DO_NOT_TRACK"] == "1"
    assert os.environ["SCARF_NO_ANALYTICS"] == "1"
    assert os.environ["HF_HUB_DISABLE_TELEMETRY"] == "1"
    assert os.environ["DAFT_ANALYTICS_ENABLED"] == "0"
    assert os.environ["DAFT_PROGRESS_BAR"] == "1"


def test_trackers_write_files_and_report_to_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "false")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "true")
    monkeypatch.delenv("MLFLOW_ALLOW_FILE_STORE", raising=False)
    keep_trackers_local()
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"
    assert os.environ["WANDB_ERROR_REPORTING"] == "false"
    assert os.environ["MLFLOW_ALLOW_FILE_STORE"] == "true"


def test_waiting_threads_sleep_soon_unless_the_environment_says_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    calm_threads()
    assert os.environ["GOMP_SPINCOUNT"] == "7"
    monkeypatch.delenv("GOMP_SPINCOUNT")
    calm_threads()
    assert os.environ["GOMP_SPINCOUNT"] == "10000"


def test_reading_a_recipe_imports_no_heavy_library() -> None:
    heavy = {"torch", "daft", "pyarrow", "transformers", "fastapi", "sqlalchemy"}
    code = f"import sys, lmloop.config; print(sorted({heavy!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("[]\n", "")


@pytest.mark.parametrize("name", ["chat", "my_files"])
def test_the_recipes_that_come_along_can_be_read(name: str) -> None:
    recipe = load_recipe(Path(__file__).parents[1] / "recipes" / f"{name}.toml")
    assert recipe.name == name.replace("_", "-")
