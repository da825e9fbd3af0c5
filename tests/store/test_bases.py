"""The model that a recipe begins with: found where it lies, known by its content."""

from __future__ import annotations

from pathlib import Path

import pytest

from lmloop.errors import ArtifactError, SourceError
from lmloop.store.artifact import Artifact, ArtifactStore
from lmloop.store.bases import find_base


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path / "home")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "theirs"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_text("weights")
    return folder


def make_artifact(store: ArtifactStore, *files: str) -> Artifact:
    with store.write("pull", "0" * 64) as draft:
        for name in files:
            (draft.path / name).write_text(name)
        return draft.finish(
            kind="weights",
            name="small",
            made_from=[],
            settings={},
            counts={},
            code_version="0",
            environment={},
            created=0.0,
        )


def test_a_folder_is_known_by_its_content_and_by_no_path_of_the_machine(
    folder: Path, store: ArtifactStore
) -> None:
    base = find_base(str(folder), store)
    assert base.path == folder
    assert (base.origin["kind"], base.origin["source"]) == ("raw", "theirs")
    assert find_base(str(folder), store) == base
    (folder / "model.safetensors").write_text("Weights")
    assert find_base(str(folder), store).origin["fingerprint"] != base.origin["fingerprint"]


def test_one_gguf_file_is_opened_itself(tmp_path: Path, store: ArtifactStore) -> None:
    file = tmp_path / "small.gguf"
    file.write_text("weights")
    assert find_base(str(file), store).path == file
    artifact = make_artifact(store, "only.gguf")
    base = find_base(str(artifact.path), store)
    assert base.path == artifact.path / "only.gguf"
    assert base.origin == {"kind": "weights", "fingerprint": artifact.fingerprint}


def test_beside_a_config_a_gguf_file_is_one_of_several(store: ArtifactStore) -> None:
    artifact = make_artifact(store, "only.gguf", "config.json")
    assert find_base(str(artifact.path), store).path == artifact.path


def test_weights_that_were_not_pulled_are_told_how_to_get(store: ArtifactStore) -> None:
    with pytest.raises(ArtifactError, match=r"run lmloop pull smollm2-135m-instruct"):
        find_base("smollm2-135m-instruct", store)


def test_an_unknown_name_and_an_empty_folder_are_refused(
    tmp_path: Path, store: ArtifactStore
) -> None:
    with pytest.raises(SourceError, match=r"did you mean smollm2-135m-instruct\?"):
        find_base("smollm2-135m", store)
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match="is an empty folder"):
        find_base(str(tmp_path / "empty"), store)
