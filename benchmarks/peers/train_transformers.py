"""A training step of transformers' Llama with torch's fused AdamW under bfloat16 autocast."""

from __future__ import annotations

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from reference import FEED_FORWARD, HEADS, LAYERS, ROW, ROWS, VOCABULARY, WIDTH, time_steps

torch.manual_seed(0)
config = LlamaConfig(
    vocab_size=VOCABULARY,
    hidden_size=WIDTH,
    intermediate_size=FEED_FORWARD,
    num_hidden_layers=LAYERS,
    num_attention_heads=HEADS,
    num_key_value_heads=HEADS,
    max_position_embeddings=ROW,
    tie_word_embeddings=True,
)
model = LlamaForCausalLM(config).train()
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
tokens = torch.randint(0, VOCABULARY, (ROWS, ROW))


def step() -> None:
    """Forward, backward, clip, update."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(input_ids=tokens, labels=tokens).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


time_steps(step)
