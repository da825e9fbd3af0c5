"""A training step of transformers' Llama with torch's fused AdamW, or its gradient alone."""

from __future__ import annotations

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from reference import FEED_FORWARD, HEADS, LAYERS, ROW, ROWS, VOCABULARY, WIDTH, time_model

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
tokens = torch.randint(0, VOCABULARY, (ROWS, ROW))
time_model(model, lambda: model(input_ids=tokens, labels=tokens).loss)
