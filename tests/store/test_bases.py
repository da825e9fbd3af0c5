"""The model that a recipe begins with: found where it lies, known by its content."""

from __future__ import annotations

from pathlib import Path

import pytest

from lmloop.errors import ArtifactError, SourceError
from lmloop.store.artifact import Artifact, ArtifactStore
from lmloop.store.bases import find_base, find_model
from lmloop.store.database import database_url, open_database
from lmloop.store.registry import Registry, mirror_folder


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


def test_a_model_is_known_by_the_name_it_lives_under_its_fingerprint_or_where_it_lies(
    store: ArtifactStore, folder: Path
) -> None:
    artifact = make_artifact(store, "config.json")
    with store.write("finetune", "1" * 64) as draft:
        (draft.path / "config.json").write_text("live")
        live = draft.finish(
            kind="checkpoint",
            name="chat",
            made_from=[],
            settings={},
            counts={},
            code_version="0",
            environment={},
            created=1.0,
        )
    database = open_database(database_url(store.home))
    Registry(database, "chat", mirror=mirror_folder(store.home)).set_live(live)
    database.dispose()
    assert find_model("chat", store).path == live.path
    assert find_model(artifact.fingerprint[:8], store).path == artifact.path
    assert find_model(str(folder), store) == find_base(str(folder), store)
    with pytest.raises(SourceError, match=r"did you mean smollm2-135m-instruct\?"):
        find_model("smollm2-135m", store)


def test_a_file_that_is_no_model_is_refused(store: ArtifactStore, tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("hello")
    with pytest.raises(SourceError, match="is no model: name a folder"):
        find_base(str(path), store)
