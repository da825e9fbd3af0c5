"""The verbs as Python functions, on a recipe that was walked to its end."""

from __future__ import annotations

import errno
import os
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import lmloop
from lmloop import api
from lmloop.api import find, find_checkpoint
from lmloop.errors import ArtifactError, ContextLengthError, RecipeError, UsageError
from lmloop.inference.sampling import Sampling
from lmloop.sections import ServeConfig
from lmloop.training.skip_gram import SkipGramOptions
from lmloop.weights.gguf import open_gguf

from .conftest import Walked, write_recipe

GREEDY = Sampling(temperature=0, max_tokens=6)


def test_a_walk_gives_every_artifact_and_the_live_model(walked: Walked) -> None:
    assert list(walked.made.artifacts) == [
        *("prepare", "tokenize", "pretrain", "finetune", "evaluate", "compress")
    ]
    assert walked.made.live == walked.made.artifacts["compress"]


@pytest.mark.parametrize("verb", ["prepare", "tokenize", "pretrain", "finetune", "compress"])
def test_a_verb_gives_its_artifact_and_makes_nothing_twice(walked: Walked, verb: str) -> None:
    again = getattr(lmloop, verb)(walked.recipe, home=walked.home)
    assert again == walked.made.artifacts[verb]


def test_a_keyword_overrides_a_key_of_the_recipe(tmp_path: Path) -> None:
    recipe, home = write_recipe(tmp_path), tmp_path / "home"
    made = lmloop.prepare(recipe, home=home, **{"prepare.min_turns": 4})
    assert made.settings["prepare"]["min_turns"] == 4
    with pytest.raises(RecipeError, match=r"did you mean prepare\.min_turns"):
        lmloop.prepare(recipe, home=home, **{"prepare.min_turn": 4})


def test_the_home_is_where_it_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = write_recipe(tmp_path)
    monkeypatch.setenv("LMLOOP_HOME", str(tmp_path / "elsewhere"))
    made = lmloop.prepare(recipe)
    assert made.path.parent == tmp_path / "elsewhere" / "artifacts"


def test_a_name_a_fingerprint_or_a_folder_means_an_artifact(walked: Walked) -> None:
    live = walked.made.live
    assert live is not None
    for name in (None, "tiny", live.fingerprint, live.fingerprint[:6], live.path, str(live.path)):
        assert find(name, home=walked.home) == live
    corpus = walked.made.artifacts["prepare"]
    assert find(corpus.fingerprint[:12], home=walked.home) == corpus


@pytest.mark.parametrize("name", ["nothing", "tin", "0123456789abcdef", "/nowhere"])
def test_an_unknown_name_is_told_with_those_that_are_known(walked: Walked, name: str) -> None:
    with pytest.raises(ArtifactError, match=f"no live model called {name}; live are: tiny"):
        find(name, home=walked.home)


def test_a_model_is_named_by_alias_as_well(walked: Walked) -> None:
    for name in ("live", "tiny/live"):
        assert find(name, home=walked.home) == walked.made.live
    for name in ("previous", "tiny/candidate"):
        alias = name.rpartition("/")[2]
        with pytest.raises(ArtifactError, match=f"tiny has no {alias}: it has live"):
            find(name, home=walked.home)


def test_a_home_that_is_not_there_is_told_and_not_made(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="does not exist: run a recipe first"):
        find(None, home=tmp_path / "home")
    assert not (tmp_path / "home").exists()


def test_ancestry_goes_from_the_live_model_to_the_raw_file(walked: Walked) -> None:
    live = lmloop.show("tiny", home=walked.home)
    version = walked.made.artifacts["compress"].code_version
    told = f"generation 1, code {version}"
    assert (live.label, live.detail) == ("live model tiny", told)
    (node,) = live.parents
    assert node.label == str(walked.made.live)
    depth = 0
    while node.parents:
        node, depth = node.parents[0], depth + 1
    assert depth == 5
    assert node.label.endswith("talks.jsonl")


def test_only_a_checkpoint_can_be_asked(walked: Walked, model_folder: Path) -> None:
    assert find_checkpoint("tiny", home=walked.home) == walked.made.artifacts["compress"].path
    assert find_checkpoint(model_folder) == model_folder
    with pytest.raises(ArtifactError, match="corpus .* is no checkpoint: name a model"):
        find_checkpoint(walked.made.artifacts["prepare"].path)


def test_an_answer_is_repeatable_and_by_name_or_by_folder(walked: Walked) -> None:
    by_name = lmloop.generate(
        "do you like the sea?", model="tiny", home=walked.home, sampling=GREEDY
    )
    live = walked.made.artifacts["compress"].path
    assert lmloop.generate("do you like the sea?", model=live, sampling=GREEDY) == by_name
    assert len(by_name.tokens) <= 6
    assert by_name.finish_reason in ("stop", "length")


def test_text_is_continued_where_no_chat_is_asked_for(model_folder: Path) -> None:
    chat = lmloop.generate("the sea", model=model_folder, sampling=GREEDY)
    plain = lmloop.generate("the sea", model=model_folder, sampling=GREEDY, chat=False)
    (expected,) = lmloop.Engine(lmloop.load(model_folder)).generate(["the sea"], GREEDY)
    assert plain == expected != chat


def test_a_prompt_longer_than_the_context_is_refused(model_folder: Path) -> None:
    with pytest.raises(ContextLengthError, match="this model's context holds 64"):
        lmloop.generate("word " * 500, model=model_folder)


def test_an_exported_folder_is_the_checkpoint_file_by_file(walked: Walked, tmp_path: Path) -> None:
    target = tmp_path / "new" / "model"
    assert lmloop.export("tiny", target, home=walked.home) == target
    source = walked.made.artifacts["compress"].path
    names = sorted(path.name for path in source.iterdir())
    assert sorted(path.name for path in target.iterdir()) == names
    for name in names:
        assert (target / name).read_bytes() == (source / name).read_bytes()
    assert [path.name for path in target.parent.iterdir()] == ["model"]


def test_a_model_is_exported_as_a_file_by_the_name_it_has(walked: Walked, tmp_path: Path) -> None:
    source = walked.made.artifacts["finetune"]
    target = tmp_path / "new" / "tiny.gguf"
    made = lmloop.export(source.fingerprint, target, home=walked.home, file_format="gguf")
    assert made == target
    assert open_gguf(target).metadata["general.name"] == source.name
    assert open_gguf(target).tensors["blk.0.ffn_norm.weight"].type.name == "F32"
    assert lmloop.load(target).config == lmloop.load(source.path).config


def test_an_export_overwrites_nothing(walked: Walked, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ArtifactError, match="exists: name a folder that does not"):
        lmloop.export("tiny", tmp_path, home=walked.home)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_changed_checkpoint_is_not_exported(walked: Walked, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(walked.made.artifacts["finetune"].path, copy)
    weights = bytearray((copy / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (copy / "model.safetensors").write_bytes(weights)
    for file_format in ("hf", "gguf"):
        with pytest.raises(ArtifactError, match=r"model\.safetensors changed"):
            lmloop.export(copy, tmp_path / "out", file_format=file_format)
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]


def test_a_disk_that_fills_up_during_an_export_leaves_nothing(
    walked: Walked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(source: Path, target: Path) -> None:
        target.write_text("half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(ArtifactError, match=r"cannot be written \(No space left on device\)"):
        lmloop.export("tiny", tmp_path / "out", home=walked.home)
    assert list(tmp_path.iterdir()) == []


def test_an_export_to_where_no_folder_can_be_is_told(walked: Walked, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match=r"cannot be written \(Not a directory\)"):
        lmloop.export("tiny", tmp_path / "file" / "out", home=walked.home)


@pytest.mark.parametrize("foreign", [False, True])
def test_the_server_gets_the_folder_the_name_and_the_database(
    walked: Walked, model_folder: Path, monkeypatch: pytest.MonkeyPatch, foreign: bool
) -> None:
    served: dict[str, Any] = {}

    def serve(folder: Path, config: ServeConfig, **rest: Any) -> None:
        served.update(rest, folder=folder, config=config)
        rest["database"].dispose()

    monkeypatch.setattr("lmloop.serving.server.serve", serve)
    config, ready = ServeConfig(port=0), print
    name = model_folder if foreign else "tiny"
    api.serve(name, home=walked.home, config=config, on_ready=ready)
    live = walked.made.artifacts["compress"].path
    assert served["folder"] == (model_folder if foreign else live)
    assert served["model_name"] == (model_folder.name if foreign else "tiny")
    assert (served["config"], served["on_ready"]) == (config, ready)
    assert served["database"].url.database == str(walked.home / "lmloop.db")


@pytest.mark.parametrize("verb", [lmloop.load, lmloop.show, find_checkpoint])
def test_weights_that_were_not_pulled_are_told_with_what_to_do(
    walked: Walked, tmp_path: Path, verb: Any
) -> None:
    for home in (walked.home, tmp_path / "none"):
        with pytest.raises(ArtifactError, match="run lmloop pull smollm2-135m-instruct"):
            verb("smollm2-135m-instruct", home=home)


def test_a_live_model_goes_before_weights_of_the_same_name(
    walked: Walked, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> None:
        raise AssertionError("the catalogue was asked")

    monkeypatch.setattr("lmloop.store.catalogue.read_catalogue", refuse)
    assert find("tiny", home=walked.home) == walked.made.live


def test_a_folder_with_a_single_gguf_file_means_that_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api, "find_checkpoint", lambda name, home: tmp_path)
    (tmp_path / "a.gguf").touch()
    assert api._find_weights("weights", home=None) == tmp_path / "a.gguf"
    (tmp_path / "b.gguf").touch()
    assert api._find_weights("weights", home=None) == tmp_path
    (tmp_path / "b.gguf").unlink()
    (tmp_path / "config.json").touch()
    assert api._find_weights("weights", home=None) == tmp_path


def test_vectors_are_learnt_from_files_and_from_prepared_text(
    walked: Walked, tmp_path: Path
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("the wide sea\n\nthe sea 大海\n" * 9, encoding="utf-8")
    corpus = lmloop.prepare(walked.recipe, home=walked.home)
    options = SkipGramOptions(dimensions=4, epochs=1)
    learn = partial(lmloop.vectors, options=options, segmenter="characters", home=walked.home)
    made = learn(tmp_path / "a.bin", train=[str(text)])
    assert set(made.words) == {"the", "wide", "sea", "大", "海"}
    opened = lmloop.vectors(tmp_path / "a.bin")
    assert (opened.words, opened.matrix.tobytes()) == (made.words, made.matrix.tobytes())
    by_folder = learn(tmp_path / "b.vec", train=[str(corpus.path)])
    by_name = learn(tmp_path / "c.glove", train=[corpus.fingerprint[:12]])
    assert (tmp_path / "b.vec").read_text().partition("\n")[2] == (tmp_path / "c.glove").read_text()
    assert by_folder.words == by_name.words


def test_vectors_that_cannot_be_learnt_leave_no_file(walked: Walked, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("every word but once\n")
    tokens = lmloop.tokenize(walked.recipe, home=walked.home)
    for file, train, told in (
        ("a.npz", str(text), "says no layout"),
        ("absent/a.vec", str(text), "absent is no folder"),
        ("a.vec", str(text), "lower min_count"),
        ("a.vec", str(tmp_path / "none.txt"), "none.txt"),
        ("a.vec", str(tokens.path), "is no corpus"),
    ):
        with pytest.raises(UsageError, match=told):
            lmloop.vectors(tmp_path / file, train=[train], home=walked.home)
    assert list(tmp_path.iterdir()) == [text]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_is_opened_in_the_precision_that_is_asked_for(
    model_folder: Path, dtype: torch.dtype
) -> None:
    assert lmloop.load(model_folder, dtype=dtype).transformer.embedding.weight.dtype == dtype
