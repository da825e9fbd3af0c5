"""Small things that many tests share, made in code: conversations, tokenizer, shards, a model."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

from lmloop.progress import Silent
from lmloop.records import Conversation, Record, Turn
from lmloop.sections import TokenizeConfig
from lmloop.tokens.tokenize import tokenize
from lmloop.tokens.tokenizer import Tokenizer

from .postgres import Postgres, start_postgres, why_absent

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from lmloop.inference.load import LoadedModel
    from lmloop.model.config import ModelConfig
    from lmloop.model.transformer import Transformer
    from lmloop.pipeline import Made

# The same examples in every run, and no clock: a busy machine is no failure.
settings.register_profile(
    "house", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("house")

VOCAB_SIZE = 340
CONTEXT_LENGTH = 64
SPLIT_SIZES = {"train": 120, "validation": 12, "heldout": 12}

_ASK = ("do you like", "tell me about", "where is", "what is", "I saw", "你好，", "why no")
_WHAT = ("the sea", "a small house", "café music", "the train", "green tea", "火车", "a 🐢")
_SAY = ("I like it a lot", "not today", "it is far away", "no idea 🙂", "yes, I do", "很好")


@pytest.fixture(autouse=True)
def usual_numbers() -> Iterator[None]:
    """Denormal numbers stay what they are, though a stage that trains in a test ends that."""
    yield
    if (torch := sys.modules.get("torch")) is not None:
        torch.set_flush_denormal(False)


def make_conversations(count: int, *, seed: int) -> list[Conversation]:
    """Conversations of two to six turns over a handful of words, no two alike."""
    draw = random.Random(seed)
    made = []
    for number in range(count):
        turns = []
        for _ in range(draw.randint(1, 3)):
            ask = f"{draw.choice(_ASK)} {draw.choice(_WHAT)} number {draw.randrange(1000)}?"
            reply = f"{draw.choice(_SAY)}, {draw.choice(_WHAT)} is {draw.randrange(1000)}."
            turns += [Turn("user", ask), Turn("assistant", reply)]
        size = sum(len(turn.content.encode()) for turn in turns)
        made.append(Conversation(f"{seed}-{number}", tuple(turns), size))
    return made


def write_jsonl(path: Path, conversations: Iterable[Conversation]) -> Path:
    """Conversations as the lines of a file that `prepare` reads."""
    lines = (
        {"messages": [{"role": turn.role, "content": turn.content} for turn in each.turns]}
        for each in conversations
    )
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


RECIPE = """
name = "tiny"

[prepare]
sources = ["{source}"]
near_duplicate_similarity = "none"
validation_share = 0.1
heldout_share = 0.1

[tokenize]
vocab_size = 340

[model]
num_layers = 1
hidden_size = 16
num_heads = 2
num_kv_heads = 1
head_dim = 8
intermediate_size = 24
context_length = 64

[pretrain]
steps = 12
batch_tokens = 64
row_tokens = 32
save_every = 5
validate_every = 6

[finetune]
steps = 6
batch_tokens = 64
row_tokens = 32

[evaluate]
candidates = 3
ranking_questions = 4
openers = 4
max_tokens = 8

[compress]
max_loss = 1.0
"""


def write_recipe(folder: Path) -> Path:
    """A recipe whose every stage takes a moment, with the conversations it reads."""
    source = write_jsonl(folder / "talks.jsonl", make_conversations(150, seed=9))
    recipe = folder / "tiny.toml"
    recipe.write_text(RECIPE.format(source=source), encoding="utf-8")
    return recipe


@dataclass(frozen=True)
class Walked:
    """A recipe that was walked to its end, and its home. Read only."""

    recipe: Path
    home: Path
    made: Made


def random_model(config: ModelConfig, *, seed: int = 0) -> Transformer:
    """A model none of whose parameters is zero or one, so that every part of it shows."""
    import torch

    from lmloop.model.transformer import Transformer

    model = Transformer(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.uniform_(0.5, 1.5, generator=generator)
            else:
                parameter.normal_(0.0, 1.5 * parameter.shape[1] ** -0.5, generator=generator)
    return model


def tiny_shape(**changes: int | float | bool) -> ModelConfig:
    """Two layers, two query heads to a key head, nothing square."""
    from lmloop.model.config import ModelConfig

    sizes: dict[str, int | float | bool] = {
        "vocab_size": 50,
        "num_layers": 2,
        "hidden_size": 24,
        "num_heads": 4,
        "num_kv_heads": 2,
        "head_dim": 8,
        "intermediate_size": 40,
        "context_length": CONTEXT_LENGTH,
    }
    return ModelConfig(**(sizes | changes))  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def splits() -> dict[str, list[Record]]:
    """Conversations by split."""
    return {
        split: list(make_conversations(size, seed=number))
        for number, (split, size) in enumerate(SPLIT_SIZES.items())
    }


@pytest.fixture(scope="session")
def shards_folder(
    splits: dict[str, list[Record]], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """What the stage `tokenize` writes, of the conversations above."""
    folder = tmp_path_factory.mktemp("shards")
    tokenize(
        TokenizeConfig(vocab_size=VOCAB_SIZE),
        splits.__getitem__,
        folder,
        context_length=CONTEXT_LENGTH,
        progress=Silent(),
    )
    return folder


EXTRA_TOKENS = (
    *("<|mask|>", "<|prefix|>", "<|suffix|>", "<|middle|>"),
    *(f"<|extra_{span}|>" for span in range(8)),
)
"""What the objectives need for rows of up to 100 tokens."""


@pytest.fixture(scope="session")
def extended_shards_folder(
    splits: dict[str, list[Record]], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The same of a tokenizer that has the special tokens of all objectives."""
    folder = tmp_path_factory.mktemp("extended")
    tokenize(
        TokenizeConfig(vocab_size=VOCAB_SIZE, extra_tokens=EXTRA_TOKENS),
        splits.__getitem__,
        folder,
        context_length=CONTEXT_LENGTH,
        progress=Silent(),
    )
    return folder


@pytest.fixture(scope="session")
def tokenizer(shards_folder: Path) -> Tokenizer:
    """The tokenizer trained on the conversations above."""
    return Tokenizer.open(shards_folder)


@pytest.fixture(scope="session")
def model_folder(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint folder in fp32 with random weights, tokenizer and chat template."""
    from lmloop.weights.checkpoint import save_model

    folder = tmp_path_factory.mktemp("model")
    tokenizer.save(folder)
    model = random_model(tiny_shape(vocab_size=tokenizer.vocab_size))
    save_model(model, folder, stop_id=tokenizer.stop_ids[0], document_id=tokenizer.document_id)
    return folder


@pytest.fixture(scope="session")
def loaded(model_folder: Path) -> LoadedModel:
    """The folder above, opened in fp32."""
    import torch

    from lmloop.inference.load import load

    return load(model_folder, dtype=torch.float32)


@pytest.fixture(scope="session")
def walked(tmp_path_factory: pytest.TempPathFactory) -> Walked:
    """All stages of the tiny recipe, made in this process."""
    import lmloop

    folder = tmp_path_factory.mktemp("walked")
    recipe, home = write_recipe(folder), folder / "home"
    with pytest.MonkeyPatch.context() as patch:
        # What it changes in a process cannot be taken back.
        patch.setattr("lmloop.stages.tune", lambda: None)
        return Walked(recipe, home, lmloop.run(recipe, home=home))


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL for this run alone; the test is skipped where none is installed."""
    reason = why_absent()
    if reason is not None:
        pytest.skip(reason)
    with start_postgres() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def any_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of an empty database, once of either kind."""
    if request.param == "sqlite":
        from lmloop.store.database import database_url

        yield database_url(tmp_path)
    else:
        with request.getfixturevalue("postgres").database() as url:
            yield url


@pytest.fixture
def any_engine(any_url: str) -> Iterator[Engine]:
    """That database, opened."""
    from lmloop.store.database import open_database

    engine = open_database(any_url)
    yield engine
    engine.dispose()
