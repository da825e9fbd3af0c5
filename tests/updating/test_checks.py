"""Files, tokenizer, finite numbers and parity: each fault is found and named."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lmloop.inference.load import LoadedModel, load
from lmloop.model.cache import CacheView
from lmloop.store.artifact import Artifact, ArtifactStore
from lmloop.updating.checks import (
    check_files,
    check_finite,
    check_parity,
    check_tokenizer,
    compare_decoding,
    skip,
)
from lmloop.weights.checkpoint import save_model

from ..conftest import random_model

PROMPTS = [[0, 3, 17, 20, 5], [0, 40, 41]]


@pytest.fixture
def candidate(tmp_path: Path, model_folder: Path) -> Artifact:
    with ArtifactStore(tmp_path).write("update", "0" * 64) as draft:
        shutil.copytree(model_folder, draft.path, dirs_exist_ok=True)
        return draft.finish(
            kind="checkpoint",
            name="test",
            made_from=[],
            settings={},
            counts={},
            code_version="0",
            environment={},
            created=0.0,
        )


def copy_model(loaded: LoadedModel) -> LoadedModel:
    """A model of its own with the same weights."""
    return replace(loaded, transformer=random_model(loaded.config))


def test_a_check_that_was_not_asked_neither_passed_nor_failed() -> None:
    check = skip("speed", "the check 'files' failed")
    assert check.passed is None
    assert check.reason == "not run: the check 'files' failed"


def test_whole_files_open_as_a_model(candidate: Artifact) -> None:
    check, model = check_files(candidate)
    assert check.passed
    assert model is not None
    assert model.fingerprint == candidate.fingerprint


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_file_that_is_not_as_it_was_written_is_told(candidate: Artifact, name: str) -> None:
    path = candidate.path / name
    path.write_bytes(path.read_bytes()[:-3] + b"abc")
    check, model = check_files(candidate)
    assert not check.passed
    assert model is None
    assert f"{name} changed since it was written" in check.reason


def test_files_as_written_that_are_no_model_are_told(tmp_path: Path, candidate: Artifact) -> None:
    with ArtifactStore(tmp_path).write("update", "1" * 64) as draft:
        (draft.path / "config.json").write_text("{}")
        broken = draft.finish(
            kind="checkpoint",
            name="test",
            made_from=[],
            settings={},
            counts={},
            code_version="0",
            environment={},
            created=0.0,
        )
    check, model = check_files(broken)
    assert (check.passed, model) == (False, None)
    assert check.reason.startswith("the files do not hold: ")
    assert "config.json: model_type None" in check.reason


def test_the_same_tokenizer_passes(model_folder: Path, loaded: LoadedModel) -> None:
    check = check_tokenizer(model_folder, model_folder, (loaded, loaded))
    assert check.passed
    assert check.numbers["vocab_size"] == {"candidate": 340, "live": 340}


def change_json(path: Path, change: dict[str, Any]) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | change))


@pytest.mark.parametrize(
    ("name", "change", "told"),
    [
        ("tokenizer.json", {"model": {"type": "BPE"}}, "tokenizer.json"),
        ("tokenizer_config.json", {"chat_template": "{{ messages }}"}, "chat_template"),
        ("tokenizer_config.json", {"eos_token": "<|user|>"}, "eos_token"),
    ],
)
def test_another_tokenizer_or_template_is_told(
    tmp_path: Path,
    model_folder: Path,
    loaded: LoadedModel,
    name: str,
    change: dict[str, Any],
    told: str,
) -> None:
    other = tmp_path / "other"
    shutil.copytree(model_folder, other)
    change_json(other / name, change)
    check = check_tokenizer(other, model_folder, (loaded, loaded))
    assert not check.passed
    assert check.reason.startswith("another tokenizer than the live model's: ")
    assert told in check.reason


def test_the_same_content_in_other_spacing_is_the_same_tokenizer(
    tmp_path: Path, model_folder: Path, loaded: LoadedModel
) -> None:
    other = tmp_path / "other"
    shutil.copytree(model_folder, other)
    change_json(other / "tokenizer.json", {})
    assert check_tokenizer(other, model_folder, (loaded, loaded)).passed


def test_a_shorter_context_or_another_vocabulary_is_told(
    model_folder: Path, loaded: LoadedModel
) -> None:
    def with_config(**changes: int) -> LoadedModel:
        return replace(loaded, transformer=random_model(replace(loaded.config, **changes)))

    short = check_tokenizer(model_folder, model_folder, (with_config(context_length=32), loaded))
    assert short.reason.endswith("context (32 tokens, live 64)")
    small = check_tokenizer(model_folder, model_folder, (with_config(vocab_size=339), loaded))
    assert small.reason.endswith("vocabulary size")
    longer = check_tokenizer(model_folder, model_folder, (with_config(context_length=99), loaded))
    assert longer.passed


def test_sound_weights_pass(loaded: LoadedModel) -> None:
    assert check_finite(loaded, PROMPTS[0]).passed


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_no_number_is_named_with_its_layer(
    loaded: LoadedModel, value: float
) -> None:
    broken = copy_model(loaded)
    with torch.no_grad():
        broken.transformer.blocks[1].mixer.part.qkv.weight[2, 3:5] = value
    check = check_finite(broken, PROMPTS[0])
    assert not check.passed
    told = "not finite: layer 1, mixer.part.qkv.weight, has 2 weights that are no numbers"
    assert check.reason == told


def test_weights_that_overflow_are_named_by_the_first_layer_that_does(loaded: LoadedModel) -> None:
    broken = copy_model(loaded)
    with torch.no_grad():
        broken.transformer.blocks[1].feed_forward.part.down.weight.fill_(3e38)
    check = check_finite(broken, PROMPTS[0])
    assert not check.passed
    assert check.reason == "not finite: on a held-out text layer 1 gives what is no number"


def test_a_broken_norm_outside_the_layers_is_named(loaded: LoadedModel) -> None:
    broken = copy_model(loaded)
    with torch.no_grad():
        broken.transformer.norm.weight[0] = float("nan")
    assert "norm.weight has 1 weights" in check_finite(broken, PROMPTS[0]).reason


def test_a_text_longer_than_the_context_is_cut(loaded: LoadedModel) -> None:
    assert check_finite(loaded, [3] * 200).passed


def test_cached_decoding_equals_the_full_forward(loaded: LoadedModel) -> None:
    compared, wrong = compare_decoding(loaded, PROMPTS)
    assert compared >= 2
    assert wrong == 0


def test_a_cache_that_forgets_is_found(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    attend = CacheView.attend

    def forget(
        view: CacheView, layer: int, q: Any, k: Any, v: Any, *, scoring: Any, bias: Any
    ) -> torch.Tensor:
        lost = torch.zeros_like(v) if len(q) < 3 else v
        return attend(view, layer, q, k, lost, scoring=scoring, bias=bias)

    monkeypatch.setattr(CacheView, "attend", forget)
    compared, wrong = compare_decoding(loaded, PROMPTS)
    assert wrong > 0
    check = check_parity(1.0, 1.0, (compared, wrong), allowed=0.005)
    assert not check.passed
    assert check.reason.startswith("cached decoding differs: ")


@pytest.mark.parametrize(
    ("served", "passed"), [(2.009, True), (1.991, True), (2.011, False), (1.989, False)]
)
def test_served_arithmetic_may_differ_by_so_much(served: float, passed: bool) -> None:
    check = check_parity(served, 2.0, (10, 0), allowed=0.005)
    assert check.passed is passed
    assert check.reason.startswith("served arithmetic differs") is not passed


def test_a_model_saved_in_fewer_bits_is_compared_with_what_lies_on_disk(
    tmp_path: Path, loaded: LoadedModel
) -> None:
    loaded.require_tokenizer().save(tmp_path)
    save_model(random_model(loaded.config).bfloat16(), tmp_path, stop_id=1, document_id=0)
    served, exact = load(tmp_path, dtype=torch.bfloat16), load(tmp_path, dtype=torch.float32)
    assert compare_decoding(served, PROMPTS)[1] == 0
    assert compare_decoding(exact, PROMPTS)[1] == 0
