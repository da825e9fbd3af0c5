"""What is sealed comes back as it was, and nothing else does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from lmloop.errors import ArtifactError, UpdateError
from lmloop.records import Conversation, Document, Record, Turn
from lmloop.store.artifact import Artifact, ArtifactStore
from lmloop.updating.pledge import freeze, open_pledge, split_heldout
from lmloop.upkeep import GateConfig

CONFIG = GateConfig(min_documents=3, max_documents=10)


def documents(name: str, count: int, *, size: int = 10) -> list[Record]:
    return [Document(f"{name}{number}", f"text {number}", size) for number in range(count)]


def make_sets(**changes: list[Record]) -> dict[str, list[Record]]:
    talk = Conversation("talk", (Turn("user", "hi"), Turn("assistant", "hello")), 7)
    return {
        "target": [talk, *documents("t", 4)],
        "general": documents("g", 20),
        "twin": documents("w", 6),
    } | changes


def seal(
    home: Path,
    config: GateConfig = CONFIG,
    *,
    sets: dict[str, list[Record]] | None = None,
    kind: str = "pledge",
) -> Artifact:
    with ArtifactStore(home).write("pledge", "0" * 64) as draft:
        counts = freeze(config, sets=sets or make_sets(), folder=draft.path, sealed=123.0)
        return draft.finish(
            kind=kind,
            name="test",
            made_from=[],
            settings={},
            counts=counts,
            code_version="0",
            environment={},
            created=123.0,
        )


def test_what_is_sealed_comes_back(tmp_path: Path) -> None:
    artifact = seal(tmp_path)
    pledge = open_pledge(artifact, CONFIG)
    assert pledge.config == CONFIG
    assert pledge.sealed == 123.0
    assert {each.id for each in pledge.sets["target"]} == {"talk", "t0", "t1", "t2", "t3"}
    assert make_sets()["target"][0] in pledge.sets["target"]
    assert pledge.guards == ["general"]
    assert artifact.counts["documents"] == {"target": 5, "general": 10, "twin": 6}
    assert artifact.counts["raw_bytes"]["twin"] == 60


def test_equal_sets_in_any_order_give_equal_bytes(tmp_path: Path) -> None:
    turned = {name: records[::-1] for name, records in make_sets().items()}
    first = seal(tmp_path / "a")
    assert seal(tmp_path / "b", sets=turned).fingerprint == first.fingerprint


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"min_gain": 0.0}, "min_gain was 0.01, is 0.0: write them back"),
        ({"max_loss": 0.5, "min_gain": 0.0}, "max_loss was 0.01, is 0.5; min_gain was 0.01, is 0"),
        ({"golden": ("hi",)}, r'golden was \[\], is \["hi"\]'),
        ({"target": "other.jsonl"}, "target was null, is other.jsonl"),
        ({"require_lineage": False}, "require_lineage was true, is false"),
    ],
)
def test_changed_thresholds_are_refused_and_told(
    tmp_path: Path, changes: dict[str, Any], told: str
) -> None:
    artifact = seal(tmp_path)
    with pytest.raises(UpdateError, match=f"changed after training began: {told}") as caught:
        open_pledge(artifact, CONFIG.model_copy(update=changes))
    assert "\n" not in str(caught.value)


def test_a_threshold_that_was_not_known_then_is_told(tmp_path: Path) -> None:
    artifact = seal(tmp_path)
    path = artifact.path / "thresholds.json"
    data = json.loads(path.read_text())
    del data["gate"]["openers"]
    data["gate"]["older"] = 1
    path.write_text(json.dumps(data))
    patched = rehash(artifact)
    with pytest.raises(UpdateError, match="older was 1, is absent; openers was absent, is 96"):
        open_pledge(patched, CONFIG)


def rehash(artifact: Artifact) -> Artifact:
    """The same folder as a new artifact: as if it had been written so."""
    with ArtifactStore(artifact.path.parent.parent).write("pledge", "1" * 64) as draft:
        for name in artifact.files:
            (draft.path / name).parent.mkdir(exist_ok=True)
            (draft.path / name).write_bytes((artifact.path / name).read_bytes())
        return draft.finish(
            kind="pledge",
            name="test",
            made_from=[],
            settings={},
            counts={},
            code_version="0",
            environment={},
            created=1.0,
        )


@pytest.mark.parametrize("name", ["thresholds.json", "sets/target.parquet"])
def test_a_file_changed_by_hand_is_refused(tmp_path: Path, name: str) -> None:
    artifact = seal(tmp_path)
    (artifact.path / name).write_bytes((artifact.path / name).read_bytes() + b" ")
    with pytest.raises(ArtifactError, match="changed since it was written"):
        open_pledge(artifact, CONFIG)


def test_thresholds_that_are_none_are_refused(tmp_path: Path) -> None:
    artifact = seal(tmp_path)
    (artifact.path / "thresholds.json").write_text("[]")
    with pytest.raises(ArtifactError, match="thresholds.json is damaged"):
        open_pledge(rehash(artifact), CONFIG)


def test_another_kind_of_artifact_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="is a corpus, no pledge"):
        open_pledge(seal(tmp_path, kind="corpus"), CONFIG)


@pytest.mark.parametrize("name", ["target", "general"])
def test_a_set_that_can_decide_nothing_is_refused_before_training(
    tmp_path: Path, name: str
) -> None:
    small = make_sets(**{name: documents("s", 2)})
    with pytest.raises(UpdateError, match=f"'{name}' has 2 documents .*min_documents = 3"):
        freeze(CONFIG, sets=small, folder=tmp_path, sealed=0.0)
    assert not list(tmp_path.iterdir())


def test_a_document_given_twice_counts_once(tmp_path: Path) -> None:
    twice = make_sets(target=documents("t", 2) * 2)
    with pytest.raises(UpdateError, match="has 2 documents"):
        freeze(CONFIG, sets=twice, folder=tmp_path, sealed=0.0)


@pytest.mark.parametrize(
    ("config", "changes"),
    [
        (CONFIG, {"strange": documents("s", 5)}),
        (GateConfig(guards={"safety": "safety.jsonl"}), {}),
    ],
)
def test_every_guard_has_its_set_and_no_other_is_taken(
    tmp_path: Path, config: GateConfig, changes: dict[str, list[Record]]
) -> None:
    with pytest.raises(UpdateError, match="the gate's sets are .* and must be"):
        freeze(config, sets=make_sets(**changes), folder=tmp_path, sealed=0.0)


def test_guards_are_sealed_too_and_the_twins_are_none(tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"guards": {"safety": "safety.jsonl"}})
    extra = {"safety": documents("s", 4), "target_twin": documents("p", 1)}
    pledge = open_pledge(seal(tmp_path, config, sets=make_sets(**extra)), config)
    assert pledge.guards == ["general", "safety"]
    assert set(pledge.unseen) == {"target", "general", "twin", "safety"}


def test_a_set_is_cut_by_bytes_but_keeps_forty_documents(tmp_path: Path) -> None:
    config = GateConfig(min_documents=3, max_bytes=500)
    sets = make_sets(general=documents("g", 60, size=100), twin=documents("w", 60, size=10))
    counts = freeze(config, sets=sets, folder=tmp_path, sealed=0.0)
    assert counts["documents"] == {"target": 5, "general": 40, "twin": 50}


def test_heldout_text_is_divided_two_to_one() -> None:
    general, twin = split_heldout(documents("h", 25), documents("v", 5), max_documents=400)
    assert (len(general), len(twin)) == (20, 10)
    assert {each.id[0] for each in general} == {"h"}
    assert {each.id for each in general}.isdisjoint(each.id for each in twin)


def test_much_validation_text_leaves_all_heldout_text_to_judge_by() -> None:
    general, twin = split_heldout(documents("h", 10), documents("v", 30), max_documents=20)
    assert len(general) == 10
    assert len(twin) == 20


def test_the_choice_does_not_depend_on_the_order() -> None:
    one = split_heldout(documents("h", 9), documents("v", 2), max_documents=5)
    other = split_heldout(documents("h", 9)[::-1], documents("v", 2)[::-1], max_documents=5)
    assert one == other


@pytest.mark.parametrize("name", ["target", "twin", "target_twin", "Safety", "a/b", ""])
def test_a_guard_may_not_have_the_gates_own_names_or_odd_ones(name: str) -> None:
    with pytest.raises(ValidationError, match="cannot name a guard: give lower case"):
        GateConfig(guards={name: "file.jsonl"})
