"""Attention of packed tokens to each other, and to those of an encoder.

Takes: hidden states [N, D] of packed tokens, where they stand, a view. Gives: [N, D]. The view
decides who sees whom and keeps what later steps need: `rows.py` for training, `cache.py` for
generation. Axes: N tokens, M tokens of the encoder, D width, H query heads, K key heads, d width of
a head.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lmloop.model.config import ModelConfig
from lmloop.model.functions import norm_rotate, rms_norm, rotate
from lmloop.model.linear import Linear
from lmloop.model.scores import Scoring
from lmloop.model.views import Place, View

if TYPE_CHECKING:
    from jaxtyping import Float


class Attention(nn.Module):
    """Grouped-query self-attention by scaled products or by cosines."""

    def __init__(self, config: ModelConfig, *, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.num_heads, self.num_kv_heads = config.num_heads, config.num_kv_heads
        self.head_dim, self.rotary_dim = config.head_dim, config.rotary_dim
        self.epsilon = config.norm_epsilon
        self.scoring = make_scoring(config, layer=layer)
        self.qkv, self.output = None, None
        if config.projections:
            rows, width = config.qkv_rows, config.hidden_size
            self.qkv = Linear(width, sum(rows), bias=config.qkv_bias)
            self.output = Linear(rows[0], width, bias=config.output_bias)
        self.q_norm = nn.Parameter(torch.ones(self.head_dim)) if config.qk_norm else None
        self.k_norm = nn.Parameter(torch.ones(self.head_dim)) if config.qk_norm else None
        self.beta = make_beta(config)

    def forward(self, x: Float[Tensor, "N D"], place: Place, view: View) -> Float[Tensor, "N D"]:
        """Each token gathers from those that the view shows it."""
        q, k, v = self._project(x, place)
        heads = view.attend(self.layer, q, k, v, scoring=self.scoring, bias=place.bias)
        attended = heads.flatten(1)
        return attended if self.output is None else self.output(attended)

    def _project(self, x: Tensor, place: Place) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [N, H, d], keys and values [N, K, d]."""
        heads = (x.repeat(1, 3) if self.qkv is None else self.qkv(x)).view(
            x.shape[0], -1, self.head_dim
        )
        qk, v = torch.split(heads, [self.num_heads + self.num_kv_heads, self.num_kv_heads], dim=1)
        # Queries and keys go through norm and rotation together: fewer and larger operators.
        qk = self._turn(qk, place)
        q, k = torch.split(qk, [self.num_heads, self.num_kv_heads], dim=1)
        return (q if self.beta is None else q * self.beta), k, v

    def _turn(self, qk: Tensor, place: Place) -> Tensor:
        """Queries and keys [N, H + K, d] normed and rotated, each head by itself."""
        whole = place.angles is not None and self.rotary_dim == self.head_dim
        if self.q_norm is not None and self.k_norm is not None:
            weights = (
                self.q_norm.expand(self.num_heads, -1),
                self.k_norm.expand(self.num_kv_heads, -1),
            )
            weight = torch.cat(weights)
            if whole and place.angles is not None and self.beta is None:
                return norm_rotate(qk, weight, place.angles, epsilon=self.epsilon)
            qk = rms_norm(qk, weight, epsilon=self.epsilon)
        qk = qk if self.beta is None else F.normalize(qk, dim=-1)  # of length one, for cosines
        if place.angles is None:
            return qk
        if whole:
            return rotate(qk, *place.angles)
        turned, still = qk[..., : self.rotary_dim], qk[..., self.rotary_dim :]
        return torch.cat([rotate(turned, *place.angles), still], dim=-1)


class CrossAttention(nn.Module):
    """Attention to the final states of an encoder."""

    def __init__(self, config: ModelConfig, *, layer: int) -> None:
        super().__init__()
        self.layer, self.head_dim = layer, config.head_dim
        self.scoring = make_scoring(config, layer=layer)
        (queries, keys, values), width = config.qkv_rows, config.hidden_size
        source_width = width if config.encoder is None else config.encoder.hidden_size
        self.query = Linear(width, queries, bias=config.qkv_bias)
        self.kv = Linear(source_width, keys + values, bias=config.qkv_bias)
        self.output = Linear(queries, width, bias=config.output_bias)
        self.beta = make_beta(config)

    def forward(self, x: Float[Tensor, "N D"], view: View) -> Float[Tensor, "N D"]:
        """Each token gathers from all tokens of its source."""
        q: Tensor = self.query(x).view(x.shape[0], -1, self.head_dim)
        if self.beta is not None:
            q = F.normalize(q, dim=-1) * self.beta
        attended = view.attend_source(self.layer, q, self.read, scoring=self.scoring)
        output: Tensor = self.output(attended.flatten(1))
        return output

    def read(
        self, states: Float[Tensor, "M E"]
    ) -> tuple[Float[Tensor, "M K d"], Float[Tensor, "M K d"]]:
        """Keys and values of the encoder's states."""
        keys, values = self.kv(states).view(states.shape[0], -1, self.head_dim).chunk(2, dim=1)
        return (keys if self.beta is None else F.normalize(keys, dim=-1)), values


def make_beta(config: ModelConfig) -> nn.Parameter | float | None:
    """What cosines are multiplied with, a number for all heads or a learnt one [H, 1] each."""
    if config.beta is None or not config.learn_beta:
        return config.beta
    return nn.Parameter(torch.full((config.num_heads, 1), config.beta))


def make_scoring(config: ModelConfig, *, layer: int) -> Scoring:
    """How a layer makes scores of queries and keys."""
    scale = config.head_dim**-0.5 if config.attention_scale is None else config.attention_scale
    return Scoring(
        scale=scale if config.beta is None else 1.0,
        cap=config.attention_cap,
        window=config.window if config.mixer(layer) == "local" else None,
    )
