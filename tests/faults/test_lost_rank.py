"""Training through torchrun: one command on many ranks, and a rank that is killed."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import lmloop
from lmloop.store.artifact import ArtifactStore

from ..conftest import write_recipe
from .test_kill_training import journaled_steps, read_journal

pytestmark = pytest.mark.slow

LONGEST_SECONDS = 120.0
WORKER = r"""
import os, sys, runpy, pathlib, resource
if os.environ["RANK"] == os.environ.get("WITHOUT_ROOM"):
    resource.setrlimit(resource.RLIMIT_FSIZE, (16_000, 16_000))
pathlib.Path(sys.argv.pop(1), os.environ["RANK"]).write_text(str(os.getpid()))
runpy.run_module("lmloop", run_name="__main__", alter_sys=True)
"""


class Job:
    """`torchrun` with the command line under it, its processes known by their ranks."""

    def __init__(self, process: subprocess.Popen[str], folder: Path) -> None:
        self.process, self._folder = process, folder

    def pid(self, rank: int) -> int:
        return int((self._folder / str(rank)).read_text())

    def wait_for(self, moment: Callable[[], bool]) -> None:
        deadline = time.monotonic() + LONGEST_SECONDS
        while not moment():
            assert self.process.poll() is None, self.process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.002)

    def finish(self) -> tuple[int, str, str]:
        """Exit code, what was printed, what was told."""
        out, told = self.process.communicate(timeout=LONGEST_SECONDS)
        return self.process.returncode, out, told

    def living(self) -> list[int]:
        """Ranks whose processes are still there."""
        return [
            int(path.name)
            for path in self._folder.iterdir()
            if Path(f"/proc/{path.read_text()}").exists()
        ]


@contextmanager
def torchrun(
    size: int, *arguments: str | Path, folder: Path, without_room: int | None = None
) -> Iterator[Job]:
    """`without_room`: a rank that can write no file beyond 16 kB."""
    folder.mkdir()
    worker = folder.with_suffix(".py")
    worker.write_text(WORKER)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
    process = subprocess.Popen(
        [*command, str(size), str(worker), str(folder), *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "WITHOUT_ROOM": str(without_room)},
    )
    job = Job(process, folder)
    try:
        yield job
    finally:
        if process.poll() is None:
            process.terminate()
            process.communicate(timeout=LONGEST_SECONDS)


def made(home: Path, stage: str) -> Path:
    (found,) = (each for each in ArtifactStore(home).all() if each.stage == stage)
    found.verify()
    return found.path


def test_a_killed_rank_is_named_ends_the_job_and_the_restarted_run_is_the_unbroken_one(
    tmp_path: Path,
) -> None:
    recipe, sizes = write_recipe(tmp_path), ("--pretrain.steps=300", "--pretrain.save_every=20")
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    with torchrun(2, "pretrain", recipe, "--home", whole, *sizes, folder=tmp_path / "a") as job:
        code, out, told = job.finish()
    assert code == 0, told
    assert out.splitlines() == [str(made(whole, "pretrain"))]
    assert told.count("pretrain: made checkpoint") == 1
    with torchrun(2, "pretrain", recipe, "--home", broken, *sizes, folder=tmp_path / "b") as job:
        job.wait_for(lambda: journaled_steps(broken) >= 50)
        os.kill(job.pid(1), signal.SIGKILL)
        began = time.monotonic()
        code, _, told = job.finish()
    assert time.monotonic() - began < 30, told
    assert code != 0
    assert re.search(r"rank *: 1 .*\n.*exitcode *: -9", told)  # torchrun's own report
    assert "lmloop: rank 1 is lost, and the run has ended" in told
    assert told.count("Traceback") == 1  # torchrun's own
    assert job.living() == []
    assert list((broken / "runs").glob("pretrain-*/snapshot-*"))
    with torchrun(2, "pretrain", recipe, "--home", broken, *sizes, folder=tmp_path / "c") as job:
        code, _, told = job.finish()
    assert code == 0, told
    assert "resumed at step " in told
    expected, got = made(whole, "pretrain"), made(broken, "pretrain")
    for name in ("model.safetensors", "config.json"):
        assert (got / name).read_bytes() == (expected / name).read_bytes()
    assert [each["loss"] for each in read_journal(got)] == [
        each["loss"] for each in read_journal(expected)
    ]


def test_the_whole_way_on_two_ranks_and_what_cannot_be_dealt_out(tmp_path: Path) -> None:
    recipe, home = write_recipe(tmp_path), tmp_path / "home"
    verb = ("run", recipe, "--home", home)
    with torchrun(2, *verb, "--no-serve", folder=tmp_path / "a") as job:
        code, _, told = job.finish()
    assert code == 0, told
    assert told.count("finetune: made checkpoint") == told.count("evaluate: made report") == 1
    lmloop.load("live", home=home)
    alone = ("pretrain", recipe, "--home", home, "--pretrain.batch_tokens=32")
    with torchrun(2, *alone, folder=tmp_path / "b") as job:
        code, _, told = job.finish()
    assert code == 1  # torchrun's own; that of the ranks is 2
    said = [line for line in told.splitlines() if line.startswith("lmloop: ")]
    assert said == [
        "lmloop: a batch of 1 rows cannot be dealt out evenly to 2 ranks: make batch_tokens / "
        "row_tokens a multiple of the number of ranks, or start fewer"
    ]
    assert "exitcode  : 2" in told


@pytest.mark.parametrize(
    ("size", "changes", "said"),
    [
        (
            4,
            ("--pretrain.batch_tokens=64",),
            "a batch of 2 rows cannot be dealt out evenly to 4 ranks: make batch_tokens / "
            "row_tokens a multiple of the number of ranks, or start fewer",
        ),
        (
            4,
            ("--model.context_length=2048", "--pretrain.row_tokens=2048"),
            "the text has 3 rows of 2048 tokens and is to be dealt out to 4 ranks: add text, lower "
            "row_tokens, or start fewer",
        ),
        (
            2,
            ("--model.context_length=8192", "--pretrain.row_tokens=8192"),
            "the split has 7446 tokens, fewer than one row of 8192: add text or lower row_tokens",
        ),
    ],
)
def test_more_ranks_than_samples_are_refused_in_one_line_and_leave_nothing(
    tmp_path: Path, size: int, changes: tuple[str, ...], said: str
) -> None:
    recipe, home = write_recipe(tmp_path), tmp_path / "home"
    verb = ("pretrain", recipe, "--home", home, "--pretrain.batch_tokens=8192", *changes)
    began = time.monotonic()
    with torchrun(size, *verb, folder=tmp_path / "a") as job:
        code, out, told = job.finish()
    assert (code, out) == (1, "")  # torchrun's own code
    assert [line for line in told.splitlines() if line.startswith("lmloop: ")] == [
        f"lmloop: {said}"
    ]
    assert told.count("Traceback") == 1  # torchrun's own
    assert {*re.findall(r"exitcode *: (-?\d+)", told)} == {"2"}
    assert time.monotonic() - began < 60, told
    assert job.living() == []
    assert {each.stage for each in ArtifactStore(home).all()} == {"prepare", "tokenize"}
    assert not [each for each in (home / "artifacts").iterdir() if each.name.startswith(".")]
    assert not list(home.glob("runs/*/*.jsonl")) and not list(home.glob("runs/*/snapshot-*"))
    with torchrun(2, "pretrain", recipe, "--home", home, folder=tmp_path / "b") as job:
        code, _, told = job.finish()
    assert code == 0, told


def test_a_disk_full_on_one_rank_ends_all_in_one_line_and_the_run_goes_on(tmp_path: Path) -> None:
    recipe, home = write_recipe(tmp_path), tmp_path / "home"
    sizes = ("--pretrain.sharding=full", "--model.hidden_size=64", "--pretrain.batch_tokens=128")
    verb = ("pretrain", recipe, "--home", home, *sizes)
    with torchrun(2, *verb, folder=tmp_path / "a", without_room=1) as job:
        code, out, told = job.finish()
    assert (code, out) == (1, "")
    (said,) = (line for line in told.splitlines() if line.startswith("lmloop: "))
    assert said.startswith("lmloop: rank 1: no space is left for "), said
    assert "make room or choose another --home" in said
    assert {*re.findall(r"exitcode *: (-?\d+)", told)} == {"2"}
    assert job.living() == []
    (run,) = home.glob("runs/*")
    assert sorted(path.name for path in run.iterdir()) == ["begun.json", "journal.jsonl"]
    assert {each.stage for each in ArtifactStore(home).all()} == {"prepare", "tokenize"}
    with torchrun(2, *verb, folder=tmp_path / "b") as job:
        code, _, told = job.finish()
    assert code == 0, told


def test_a_sigterm_to_torchrun_saves(tmp_path: Path) -> None:
    recipe, home = write_recipe(tmp_path), tmp_path / "home"
    sizes = ("--pretrain.steps=100000", "--pretrain.save_every=100000")
    with torchrun(2, "pretrain", recipe, "--home", home, *sizes, folder=tmp_path / "a") as job:
        job.wait_for(lambda: journaled_steps(home) >= 20)
        job.process.send_signal(signal.SIGTERM)
        _, _, told = job.finish()
    assert told.count("is saved at step ") == 1
    assert job.living() == []
    assert len(list((home / "runs").glob("pretrain-*/snapshot-*"))) == 1
