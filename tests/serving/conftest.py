"""What the serving tests share: a running server, and a tiny real checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from .harness import Server, running_server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that the tests of one file share; leave its engine alive."""
    with running_server(tmp_path_factory.mktemp("server")) as running:
        yield running


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint folder of a tiny random model with a tokenizer and a chat template."""
    from lmloop.model.config import ModelConfig
    from lmloop.model.init import initialise
    from lmloop.model.transformer import Transformer
    from lmloop.tokens.chat import DEFAULT_TEMPLATE
    from lmloop.tokens.tokenizer import train_tokenizer
    from lmloop.weights.checkpoint import save_model

    folder = tmp_path_factory.mktemp("checkpoint")
    text = "the cat sat on the mat and said: hello, 你好, naïve \U0001f600 world. "
    tokenizer = train_tokenizer(
        [text] * 50, vocab_size=300, chat_template=DEFAULT_TEMPLATE, context_length=96
    )
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size,
        num_layers=1,
        hidden_size=16,
        num_heads=2,
        num_kv_heads=1,
        head_dim=8,
        intermediate_size=32,
        context_length=96,
    )
    model = Transformer(config)
    initialise(model, seed=0)
    stop_id, document_id = tokenizer.stop_ids
    save_model(model, folder, stop_id=stop_id, document_id=document_id)
    tokenizer.save(folder)
    return folder
