"""The shape of a model: everything that fixes its parameters and what they mean.

How it is spelt in `config.json` is a matter of its family, which this folder knows nothing of.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lmloop.model.rotary import RopeScaling

Mixer = Literal["attention", "local", "lstm", "gru", "convolution"]
"""How the tokens of one layer learn of each other; local attention sees within `window`."""
Positions = Literal["rotary", "learned", "sinusoidal", "relative", "none"]
Task = Literal["sequence", "token", "span", "embedding"]
"""Labels of a text or of each token, first and last token of an answer, a vector of a text."""
Activation = Literal["silu", "gelu", "gelu_tanh", "relu", "relu2"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Experts:
    """A feed-forward layer of many small ones, of which each token passes a few."""

    count: int
    active: int
    """Experts that a token passes."""
    size: int
    """Width of each."""
    shared_size: int = 0
    """Width of one more, which every token passes."""
    normalise: bool = True
    """Whether the shares of the experts that were chosen are made to add up to one."""
    balance: float = 0.0
    """Weight of the loss that keeps experts equally busy while training."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """A square of pixels, cut into square patches."""

    size: int
    """Pixels on each of its sides."""
    patch: int
    """Pixels on each side of a patch."""
    channels: int = 3
    """Numbers a pixel."""
    leading: int = 1
    """Learnt vectors in front of those of the patches, the first of them for the whole picture."""

    def __post_init__(self) -> None:
        """Raise `ValueError` where there are no pixels, or not whole patches."""
        least = {"size": 1, "patch": 1, "channels": 1, "leading": 0}
        for name, number in least.items():
            if getattr(self, name) < number:
                raise ValueError(f"{name} is {getattr(self, name)}: at least {number} is needed")
        if self.size % self.patch:
            raise ValueError(f"{self.size} pixels make no whole patches of {self.patch}")

    @property
    def length(self) -> int:
        """Vectors that it becomes."""
        return (self.size // self.patch) ** 2 + self.leading


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """The shape of one stack of blocks, from its embedding to its head.

    With `encoder`, the blocks also look at the final states of that other stack, which is made of
    the same parts: that is an encoder-decoder.
    """

    vocab_size: int
    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    """Width of the feed-forward layers; 0: there are none."""
    context_length: int
    """Positions that the model is made for, in tokens."""
    causal: bool = True
    """Whether a token sees only itself and those before it."""
    encoder: ModelConfig | None = None
    mixers: tuple[Mixer, ...] = ()
    """One a layer; empty: attention in all of them."""
    window: int | None = None
    """Local attention sees tokens nearer than this."""
    kernel_size: int = 4
    """Tokens under a convolution."""
    pooling: int = 1
    """Places of a convolution of which the largest is taken."""

    qk_norm: bool = True
    """Whether queries and keys are normalised, a head each."""
    qkv_bias: bool = False
    output_bias: bool = False
    attention_scale: float | None = None
    """What products of queries and keys are multiplied with; None: 1 / √head_dim."""
    attention_cap: float | None = None
    """Scores are kept within ± this by a tanh."""
    beta: float | None = None
    """Attention weights are softmax(β · cosine) instead of a scaled product; None: they are not."""
    learn_beta: bool = False
    """Whether β, a head each, is learnt from where it starts."""
    projections: bool = True
    """Without, the tokens themselves are queries, keys and values."""

    positions: Positions = "rotary"
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling | None = None
    """How rotary positions reach beyond the length that was trained first; None: they do not."""
    local_rope_theta: float | None = None
    """Base in local layers, which are not scaled; None: as in the others."""
    rotary_share: float = 1.0
    """Share of a head that is rotated."""
    relative_buckets: int = 32
    relative_distance: int = 128
    """Tokens from which on distances share the last bucket."""

    norm: Literal["rms", "layer", "batch"] = "rms"
    norm_place: Literal["pre", "post", "both"] = "pre"
    """Before a part of a block, after it is added, or before it and before it is added."""
    norm_epsilon: float = 1e-6
    norm_bias: bool = True
    """Whether layer norms have one."""
    embedding_norm: bool = False
    """Whether the embedding is normalised, with a norm of its own."""
    first_norm: bool = True
    """Whether the first mixer has a norm before it."""
    final_norm: bool = True
    parallel: bool = False
    """Whether mixer and feed-forward layer of a block read the same input."""

    activation: Activation = "silu"
    gated: bool = True
    """Whether feed-forward layers are activation(gate) · up: SwiGLU with silu, GeGLU with gelu."""
    feed_forward_bias: bool = False
    experts: Experts | None = None
    dropout: float = 0.0

    audio_bins: int | None = None
    """Mel bins a frame that an encoder reads instead of tokens."""
    picture: Picture | None = None
    """What an encoder sees instead of tokens."""
    token_types: int = 0
    """Kinds of segments that have an embedding of their own, as in BERT."""
    embedding_scale: float = 1.0
    tie_embeddings: bool = True
    head: Literal["plain", "transformed", "none"] = "plain"
    """Logits of the states, of the states after one more layer (as in BERT), or no logits."""
    head_bias: bool = False
    logit_scale: float = 1.0
    """What the states are multiplied with before they become logits."""
    logit_cap: float | None = None
    """Logits are kept within ± this by a tanh."""
    int8: bool = False
    """Whether the matrices of the blocks rest in 8 bits."""
    family: str = "qwen3"
    """Whose names and spelling its checkpoint has, a `model_type`."""

    def __post_init__(self) -> None:
        """Raise `ValueError` where numbers make no sense or do not fit each other."""
        sizes = ("vocab_size", "num_layers", "hidden_size", "num_heads", "num_kv_heads")
        for name in (*sizes, "head_dim", "context_length", "kernel_size", "pooling"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: at least 1 is needed")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"{self.num_heads} heads for {self.num_kv_heads} keys: no multiple")
        if self.mixers and len(self.mixers) != self.num_layers:
            raise ValueError(f"{len(self.mixers)} mixers for {self.num_layers} layers")
        if "local" in self.mixers and self.window is None:
            raise ValueError("local attention needs a window")
        if self.positions == "rotary" and self.rotary_dim % 2:
            raise ValueError(f"{self.rotary_dim} rotated numbers of a head: rotation needs pairs")
        if self.parallel and self.norm_place != "pre":
            raise ValueError("parallel parts of a block have their norms before them")
        if not self.projections and (
            self.num_heads * self.head_dim != self.hidden_size
            or self.num_heads != self.num_kv_heads
        ):
            raise ValueError("without projections the heads, all alike, make up the hidden size")
        both_ways = not self.causal and {"lstm", "gru"} & set(self.mixers)
        if not self.reads_tokens and self.head != "none":
            raise ValueError("what reads no tokens gives states alone: its head is 'none'")
        if self.picture is not None and self.audio_bins is not None:
            raise ValueError("a stack reads sound or pictures: one of audio_bins and picture")
        if self.picture is not None and self.picture.length > self.context_length:
            raise ValueError(
                f"a picture becomes {self.picture.length} vectors, context_length is "
                f"{self.context_length}: at least as many are needed"
            )
        if self.hidden_size % 2 and (both_ways or self.positions == "sinusoidal"):
            raise ValueError(f"a hidden size of {self.hidden_size} has no two halves")

    @property
    def reads_tokens(self) -> bool:
        """Whether it reads tokens, and not sound or pictures."""
        return self.audio_bins is None and self.picture is None

    @property
    def qkv_rows(self) -> tuple[int, int, int]:
        """Rows of queries, keys and values in their fused product."""
        keys = self.num_kv_heads * self.head_dim
        return self.num_heads * self.head_dim, keys, keys

    @property
    def rotary_dim(self) -> int:
        """Numbers of a head that are rotated."""
        return int(self.head_dim * self.rotary_share)

    def mixer(self, layer: int) -> Mixer:
        """How the tokens of a layer learn of each other."""
        return self.mixers[layer] if self.mixers else "attention"
