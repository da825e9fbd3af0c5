"""A tiny run that the tests of the loop, of snapshots and of recipes share."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from lmloop.config import rank_setting
from lmloop.errors import LmloopError
from lmloop.learning import PretrainConfig
from lmloop.model.init import initialise
from lmloop.model.transformer import Transformer
from lmloop.progress import Silent, Watch, unwatched
from lmloop.sections import ModelSection
from lmloop.tokens.loader import PackedLoader
from lmloop.tokens.shards import Shards
from lmloop.tokens.tokenizer import Tokenizer
from lmloop.tokens.words import WordStream, index_words
from lmloop.training.batch import Teach
from lmloop.training.figures import Figure
from lmloop.training.loop import TrainResult, train
from lmloop.training.ranks import ALONE, Ranks, join_ranks
from lmloop.training.samples import Sample

from ..conftest import CONTEXT_LENGTH, VOCAB_SIZE, tiny_shape

SHAPE = ModelSection(
    num_layers=1,
    hidden_size=16,
    num_heads=2,
    num_kv_heads=1,
    head_dim=8,
    intermediate_size=24,
    context_length=CONTEXT_LENGTH,
)


class Said(Silent):
    """Progress that remembers the lines it was told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


class KilledError(Exception):
    """Stands for `kill -9`: nothing of a run catches it."""


def kill_at(step: int) -> Callable[[int], None]:
    def kill(now: int) -> None:
        if now == step:
            raise KilledError

    return kill


def make_clock(seconds_a_look: float = 0.1) -> Callable[[], float]:
    """A clock that goes on by so much whenever somebody looks."""
    now = 0.0

    def look() -> float:
        nonlocal now
        now += seconds_a_look
        return now

    return look


def make_config(**changes: Any) -> PretrainConfig:
    sizes = {"batch_tokens": 32, "row_tokens": 16, "save_every": 4, "validate_every": 3}
    chosen = {} if {"budget", "replay"} & changes.keys() else {"steps": 10}
    return PretrainConfig(**(sizes | chosen | changes))


def embedding_norm(model: Transformer) -> float:
    """Stands for a validation: a figure of the weights."""
    return model.embedding.weight.detach().float().norm().item()


@dataclass
class Run:
    """One training run in a folder; a second `go` resumes it as a new process would."""

    shards: Path
    folder: Path
    config: PretrainConfig = field(default_factory=make_config)
    dtype: torch.dtype = torch.float32
    answers_only: bool = False
    teach: Teach | None = None
    figure: Figure | None = None
    said: Said = field(default_factory=Said)
    model: Transformer | None = None

    def go(
        self,
        *,
        clock: Callable[[], float] | None = None,
        before_step: Callable[[int], object] = lambda step: None,
        validate: Callable[[Transformer], float] | None = None,
        ranks: Ranks = ALONE,
        watch: Watch = unwatched,
        sample: Sample | None = None,
    ) -> TrainResult:
        self.model = Transformer(tiny_shape(vocab_size=VOCAB_SIZE, num_layers=1))
        initialise(self.model, seed=0)
        self.model.to(self.dtype)
        return train(
            self.model,
            WatchedLoader(self.shards, self.config, before_step, answers_only=self.answers_only),
            self.config,
            folder=self.folder,
            validate=validate or embedding_norm,
            clock=clock or make_clock(),
            progress=self.said,
            name="test",
            ranks=ranks,
            watch=watch,
            teach=self.teach,
            figure=self.figure,
            sample=sample,
        )

    def weights(self) -> dict[str, bytes]:
        assert self.model is not None
        return {
            name: bytes(tensor.contiguous().view(torch.uint8).numpy())
            for name, tensor in self.model.state_dict().items()
        }

    def journal(self) -> list[dict[str, Any]]:
        text = (self.folder / "journal.jsonl").read_text("utf-8")
        return [json.loads(line) for line in text.splitlines()]

    def snapshots(self) -> list[str]:
        return sorted(path.name for path in self.folder.glob("*snapshot-*"))


class WatchedLoader(PackedLoader):
    """A loader that tells which step is about to begin."""

    def __init__(
        self,
        shards: Path,
        config: PretrainConfig,
        before_step: Callable[[int], object],
        *,
        answers_only: bool,
    ) -> None:
        super().__init__(
            Shards.open(shards, "train"),
            row_tokens=config.row_tokens,
            document_id=Tokenizer.open(shards).document_id,
            answers_only=answers_only,
            seed=0,
        )
        self._before_step, self._batch_tokens = before_step, config.batch_tokens

    def rows(self, start: int, count: int) -> Any:
        if start * self._row_tokens % self._batch_tokens == 0:
            self._before_step(start * self._row_tokens // self._batch_tokens)
        return super().rows(start, count)


@pytest.fixture
def make_run(shards_folder: Path, tmp_path: Path) -> Callable[..., Run]:
    """A run in a folder of its own."""

    def make(name: str = "run", **changes: Any) -> Run:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        return Run(shards_folder, folder, **changes)

    return make


def fork_ranks(
    size: int, work: Callable[[Ranks], object], *, folder: Path, seconds: float = 60.0
) -> list[int]:
    """Let `size` forked processes meet and work; how each ended, as a shell would tell it.

    What a rank raises is written to `folder/error-RANK`. Fails where it takes over `seconds`.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    children = [_fork_rank(rank, size, work, folder, address) for rank in range(size)]
    codes: list[int] = []
    try:
        deadline = time.monotonic() + seconds
        while len(codes) < size:
            ended, status = os.waitpid(children[len(codes)], os.WNOHANG)
            if ended:
                codes.append(os.waitstatus_to_exitcode(status))
                continue
            assert time.monotonic() < deadline, f"rank {len(codes)} does not end"
            time.sleep(0.01)
    finally:
        for child in children[len(codes) :]:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
    return codes


def _fork_rank(
    rank: int,
    size: int,
    work: Callable[[Ranks], object],
    folder: Path,
    address: dict[str, str],
) -> int:
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        os.environ.update(address, RANK=str(rank), WORLD_SIZE=str(size), LOCAL_RANK=str(rank))
        torch.set_num_threads(1)
        with join_ranks(rank_setting()) as ranks:
            work(ranks)
        code = 0
    except SystemExit as ending:
        code = int(ending.code or 0)
    except LmloopError as error:
        (folder / f"error-{rank}").write_text(f"{type(error).__name__}: {error}")
        code = error.exit_code
    except BaseException:
        (folder / f"error-{rank}").write_text(traceback.format_exc())
    finally:
        os._exit(code)


def read_errors(folder: Path) -> dict[int, str]:
    """What forked ranks have raised, by rank."""
    return {int(path.name[6:]): path.read_text() for path in folder.glob("error-*")}


CLASSES = {
    "animal": [f"animal{number}" for number in range(6)],
    "tool": [f"tool{number}" for number in range(6)],
    "town": [f"town{number}" for number in range(6)],
}


def make_class_language(*, count: int) -> WordStream:
    """Sentences in which every word of a class stands among the words that its class takes."""
    draw = random.Random(0)
    sentences = []
    for _ in range(count):
        kind = draw.choice(list(CLASSES))
        around = [f"{kind}-{side}{draw.randrange(4)}" for side in ("left", "right")]
        sentences.append([around[0], draw.choice(CLASSES[kind]), around[1]])
    return index_words(sentences, min_count=1)


def make_grid_language(*, count: int) -> WordStream:
    """A word of row r and column c stands beside words that tell r and words that tell c."""
    draw = random.Random(0)
    sentences = []
    for _ in range(count):
        row, column = draw.randrange(2), draw.randrange(4)
        beside = [f"row{row}-{draw.randrange(3)}", f"column{column}-{draw.randrange(3)}"]
        draw.shuffle(beside)
        sentences.append([beside[0], f"cell{row}{column}", beside[1]])
    return index_words(sentences, min_count=1)
