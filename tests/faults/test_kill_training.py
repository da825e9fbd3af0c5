"""`kill -9` at random moments: nothing half-made stays, and the result is the unbroken one."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import lmloop
from lmloop.stages import STAGES
from lmloop.store.artifact import ArtifactStore

from ..conftest import write_recipe

WALKER = Path(__file__).with_name("walker.py")
LONGEST_SECONDS = 60.0
KILLS = 20


class Walker:
    """Starts a verb in a process of its own, and kills it when it is told to."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def _read(self) -> int:
        assert self._process.stdout is not None
        return int(self._process.stdout.readline())

    def start(self) -> int:
        """The id of a process that has just begun."""
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        return self._read()

    def finish(self) -> None:
        """Let one run to its end."""
        self.start()
        assert self._read() == 0

    def kill_when(self, moment: Callable[[], bool], *, delay: float = 0.0) -> bool:
        """Start one and kill it `delay` seconds after the moment; False where it ended before."""
        child = self.start()
        deadline = time.monotonic() + LONGEST_SECONDS
        while not moment() and alive(child):
            assert time.monotonic() < deadline
            time.sleep(0.0005)
        time.sleep(delay)
        if alive(child):
            os.kill(child, signal.SIGKILL)
        ending = self._read()
        assert ending in (0, -signal.SIGKILL)
        return ending == -signal.SIGKILL


def alive(child: int) -> bool:
    """Whether a process runs; one that is over and waits to be asked for its end does not."""
    try:
        state = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


@contextmanager
def walker(verb: str, recipe: Path, home: Path, **changes: int) -> Iterator[Walker]:
    overrides = [f"{key.replace('__', '.')}={value}" for key, value in changes.items()]
    with subprocess.Popen(
        [sys.executable, str(WALKER), verb, str(recipe), str(home), *overrides],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    ) as process:
        try:
            yield Walker(process)
        finally:
            assert process.stdin is not None
            process.stdin.close()
            process.wait(timeout=LONGEST_SECONDS)


def check_artifacts(home: Path) -> dict[str, Any]:
    """Every artifact on disk by its stage; each must be whole."""
    store = ArtifactStore(home)
    found = store.all()
    folders = [path for path in store.root.glob("[!.]*") if path.is_dir()]
    assert sorted(artifact.path for artifact in found) == sorted(folders)
    for artifact in found:
        artifact.verify()
    return {artifact.stage: artifact for artifact in found}


def journaled_steps(home: Path) -> int:
    """Whole lines of the journal of the run under way."""
    for path in (home / "runs").glob("pretrain-*/journal.jsonl"):
        try:
            return path.read_bytes().count(b"\n")
        except FileNotFoundError:
            return 0
    return 0


@pytest.mark.slow
def test_a_run_killed_twenty_times_ends_in_byte_identical_weights(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path)
    lmloop.tokenize(recipe, home=tmp_path / "unbroken")
    shutil.copytree(tmp_path / "unbroken", tmp_path / "killed")
    sizes = {"pretrain__steps": 300, "pretrain__save_every": 7, "pretrain__validate_every": 50}
    with walker("pretrain", recipe, tmp_path / "unbroken", **sizes) as unbroken:
        unbroken.finish()
    home, draw = tmp_path / "killed", random.Random(0)
    saves_hit = 0
    with walker("pretrain", recipe, home, **sizes) as broken:
        for number in range(KILLS):
            steps = journaled_steps(home)
            further = steps + draw.randint(1, 10)
            in_a_save = number % 4 == 3

            def moment(further: int = further, in_a_save: bool = in_a_save) -> bool:
                if in_a_save:
                    return any((home / "runs").glob("pretrain-*/.snapshot-*"))
                return journaled_steps(home) >= further

            delay = 0.0 if in_a_save else draw.uniform(0, 0.01)
            assert broken.kill_when(moment, delay=delay), "it ended before it could be killed"
            saves_hit += any((home / "runs").glob("pretrain-*/.snapshot-*"))
            assert set(check_artifacts(home)) == {"prepare", "tokenize"}
        broken.finish()
    assert saves_hit > 0
    expected, got = (
        check_artifacts(tmp_path / name)["pretrain"] for name in ("unbroken", "killed")
    )
    assert sorted(got.files) == sorted(expected.files)
    for name in expected.files:
        if name != "journal.jsonl":
            assert (got.path / name).read_bytes() == (expected.path / name).read_bytes(), name
    for one, other in zip(read_journal(got.path), read_journal(expected.path), strict=True):
        assert {**one, "seconds": 0} == {**other, "seconds": 0}
    assert list((home / "runs").iterdir()) == []


def read_journal(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "journal.jsonl").read_text("utf-8").splitlines()]


@pytest.mark.slow
def test_a_walk_killed_in_every_stage_leaves_no_half_artifact_and_ends_as_the_unbroken_one(
    tmp_path: Path,
) -> None:
    recipe, draw = write_recipe(tmp_path), random.Random(1)
    with walker("run", recipe, tmp_path / "unbroken") as unbroken:
        unbroken.finish()
    expected = check_artifacts(tmp_path / "unbroken")
    home = tmp_path / "killed"
    with walker("run", recipe, home) as broken:
        for place, stage in enumerate(STAGES):
            killed = 0
            for _ in range(3):
                killed += broken.kill_when(
                    lambda stage=stage: any((home / "artifacts").glob(f".{stage}-*")),  # type: ignore[misc]
                    delay=draw.uniform(0, 0.5) * float(expected[stage].counts["stage_seconds"]),
                )
                done = set(check_artifacts(home))
                assert set(list(STAGES)[:place]) <= done
                if stage in done:
                    break
            assert killed
        broken.finish()
    got = check_artifacts(home)
    assert set(got) == set(STAGES)
    assert not list((home / "artifacts").glob(".*"))
    for stage in ("prepare", "tokenize"):
        assert got[stage].fingerprint == expected[stage].fingerprint
    for stage in ("pretrain", "finetune", "compress"):
        one, other = (each[stage].path / "model.safetensors" for each in (got, expected))
        assert one.read_bytes() == other.read_bytes()
