"""The shape of a decoder: everything that fixes its parameters and what they mean.

How it is spelt in `config.json` is a matter of its family: see `families.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

from lmloop.model.rotary import RopeScaling


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderConfig:
    """Everything that fixes the parameters of a decoder with norms before each half of a block."""

    vocab_size: int
    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    context_length: int
    """Positions that the model is made for, in tokens."""
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling | None = None
    """How rotary positions reach beyond the length that was trained first; None: they do not."""
    norm_epsilon: float = 1e-6
    qk_norm: bool = True
    """Whether queries and keys are normalised, a head each."""
    qkv_bias: bool = False
    """Whether queries, keys and values have a bias."""
    tie_embeddings: bool = True
    int8: bool = False
    """Whether the matrices of the blocks rest in 8 bits."""
    family: str = "qwen3"
    """Whose names and spelling the checkpoint has: a `model_type` of `families.py`."""

    @property
    def qkv_rows(self) -> tuple[int, int, int]:
        """Rows of queries, keys and values in their fused product."""
        keys = self.num_kv_heads * self.head_dim
        return self.num_heads * self.head_dim, keys, keys
