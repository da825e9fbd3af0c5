"""The six stages: what decides each one's result, and what each one makes."""

from __future__ import annotations

import hashlib
import random
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from lmloop.config import build_recipe
from lmloop.errors import ArtifactError, SourceError
from lmloop.progress import Silent
from lmloop.recipe import Recipe
from lmloop.stages import STAGES
from lmloop.store.artifact import ArtifactStore, artifact_key

from .conftest import Walked

NAMES = list(STAGES)


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path / "home")


def make_recipe(**changes: Any) -> Recipe:
    overrides = {key.replace("__", "."): value for key, value in changes.items()}
    return build_recipe({"name": "tiny", "prepare": {"sources": ["a.txt"]}}, overrides)


def key_of(stage: str, recipe: Recipe) -> str:
    return artifact_key(stage, STAGES[stage].settings(recipe), [])


def test_every_stage_needs_only_stages_before_it() -> None:
    assert NAMES == ["prepare", "tokenize", "pretrain", "finetune", "evaluate", "compress"]
    for name, stage in STAGES.items():
        assert stage.name == name
        assert all(NAMES.index(need) < NAMES.index(name) for need in stage.needs)
    assert [name for name, stage in STAGES.items() if not stage.needs] == ["prepare"]


def test_many_ranks_work_only_at_the_stages_that_train() -> None:
    assert [name for name, stage in STAGES.items() if stage.trains] == ["pretrain", "finetune"]


@pytest.mark.parametrize(
    ("change", "concerned"),
    [
        ({"seed": 1}, {"prepare", "pretrain", "finetune", "evaluate"}),
        ({"prepare__min_turns": 3}, {"prepare"}),
        ({"prepare__outside": ["b.txt"]}, {"prepare"}),
        ({"tokenize__vocab_size": 500}, {"tokenize"}),
        ({"model__context_length": 1024}, {"tokenize", "pretrain"}),
        ({"pretrain__steps": 3}, {"pretrain"}),
        ({"finetune__steps": 3}, {"finetune"}),
        ({"evaluate__openers": 3}, {"evaluate"}),
        ({"compress__max_loss": 0.5}, {"compress"}),
        ({"serve__port": 1}, set()),
        ({"name": "other"}, set()),
    ],
)
def test_a_key_of_the_recipe_concerns_just_the_stages_that_read_it(
    change: dict[str, Any], concerned: set[str]
) -> None:
    before, after = make_recipe(), make_recipe(**change)
    changed = {name for name in NAMES if key_of(name, before) != key_of(name, after)}
    assert changed == concerned


def test_a_stage_that_computes_tells_what_exact_depends_on() -> None:
    numeric = {"torch", "threads", "instruction_set", "dtype"}
    for stage in STAGES.values():
        told = stage.environment()
        assert {"python", "machine"} <= told.keys()
        assert (numeric <= told.keys()) == stage.numeric


def test_memory_is_released_by_the_stages_that_compute(monkeypatch: pytest.MonkeyPatch) -> None:
    released: list[str] = []
    for name, stage in STAGES.items():
        monkeypatch.setattr(
            "lmloop.model.hardware.release_memory", lambda name=name: released.append(name)
        )
        stage.release()
    assert released == [name for name, stage in STAGES.items() if stage.numeric]


def test_every_stage_makes_its_kind(walked: Walked) -> None:
    kinds = {name: artifact.kind for name, artifact in walked.made.artifacts.items()}
    assert kinds == {
        "prepare": "corpus",
        "tokenize": "shards",
        "pretrain": "checkpoint",
        "finetune": "checkpoint",
        "evaluate": "report",
        "compress": "checkpoint",
    }
    for artifact in walked.made.artifacts.values():
        artifact.verify()


def test_only_the_first_stage_reads_raw_files(walked: Walked) -> None:
    for name, artifact in walked.made.artifacts.items():
        raw = [origin for origin in artifact.made_from if origin["kind"] == "raw"]
        assert bool(raw) == (name == "prepare")


def test_raw_files_are_known_by_their_content(walked: Walked, store: ArtifactStore) -> None:
    from lmloop.config import load_recipe

    recipe = load_recipe(walked.recipe)
    (origin,) = STAGES["prepare"].sources(recipe, store)
    made_from = walked.made.artifacts["prepare"].made_from
    assert [dict(each) for each in made_from] == [origin]
    assert STAGES["tokenize"].sources(recipe, store) == []


def test_word_vectors_are_a_raw_file_of_a_new_model_known_by_content(
    tmp_path: Path, store: ArtifactStore
) -> None:
    assert STAGES["pretrain"].sources(make_recipe(), store) == []
    path = tmp_path / "sea.vec"
    path.write_text("1 2\nsea 0.5 1\n")
    recipe = make_recipe(model__vectors=str(path))
    (origin,) = STAGES["pretrain"].sources(recipe, store)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    assert origin == {"kind": "raw", "source": "sea.vec", "fingerprint": sha256}
    assert STAGES["finetune"].sources(recipe, store) == []


def test_word_vectors_that_are_missing_are_told_in_one_line(store: ArtifactStore) -> None:
    recipe = make_recipe(model__vectors="nowhere.vec")
    with pytest.raises(SourceError, match=r"model\.vectors = 'nowhere\.vec' is no file") as caught:
        STAGES["pretrain"].sources(recipe, store)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_a_journal_to_repeat_is_known_by_its_content(
    tmp_path: Path, store: ArtifactStore, stage: str
) -> None:
    path = tmp_path / "journal.jsonl"
    recipe = make_recipe(**{f"{stage}__replay": str(path)})
    with pytest.raises(SourceError, match=rf"{stage}\.replay = .* is no file: name the journal"):
        STAGES[stage].sources(recipe, store)
    path.write_text('{"step": 1, "share": 0.0}\n')
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    expected = {"kind": "raw", "source": "journal.jsonl", "fingerprint": sha256}
    assert STAGES[stage].sources(recipe, store) == [expected]


def test_training_is_measured_in_bits_per_byte_of_the_validation_split(walked: Walked) -> None:
    from lmloop.config import load_recipe
    from lmloop.inference.load import load
    from lmloop.stages import Workshop, make_validation

    made = walked.made.artifacts
    shop = Workshop(recipe=load_recipe(walked.recipe), home=walked.home, progress=Silent())
    measure = make_validation(shop, made["tokenize"].path)
    for name in ("pretrain", "finetune"):
        counts = made[name].counts
        value = measure(load(made[name].path).transformer)
        assert value == pytest.approx(counts["validation_bits_per_byte"], rel=1e-3)
        assert 1 < value < 20


def test_each_stage_begins_where_the_one_before_has_ended(walked: Walked) -> None:
    created = [walked.made.artifacts[name].created for name in NAMES]
    assert all(one <= other for one, other in pairwise(created))


WORDS = ("the sea", "a house", "green tea", "one train", "no idea", "far away", "it is", "we go")


def write_pages(folder: Path, count: int, *, seed: int) -> Path:
    """A folder of short documents."""
    folder.mkdir()
    draw = random.Random(seed)
    for number in range(count):
        text = ". ".join(f"{draw.choice(WORDS)} {draw.randrange(1000)}" for _ in range(12))
        (folder / f"{number}.txt").write_text(text)
    return folder


@pytest.fixture
def based(walked: Walked, tmp_path: Path) -> Recipe:
    """A recipe that begins with the tiny model that another one has made."""
    sources = {
        name: [str(write_pages(tmp_path / name, 60, seed=number))]
        for number, name in enumerate(("sources", "rehearsal", "outside"))
    }
    shares = {"heldout_share": 0.2, "validation_share": 0.2}
    sizes = {"batch_tokens": 64, "row_tokens": 32, "lora_rank": 2, "precision": "float32"}
    data = {
        "name": "mine",
        "prepare": {**sources, **shares, "near_duplicate_similarity": "none"},
        "model": {"base": str(walked.made.artifacts["pretrain"].path), "context_length": 64},
        "pretrain": {"steps": 30, "learning_rate": 0.02, **sizes},
        "finetune": {"steps": 1, "batch_tokens": 64, "row_tokens": 32},
        "evaluate": {"candidates": 3, "openers": 2, "max_tokens": 4},
    }
    return build_recipe(data)


def test_a_recipe_with_a_base_tunes_it_and_measures_both(
    based: Recipe, walked: Walked, tmp_path: Path
) -> None:
    from lmloop.pipeline import walk
    from lmloop.tokens.tokenizer import Tokenizer

    made = walk(based, home=tmp_path / "home", until="evaluate", progress=Silent())
    pretrained, report = made.artifacts["pretrain"], made.artifacts["evaluate"]
    theirs = walked.made.artifacts["pretrain"]
    ours = {"kind": "checkpoint", "fingerprint": theirs.fingerprint}
    for stage in ("tokenize", "pretrain", "evaluate"):
        assert ours in [dict(each) for each in made.artifacts[stage].made_from]
    assert made.artifacts["finetune"] is pretrained
    assert Tokenizer.open(pretrained.path).definition == Tokenizer.open(theirs.path).definition
    assert Tokenizer.open(pretrained.path).chat_template is not None
    assert (pretrained.path / "adapter" / "adapter_model.safetensors").is_file()
    counts = report.counts
    assert counts["bits_per_byte"] < counts["base_bits_per_byte"] - 0.01
    for name in ("rehearsal", "outside"):
        assert counts[f"{name}_bits_per_byte"] != counts[f"base_{name}_bits_per_byte"]
        assert name in made.artifacts["prepare"].counts
        assert made.artifacts["tokenize"].counts[name]["heldout"]["documents"] > 5


def test_a_base_that_is_not_here_is_told_before_its_text_is_tokenized(
    store: ArtifactStore,
) -> None:
    recipe = make_recipe(model__base="smollm2-135m-instruct")
    with pytest.raises(ArtifactError, match="run lmloop pull smollm2-135m-instruct"):
        STAGES["tokenize"].sources(recipe, store)
    assert STAGES["finetune"].sources(recipe, store) == []
