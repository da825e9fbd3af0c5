"""Kills a writer at its k-th call to the system, for every k, and prints what a reader then finds.

Usage: killed_writer.py FOLDER [again]. With `again` an older artifact lies there to be replaced. A
line is `WHAT WAS FOUND | WHAT WAS FOUND AFTER THE NEXT WRITER | LEFTOVERS AFTER THE NEXT WRITER`.
"""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import sys
from pathlib import Path

from lmloop.store.artifact import ArtifactStore

KEY = "0123456789abcdef" * 4


def write(store: ArtifactStore, text: str) -> None:
    with store.lock("prepare", KEY), store.write("prepare", KEY) as draft:
        (draft.path / "data").mkdir()
        (draft.path / "data" / "part.txt").write_text(text)
        (draft.path / "config.json").write_text(text)
        draft.finish(
            kind="corpus",
            name="chat",
            made_from=[],
            settings={},
            counts={},
            code_version="0.1.0",
            environment={},
            created=0.0,
        )


def read(store: ArtifactStore) -> str:
    artifact = store.find("prepare", KEY)
    if artifact is None:
        return "nothing"
    artifact.verify()
    texts = {(artifact.path / name).read_text() for name in artifact.files}
    return "+".join(sorted(texts)) if len(artifact.files) == 2 else "a part"


def killed_at(store: ArtifactStore, step: int) -> bool:
    """Whether a child that writes was killed at this step; False where it ended before."""
    child = os.fork()
    if child:
        return os.WIFSIGNALED(os.waitpid(child, 0)[1])
    steps = itertools.count(1)

    def kill(_frame: object, event: str, function: object) -> None:
        calls_system = (
            getattr(function, "__module__", None) in ("posix", "fcntl", "_io")
            or type(getattr(function, "__self__", None)).__module__ == "_io"
        )
        if event == "c_call" and calls_system and next(steps) == step:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.setprofile(kill)
    write(store, "new")
    os._exit(0)


def main(home: Path, *, again: bool) -> None:
    # What a killed process wrote stays with the kernel: waiting for the disk would show nothing
    # more here. `fstat` is a call to the system as well, so the steps stay the same.
    os.fsync = os.fstat  # type: ignore[assignment]
    store = ArtifactStore(home)
    for step in itertools.count(1):
        shutil.rmtree(home, ignore_errors=True)
        if again:
            write(store, "old")
        if not killed_at(store, step):
            break
        found = read(store)
        write(store, "next")
        print(found, read(store), sorted(path.name for path in store.root.glob(".*")), sep=" | ")


if __name__ == "__main__":
    main(Path(sys.argv[1]), again=sys.argv[2:] == ["again"])
