"""The catalogue that is shipped, and what a wrong one or a wrong name is told."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lmloop.errors import SourceError
from lmloop.store.catalogue import Hub, Package, WeightFile, find_entry, read_catalogue

ENTRY = """
["a.b"]
what = "two numbers"
licence = "MIT"
[{section}]
{facts}
["a.b".files."{file}"]
bytes = 3
sha256 = "00"
"""
HUB = {"section": '"a.b".hub', "facts": 'repository = "x/y"\nrevision = "0123456789abcdef"'}


def test_the_shipped_catalogue_names_size_hash_licence_and_a_fixed_state_of_every_source() -> None:
    catalogue = read_catalogue()
    assert list(catalogue) == ["smollm2-135m-instruct", "all-minilm-l6-v2", "whisper-tiny.en"]
    for entry in catalogue.values():
        assert entry.licence in ("Apache-2.0", "MIT")
        assert entry.what and "\n" not in entry.what
        for file in (*entry.files, entry.package):
            assert file is not None
            assert file.bytes > 0
            assert re.fullmatch("[0-9a-f]{64}", file.sha256)
        assert entry.hub is not None
        assert re.fullmatch("[0-9a-f]{40}", entry.hub.revision)
        assert entry.bytes == sum(file.bytes for file in entry.files)
    assert catalogue["smollm2-135m-instruct"].bytes == 98_362_432


def test_an_entry_has_what_its_table_says(tmp_path: Path) -> None:
    path = tmp_path / "catalogue.toml"
    path.write_text(ENTRY.format(file="deep/w.bin", **HUB))
    entry = read_catalogue(path)["a.b"]
    assert entry.files == (WeightFile(name="deep/w.bin", bytes=3, sha256="00"),)
    assert (entry.name, entry.what, entry.licence) == ("a.b", "two numbers", "MIT")
    assert entry.hub == Hub(repository="x/y", revision="0123456789abcdef")
    assert str(entry.hub) == "hub x/y@0123456789ab"
    assert entry.package is None


def test_a_package_is_told_with_its_version() -> None:
    package = Package(project="p", version="1.0", folder="p", bytes=1, sha256="")
    assert str(package) == "package p 1.0"


@pytest.mark.parametrize("file", ["/etc/x", "../x", "a/../../x", "a\\\\x"])
def test_a_file_outside_of_the_folder_is_no_entry(tmp_path: Path, file: str) -> None:
    path = tmp_path / "catalogue.toml"
    path.write_text(ENTRY.format(file=file, **HUB))
    with pytest.raises(ValueError, match="no path inside a folder"):
        read_catalogue(path)


def test_an_entry_that_comes_from_nowhere_is_none(tmp_path: Path) -> None:
    path = tmp_path / "catalogue.toml"
    path.write_text(ENTRY.format(file="x", section='"a.b".other', facts=""))
    with pytest.raises(ValueError, match="neither hub nor package"):
        read_catalogue(path)


def test_an_unknown_name_is_told_the_nearest_and_all_names() -> None:
    catalogue = read_catalogue()
    assert find_entry("all-minilm-l6-v2", catalogue).name == "all-minilm-l6-v2"
    with pytest.raises(SourceError) as told:
        find_entry("SmolLM2-135M", catalogue)
    assert str(told.value) == (
        "no weights are called SmolLM2-135M; did you mean smollm2-135m-instruct? "
        "there are: smollm2-135m-instruct, all-minilm-l6-v2, whisper-tiny.en"
    )
    with pytest.raises(SourceError, match="are called zzz; there are: smollm2"):
        find_entry("zzz", catalogue)
