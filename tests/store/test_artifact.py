"""Artifacts: whole or absent, refused when changed, and one writer at a time."""

from __future__ import annotations

import errno
import io
import itertools
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lmloop.errors import ArtifactError, BusyError, DiskFullError
from lmloop.store.artifact import (
    MANIFEST,
    Artifact,
    ArtifactStore,
    artifact_key,
    open_artifact,
    replace_folder,
    write_json,
)

KEY = "0123456789abcdef" * 4
OTHER_KEY = "fedcba9876543210" * 4
MakeArtifact = Callable[..., Artifact]
OPEN = io.open
FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def hidden(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob(".*"))


def test_a_finished_artifact_says_what_it_is_and_what_it_was_made_from(
    store: ArtifactStore, make_artifact: MakeArtifact
) -> None:
    made = make_artifact("one")
    assert store.find("prepare", KEY) == made
    assert open_artifact(made.path) == made
    assert (made.kind, made.stage, made.name, made.key) == ("corpus", "prepare", "chat", KEY)
    assert made.made_from[0]["source"] == "talks.jsonl"
    assert (made.settings, made.counts) == ({"min_turns": 2}, {"records": 3})
    assert list(made.files) == ["config.json", "data/part.txt"]
    assert made.files["data/part.txt"] == {
        "bytes": 3,
        # printf one | sha256sum
        "sha256": "7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed",
    }
    assert str(made) == f"corpus {made.fingerprint[:12]} by prepare (0.0 MB)"
    assert hidden(store.home) == []
    made.verify()


def test_the_fingerprint_is_of_the_content_alone(make_artifact: MakeArtifact) -> None:
    one, same, other = (
        make_artifact("one"),
        make_artifact("one", key=OTHER_KEY, name="other", stage="tokenize"),
        make_artifact("two", stage="pretrain"),
    )
    assert one.fingerprint == same.fingerprint != other.fingerprint


def test_numbers_as_keys_of_counts_survive_the_way_through_json(store: ArtifactStore) -> None:
    with store.write("prepare", KEY) as draft:
        made = draft.finish(
            kind="corpus",
            name="chat",
            made_from=(),
            settings={"sources": ("a", "b")},
            counts={10: 1, 9: 2},
            code_version="0.1.0",
            environment={},
            created=0.0,
        )
    assert made.counts == {"10": 1, "9": 2}
    assert made.settings == {"sources": ["a", "b"]}


def test_the_key_changes_with_stage_settings_and_inputs() -> None:
    keys = {
        artifact_key("prepare", {"a": 1}, ["x", "y"]),
        artifact_key("tokenize", {"a": 1}, ["x", "y"]),
        artifact_key("prepare", {"a": 2}, ["x", "y"]),
        artifact_key("prepare", {"a": 1}, ["y", "x"]),
        artifact_key("prepare", {"a": 1}, ["xy"]),
    }
    assert len(keys) == 5
    first = artifact_key("prepare", {"a": 1, "b": 2}, ["x"])
    assert first == artifact_key("prepare", {"b": 2, "a": 1}, ("x",))


def test_what_is_not_there_is_none(store: ArtifactStore, make_artifact: MakeArtifact) -> None:
    assert store.find("prepare", KEY) is None
    assert store.all() == []
    assert store.resolve("ab") is None
    make_artifact()
    assert store.find("prepare", OTHER_KEY) is None
    assert store.find("tokenize", KEY) is None


def test_all_artifacts_come_oldest_first_and_drafts_do_not(
    store: ArtifactStore, make_artifact: MakeArtifact
) -> None:
    late = make_artifact("three")
    early = make_artifact("a", key=OTHER_KEY)
    shutil.copytree(early.path, store.root / ".prepare-draft.1")
    assert store.all() == [early, late]


def test_damaged_artifacts_are_left_out_of_all_and_refused_by_name(
    store: ArtifactStore, make_artifact: MakeArtifact
) -> None:
    damaged, whole = make_artifact("one", key=KEY), make_artifact("two", key=OTHER_KEY)
    (damaged.path / "manifest.json").write_text("{")
    (store.root / "empty").mkdir()
    (store.root / "file").write_text("")
    assert store.all() == [whole]
    assert store.resolve(damaged.fingerprint[:12]) is None
    found, others = store.scan()
    assert found == [whole]
    assert {path.name for path in others} == {damaged.path.name, "empty", "file"}
    assert all(str(path) in reason for path, reason in others.items())
    with pytest.raises(ArtifactError, match="is damaged"):
        store.find("prepare", KEY)


def test_a_fingerprint_is_found_by_its_beginning_unless_two_begin_so(
    store: ArtifactStore, make_artifact: MakeArtifact
) -> None:
    one = make_artifact("one")
    two = make_artifact("two", key=OTHER_KEY)
    assert store.resolve(one.fingerprint[:12]) == one
    assert store.resolve(two.fingerprint) == two
    with pytest.raises(ArtifactError, match="the beginning of 2 fingerprints"):
        store.resolve("")
    copy = make_artifact("one", stage="tokenize")
    assert store.resolve(one.fingerprint) in (one, copy)


@pytest.mark.parametrize("name", ["config.json", "data/part.txt"])
def test_every_flipped_bit_of_a_file_is_refused_and_the_file_named(
    make_artifact: MakeArtifact, name: str
) -> None:
    made = make_artifact("one")
    path = made.path / name
    content = path.read_bytes()
    for position, bit in itertools.product(range(len(content)), range(8)):
        changed = bytearray(content)
        changed[position] ^= 1 << bit
        path.write_bytes(changed)
        with pytest.raises(ArtifactError, match=f"{name} changed since .*: remove .* again"):
            made.verify()


def test_every_changed_byte_of_the_manifest_that_means_something_is_refused(
    make_artifact: MakeArtifact,
) -> None:
    made = make_artifact("one")
    path = made.path / MANIFEST
    content = path.read_bytes()
    before = json.loads(content)
    for position in range(len(content)):
        changed = bytearray(content)
        changed[position] ^= 1
        path.write_bytes(changed)
        try:
            after = open_artifact(made.path)
        except ArtifactError as error:
            assert MANIFEST in str(error)
            assert "\n" not in str(error)
        else:
            assert json.loads(changed) == before
            assert after == made


def test_a_missing_a_longer_and_a_swapped_file_are_refused_and_named(
    make_artifact: MakeArtifact,
) -> None:
    made = make_artifact("one")
    path = made.path / "data" / "part.txt"
    path.write_text("one more")
    with pytest.raises(ArtifactError, match=r"part\.txt changed"):
        made.verify()
    path.unlink()
    with pytest.raises(ArtifactError, match=r"part\.txt is missing: remove"):
        made.verify()
    path.mkdir()
    with pytest.raises(ArtifactError, match=r"part\.txt is missing"):
        made.verify()


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "{}", '{"seal": 1}', "\x00", '"\\ud800"'])
def test_a_damaged_manifest_is_refused_in_one_line(
    store: ArtifactStore, make_artifact: MakeArtifact, text: str
) -> None:
    made = make_artifact()
    (made.path / MANIFEST).write_text(text)
    with pytest.raises(ArtifactError, match=r"manifest\.json is damaged \(.*\): remove") as caught:
        store.find("prepare", KEY)
    assert "\n" not in str(caught.value)


def test_a_path_without_manifest_is_no_artifact(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "odd" / MANIFEST).mkdir(parents=True)
    for path in (tmp_path, tmp_path / "absent", tmp_path / "file", tmp_path / "odd"):
        with pytest.raises(ArtifactError, match="is no finished artifact"):
            open_artifact(path)


def test_a_manifest_of_another_format_is_refused(make_artifact: MakeArtifact) -> None:
    made = make_artifact()
    data = json.loads((made.path / MANIFEST).read_text())
    data["format"] = 2
    write_json(made.path / MANIFEST, data)
    with pytest.raises(ArtifactError, match=r"manifest\.json is damaged"):
        open_artifact(made.path)


def test_a_writer_that_fails_leaves_nothing_and_the_older_artifact_as_it_was(
    store: ArtifactStore, make_artifact: MakeArtifact
) -> None:
    def fail() -> None:
        with store.write("prepare", KEY) as draft:
            (draft.path / "half.txt").write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert store.find("prepare", KEY) is None
    old = make_artifact("old")
    with pytest.raises(KeyboardInterrupt):
        fail()
    assert store.find("prepare", KEY) == old
    assert hidden(store.home) == []


def test_a_writer_that_never_finishes_leaves_nothing(store: ArtifactStore) -> None:
    with store.write("prepare", KEY) as draft:
        (draft.path / "half.txt").write_text("half")
    assert store.find("prepare", KEY) is None
    assert list(store.root.iterdir()) == []


def test_a_second_artifact_of_the_same_key_replaces_the_first(
    store: ArtifactStore, make_artifact: MakeArtifact
) -> None:
    old = make_artifact("old")
    new = make_artifact("new")
    assert old.path == new.path
    assert store.find("prepare", KEY) == new
    new.verify()
    assert hidden(store.home) == []


def test_what_killed_writers_left_is_swept_and_what_others_write_is_not(
    store: ArtifactStore, make_artifact: MakeArtifact
) -> None:
    name = store.path("prepare", KEY).name
    # A process in a container often has the number that the killed one had.
    stale = [store.root / f".{name}.{number}" for number in (1, os.getpid())]
    for folder in stale:
        (folder / "deep").mkdir(parents=True)
        (folder / "deep" / "half.txt").write_text("half")
    other = store.root / f".{store.path('prepare', OTHER_KEY).name}.1"
    other.mkdir()
    made = make_artifact()
    assert list(made.files) == ["config.json", "data/part.txt"]
    assert [folder for folder in stale if folder.exists()] == []
    assert other.exists()


def test_a_locked_stage_is_busy_and_other_keys_are_free(store: ArtifactStore) -> None:
    with store.lock("prepare", KEY):
        with (
            pytest.raises(BusyError, match="another process is running prepare"),
            store.lock("prepare", KEY),
        ):
            pass
        with store.lock("prepare", OTHER_KEY), store.lock("tokenize", KEY):
            pass
    with store.lock("prepare", KEY):
        pass


def test_a_second_writer_is_refused_and_the_first_ones_draft_stays(store: ArtifactStore) -> None:
    with store.write("prepare", KEY) as draft:
        (draft.path / "a.txt").write_text("a")
        with pytest.raises(BusyError), store.write("prepare", KEY):
            pass
        assert (draft.path / "a.txt").read_text() == "a"


def test_whoever_removes_is_alone_and_workers_work_together(store: ArtifactStore) -> None:
    with (
        store.use(),
        store.lock("prepare", KEY),
        store.write("tokenize", KEY),
        pytest.raises(BusyError, match="another process is at work in"),
        store.own(),
    ):
        pass
    with store.own(), pytest.raises(BusyError), store.own():
        pass
    with store.own():
        pass


def test_a_worker_waits_for_who_removes_and_not_for_ever(
    store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    began, done = threading.Event(), threading.Event()

    def work() -> None:
        began.set()
        with store.lock("prepare", KEY):
            done.set()

    worker = threading.Thread(target=work)
    with store.own():
        worker.start()
        assert began.wait(10)
        assert not done.wait(0.1)
    assert done.wait(10)
    worker.join(10)
    monkeypatch.setattr("lmloop.store.artifact.USE_SECONDS", 0.05)
    with (
        store.own(),
        pytest.raises(BusyError, match="is removing artifacts from"),
        store.write("prepare", KEY),
    ):
        pass


def test_a_stage_is_free_unless_somebody_holds_it(store: ArtifactStore) -> None:
    name = store.path("prepare", KEY).name
    assert store.is_free(name)
    with store.lock("prepare", KEY):
        assert not store.is_free(name)
    assert store.is_free(name)


def test_a_writer_in_another_process_is_respected_until_it_is_killed(
    store: ArtifactStore, make_artifact: MakeArtifact
) -> None:
    code = (
        "import sys, pathlib\n"
        "from lmloop.store.artifact import ArtifactStore\n"
        "store = ArtifactStore(pathlib.Path(sys.argv[1]))\n"
        "with store.lock('prepare', sys.argv[2]), store.write('prepare', sys.argv[2]) as draft:\n"
        "    (draft.path / 'half.txt').write_text('half')\n"
        "    sys.stdout.write('writing\\n')\n"
        "    sys.stdout.flush()\n"
        "    sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(store.home), KEY],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "writing\n"
        with pytest.raises(BusyError, match="wait for it or stop it"):
            make_artifact()
        with pytest.raises(BusyError), store.lock("prepare", KEY):
            pass
        assert len(hidden(store.root)) == 1
        other.kill()
        other.wait(timeout=30)
    assert make_artifact() == store.find("prepare", KEY)
    assert hidden(store.root) == []


@pytest.mark.parametrize(
    ("again", "found"),
    [((), {"nothing", "new"}), (("again",), {"old", "nothing", "new"})],
    ids=["first", "replacing"],
)
def test_a_writer_killed_at_any_step_leaves_no_half_artifact(
    tmp_path: Path, again: tuple[str, ...], found: set[str]
) -> None:
    script = Path(__file__).with_name("killed_writer.py")
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "home"), *again],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    lines = [line.split(" | ") for line in done.stdout.splitlines()]
    assert len(lines) > 50
    assert {line[0] for line in lines} == found
    assert {tuple(line[1:]) for line in lines} == {("next", "[]")}


class Failing:
    """Stands for a function and fails at its k-th call, as a full disk does; reads go on."""

    def __init__(self, function: Callable[..., Any], *, at: int) -> None:
        self.function = function
        self.at = at
        self.calls = 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        reads = self.function is OPEN and not set("wax+") & set(args[1])
        self.calls += not reads
        if self.calls == self.at and not reads:
            raise FULL
        return self.function(*args, **kwargs)


@pytest.mark.parametrize("older", [False, True], ids=["first", "replacing"])
@pytest.mark.parametrize(
    ("owner", "name"),
    [(os, "fsync"), (os, "mkdir"), (os, "rename"), (os, "replace"), (io, "open"), (os, "open")],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_a_disk_full_at_any_step_is_told_and_leaves_what_was_there(
    store: ArtifactStore,
    make_artifact: MakeArtifact,
    monkeypatch: pytest.MonkeyPatch,
    owner: Any,
    name: str,
    older: bool,
) -> None:
    failed = 0
    for at in itertools.count(1):
        shutil.rmtree(store.home, ignore_errors=True)
        before = make_artifact("old") if older else None
        failing = Failing(getattr(owner, name), at=at)
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, failing)
            try:
                make_artifact("new")
            except DiskFullError as error:
                failed += 1
                assert "\n" not in str(error)
                assert "no space is left" in str(error)
        if failing.calls < at:
            break
        after = store.find("prepare", KEY)
        if after != before:
            # The last fsync comes after the rename: then the new artifact is there, whole.
            assert after is not None
            after.verify()
            assert (after.path / "data" / "part.txt").read_text() == "new"
        elif before is not None:
            before.verify()
        assert hidden(store.root) == []
    assert failed > 0


def test_a_disk_that_fills_in_the_middle_of_a_write_leaves_what_was_there(
    store: ArtifactStore, make_artifact: MakeArtifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = make_artifact("old")

    def write_half(path: Path, text: str, **options: Any) -> int:
        path.write_bytes(text[: len(text) // 2].encode())
        raise FULL

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", write_half)
        with pytest.raises(DiskFullError, match="what was there before is as it was"):
            make_artifact("new")
    assert store.find("prepare", KEY) == old
    old.verify()
    assert hidden(store.root) == []


def test_a_library_that_tells_a_full_disk_in_words_is_understood(store: ArtifactStore) -> None:
    with pytest.raises(DiskFullError), store.write("prepare", KEY):
        raise RuntimeError("I/O error: No space left on device (os error 28)")
    with pytest.raises(RuntimeError, match="something else"), store.write("prepare", KEY):
        raise RuntimeError("something else")


def test_a_home_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    store = ArtifactStore(tmp_path / "file")
    with pytest.raises(ArtifactError, match="another --home"), store.lock("prepare", KEY):
        pass
    with pytest.raises(ArtifactError, match="cannot be made"), store.write("prepare", KEY):
        pass


def test_json_is_replaced_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "state.json"
    write_json(path, {"step": 1, "word": "水"})
    assert json.loads(path.read_text(encoding="utf-8")) == {"step": 1, "word": "水"}
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", Failing(os.fsync, at=1))
        with pytest.raises(OSError, match="No space left"):
            write_json(path, {"step": 2})
    assert json.loads(path.read_text(encoding="utf-8"))["step"] == 1
    assert [each.name for each in tmp_path.iterdir()] == ["state.json"]


def test_a_folder_whose_replacement_fails_is_put_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("final", "draft"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.txt").write_text(name)
    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", Failing(os.rename, at=2))
        with pytest.raises(OSError, match="No space left"):
            replace_folder(tmp_path / "draft", tmp_path / "final")
    assert (tmp_path / "final" / "a.txt").read_text() == "final"
    replace_folder(tmp_path / "draft", tmp_path / "final")
    assert (tmp_path / "final" / "a.txt").read_text() == "draft"
    assert [each.name for each in tmp_path.iterdir()] == ["final"]
