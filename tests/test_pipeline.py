"""The walk through a recipe, on stages that write a word each."""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from lmloop import care, pipeline
from lmloop.config import build_recipe
from lmloop.errors import (
    ArtifactError,
    BusyError,
    CompressionError,
    DiskFullError,
    PrunedError,
    RecipeError,
    SourceError,
    StoppedError,
)
from lmloop.pipeline import Made, code_version, make, walk
from lmloop.progress import Silent
from lmloop.recipe import Recipe
from lmloop.stages import STAGES, Inputs, Stage, Workshop
from lmloop.store.artifact import Artifact, ArtifactStore
from lmloop.store.database import database_url, open_database, runs_table
from lmloop.store.registry import find_live
from lmloop.training.ranks import Ranks


class WordStage(Stage):
    """A stage whose only file tells its settings; the first one reads a source by name."""

    def sources(self, recipe: Recipe, store: ArtifactStore) -> list[dict[str, str]]:
        if self.needs:
            return []
        source = recipe.prepare.sources[0]
        return [{"kind": "raw", "source": source, "fingerprint": source * 8}]


@dataclass
class House:
    """The six stages of the way with their work replaced, and what was done."""

    home: Path
    worked: list[str] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    during: dict[str, Callable[[Path, Path], object]] = field(default_factory=dict)
    """What else a stage does, given its folder and the folder of its run."""
    answer_tokens: int = 5

    def stages(self) -> dict[str, Stage]:
        return {
            name: WordStage(
                name=name,
                kind=stage.kind,
                needs=stage.needs,
                sections=stage.sections,
                work=self._work(name),
                numeric=False,
                trains=stage.trains,
            )
            for name, stage in STAGES.items()
        }

    def _work(self, name: str) -> Callable[..., Mapping[str, Any]]:
        def work(shop: Workshop, inputs: Inputs, folder: Path, run: Path) -> Mapping[str, Any]:
            self.worked.append(name)
            assert set(inputs) == set(STAGES[name].needs)
            settings = STAGES[name].settings(shop.recipe)
            words = [artifact.fingerprint for artifact in inputs.values()]
            (folder / "word.txt").write_text(json.dumps([name, settings, words]))
            run.mkdir(parents=True, exist_ok=True)
            (run / "state").write_text("half")
            if name in self.during:
                self.during[name](folder, run)
            return {"words": 1, "train": {"answer_tokens": self.answer_tokens}}

        return work

    def walk(self, *, until: str | None = None, name: str = "tiny", **changes: Any) -> Made:
        self.worked.clear()
        self.said.clear()
        progress = Silent()
        progress.say = self.said.append  # type: ignore[method-assign]
        data = {"name": name, "prepare": {"sources": ["a" * 8]}}
        overrides = {key.replace("__", "."): value for key, value in changes.items()}
        recipe = build_recipe(data, overrides)
        return walk(recipe, home=self.home, until=until, progress=progress)

    def artifacts(self) -> list[str]:
        return sorted(path.name for path in (self.home / "artifacts").iterdir())

    def live(self, name: str = "tiny") -> str:
        database = open_database(database_url(self.home))
        try:
            return str(find_live(database, name).fingerprint)
        finally:
            database.dispose()


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> House:
    house = House(tmp_path / "home")
    monkeypatch.setattr(pipeline, "STAGES", house.stages())
    return house


ALL = ["prepare", "tokenize", "pretrain", "finetune", "evaluate", "compress"]


def test_a_walk_makes_every_stage_once_and_the_last_model_live(house: House) -> None:
    made = house.walk()
    assert house.worked == ALL
    assert made.live == made.artifacts["compress"]
    assert house.live() == made.artifacts["compress"].fingerprint
    assert len(house.artifacts()) == 6


class First(Ranks):
    """The first of two ranks, which keeps what it tells the other."""

    size = 2

    def __init__(self) -> None:
        self.words: list[float] = []

    def agree(self, value: float) -> float:
        self.words.append(value)
        return value


class Second(Ranks):
    """The other, which hears it."""

    rank, size = 1, 2

    def __init__(self, words: list[float]) -> None:
        self.words = words

    def agree(self, value: float) -> float:
        return self.words.pop(0)


def test_ranks_train_together_and_the_first_does_all_else(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = First()
    monkeypatch.setattr(pipeline, "join_ranks", lambda place: nullcontext(first))
    made = house.walk()
    assert house.worked == ALL
    second = Second(list(first.words))
    monkeypatch.setattr(pipeline, "join_ranks", lambda place: nullcontext(second))
    beside = house.walk()
    assert (house.worked, house.said) == (["pretrain", "finetune"], [])
    assert second.words == []
    assert beside.live is None
    assert beside.artifacts == {name: made.artifacts[name] for name in ALL[:4]}
    # What is made already calls nobody.
    first.words.clear()
    monkeypatch.setattr(pipeline, "join_ranks", lambda place: nullcontext(first))
    house.walk(until="finetune")
    assert (house.worked, first.words) == ([], [0.0] * 4)


def test_a_rank_that_does_not_see_what_the_first_has_made_says_so(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "join_ranks", lambda place: nullcontext(Second([0.0])))
    with pytest.raises(ArtifactError, match="prepare-.* all ranks need one --home, shared"):
        house.walk()


def test_text_without_answers_is_served_as_the_base_model_knows_it(house: House) -> None:
    house.answer_tokens = 0
    made = house.walk()
    assert house.worked == [name for name in ALL if name != "finetune"]
    assert made.artifacts["finetune"] == made.artifacts["pretrain"]
    assert made.live == made.artifacts["compress"]
    assert any("no answers to learn from" in line for line in house.said)


@pytest.mark.parametrize("until", [None, "finetune", "evaluate", "compress"])
def test_a_model_that_does_not_continue_text_is_pretrained_and_no_more(
    house: House, until: str | None
) -> None:
    reader = {
        "model__kind": "encoder",
        "pretrain__objective": "masked",
        "pretrain__steps": 1,
        "tokenize__extra_tokens": ["<|mask|>"],
    }
    with pytest.raises(RecipeError, match="'encoder' can be pre-trained only"):
        house.walk(until=until, **reader)
    assert house.worked == []
    house.walk(until="pretrain", **reader)
    assert house.worked == ["prepare", "tokenize", "pretrain"]


def test_missing_word_vectors_are_told_before_any_work(house: House) -> None:
    with pytest.raises(SourceError, match="nowhere.vec"):
        house.walk(model__vectors="nowhere.vec")
    assert house.worked == []
    house.walk(until="tokenize", model__vectors="nowhere.vec")
    assert house.worked == ["prepare", "tokenize"]


def test_a_base_that_was_not_pulled_is_told_before_any_work(house: House) -> None:
    with pytest.raises(ArtifactError, match="run lmloop pull smollm2-135m-instruct"):
        house.walk(model__base="smollm2-135m-instruct")
    assert house.worked == []


def test_a_second_walk_makes_nothing(house: House) -> None:
    first, second = house.walk(), house.walk()
    assert house.worked == []
    assert second == first
    assert house.said == [f"{name}: already made, {second.artifacts[name]}" for name in ALL]


@pytest.mark.parametrize(
    ("until", "worked"),
    [
        ("prepare", ["prepare"]),
        ("pretrain", ["prepare", "tokenize", "pretrain"]),
        ("evaluate", ALL[:5]),
        ("compress", ["prepare", "tokenize", "pretrain", "finetune", "compress"]),
    ],
)
def test_asking_for_a_stage_makes_what_it_needs_and_no_more(
    house: House, until: str, worked: list[str]
) -> None:
    made = house.walk(until=until)
    assert house.worked == worked
    assert (list(made.artifacts), made.live) == (worked, None)
    with pytest.raises(ArtifactError, match="no live model called tiny"):
        house.live()


@pytest.mark.parametrize(
    ("change", "worked"),
    [
        ({"seed": 5}, ALL),
        ({"prepare__min_turns": 3}, ALL),
        ({"prepare__sources": ["b" * 8]}, ALL),
        ({"tokenize__vocab_size": 500}, ALL[1:]),
        ({"model__context_length": 1024}, ALL[1:]),
        ({"model__num_layers": 2}, ALL[2:]),
        ({"pretrain__steps": 7}, ALL[2:]),
        ({"finetune__steps": 7}, ALL[3:]),
        ({"evaluate__openers": 7}, ["evaluate"]),
        ({"compress__max_loss": 0.5}, ["compress"]),
        ({"serve__port": 9}, []),
        ({"name": "other"}, []),
    ],
)
def test_a_change_makes_again_what_depends_on_it_and_no_more(
    house: House, change: dict[str, Any], worked: list[str]
) -> None:
    house.walk()
    house.walk(**change)
    assert house.worked == worked


def test_a_stage_whose_input_came_out_the_same_is_not_made_again(house: House) -> None:
    def write_always_the_same(folder: Path, run: Path) -> None:
        (folder / "word.txt").write_text("the same")

    house.during["tokenize"] = write_always_the_same
    house.walk()
    house.walk(tokenize__vocab_size=500)
    assert house.worked == ["tokenize"]


def test_another_name_shares_the_artifacts_and_has_a_live_model_of_its_own(house: House) -> None:
    first = house.walk()
    second = house.walk(name="other")
    assert second.live == first.live
    assert house.live("other") == house.live("tiny")


def test_the_manifest_says_what_it_was_made_from_and_how(house: House) -> None:
    made = house.walk().artifacts
    prepared, tuned = made["prepare"], made["finetune"]
    assert prepared.made_from == ({"kind": "raw", "source": "a" * 8, "fingerprint": "a" * 64},)
    assert {origin["kind"]: origin["fingerprint"] for origin in tuned.made_from} == {
        "shards": made["tokenize"].fingerprint,
        "checkpoint": made["pretrain"].fingerprint,
    }
    assert (tuned.kind, tuned.stage, tuned.name) == ("checkpoint", "finetune", "tiny")
    assert set(tuned.settings) == {"finetune", "seed"}
    assert tuned.counts["words"] == 1
    assert tuned.counts["stage_seconds"] >= 0
    assert tuned.code_version == code_version()
    assert {"python", "machine"} <= tuned.environment.keys()


def test_a_stage_that_fails_leaves_what_was_before_it_and_its_state(house: House) -> None:
    def fail(folder: Path, run: Path) -> None:
        raise ValueError("broken")

    house.during["pretrain"] = fail
    with pytest.raises(ValueError, match="broken"):
        house.walk()
    assert [name.split("-")[0] for name in house.artifacts()] == ["prepare", "tokenize"]
    (run,) = (house.home / "runs").iterdir()
    assert run.name.startswith("pretrain-")
    assert (run / "state").read_text() == "half"


def test_state_of_a_run_is_given_up_when_its_result_is_safe(house: House) -> None:
    house.walk()
    assert list((house.home / "runs").iterdir()) == []


def test_a_disk_that_fills_up_is_told_and_leaves_no_part(house: House) -> None:
    def fill(folder: Path, run: Path) -> None:
        (folder / "large").write_text("half of it")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    house.during["tokenize"] = fill
    with pytest.raises(DiskFullError, match="no space is left"):
        house.walk()
    assert [name.split("-")[0] for name in house.artifacts()] == ["prepare"]


def full_database(*arguments: object) -> None:
    raise sa.exc.OperationalError("INSERT", {}, Exception("database or disk is full"))


def test_a_database_without_room_costs_a_row_of_the_index_and_no_work(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "index_artifact", full_database)
        made = house.walk(until="prepare")
    assert "database or disk is full" in house.said[0]
    assert "`lmloop reindex` will" in house.said[0]
    made.artifacts["prepare"].verify()
    house.walk()
    assert house.worked == ALL[1:]


def test_a_database_without_room_for_the_live_model_is_told_in_one_line(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(pipeline.Registry, "set_live", full_database)
        with pytest.raises(DiskFullError, match="no space is left for .*database or disk is full"):
            house.walk()
    house.walk()
    assert house.worked == []
    assert house.live()


def test_an_input_with_a_flipped_byte_is_refused_before_any_work(house: House) -> None:
    made = house.walk(until="tokenize").artifacts
    path = made["tokenize"].path / "word.txt"
    path.write_text(path.read_text().replace("tokenize", "tokenise"))
    with pytest.raises(ArtifactError, match=r"word\.txt changed since it was written"):
        house.walk()
    assert house.worked == []


def test_a_compression_that_is_refused_is_said_and_the_model_before_it_goes_live(
    house: House,
) -> None:
    def refuse(folder: Path, run: Path) -> None:
        raise CompressionError("bits per byte would rise by 9 %")

    house.during["compress"] = refuse
    made = house.walk()
    assert made.live == made.artifacts["finetune"]
    assert house.live() == made.artifacts["finetune"].fingerprint
    assert "not compressed: bits per byte would rise by 9 %" in house.said
    with pytest.raises(CompressionError):
        house.walk(until="compress")


def test_what_another_process_is_making_is_refused(house: House) -> None:
    def walk_again(folder: Path, run: Path) -> None:
        with pytest.raises(BusyError, match="another process is running tokenize"):
            house.walk(until="tokenize")

    house.during["tokenize"] = walk_again
    assert list(house.walk(until="tokenize").artifacts) == ["prepare", "tokenize"]


def test_a_run_that_is_given_up_leaves_nothing_and_a_broken_one_its_state(house: House) -> None:
    def give_up(folder: Path, run: Path) -> None:
        raise PrunedError("worse than the others")

    def break_off(folder: Path, run: Path) -> None:
        raise StoppedError("saved")

    house.during["pretrain"] = break_off
    with pytest.raises(StoppedError):
        house.walk(until="pretrain")
    assert len(list((house.home / "runs").iterdir())) == 1
    house.during["pretrain"] = give_up
    with pytest.raises(PrunedError):
        house.walk(until="pretrain")
    assert list((house.home / "runs").iterdir()) == []
    assert [name.partition("-")[0] for name in house.artifacts()] == ["prepare", "tokenize"]


def test_what_a_stage_journals_becomes_rows_and_a_silent_one_is_lost(house: House) -> None:
    recipe = build_recipe({"name": "tiny", "prepare": {"sources": ["a" * 8]}})
    told: list[object] = []

    def work(shop: Workshop, inputs: Inputs, folder: Path, run: Path) -> Mapping[str, Any]:
        shop.watch({"step": 1, "share": 0.0, "seconds": 1.0, "tokens": 8, "loss": 2.0})
        (state,) = [run.state for run in care.runs(home=house.home)]
        told.append(state)
        return {}

    stage = replace(house.stages()["prepare"], work=work)
    shop = Workshop(recipe=recipe, home=house.home, progress=Silent(), watch=told.append)
    made = make(stage, shop, {})
    (run,) = care.runs(home=house.home)
    assert (run.id, run.name, run.state, told[1]) == (made.path.name, "tiny", "finished", "running")
    assert isinstance(told[0], Mapping)
    database = open_database(database_url(house.home))
    with database.begin() as connection:
        connection.execute(runs_table.update().values(state="running", heard=0.0))
    database.dispose()
    assert [run.state for run in care.runs(home=house.home)] == ["lost"]


def test_a_tracker_follows_a_run_and_changes_no_result(house: House) -> None:
    told = {"step": 1, "share": 0.0, "seconds": 1.0, "tokens": 8, "loss": 2.0}

    def work(shop: Workshop, inputs: Inputs, folder: Path, run: Path) -> Mapping[str, Any]:
        shop.watch(told)
        return {}

    def make_with(**changes: Any) -> Artifact:
        data = {"name": "tiny", "prepare": {"sources": ["a" * 8]}, "pretrain": {"steps": 1}}
        recipe = build_recipe(data, {f"pretrain.{key}": value for key, value in changes.items()})
        stage = replace(house.stages()["pretrain"], needs=(), work=work)
        return make(stage, Workshop(recipe=recipe, home=house.home, progress=Silent()), {})

    made = make_with(trackers=["tensorboard"])
    assert len(list((house.home / "tensorboard" / made.path.name).iterdir())) == 1
    assert make_with() == made


def test_what_another_process_has_just_made_is_taken(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = build_recipe({"name": "tiny", "prepare": {"sources": ["a" * 8]}})
    stage = house.stages()["prepare"]
    shop = Workshop(recipe=recipe, home=house.home, progress=Silent())
    made = make(stage, shop, {})
    looks: list[str] = []
    real = ArtifactStore.find

    def find_late(self: ArtifactStore, name: str, key: str) -> Artifact | None:
        looks.append(name)
        return None if len(looks) == 1 else real(self, name, key)

    monkeypatch.setattr(ArtifactStore, "find", find_late)
    house.worked.clear()
    assert make(stage, shop, {}) == made
    assert (house.worked, len(looks)) == ([], 2)


def test_the_code_version_tells_release_and_source() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+\+[0-9a-f]{12}", code_version())
    assert code_version() == code_version()
