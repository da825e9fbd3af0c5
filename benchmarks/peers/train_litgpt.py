"""A training step of litgpt's GPT (Llama shape), fused AdamW in bfloat16 autocast."""

from __future__ import annotations

import torch
from litgpt.config import Config
from litgpt.model import GPT
from litgpt.utils import chunked_cross_entropy

from reference import FEED_FORWARD, HEADS, LAYERS, ROW, ROWS, VOCABULARY, WIDTH, time_steps

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
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
tokens = torch.randint(0, VOCABULARY, (ROWS, ROW + 1))


def step() -> None:
    """Forward, backward, clip, update."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(tokens[:, :-1])
        loss = chunked_cross_entropy(logits, tokens[:, 1:], chunk_size=0)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


time_steps(step)
