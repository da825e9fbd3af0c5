"""The model: embed, pass the blocks, normalise, project.

Takes: packed tokens [N] with their positions and a view that says who sees whom; or plain [B, T].
Gives: hidden states [N, D] or logits. Training, generation and scoring use this one forward;
decoder, encoder and encoder-decoder are this one class. Axes: N tokens, B rows, T places, D width,
V vocabulary; features are what a spectrogram [F, T] or a picture [C, H, W] has.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lmloop.model.block import Block
from lmloop.model.config import ModelConfig
from lmloop.model.embedding import (
    AudioStem,
    HeadTransform,
    InputLayer,
    PatchStem,
    make_embedding,
)
from lmloop.model.norms import make_norm
from lmloop.model.positions import RelativeBias, Rotary
from lmloop.model.recompute import Checkpointing, of_layer, run_block
from lmloop.model.rows import PackedRows, Source
from lmloop.model.views import Place, View

if TYPE_CHECKING:
    from jaxtyping import Float, Int


class Transformer(nn.Module):
    """A stack of blocks; with `config.encoder`, another one before it whose states it looks at."""

    def __init__(
        self,
        config: ModelConfig,
        *,
        embedding: nn.Embedding | AudioStem | PatchStem | None = None,
    ) -> None:
        """`embedding` is the table of tokens where another stack has it already."""
        super().__init__()
        self.config = config
        self.checkpointing: Checkpointing = "none"
        self.embedding = make_embedding(config) if embedding is None else embedding
        self.input = InputLayer(config)
        self.encoder = None
        if config.encoder is not None:
            shared = self.embedding if config.encoder.reads_tokens else None
            self.encoder = Transformer(config.encoder, embedding=shared)
        self.rotary = Rotary(config) if config.positions == "rotary" else None
        self.relative = RelativeBias(config) if config.positions == "relative" else None
        self.blocks = nn.ModuleList(Block(config, layer=i) for i in range(config.num_layers))
        self.norm = make_norm(config) if config.final_norm else None
        self.transform = HeadTransform(config) if config.head == "transformed" else None
        self.head = None
        if config.head != "none":
            self.head = nn.Linear(config.hidden_size, config.vocab_size, bias=config.head_bias)
            if config.tie_embeddings:
                self.head.weight = self.embedding.weight

    @property
    def device(self) -> torch.device:
        """Where its weights are, and what it is given must be."""
        return self.embedding.weight.device

    def checkpoint(self, checkpointing: Checkpointing) -> None:
        """Choose what all stacks keep for the way back; see `recompute.py`."""
        self.checkpointing = checkpointing
        if self.encoder is not None:
            self.encoder.checkpoint(checkpointing)

    def forward(
        self,
        tokens: Int[Tensor, "B T"],
        *,
        lengths: Int[Tensor, "B"] | None = None,
        types: Int[Tensor, "B T"] | None = None,
        source: Source | None = None,
    ) -> Float[Tensor, "B T V"]:
        """Logits of rows, each a text of its own, its first `lengths` tokens or all of them."""
        states = self.states(tokens, lengths=lengths, types=types, source=source)
        return self.project(states.flatten(0, 1)).view(*tokens.shape, -1)

    def states(
        self,
        tokens: Int[Tensor, "B T"] | Float[Tensor, "B *features"],
        *,
        lengths: Int[Tensor, "B"] | None = None,
        types: Int[Tensor, "B T"] | None = None,
        source: Source | None = None,
    ) -> Float[Tensor, "B T D"]:
        """Final hidden states of rows of tokens, or of spectrograms or pictures."""
        x = self.embedding(tokens)
        rows, length, _ = x.shape
        segments = None if lengths is None else _end(lengths, length)
        view = PackedRows(
            rows=rows, length=length, segments=segments, causal=self.config.causal, source=source
        )
        positions = torch.arange(length, device=x.device).repeat(rows)
        types = None if types is None else types.flatten()
        return self._pass(x.flatten(0, 1), positions, view, types).view(rows, length, -1)

    def read(
        self,
        source: Int[Tensor, "B T"] | Float[Tensor, "B *features"],
        *,
        lengths: Int[Tensor, "B"] | None = None,
    ) -> Source:
        """What the encoder makes of rows of tokens, or of spectrograms or pictures."""
        if self.encoder is None:
            raise ValueError("this model has no encoder: it reads no source")
        states = self.encoder.states(source, lengths=lengths)
        rows, length = states.shape[:2]
        whole = torch.zeros(rows, length, dtype=torch.int64, device=states.device)
        segments = whole if lengths is None else _end(lengths, length)
        return Source(states.flatten(0, 1), segments)

    def encode(
        self,
        tokens: Int[Tensor, "N"],
        positions: Int[Tensor, "N"],
        view: View,
        *,
        types: Int[Tensor, "N"] | None = None,
    ) -> Float[Tensor, "N D"]:
        """Final hidden states of packed tokens."""
        return self._pass(self.embedding(tokens), positions, view, types)

    def project(self, hidden: Float[Tensor, "N D"]) -> Float[Tensor, "N V"]:
        """Logits of hidden states."""
        if self.head is None:
            raise ValueError("this model has no head: it gives hidden states, no logits")
        hidden = hidden if self.transform is None else self.transform(hidden)
        hidden = hidden if self.config.logit_scale == 1.0 else hidden * self.config.logit_scale
        logits = F.linear(hidden, self.head.weight, self.head.bias)
        cap = self.config.logit_cap
        return logits if cap is None else cap * torch.tanh(logits / cap)

    def _pass(
        self, x: Tensor, positions: Tensor, view: View, types: Tensor | None
    ) -> Float[Tensor, "N D"]:
        """From the vectors of the tokens to their final states."""
        x = self.input(x, positions, types)
        everywhere, local = self._place(positions, dtype=x.dtype)
        kinds = [self.config.mixer(layer) for layer in range(self.config.num_layers)]
        if self.checkpointing != "none" and isinstance(view, PackedRows):
            windows = {"attention": None, "local": self.config.window}
            seen = {windows[kind] for kind in kinds if kind in windows}
            view.make_ready(seen, everywhere.bias, like=x)
        for kind, block in zip(kinds, self.blocks, strict=True):
            place = local if kind == "local" else everywhere
            kept = of_layer(self.checkpointing, mixer=kind)
            x = run_block(block, x, place, view, checkpointing=kept)
        return x if self.norm is None else self.norm(x)

    def _place(self, positions: Tensor, *, dtype: torch.dtype) -> tuple[Place, Place]:
        """Where the tokens stand, for layers that see everything and for local ones."""
        if self.rotary is not None:
            return self.rotary.places(positions, dtype=dtype)
        place = Place(bias=self.relative)
        return place, place


def _end(lengths: Tensor, length: int) -> Int[Tensor, "B T"]:
    """Segments: 0 for a text's tokens, 1 for the padding behind them."""
    places = torch.arange(length, device=lengths.device)
    return (places >= lengths[:, None]).long()
