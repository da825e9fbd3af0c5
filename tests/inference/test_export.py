"""Models written for other programs: whole, equal to the original, or absent."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path

import pytest
import torch

from lmloop.errors import ArtifactError, TokenizerError
from lmloop.inference.export import export_folder, export_gguf, export_onnx
from lmloop.inference.load import LoadedModel, load
from lmloop.records import Turn
from lmloop.weights.checkpoint import save_model
from lmloop.weights.gguf import open_gguf

from ..conftest import random_model, tiny_shape

TOKENS = torch.tensor([[1, 2, 3, 4, 5]])
TURNS = [Turn("user", "where is the sea?")]


def test_a_file_holds_the_model_its_tokenizer_and_its_template(
    model_folder: Path, loaded: LoadedModel, tmp_path: Path
) -> None:
    path = tmp_path / "new" / "sea.gguf"
    export_gguf(model_folder, path, name="sea", weight_type="F32")
    again = load(path, dtype=torch.float32)
    assert again.config == loaded.config
    assert torch.equal(again(TOKENS), loaded(TOKENS))
    assert again.template.encode(TURNS) == loaded.template.encode(TURNS)
    assert [each.name for each in path.parent.iterdir()] == ["sea.gguf"]


def test_a_folder_is_made_where_the_target_is_no_file(model_folder: Path, tmp_path: Path) -> None:
    export_gguf(model_folder, tmp_path / "out", name="sea", weight_type="Q8_0")
    (path,) = (tmp_path / "out").iterdir()
    assert path.name == "sea-Q8_0.gguf"
    assert open_gguf(path).metadata["general.name"] == "sea"


def test_a_graph_is_a_file_or_lies_in_a_folder(
    model_folder: Path, loaded: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lmloop.inference.export.write_onnx", lambda _, path: path.touch())
    monkeypatch.setattr(
        "lmloop.inference.export.run_onnx", lambda _, tokens, source: loaded(tokens)
    )
    export_onnx(model_folder, tmp_path / "sea.onnx", name="sea")
    export_onnx(model_folder, tmp_path / "out", name="sea")
    assert (tmp_path / "sea.onnx").is_file()
    assert [each.name for each in (tmp_path / "out").iterdir()] == ["sea.onnx"]
    monkeypatch.setattr("lmloop.inference.export.LARGEST_FILE", 1000)
    with pytest.raises(ArtifactError, match=r"big\.onnx cannot hold.*name a folder"):
        export_onnx(model_folder, tmp_path / "big.onnx", name="sea")


def test_a_file_is_written_again_as_another_type(
    model_folder: Path, loaded: LoadedModel, tmp_path: Path
) -> None:
    first, second, third = (tmp_path / f"{name}.gguf" for name in ("one", "two", "three"))
    export_gguf(model_folder, first, name="sea", weight_type="F32")
    export_gguf(first, second, name="sea", weight_type="BF16")
    export_gguf(first, third, name="sea", weight_type="F32")
    assert third.read_bytes() == first.read_bytes()
    rounded = load(second, dtype=torch.float32)
    assert not torch.equal(rounded(TOKENS), loaded(TOKENS))
    assert torch.allclose(rounded(TOKENS), loaded(TOKENS), atol=0.1)


def test_a_folder_without_tokenizer_makes_a_file_without_one(
    model_folder: Path, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copyfile(model_folder / name, source / name)
    export_gguf(source, tmp_path / "sea.gguf", name="sea", weight_type="F16")
    assert load(tmp_path / "sea.gguf").tokenizer is None


def broken_copy(model_folder: Path, folder: Path, **changes: object) -> Path:
    """The checkpoint with other entries in its config."""
    shutil.copytree(model_folder, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    return folder


def test_what_does_not_fit_is_refused_before_anything_is_written(
    model_folder: Path, tmp_path: Path
) -> None:
    short = broken_copy(model_folder, tmp_path / "short", vocab_size=9)
    with pytest.raises(TokenizerError, match="the model has 9: they do not fit"):
        export_gguf(short, tmp_path / "out" / "sea.gguf", name="sea", weight_type="F32")
    deep = broken_copy(model_folder, tmp_path / "deep", num_hidden_layers=3)
    with pytest.raises(ArtifactError, match=r"lacks the tensor 'model\.layers\.2"):
        export_gguf(deep, tmp_path / "out", name="sea", weight_type="F32")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["deep", "short"]


@pytest.mark.parametrize("target", ["sea.gguf", "out"])
@pytest.mark.parametrize("left_over", [True, False])
def test_a_disk_that_fills_up_leaves_nothing(
    model_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    target: str,
    left_over: bool,
) -> None:
    def full(path: Path, **rest: object) -> None:
        path.write_text("half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    if left_over:  # of a process that was killed
        (tmp_path / f".{target}.part" / target).mkdir(parents=True)
    monkeypatch.setattr("lmloop.inference.export.write_gguf", full)
    with pytest.raises(ArtifactError, match=rf"{target} cannot be written \(No space left"):
        export_gguf(model_folder, tmp_path / target, name="sea", weight_type="F32")
    assert list(tmp_path.iterdir()) == []


def test_a_copied_folder_is_the_folder(model_folder: Path, tmp_path: Path) -> None:
    (tmp_path / ".out.part").mkdir()
    (tmp_path / ".out.part" / "half").write_text("of a process that was killed")
    export_folder(model_folder, tmp_path / "out")
    names = sorted(each.name for each in model_folder.iterdir())
    assert sorted(each.name for each in (tmp_path / "out").iterdir()) == names
    assert [each.name for each in tmp_path.iterdir()] == ["out"]


def test_an_export_that_loses_too_much_is_refused_and_leaves_nothing(
    model_folder: Path, tmp_path: Path
) -> None:
    path = tmp_path / "lost.gguf"
    with pytest.raises(ArtifactError, match="nothing was written: logits differ.*--max-loss"):
        export_gguf(model_folder, path, name="sea", weight_type="Q4_0", max_loss=-0.5)
    assert list(tmp_path.iterdir()) == []
    kept = export_gguf(model_folder, path, name="sea", weight_type="Q4_0", max_loss=1.0)
    assert kept.largest > 0
    assert path.exists()


@pytest.mark.slow
def test_a_model_without_a_head_leaves_as_a_graph_of_its_states(tmp_path: Path) -> None:
    model = random_model(tiny_shape(causal=False, head="none", family="lmloop"))
    (tmp_path / "model").mkdir()
    save_model(model, tmp_path / "model", stop_id=1, document_id=0)
    told = export_onnx(tmp_path / "model", tmp_path / "states.onnx", name="states")
    assert str(told).startswith("states of up to ")
    assert (tmp_path / "states.onnx").is_file()
