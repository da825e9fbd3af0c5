"""Artifacts: folders that are whole or absent, and know what they were made from.

Takes: files that a stage writes into a folder beside the final one. Gives: `manifest.json` with a
hash and a size a file, fsynced, then a rename. A process killed at any instant leaves either no
artifact or a whole one; what it left beside is swept by the next writer.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from lmloop.errors import ArtifactError, BusyError
from lmloop.store.disk import refuse_barred, refuse_full_disk

MANIFEST = "manifest.json"
FORMAT = 1
HOME_LOCK = "home"
"""Name of the lock that workers share, and that whoever removes artifacts holds alone."""
USE_SECONDS = 30.0
"""How long a worker waits for one who removes: moving folders away takes a moment."""


@dataclass(frozen=True, slots=True)
class Artifact:
    """A finished artifact: its folder and what its manifest says."""

    path: Path
    kind: str
    """corpus, shards, checkpoint or report."""
    stage: str
    """The verb that made it."""
    name: str
    """The recipe's name."""
    key: str
    """Hash of the stage, its settings and its inputs: what it was made from."""
    fingerprint: str
    """SHA-256 over the content: what it is."""
    made_from: tuple[Mapping[str, str], ...]
    """Kind and fingerprint of each input; a raw file's `source` as well."""
    settings: Mapping[str, Any] = field(repr=False)
    counts: Mapping[str, Any] = field(repr=False)
    code_version: str
    environment: Mapping[str, Any] = field(repr=False)
    created: float
    """Seconds since the epoch."""
    files: Mapping[str, Mapping[str, Any]] = field(repr=False)

    def __str__(self) -> str:
        size = sum(entry["bytes"] for entry in self.files.values())
        return f"{self.kind} {self.fingerprint[:12]} by {self.stage} ({size / 1e6:.1f} MB)"

    def verify(self) -> None:
        """Compare every file with its hash; raise `ArtifactError` that names the first mismatch."""
        for name, entry in self.files.items():
            verify_file(self.path / name, size=entry["bytes"], sha256=entry["sha256"])


def artifact_key(stage: str, settings: Mapping[str, Any], inputs: Sequence[str]) -> str:
    """Hash of what decides a stage's result: its name, settings and inputs' fingerprints."""
    text = json.dumps([FORMAT, stage, settings, list(inputs)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def hash_file(path: Path) -> str:
    """SHA-256 of a file's bytes, as hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def verify_file(path: Path, *, size: int, sha256: str) -> None:
    """Raise `ArtifactError` unless the file has this size (bytes) and hash."""
    if not path.is_file():
        raise ArtifactError(f"{path} is missing: remove {path.parent} and run the stage again")
    if path.stat().st_size != size or hash_file(path) != sha256:
        raise ArtifactError(
            f"{path} changed since it was written (SHA-256 differs): "
            f"remove {path.parent} and run the stage again"
        )


def open_artifact(path: str | Path) -> Artifact:
    """Read an artifact's manifest; raise `ArtifactError` where there is none or it is damaged."""
    path = Path(path)
    try:
        data = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        seal = data.pop("seal")
        if seal != _seal(data):
            raise ValueError("it changed since it was written (SHA-256 differs)")
        if data.pop("format") != FORMAT:
            raise ValueError(f"its format is not {FORMAT}; another version of lmloop wrote it")
        return Artifact(path=path, made_from=tuple(data.pop("made_from")), **data)
    except OSError as error:
        raise ArtifactError(
            f"{path} is no finished artifact ({MANIFEST}: {error.strerror}): "
            "give an artifact's folder, or remove it and run the stage again"
        ) from None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ArtifactError(
            f"{path / MANIFEST} is damaged ({error}): remove {path} and run the stage again"
        ) from error


def _seal(manifest: Mapping[str, Any]) -> str:
    """SHA-256 over the manifest itself, so that a change in what it says is seen as well."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


class ArtifactStore:
    """All artifacts of a home, one folder each: `artifacts/<stage>-<key>`."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.root = home / "artifacts"

    def path(self, stage: str, key: str) -> Path:
        """Where the artifact of this stage and key lies or will lie."""
        return self.root / f"{stage}-{key[:16]}"

    def find(self, stage: str, key: str) -> Artifact | None:
        """The finished artifact of this stage and key, or None."""
        path = self.path(stage, key)
        return open_artifact(path) if path.exists() else None

    def all(self) -> list[Artifact]:
        """Every finished artifact, oldest first; damaged ones are left out."""
        return self.scan()[0]

    def scan(self) -> tuple[list[Artifact], dict[Path, str]]:
        """Every finished artifact, oldest first, and why each other folder there is none."""
        found, damaged = [], {}
        for path in sorted(self.root.glob("[!.]*")):
            try:
                found.append(open_artifact(path))
            except ArtifactError as error:
                damaged[path] = str(error)
        return sorted(found, key=lambda artifact: artifact.created), damaged

    def resolve(self, fingerprint: str) -> Artifact | None:
        """The newest artifact whose fingerprint begins with `fingerprint`, or None.

        Raises `ArtifactError` where artifacts of different content begin so.
        """
        matches = [each for each in self.all() if each.fingerprint.startswith(fingerprint)]
        if len({each.fingerprint for each in matches}) > 1:
            raise ArtifactError(
                f"{fingerprint} is the beginning of {len(matches)} fingerprints: give more digits"
            )
        return matches[-1] if matches else None

    @contextlib.contextmanager
    def lock(self, stage: str, key: str) -> Iterator[None]:
        """Hold a stage for this process; raise `BusyError` where another has it."""
        with self._hold(f"{stage}-{key[:16]}", stage=stage):
            yield

    def is_free(self, name: str) -> bool:
        """Whether nobody holds the stage whose artifact's folder is called `name`."""
        with self._flock(name) as stream:
            return _try_flock(stream, fcntl.LOCK_SH)

    @contextlib.contextmanager
    def use(self) -> Iterator[None]:
        """Keep others from removing artifacts meanwhile; wait a little for one who is at it.

        Whoever holds a stage or writes an artifact does so as well. Raises `BusyError` where the
        wait was in vain.
        """
        with self._flock(HOME_LOCK) as stream:
            deadline = time.monotonic() + USE_SECONDS
            while not _try_flock(stream, fcntl.LOCK_SH):
                if time.monotonic() > deadline:
                    raise BusyError(
                        f"another process is removing artifacts from {self.home}: wait for it"
                    )
                time.sleep(0.02)
            yield

    @contextlib.contextmanager
    def own(self) -> Iterator[None]:
        """Be alone with all artifacts; raise `BusyError` where a stage or a rollout is at work."""
        with self._flock(HOME_LOCK) as stream:
            if not _try_flock(stream, fcntl.LOCK_EX):
                raise BusyError(
                    f"another process is at work in {self.home}, and it may need what would be "
                    "removed or changed: wait for it or stop it"
                )
            yield

    @contextlib.contextmanager
    def _hold(self, name: str, *, stage: str) -> Iterator[None]:
        with refuse_full_disk(self.home), self.use(), self._flock(name) as stream:
            if not _try_flock(stream, fcntl.LOCK_EX):
                raise BusyError(
                    f"another process is running {stage} with the same settings in "
                    f"{self.home}: wait for it or stop it"
                )
            yield

    @contextlib.contextmanager
    def _flock(self, name: str) -> Iterator[IO[str]]:
        """The open file of a lock; closing it gives the lock back."""
        folder = self.home / "locks"
        make_folder(folder)
        with refuse_barred(f"lock {folder / name}"):
            stream = (folder / name).open("a")
        with stream:
            yield stream

    @contextlib.contextmanager
    def write(self, stage: str, key: str) -> Iterator[Draft]:
        """Give a folder to write into; it becomes the artifact when `Draft.finish` was called.

        Raises `BusyError` where another writer is at it, `DiskFullError` where there is no room;
        whatever was raised, nothing half-written stays and an older artifact stays as it was.
        """
        final = self.path(stage, key)
        folder = self.root / f".{final.name}.{os.getpid()}"
        with self._hold(f"{final.name}.write", stage=stage):
            self.sweep(final.name)
            try:
                make_folder(folder)
                yield Draft(path=folder, final=final, stage=stage, key=key)
            finally:
                self.sweep(final.name)

    def sweep(self, name: str) -> None:
        """Remove what killed writers of the artifact `name` left beside it."""
        for folder in self.root.glob(f".{name}.*"):
            shutil.rmtree(folder, ignore_errors=True)


@dataclass(frozen=True, slots=True)
class Draft:
    """An artifact being written."""

    path: Path
    """The folder to write into."""
    final: Path
    stage: str
    key: str

    def finish(
        self,
        *,
        kind: str,
        name: str,
        made_from: Sequence[Mapping[str, str]],
        settings: Mapping[str, Any],
        counts: Mapping[str, Any],
        code_version: str,
        environment: Mapping[str, Any],
        created: float,
    ) -> Artifact:
        """Hash and fsync every file, write the manifest, rename into place."""
        files = _hash_files(self.path)
        content = "".join(f"{name} {entry['sha256']}\n" for name, entry in files.items())
        manifest = {
            "format": FORMAT,
            "kind": kind,
            "stage": self.stage,
            "name": name,
            "key": self.key,
            "fingerprint": hashlib.sha256(content.encode()).hexdigest(),
            "made_from": list(made_from),
            "settings": dict(settings),
            "counts": dict(counts),
            "code_version": code_version,
            "environment": dict(environment),
            "created": created,
            "files": files,
        }
        # As a reader will find it: JSON turns number keys into text.
        manifest = json.loads(json.dumps(manifest))
        write_json(self.path / MANIFEST, {**manifest, "seal": _seal(manifest)})
        replace_folder(self.path, self.final)
        return open_artifact(self.final)


def _hash_files(folder: Path) -> dict[str, dict[str, Any]]:
    """Size and hash of each file under a folder, every file brought to the disk first."""
    files = {}
    for path in sorted(each for each in folder.rglob("*") if each.is_file()):
        sync(path)
        name = path.relative_to(folder).as_posix()
        files[name] = {"bytes": path.stat().st_size, "sha256": hash_file(path)}
    return files


@contextlib.contextmanager
def write_whole(path: Path) -> Iterator[IO[bytes]]:
    """A file beside `path` that takes its place, durably, when the block has ended well.

    A reader finds the old file or the whole new one.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with beside.open("wb") as stream:
            yield stream
        sync(beside)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
    sync(path.parent)


def write_json(path: Path, data: object) -> None:
    """Write JSON, whole or not at all."""
    text = json.dumps(data, indent=1, ensure_ascii=False) + "\n"
    with write_whole(path) as stream:
        stream.write(text.encode())


def replace_folder(folder: Path, final: Path) -> None:
    """Move a finished folder to its place, durably.

    What lay there before moves out of the way whole. A process killed in between leaves nothing at
    `final`, never a part; who must always have one keeps numbered folders.
    """
    for each in (path for path in (folder, *folder.rglob("*")) if path.is_dir()):
        sync(each)
    old = final.with_name(f".{final.name}.old.{os.getpid()}")
    shutil.rmtree(old, ignore_errors=True)
    if final.exists():
        final.rename(old)
        try:
            folder.rename(final)
        except BaseException:
            old.rename(final)
            raise
    else:
        folder.rename(final)
    sync(final.parent)
    shutil.rmtree(old, ignore_errors=True)


def _try_flock(stream: IO[str], operation: int) -> bool:
    """Whether a lock could be taken at once."""
    try:
        fcntl.flock(stream, operation | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def make_folder(path: Path) -> None:
    """Make a folder with its parents; raise `ArtifactError` where the place does not allow it."""
    with refuse_barred(f"folder {path}"):
        path.mkdir(parents=True, exist_ok=True)


def sync(path: Path) -> None:
    """Bring a file or a folder to the disk (fsync)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
