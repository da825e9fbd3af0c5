"""The verbs around training, as the command line calls them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from lmloop import care, tables
from lmloop.cli import app
from lmloop.errors import UsageError
from lmloop.serving import pages
from lmloop.tuning import search

RECIPE = 'name = "tiny"\n[prepare]\nsources = ["a.txt"]\n'


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the library was asked for; nothing is trained."""
    given: dict[str, Any] = {}

    def note(recipe: Path, **options: Any) -> None:
        given.update(options, recipe=recipe)

    monkeypatch.setattr(search, "tune", note)
    monkeypatch.setattr(tables, "show_tuned", lambda tuned: None)
    return given


def test_tune_takes_many_ranges_and_recipe_keys(asked: dict[str, Any]) -> None:
    words = "tune a.toml --over seed=0..3 model.num_layers=1..2 --over pretrain.steps=1,2"
    words += " --trials 3 --stage finetune --metric final_loss --no-prune --pretrain.ema=0.9"
    done = CliRunner().invoke(app, words.split(), catch_exceptions=False)
    assert done.exit_code == 0
    assert sorted(asked["over"]) == ["model.num_layers=1..2", "pretrain.steps=1,2", "seed=0..3"]
    assert (asked["trials"], asked["stage"], asked["metric"]) == (3, "finetune", "final_loss")
    assert (asked["prune"], asked["maximize"], asked["pretrain.ema"]) == (False, False, 0.9)
    assert asked["recipe"] == Path("a.toml")


@pytest.mark.parametrize("words", ["tune a.toml", "tune a.toml --over seed=0..3 --trials 0"])
def test_tune_wants_something_to_search_and_a_trial(asked: dict[str, Any], words: str) -> None:
    done = CliRunner().invoke(app, words.split())
    assert done.exit_code == 2
    assert asked == {}


def test_runs_are_listed_and_written_as_a_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}
    monkeypatch.setattr(care, "runs", lambda **given: asked.update(given) or [])
    words = ["runs", "tiny", "--most", "3", "--home", str(tmp_path)]
    done = CliRunner().invoke(app, [*words, "--html", str(tmp_path / "runs.html")])
    assert done.exit_code == 0
    assert asked == {"home": tmp_path, "name": "tiny", "most": 3}
    assert "Nothing has been trained" in (tmp_path / "runs.html").read_text("utf-8")


def test_runs_are_drawn_and_served_where_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served: dict[str, Any] = {}
    monkeypatch.setattr(care, "runs", lambda **given: [])
    monkeypatch.setattr(pages, "serve_pages", lambda routes, **given: served.update(given))
    words = ["runs", "--home", str(tmp_path), "--png", str(tmp_path / "runs.png")]
    done = CliRunner().invoke(app, [*words, "--serve", "--port", "0"], catch_exceptions=False)
    assert done.exit_code == 0
    assert (served["host"], served["port"]) == ("127.0.0.1", 0)
    assert (tmp_path / "runs.png").read_bytes().startswith(b"\x89PNG")


def test_a_port_without_a_page_is_refused() -> None:
    done = CliRunner().invoke(app, ["runs", "--port", "8000"])
    assert isinstance(done.exception, UsageError)
    assert "add --serve" in str(done.exception)
