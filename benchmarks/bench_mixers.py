"""Bits per byte at equal arithmetic, on the same text: what each way of mixing tokens is worth.

All kinds have the same width, depth, vocabulary, optimiser and text, and train until they have
spent the same arithmetic, forward and backward, as `model/cost.py` counts it. A kind that costs
more a token sees fewer tokens. Seconds are told beside: equal arithmetic is not equal time.
"""

from __future__ import annotations

import importlib.resources
import json
import math
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness import make_parser, make_row, report
from lmloop.inference.score import cut_windows, score_windows
from lmloop.model.config import Experts, ModelConfig
from lmloop.model.cost import count_parameters, training_flops_per_token
from lmloop.model.hardware import fast_dtype, tune_process
from lmloop.model.init import initialise
from lmloop.model.transformer import Transformer
from lmloop.tokens.chat import DEFAULT_TEMPLATE
from lmloop.tokens.loader import Batch
from lmloop.tokens.tokenizer import Tokenizer, train_tokenizer
from lmloop.training.batch import batch_loss
from lmloop.training.optim import Optimizer
from lmloop.training.schedule import rate_factor

VOCABULARY, ROW, ROWS, LAYERS, WIDTH = 2048, 128, 16, 4, 256
HELD_OUT = 150
"""Conversations at the end that are only measured on."""
PLAIN = ModelConfig(
    vocab_size=VOCABULARY,
    num_layers=LAYERS,
    hidden_size=WIDTH,
    num_heads=4,
    num_kv_heads=4,
    head_dim=64,
    intermediate_size=704,
    context_length=ROW,
)
KINDS: Mapping[str, dict[str, Any]] = {
    "transformer": {},
    "cosine": {"beta": 10.0, "learn_beta": True, "qk_norm": False},
    "lstm": {"mixers": ("lstm",) * LAYERS, "positions": "none"},
    "gru": {"mixers": ("gru",) * LAYERS, "positions": "none"},
    "cnn_rnn": {
        "mixers": ("convolution", "convolution", "lstm", "lstm"),
        "positions": "none",
        "pooling": 2,
    },
    "experts": {"experts": Experts(count=8, active=2, size=352, balance=0.01)},
}


def read_texts() -> tuple[list[str], list[str]]:
    """Conversations of the demo's package, one text each: for training, and held out."""
    data = importlib.resources.files("chitchat_dataset").joinpath("dataset.json")
    texts = [
        "\n".join(said["text"] for turn in each["messages"] for said in turn)
        for each in json.loads(data.read_text("utf-8")).values()
    ]
    texts = [text for text in texts if text.strip()]
    return texts[:-HELD_OUT], texts[-HELD_OUT:]


def train(config: ModelConfig, ids: NDArray[np.int64], *, budget: float) -> tuple[Transformer, int]:
    """A model that has spent `budget` floating-point operations, and the tokens that it saw."""
    model = Transformer(config)
    initialise(model, seed=0)
    model.to(fast_dtype())
    optimizer = Optimizer(
        model, learning_rate=0.004, matrix_learning_rate=0.02, weight_decay=0.0, method="muon"
    )
    cost = training_flops_per_token(config, row_tokens=ROW) * ROW * ROWS
    steps = max(1, round(budget / cost))
    order = np.random.default_rng(0)
    positions = np.tile(np.arange(ROW), (ROWS, 1))
    for step in range(steps):
        starts = order.integers(0, len(ids) - ROW - 1, ROWS)
        rows = ids[starts[:, None] + np.arange(ROW + 1)]
        learnt = np.ones((ROWS, ROW), dtype=np.bool_)
        batch = Batch(rows[:, :-1], rows[:, 1:], learnt, np.zeros_like(positions), positions)
        batch_loss(model, batch).backward()
        factor = rate_factor(step / steps, curve="wsd", warmup_share=0.02, decay_share=0.5)
        optimizer.step(factor, clip=1.0)
    return model.eval(), steps * ROWS * ROW


def bits_per_byte(model: Transformer, tokenizer: Tokenizer, texts: list[str]) -> float:
    """Over the held-out texts, each token once, in windows of the context."""
    documents = [np.array(tokenizer.encode_document(text)) for text in texts]
    nats = score_windows(model, list(cut_windows(documents, context_length=ROW)))
    return math.fsum(nats) / math.log(2) / sum(len(text.encode()) for text in texts)


def main() -> None:
    """Train each kind on the same budget."""
    parser = make_parser(__doc__)
    parser.add_argument("--budget", type=float, default=6e12, help="operations a kind")
    arguments = parser.parse_args()
    tune_process()
    texts, held_out = read_texts()
    tokenizer = train_tokenizer(
        texts, vocab_size=VOCABULARY, chat_template=DEFAULT_TEMPLATE, context_length=ROW
    )
    ids = np.concatenate([tokenizer.encode_document(text) for text in texts])
    found: dict[str, float] = {}
    rows = []
    for kind, changes in KINDS.items():
        config = replace(PLAIN, **changes)
        start = time.perf_counter()
        model, tokens = train(config, ids, budget=arguments.budget)
        seconds = time.perf_counter() - start
        found[kind] = bits_per_byte(model, tokenizer, held_out)
        row = make_row(
            f"mixers.{kind}",
            "bits per byte",
            found[kind],
            peer_name="transformer",
            peer=found["transformer"],
            smaller_is_better=True,
        )
        row |= {"tokens": tokens, "parameters": count_parameters(config), "seconds": round(seconds)}
        rows.append(row)
    report("bench_mixers", rows, arguments)


if __name__ == "__main__":
    main()
