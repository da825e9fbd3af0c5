"""Candidates for the gate: one good, one equal, and one for each way of being bad."""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import torch

from lmloop.corpus.decontaminate import Decontaminator
from lmloop.corpus.splits import SCHEMA, build_row, read_split, write_split
from lmloop.inference.load import load
from lmloop.learning import FinetuneConfig
from lmloop.model.init import initialise
from lmloop.model.transformer import Transformer
from lmloop.progress import Silent
from lmloop.records import Conversation, Record, Turn
from lmloop.store.artifact import Artifact, ArtifactStore
from lmloop.tokens.tokenizer import Tokenizer, train_tokenizer
from lmloop.training.recipes import finetune
from lmloop.updating.mixture import write_mixture
from lmloop.updating.pledge import freeze, split_heldout
from lmloop.upkeep import GateConfig
from lmloop.weights.checkpoint import load_model, save_model

DATA = Path(__file__).with_name("data")
SLOWER_LAYERS = 0.5
"""Layers added to a slow candidate, as a share of those it has: about a third more time."""
Files = Callable[[Path], None]


@dataclass
class Workbench:
    """A home with a live model, a sealed gate, and the means to make candidates."""

    store: ArtifactStore
    live: Artifact
    corpus: Artifact
    config: GateConfig
    feedback: list[Record] = field(default_factory=list)
    made: int = 0

    def __post_init__(self) -> None:
        target = read_lines(DATA / "paraphrases.jsonl")
        against = Decontaminator({"target": target})
        lines = read_lines(DATA / "corrections.jsonl")
        self.feedback = [each for each in lines if not against.hits(each)]
        general, twin = split_heldout(
            read_split(self.corpus.path, "heldout"),
            read_split(self.corpus.path, "validation"),
            max_documents=self.config.max_documents,
        )
        self.sets: dict[str, list[Record]] = {
            "target": target,
            "target_twin": self.feedback,
            "general": general,
            "twin": twin,
        }
        self.collected = self.add_corpus(self.feedback)
        self.pledge = self.seal(self.config)

    def add(
        self, files: Files, *, kind: str, origins: Iterable[Artifact], created: float | None = None
    ) -> Artifact:
        """An artifact of the home."""
        self.made += 1
        with self.store.write(f"bench-{kind}", f"{self.made:016x}") as draft:
            files(draft.path)
            return draft.finish(
                kind=kind,
                name="bench",
                made_from=[
                    {"kind": each.kind, "fingerprint": each.fingerprint} for each in origins
                ],
                settings={},
                counts={},
                code_version="bench",
                environment={},
                created=time.time() if created is None else created,
            )

    def add_corpus(self, records: Sequence[Record]) -> Artifact:
        """A corpus of training text."""

        def write(folder: Path) -> None:
            rows = [{**build_row(each), "source": "bench"} for each in records]
            write_split(pa.Table.from_pylist(rows, schema=SCHEMA), folder / "train.parquet")

        return self.add(write, kind="corpus", origins=[])

    def seal(self, config: GateConfig) -> Artifact:
        """A pledge of these thresholds on the same sets."""

        def write(folder: Path) -> None:
            freeze(config, sets=self.sets, folder=folder, sealed=time.time())

        return self.add(write, kind="pledge", origins=[self.corpus])

    def add_candidate(self, files: Files, *, corpora: Iterable[Artifact] = ()) -> Artifact:
        """A checkpoint made from the live model, under the pledge."""
        return self.add(files, kind="checkpoint", origins=[self.live, self.pledge, *corpora])

    def read_old(self) -> Iterable[Record]:
        """The text that the live model was trained on."""
        return read_split(self.corpus.path, "train")

    def train(
        self,
        records: Sequence[Record],
        folder: Path,
        *,
        steps: int,
        replay_share: float,
        passes: int,
        rate: float = 1.0,
        seed: int = 0,
        base: Path | None = None,
    ) -> None:
        """Fine-tune the live model (or `base`) on `records` and write it into `folder`."""
        work = folder.with_name(f"{folder.name}.work")
        try:
            (work / "shards").mkdir(parents=True)
            write_mixture(
                records,
                self.read_old,
                tokenizer=Tokenizer.open(self.live.path),
                folder=work / "shards",
                passes=passes,
                replay_share=replay_share,
                seed=seed,
            )
            row_tokens = min(256, load_model(self.live.path).config.context_length)
            finetune(
                FinetuneConfig(
                    steps=steps,
                    batch_tokens=8 * row_tokens,
                    row_tokens=row_tokens,
                    learning_rate=0.0005 * rate,
                    matrix_learning_rate=0.002 * rate,
                    decay_share=0.8,
                ),
                base=base or self.live.path,
                shards=work / "shards",
                folder=folder,
                run=work / "run",
                seed=seed,
                validate=lambda model: 0.0,
                clock=time.monotonic,
                progress=Silent(),
            )
        finally:
            shutil.rmtree(work, ignore_errors=True)


def read_lines(path: Path) -> list[Record]:
    """Conversations of a file of JSON lines."""
    found: list[Record] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines()):
        messages = json.loads(line)["messages"]
        turns = tuple(Turn(each["role"], each["content"]) for each in messages)
        size = sum(len(turn.content.encode()) for turn in turns)
        found.append(Conversation(f"{path.stem}-{number}", turns, size))
    return found


def change_weights(source: Path, change: Callable[[Transformer], Transformer | None]) -> Files:
    """A copy of a checkpoint whose model was changed."""

    def write(folder: Path) -> None:
        model = load_model(source)
        with torch.no_grad():
            model = change(model) or model
        tokenizer = Tokenizer.open(source)
        tokenizer.save(folder)
        save_model(model, folder, stop_id=tokenizer.stop_ids[0], document_id=tokenizer.document_id)

    return write


def randomise(model: Transformer) -> None:
    """Weights as before training."""
    initialise(model, seed=1)


def break_layer(model: Transformer) -> None:
    """One weight of the last layer is no number."""
    model.blocks[-1].feed_forward.part.down.weight[0, 0] = float("nan")


def add_layers(model: Transformer) -> Transformer:
    """The same function with more work: layers whose outputs are multiplied by zero."""
    extra = max(1, round(SLOWER_LAYERS * model.config.num_layers))
    config = dataclasses.replace(model.config, num_layers=model.config.num_layers + extra)
    deeper = Transformer(config).to(model.embedding.weight.dtype)
    initialise(deeper, seed=0)
    deeper.load_state_dict(model.state_dict(), strict=False)
    for block in list(deeper.blocks)[-extra:]:
        block.mixer.part.output.weight.zero_()
        block.feed_forward.part.down.weight.zero_()
    return deeper


def swap_tokenizer(source: Path, texts: Iterable[str]) -> Files:
    """The same weights with another tokenizer of the same size."""

    def write(folder: Path) -> None:
        shutil.copytree(source, folder, dirs_exist_ok=True)
        (folder / "manifest.json").unlink()
        old = Tokenizer.open(source)
        new = train_tokenizer(
            texts,
            vocab_size=old.vocab_size,
            chat_template=old.chat_template or "",
            context_length=load(source).config.context_length,
        )
        new.save(folder)

    return write


def copy_files(source: Path) -> Files:
    """The same files."""

    def write(folder: Path) -> None:
        shutil.copytree(source, folder, dirs_exist_ok=True)
        (folder / "manifest.json").unlink()

    return write


def cut_answers(records: Iterable[Record], *, words: int) -> list[Record]:
    """The same conversations with answers of so many words."""
    return [
        dataclasses.replace(
            each,
            turns=tuple(
                Turn(turn.role, " ".join(turn.content.split()[:words]))
                if turn.role == "assistant"
                else turn
                for turn in each.turns
            ),
        )
        for each in records
        if isinstance(each, Conversation)
    ]


def shorten(records: Iterable[Record], *, turns: int) -> list[Record]:
    """Each conversation's first turns."""
    found: list[Record] = []
    for each in records:
        if isinstance(each, Conversation):
            kept = each.turns[:turns]
            size = sum(len(turn.content.encode()) for turn in kept)
            found.append(Conversation(each.id, kept, size))
    return found


def plant(bench: Workbench) -> Mapping[str, Callable[[], Artifact]]:
    """How each planted candidate is made, by name."""
    tests = [*bench.sets["target"], *bench.sets["general"]]
    old = list(bench.read_old())

    def better(folder: Path) -> None:
        bench.train(bench.feedback, folder, steps=60, replay_share=0.7, passes=20)

    def overtrained(folder: Path) -> None:
        bench.train(bench.feedback, folder, steps=60, replay_share=0, passes=20, rate=2)

    def leaked(folder: Path) -> None:
        bench.train(
            shorten(tests, turns=2) + tests, folder, steps=80, replay_share=0.2, passes=4, rate=2
        )

    def short(folder: Path) -> None:
        lines = shorten(cut_answers(old[:400], words=2), turns=2)
        bench.train(lines, folder, steps=60, replay_share=0, passes=4, rate=2)

    def texts() -> Iterable[str]:
        for each in bench.read_old():
            if isinstance(each, Conversation):
                yield from (turn.content[::-1] for turn in each.turns)

    made: dict[str, Artifact] = {}

    def good() -> Artifact:
        if "better" not in made:
            made["better"] = bench.add_candidate(better, corpora=[bench.collected])
        return made["better"]

    def derive(files: Callable[[Path], Files]) -> Artifact:
        """From the good candidate: what is refused is refused for its fault alone."""
        return bench.add_candidate(files(good().path), corpora=[bench.collected])

    def cheat() -> Artifact:
        if "leaked" not in made:
            made["leaked"] = bench.add_candidate(leaked, corpora=[bench.add_corpus(tests)])
        return made["leaked"]

    return {
        "better": good,
        "identical copy": lambda: bench.add_candidate(copy_files(bench.live.path)),
        "random weights": lambda: derive(lambda path: change_weights(path, randomise)),
        "over-trained on 50 lines": lambda: bench.add_candidate(
            overtrained, corpora=[bench.collected]
        ),
        "trained on the test": cheat,
        "trained on the test, bare": lambda: bench.add(
            copy_files(cheat().path), kind="checkpoint", origins=[]
        ),
        "wrong tokenizer": lambda: derive(lambda path: swap_tokenizer(path, texts())),
        "NaN layer": lambda: derive(lambda path: change_weights(path, break_layer)),
        "answers cut short": lambda: bench.add_candidate(short, corpora=[bench.collected]),
        "slower": lambda: derive(lambda path: change_weights(path, add_layers)),
    }
