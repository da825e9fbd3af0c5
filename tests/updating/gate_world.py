"""A tiny home with a trained live model, a sealed gate, and the means to make candidates."""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pytest
import torch

from lmloop.corpus.splits import SCHEMA, build_row, write_split
from lmloop.learning import FinetuneConfig
from lmloop.model.block import Block
from lmloop.model.init import initialise
from lmloop.model.transformer import Transformer
from lmloop.progress import Silent
from lmloop.records import Conversation, Record, Turn
from lmloop.store.artifact import Artifact, ArtifactStore
from lmloop.tokens.chat import DEFAULT_TEMPLATE
from lmloop.tokens.tokenizer import Tokenizer, train_tokenizer
from lmloop.training.recipes import finetune
from lmloop.updating.mixture import write_mixture
from lmloop.updating.pledge import freeze
from lmloop.upkeep import GateConfig
from lmloop.weights.checkpoint import load_model, save_model

from ..conftest import VOCAB_SIZE, make_conversations, tiny_shape

Files = Callable[[Path], object]
CONFIG = GateConfig(min_documents=5, openers=12, max_loss=0.02)
"""Of a model so small that twenty documents tell no better."""
SETTINGS = {"batch_tokens": 256, "row_tokens": 64, "precision": "float32"}

_COLOURS = ("purple", "yellow", "orange", "silver")


def make_topic(count: int, *, seed: int) -> list[Record]:
    """Questions about gates and their colours, a thing that old conversations never mention."""
    draw = random.Random(seed)
    found: list[Record] = []
    for number in range(count):
        gate, colour = draw.randrange(1000), draw.choice(_COLOURS)
        turns = (
            Turn("user", f"which colour has gate {gate}?"),
            Turn("assistant", f"gate {gate} is painted {colour} now."),
        )
        size = sum(len(turn.content.encode()) for turn in turns)
        found.append(Conversation(f"topic-{seed}-{number}", turns, size))
    return found


@dataclass
class GateWorld:
    """What a gate is asked about; all sets are small and made in code."""

    store: ArtifactStore
    made: int = 0
    sets: dict[str, list[Record]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.old: list[Record] = list(make_conversations(200, seed=0))
        self.feedback = make_topic(60, seed=1)
        self.sets = {
            "target": make_topic(20, seed=2),
            "general": list(make_conversations(20, seed=3)),
            "twin": list(make_conversations(20, seed=4)),
        }
        self.corpus = self.add_corpus(self.old)
        self.collected = self.add_corpus(self.feedback)
        self.tokenizer = train_tokenizer(
            [turn.content for each in self.old + self.feedback for turn in each.turns],  # type: ignore[union-attr]
            vocab_size=VOCAB_SIZE,
            chat_template=DEFAULT_TEMPLATE,
            context_length=64,
        )
        first = self.add(self._begin, kind="checkpoint", origins=[self.corpus])
        self.live = self.add(
            lambda folder: self.train(self.old, folder, base=first.path, steps=120, rate=4),
            kind="checkpoint",
            origins=[first, self.corpus],
        )
        self.pledge = self.seal(CONFIG)

    def _begin(self, folder: Path) -> None:
        model = Transformer(tiny_shape(vocab_size=VOCAB_SIZE))
        initialise(model, seed=0)
        self.save(model, folder)

    def save(self, model: Transformer, folder: Path) -> None:
        """A checkpoint with the world's tokenizer."""
        self.tokenizer.save(folder)
        stop, document = self.tokenizer.stop_ids[0], self.tokenizer.document_id
        save_model(model, folder, stop_id=stop, document_id=document)

    def add(
        self,
        files: Files,
        *,
        kind: str,
        origins: Iterable[Artifact],
        created: float | None = None,
    ) -> Artifact:
        """An artifact of the home; its stage began at `created`, or now."""
        self.made += 1
        started = time.time() if created is None else created
        with self.store.write("test", f"{self.made:016x}") as draft:
            files(draft.path)
            return draft.finish(
                kind=kind,
                name="test",
                made_from=[{"kind": o.kind, "fingerprint": o.fingerprint} for o in origins],
                settings={},
                counts={},
                code_version="test",
                environment={},
                created=started,
            )

    def add_corpus(self, records: Sequence[Record]) -> Artifact:
        """A corpus with these records as its training text."""
        return self.add(
            lambda folder: write_records(records, folder / "train.parquet"),
            kind="corpus",
            origins=[],
        )

    def seal(self, config: GateConfig, *, sealed: float | None = None) -> Artifact:
        """A pledge of these thresholds on the world's sets."""
        when = time.time() if sealed is None else sealed
        return self.add(
            lambda folder: freeze(config, sets=self.sets, folder=folder, sealed=when),
            kind="pledge",
            origins=[self.corpus],
            created=when,
        )

    def add_candidate(self, files: Files, *, corpora: Iterable[Artifact] | None = None) -> Artifact:
        """A checkpoint made from the live model and the feedback, under the pledge."""
        own = [self.collected] if corpora is None else corpora
        return self.add(files, kind="checkpoint", origins=[self.live, self.pledge, *own])

    def train(
        self,
        records: Sequence[Record],
        folder: Path,
        *,
        base: Path | None = None,
        steps: int = 60,
        rate: float = 1.0,
        replay_share: float = 0.0,
        passes: int = 1,
    ) -> None:
        """Fine-tune the live model (or `base`) and write the checkpoint into `folder`."""
        work = folder.with_name(f"{folder.name}.work")
        try:
            (work / "shards").mkdir(parents=True)
            write_mixture(
                records,
                lambda: self.old,
                tokenizer=self.tokenizer,
                folder=work / "shards",
                passes=passes,
                replay_share=replay_share,
                seed=0,
            )
            finetune(
                FinetuneConfig(
                    steps=steps,
                    learning_rate=0.002 * rate,
                    matrix_learning_rate=0.005 * rate,
                    decay_share=0.8,
                    **SETTINGS,  # type: ignore[arg-type]
                ),
                base=base or self.live.path,
                shards=work / "shards",
                folder=folder,
                run=work / "run",
                seed=0,
                validate=lambda model: 0.0,
                clock=time.monotonic,
                progress=Silent(),
            )
        finally:
            shutil.rmtree(work, ignore_errors=True)


def write_records(records: Sequence[Record], path: Path) -> None:
    """Records as a split of a corpus."""
    rows = [{**build_row(each), "source": "test"} for each in records]
    write_split(pa.Table.from_pylist(rows, schema=SCHEMA), path)


def copy_files(source: Artifact) -> Files:
    """The same files."""

    def write(folder: Path) -> None:
        for name in source.files:
            shutil.copyfile(source.path / name, folder / name)

    return write


def change_weights(source: Artifact, change: Callable[[Transformer], Transformer | None]) -> Files:
    """The same checkpoint with weights that `change` changes in place or replaces."""

    def write(folder: Path) -> None:
        model = load_model(source.path)
        with torch.no_grad():
            model = change(model) or model
        tokenizer = Tokenizer.open(source.path)
        tokenizer.save(folder)
        stop, document = tokenizer.stop_ids[0], tokenizer.document_id
        save_model(model, folder, stop_id=stop, document_id=document)

    return write


class WorkClock:
    """Goes on by one with every block that is computed: time as the work that was done."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@contextmanager
def watch_work() -> Iterator[WorkClock]:
    """A clock that all models drive while the context is open."""
    clock = WorkClock()
    forward = Block.forward

    def counted(block: Block, *arguments: object) -> object:
        clock.now += 1
        return forward(block, *arguments)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Block, "forward", counted)
        yield clock
