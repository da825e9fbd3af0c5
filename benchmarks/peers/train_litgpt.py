"""A training step of litgpt's GPT (Llama shape) with fused AdamW, or its gradient alone."""

from __future__ import annotations

import torch
from litgpt.config import Config
from litgpt.model import GPT
from litgpt.utils import chunked_cross_entropy

from reference import FEED_FORWARD, HEADS, LAYERS, ROW, ROWS, VOCABULARY, WIDTH, time_model

torch.manual_seed(0)
config = Config(
    name="reference",
    block_size=ROW,
    padded_vocab_size=VOCABULARY,
    vocab_size=VOCABULARY,
    n_layer=LAYERS,
    n_head=HEADS,
    n_embd=WIDTH,
    rotary_percentage=1.0,
    parallel_residual=False,
    bias=False,
    norm_class_name="RMSNorm",
    mlp_class_name="LLaMAMLP",
    intermediate_size=FEED_FORWARD,
)
model = GPT(config).train()
model.lm_head.weight = model.transformer.wte.weight
tokens = torch.randint(0, VOCABULARY, (ROWS, ROW + 1))
time_model(
    model,
    lambda: chunked_cross_entropy(model(tokens[:, :-1]), tokens[:, 1:], chunk_size=0),
)
