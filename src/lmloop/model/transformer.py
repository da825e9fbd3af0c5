"""The decoder: embed, pass the blocks, normalise, project.

Takes: packed tokens [N] with their positions and a view that says who sees whom; or plain [B, T].
Gives: hidden states [N, D] or logits. Training, generation and scoring use this one forward.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lmloop.model.attention import AttentionView, PackedRows
from lmloop.model.block import Block, RMSNorm
from lmloop.model.config import DecoderConfig
from lmloop.model.rotary import rotary_angles, rotary_frequencies


class Transformer(nn.Module):
    """A decoder of Llama's or Qwen's shape."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        # Given weights: drawing random ones here would import a compiler, a second of every start.
        sizes = config.vocab_size, config.hidden_size
        self.embedding = nn.Embedding(*sizes, _weight=torch.zeros(sizes))
        self.blocks = nn.ModuleList(Block(config, layer=i) for i in range(config.num_layers))
        self.norm = RMSNorm(config.hidden_size, epsilon=config.norm_epsilon)
        self.head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_embeddings:
            self.head.weight = self.embedding.weight
        with torch.device("cpu"):  # also where the weights are still without storage
            self.frequencies = rotary_frequencies(
                config.head_dim, theta=config.rope_theta, scaling=config.rope_scaling
            )
        self.magnitude = 1.0 if config.rope_scaling is None else config.rope_scaling.magnitude

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits [B, T, V] of rows of tokens [B, T], each row a text of its own."""
        rows, length = tokens.shape
        positions = torch.arange(length, device=tokens.device).repeat(rows)
        hidden = self.encode(tokens.flatten(), positions, PackedRows(rows=rows, length=length))
        return self.project(hidden).view(rows, length, -1)

    def encode(self, tokens: Tensor, positions: Tensor, view: AttentionView) -> Tensor:
        """Final hidden states [N, D] of packed tokens [N] at positions [N]."""
        x: Tensor = self.embedding(tokens)
        rotary = rotary_angles(positions, self.frequencies, dtype=x.dtype, magnitude=self.magnitude)
        for block in self.blocks:
            x = block(x, rotary, view)
        normed: Tensor = self.norm(x)
        return normed

    def project(self, hidden: Tensor) -> Tensor:
        """Logits [N, V] of hidden states [N, D]."""
        return F.linear(hidden, self.head.weight)
