"""What the terminal shows of many runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from lmloop.store.runs import Run
from lmloop.tables import show_runs, show_tuned
from lmloop.tuning.search import Tuned
from lmloop.tuning.trials import Trial


def test_a_search_ends_with_its_trials_and_lines_to_paste(
    capsys: pytest.CaptureFixture[str],
) -> None:
    values = {"pretrain.learning_rate": 0.006, "pretrain.optimizer": "muon"}
    best = Trial(number=1, state="finished", values=values, value=2.5, seconds=61.25)
    pruned = Trial(number=2, state="pruned", values=values, value=3.0, seconds=None)
    tuned = Tuned(
        name="tiny/pretrain/0",
        metric="loss",
        maximize=False,
        trials=[best, pruned],
        best=best,
        importance={"pretrain.learning_rate": 0.75, "pretrain.optimizer": 0.25},
        page=Path("page.html"),
    )
    show_tuned(tuned)
    assert capsys.readouterr().out == (
        "trial  pretrain.learning_rate  pretrain.optimizer  loss    seconds  end\n"
        "1      0.006                   muon                2.5000  61.2     best\n"
        "2      0.006                   muon                3.0000  -        pruned\n"
        "pretrain.learning_rate: 75% of what mattered\n"
        "pretrain.optimizer: 25% of what mattered\n"
        "plots: page.html\n"
        "\n"
        "the best values, for the recipe:\n"
        "\n"
        "[pretrain]\n"
        "learning_rate = 0.006\n"
        'optimizer = "muon"\n'
    )


def test_runs_are_lines_of_a_table_and_none_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    show_runs([])
    assert capsys.readouterr().out == "nothing has been trained in this home yet\n"
    run = Run(
        id="pretrain-0",
        name="tiny",
        stage="pretrain",
        state="lost",
        note=None,
        started=0.0,
        heard=0.0,
        steps=(),
    )
    show_runs([run])
    head, line = capsys.readouterr().out.splitlines()
    assert head.split() == [
        *("name", "stage", "state", "step", "done", "loss", "validation", "tok/s", "peak", "began")
    ]
    assert line.split()[:4] == ["tiny", "pretrain", "lost", "-"]
