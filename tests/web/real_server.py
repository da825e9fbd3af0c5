"""lmloop's own server with tiny real weights, for the browser to talk to.

Takes: a folder to work in. Gives: a URL and the database. The weights are made by hand: each token
of one sentence points to the next, so the model says that sentence, token by token, and stops.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa
import torch

from lmloop.model.config import ModelConfig
from lmloop.model.init import initialise
from lmloop.model.transformer import Transformer
from lmloop.sections import ServeConfig
from lmloop.serving.server import Signals, engine_spec, listen, run_server, url_of
from lmloop.store.database import database_url, open_database
from lmloop.tokens.chat import DEFAULT_TEMPLATE
from lmloop.tokens.tokenizer import Tokenizer, train_tokenizer
from lmloop.weights.checkpoint import save_model

SENTENCE = (
    "My weights know one sentence only, but they say it gladly: good morning from a tiny model!"
)
VOCAB_SIZE = 320
CONTEXT_LENGTH = 160
WIDTH = 64
START_SECONDS = 60


@dataclass(frozen=True)
class RealServer:
    """A running server."""

    url: str
    database: sa.Engine


def save_checkpoint(folder: Path) -> None:
    """Write a checkpoint that answers everything with `SENTENCE`."""
    tokenizer = train_tokenizer(
        [SENTENCE] * 4,
        vocab_size=VOCAB_SIZE,
        chat_template=DEFAULT_TEMPLATE,
        context_length=CONTEXT_LENGTH,
    )
    config = ModelConfig(
        vocab_size=VOCAB_SIZE,
        num_layers=1,
        hidden_size=WIDTH,
        num_heads=2,
        num_kv_heads=1,
        head_dim=32,
        intermediate_size=64,
        context_length=CONTEXT_LENGTH,
        tie_embeddings=False,
    )
    model = Transformer(config)
    initialise(model, seed=0)  # leaves the block's outputs at zero: it passes its input on
    chain_tokens(model, tokenizer)
    folder.mkdir()
    tokenizer.save(folder)
    stop_id, document_id = tokenizer.stop_ids
    save_model(model, folder, stop_id=stop_id, document_id=document_id)


@torch.no_grad()
def chain_tokens(model: Transformer, tokenizer: Tokenizer) -> None:
    """Let the head answer each token of the sentence with the one behind it."""
    chain = [
        tokenizer.special_id("<|assistant|>"),
        *tokenizer.encode(SENTENCE),
        tokenizer.stop_ids[0],
    ]
    assert len(set(chain)) == len(chain), "a token that comes twice has no one successor"
    vectors = torch.nn.functional.normalize(model.embedding.weight, dim=1)
    for token, successor in zip(chain, chain[1:], strict=False):
        model.head.weight[successor] = 8 * vectors[token]


@contextlib.contextmanager
def run_real_server(folder: Path) -> Iterator[RealServer]:
    """Serve the checkpoint on a free port, in a thread; the engine is a process of its own."""
    save_checkpoint(folder / "checkpoint")
    config = ServeConfig(port=0, max_tokens=64, temperature=0.7)
    database = open_database(database_url(folder))
    ready = threading.Event()
    loop = asyncio.new_event_loop()
    signals = Signals()
    listener = listen(config.host, config.port)

    async def serve() -> None:
        await run_server(
            listener,
            spec=engine_spec(folder / "checkpoint", config),
            config=config,
            model_name="tiny",
            model_created=0,
            database=database,
            on_ready=lambda _url: ready.set(),
            signals=signals,
        )

    def run() -> None:
        try:
            loop.run_until_complete(serve())
        finally:
            loop.close()

    thread = threading.Thread(target=run, name="server", daemon=True)
    thread.start()
    try:
        assert ready.wait(START_SECONDS), "the server did not get ready"
        yield RealServer(url=f"{url_of(listener)}/", database=database)
    finally:
        if thread.is_alive():
            loop.call_soon_threadsafe(signals.receive)
            thread.join(START_SECONDS)
        listener.close()
        database.dispose()
