from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import pytest

from lmloop.corpus.sources import describe_files, find_sources, fingerprint_source
from lmloop.errors import SourceError


def make_files(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)


def labels(*sources: str) -> list[str]:
    return [file.label for source in find_sources(sources) for file in source.files]


def test_a_folder_gives_its_files_of_known_type_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_files(tmp_path, "t/b.txt", "t/a/z.MD", "t/c.pdf", "t/.git/x.txt", "t/d.parquet")
    monkeypatch.chdir(tmp_path)
    [source] = find_sources(["t"])
    assert [file.path_in_source for file in source.files] == ["a/z.MD", "b.txt", "d.parquet"]
    assert [file.label for file in source.files] == ["t/a/z.MD", "t/b.txt", "t/d.parquet"]
    assert source.ignored == 2


def test_a_glob_gives_what_it_matches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_files(tmp_path, "t/1.txt", "t/2.txt", "t/2.csv", "t/u/3.txt")
    monkeypatch.chdir(tmp_path)
    assert labels("t/*.txt") == ["t/1.txt", "t/2.txt"]
    assert labels("t/**/*.txt") == ["t/1.txt", "t/2.txt", "t/u/3.txt"]


def test_a_file_called_like_a_pattern_is_that_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_files(tmp_path, "[a].txt", "a.txt")
    monkeypatch.chdir(tmp_path)
    assert labels("[a].txt") == ["[a].txt"]


def test_no_absolute_path_is_in_a_label(tmp_path: Path) -> None:
    make_files(tmp_path, "t/1.txt", "u/2.txt")
    sources = [f"{tmp_path}/t", f"{tmp_path}/t/1.txt", f"{tmp_path}/u/*.txt", f"{tmp_path}/u/2.txt"]
    for source in sources:
        [found] = find_sources([source])
        [entry] = describe_files(found)
        assert str(tmp_path) not in f"{found.name} {found.files[0].label} {entry}"


def test_a_file_that_two_sources_mean_is_read_once(tmp_path: Path) -> None:
    make_files(tmp_path, "t/1.txt")
    assert len(labels(f"{tmp_path}/t", f"{tmp_path}/t/1.txt", f"{tmp_path}/t/*")) == 1


def test_a_file_name_that_is_no_utf8_gets_a_readable_label(tmp_path: Path) -> None:
    (tmp_path / "caf\udce9.txt").write_text("text")
    assert labels(str(tmp_path)) == [f"{tmp_path.name}/caf\ufffd.txt"]


def test_files_are_described_by_hash_and_size(tmp_path: Path) -> None:
    make_files(tmp_path, "t/1.txt", "t/2.txt")
    first, second = describe_files(find_sources([f"{tmp_path}/t"])[0])
    assert first == {
        "source": "t",
        "path_in_source": "1.txt",
        "sha256": hashlib.sha256(b"t/1.txt").hexdigest(),
        "bytes": 7,
    }
    listing = f"1.txt {first['sha256']}\n2.txt {second['sha256']}\n"
    assert fingerprint_source([first, second]) == hashlib.sha256(listing.encode()).hexdigest()


def test_a_single_file_has_its_own_hash_as_fingerprint(tmp_path: Path) -> None:
    make_files(tmp_path, "1.txt")
    files = describe_files(find_sources([f"{tmp_path}/1.txt"])[0])
    assert fingerprint_source(files) == hashlib.sha256(b"1.txt").hexdigest()


def test_a_file_inside_a_package_is_found_without_importing_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_files(tmp_path, "some_package/data/rows.jsonl")
    (tmp_path / "some_package/__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert labels("package:some_package/data/rows.jsonl") == [
        "package:some_package/data/rows.jsonl"
    ]
    assert labels("package:some_package/data") == ["package:some_package/data/rows.jsonl"]
    assert "some_package" not in sys.modules


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("absent.txt", "'absent.txt' does not exist: give a file, a folder, a glob or package:"),
        ("*.nothing", "matches no file"),
        ("**x/*.txt", "is no usable pattern"),
        ("empty", "has no readable file"),
        ("picture.png", "has the type .png: lmloop reads .txt, .md, .json"),
        ("package:not_there_at_all/x.json", "is not installed: pip install not-there-at-all"),
        ("package:json/nothing.json", "the package json is installed but has no nothing.json"),
        ("package:json/../os.py", "write package:NAME/PATH"),
        ("package:json", "write package:NAME/PATH"),
        ("x" * 5000, "cannot be opened"),
        ("nul\0byte", "does not exist"),
    ],
)
def test_a_source_that_cannot_be_used_is_one_clear_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, message: str
) -> None:
    make_files(tmp_path, "picture.png", "empty/picture.png")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SourceError) as caught:
        find_sources([source])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
