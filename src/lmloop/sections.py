"""What a recipe may say of making and serving a model: one frozen section a stage.

A docstring stands under every field: it is the help on the command line as well. What comes after
serving is in `lmloop.upkeep`, how training learns in `lmloop.learning`, the whole recipe in
`lmloop.recipe`.
"""

from __future__ import annotations

import math
import re
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

NAME_PATTERN = r"^[a-z0-9][a-z0-9._-]{0,95}$"


def parse_duration(text: str) -> float:
    """Seconds of `"90s"`, `"5m"` or `"2h"`; raises ValueError on anything else."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text)
    if match is None or not 0 < float(match[1]) < math.inf:
        raise ValueError(f"{text!r} is no duration: write a number and s, m or h, such as '5m'")
    return float(match[1]) * {"s": 1, "m": 60, "h": 3600}[match[2]]


def parse_size(text: str) -> int:
    """Bytes of `"500MB"`, `"20GB"` or `"1TB"` (powers of ten); raises ValueError otherwise."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kMGT]?)B?", text)
    size = float(match[1]) * 1000.0 ** " kMGT".index(match[2] or " ") if match else math.inf
    if size == math.inf:
        raise ValueError(f"{text!r} is no size: write a number and MB, GB or TB, such as '20GB'")
    return int(size)


class Section(BaseModel):
    """Base of every section: frozen, no unknown keys, documented under the field."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )


class PrepareConfig(Section):
    """Files to clean documents and conversations."""

    sources: tuple[str, ...] = Field(min_length=1, strict=False)
    """Files, folders, globs, or `package:NAME/PATH` for a file inside an installed package."""
    rehearsal: tuple[str, ...] = Field(default=(), strict=False)
    """Sources of other text, mixed in by `pretrain.rehearsal_share` so that it is not forgotten."""
    outside: tuple[str, ...] = Field(default=(), strict=False)
    """Sources of text that no training reads: the report tells what training costs elsewhere."""
    min_characters: int = Field(default=20, ge=0)
    """Shorter records are dropped (characters after normalisation)."""
    max_characters: int = Field(default=1_000_000, ge=1)
    """Longer records are dropped (characters after normalisation)."""
    min_turns: int = Field(default=2, ge=1)
    """Conversations with fewer turns are dropped; plain documents are not concerned."""
    max_repetition: float = Field(default=0.5, ge=0, le=1)
    """Records in which duplicate lines make up more than this share of characters are dropped."""
    near_duplicate_similarity: float | None = Field(default=0.8, gt=0, le=1)
    """Jaccard similarity of word 5-grams that makes a near duplicate; `"none"` keeps them all."""
    mask_personal_data: bool = True
    """Replace e-mail addresses and telephone numbers by `<email>` and `<phone>`."""
    validation_share: float = Field(default=0.01, gt=0, lt=0.5)
    """Share of records watched during training, chosen by hash of the content."""
    heldout_share: float = Field(default=0.04, gt=0, lt=0.5)
    """Share of records that only `evaluate` sees, chosen by hash of the content."""

    @field_validator("near_duplicate_similarity", mode="before")
    @classmethod
    def _read_none(cls, value: object) -> object:
        # TOML has no word for an absent value.
        return None if value == "none" else value

    @model_validator(mode="after")
    def _check_lengths(self) -> PrepareConfig:
        if self.min_characters > self.max_characters:
            raise ValueError(
                f"min_characters = {self.min_characters} exceeds "
                f"max_characters = {self.max_characters}: every record would be dropped"
            )
        return self


class TokenizeConfig(Section):
    """Clean text to token ids."""

    kind: Literal["bpe", "word", "character"] = "bpe"
    """What an id stands for: a frequent piece of text, a word, a character. What is unknown is
    spelt in smaller ones, down to bytes."""
    segmenter: Literal["jieba", "characters"] = "jieba"
    """How a run of Han characters is cut into words (kind "word")."""
    vocab_size: int = Field(default=4096, ge=300, le=1_000_000)
    """Entries of the vocabulary, special tokens included."""
    train_bytes: int | None = Field(default=None, ge=1)
    """Text that the vocabulary is learnt from, at most. Documents lie in no order, so the first are
    a sample. None: all."""
    extra_tokens: tuple[str, ...] = Field(default=(), strict=False)
    """Special tokens behind the usual ones, such as `<|mask|>`, which some objectives need."""

    @model_validator(mode="after")
    def _check_extra_tokens(self) -> TokenizeConfig:
        for token in self.extra_tokens:
            if re.fullmatch(r"<\|[a-z0-9_]+\|>", token) is None:
                raise ValueError(f"{token!r} is no name of a special token: write '<|name|>'")
        if len(set(self.extra_tokens)) < len(self.extra_tokens):
            raise ValueError("extra_tokens names a token twice: once is enough")
        least = 300 + len(self.extra_tokens)
        if self.vocab_size < least:
            raise ValueError(
                f"vocab_size = {self.vocab_size} leaves no room beside {len(self.extra_tokens)} "
                f"extra_tokens: at least {least} is needed"
            )
        return self


class ModelSection(Section):
    """The shape of the model; as it stands a decoder of Qwen3's shape (RMSNorm, rotary, SwiGLU)."""

    base: str | None = None
    """Model to begin with instead of a new one: a name that was pulled, a folder or a `.gguf` file.
    It brings shape, tokenizer and chat template."""
    auto: bool = Field(default=False, exclude=True)
    """What the recipe leaves open (shape, vocabulary, batch, rates) follows from its text, budget
    and machine; `model = "auto"` says the same."""
    kind: Literal["decoder", "encoder", "encoder-decoder"] = "decoder"
    """What it does: continue text, read it both ways, or read one text and write another."""
    num_layers: int = Field(default=6, ge=1)
    """Blocks; an encoder-decoder has so many twice."""
    hidden_size: int = Field(default=384, ge=8)
    """Width of the residual stream."""
    num_heads: int = Field(default=6, ge=1)
    """Query heads."""
    num_kv_heads: int = Field(default=6, ge=1)
    """Key and value heads; divides `num_heads`."""
    head_dim: int = Field(default=64, ge=2)
    """Width of a head; even."""
    intermediate_size: int = Field(default=1024, ge=0)
    """Width of the feed-forward layer; 0: there is none."""
    context_length: int = Field(default=512, ge=8)
    """Positions that the model is made for, in tokens; with `base`, those that training uses."""
    mixers: tuple[Literal["attention", "local", "lstm", "gru", "convolution"], ...] = Field(
        default=(), strict=False
    )
    """How the tokens of each layer learn of each other, one a layer; empty: attention in all."""
    window: int | None = Field(default=None, ge=1)
    """Local attention sees tokens nearer than this."""
    kernel_size: int = Field(default=4, ge=1)
    """Tokens under a convolution."""
    pooling: int = Field(default=1, ge=1)
    """Places of a convolution of which the largest is taken."""
    qk_norm: bool = True
    """Whether queries and keys are normalised."""
    beta: float | None = Field(default=None, gt=0)
    """Attention weights are softmax(beta · cosine) instead of a scaled product."""
    learn_beta: bool = False
    """Whether beta is learnt from there, a number a head."""
    projections: bool = True
    """Whether queries, keys and values are learnt products of the tokens, or the tokens."""
    positions: Literal["rotary", "learned", "sinusoidal", "relative", "none"] = "rotary"
    """How the model knows where a token stands."""
    rope_theta: float = Field(default=10_000.0, gt=0)
    """Base of the rotary frequencies."""
    norm: Literal["rms", "layer"] = "rms"
    """RMSNorm or LayerNorm."""
    norm_place: Literal["pre", "post", "both"] = "pre"
    """Norms before the parts of a block, after they are added, or before and before adding."""
    norm_epsilon: float = Field(default=1e-6, gt=0)
    """Added to the mean square in norms."""
    activation: Literal["silu", "gelu", "gelu_tanh", "relu", "relu2"] = "silu"
    """Of the feed-forward layers."""
    gated: bool = True
    """SwiGLU with silu, GeGLU with gelu; otherwise two plain products."""
    experts: int | None = Field(default=None, ge=2)
    """Feed-forward layers that a token may pass; absent: one, of `intermediate_size`."""
    experts_active: int = Field(default=2, ge=1)
    """How many of them it passes."""
    expert_size: int = Field(default=256, ge=1)
    """Width of each."""
    balance: float = Field(default=0.01, ge=0)
    """Weight of the loss that keeps experts equally busy."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of the numbers that training forgets at random."""
    tie_embeddings: bool = True
    """Use one matrix for input embedding and output projection."""
    vectors: str | None = None
    """File of word vectors that the embedding begins with, `hidden_size` numbers a word."""
    freeze_embedding: bool = False
    """Keep the embedding as it begins; for `vectors`, with `tie_embeddings = false`."""

    @model_validator(mode="after")
    def _check_base(self) -> ModelSection:
        others = sorted(self.model_fields_set - {"base", "context_length"})
        if self.base is not None and others:
            raise ValueError(f"base brings its own shape: leave out {', '.join(others)}")
        return self

    @model_validator(mode="after")
    def _check_heads(self) -> ModelSection:
        if self.auto:  # the other one is not chosen yet
            return self
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads = {self.num_heads} is no multiple of num_kv_heads = {self.num_kv_heads}"
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim = {self.head_dim} is odd; rotary positions need pairs")
        return self

    @model_validator(mode="after")
    def _check_layers(self) -> ModelSection:
        if self.auto:
            return self
        if self.mixers and len(self.mixers) != self.num_layers:
            raise ValueError(f"{len(self.mixers)} mixers for num_layers = {self.num_layers}")
        if "local" in self.mixers and self.window is None:
            raise ValueError("local attention needs window, in tokens")
        if self.experts is not None and self.experts_active > self.experts:
            raise ValueError(f"experts_active = {self.experts_active} of {self.experts} experts")
        if not self.projections and self.num_heads * self.head_dim != self.hidden_size:
            raise ValueError("without projections num_heads times head_dim must be hidden_size")
        if not self.projections and self.num_heads != self.num_kv_heads:
            raise ValueError("without projections num_kv_heads must be num_heads")
        return self

    @model_validator(mode="after")
    def _check_frozen(self) -> ModelSection:
        if self.freeze_embedding and self.vectors is None:
            raise ValueError("freeze_embedding keeps word vectors: name their file in vectors")
        if self.freeze_embedding and self.tie_embeddings:
            raise ValueError(
                "freeze_embedding would freeze the output projection, which is the same matrix: "
                "set tie_embeddings = false"
            )
        return self


ReportFigure = Literal[
    "hits_at_1",
    "stop_share",
    "empty_share",
    "repetition_share",
    "distinct_1",
    "distinct_2",
    "distinct_3",
    "rehearsal_bits_per_byte",
    "outside_bits_per_byte",
]
"""Figures of a report that have a better end and need no look at the training text."""


class EvaluateConfig(Section):
    """Checkpoint to report, on held-out text only."""

    candidates: int = Field(default=20, ge=2)
    """Replies to choose from in hits@1, the true one included."""
    ranking_questions: int = Field(default=300, ge=1)
    """Held-out contexts that hits@1 is measured on, at most."""
    openers: int = Field(default=100, ge=1)
    """Held-out first turns that the model answers."""
    max_tokens: int = Field(default=96, ge=1)
    """Longest answer, in tokens."""
    temperature: float = Field(default=0.7, ge=0, le=2)
    """Sampling temperature of the answers."""
    top_p: float = Field(default=0.9, gt=0, le=1)
    """Nucleus of the answers."""


class CompressConfig(Section):
    """Checkpoint to a smaller checkpoint."""

    bits: Literal[8] = 8
    """Bits a weight."""
    max_loss: float = Field(default=0.01, ge=0)
    """Largest allowed rise in bits per byte, relative (0.01 = 1 %); above it nothing is written."""


class ServeConfig(Section):
    """Checkpoint to HTTP."""

    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int = Field(default=8000, ge=0, le=65535)
    """Port to listen on; 0 takes a free one."""
    max_running: int = Field(default=16, ge=1)
    """Requests decoded together in one step."""
    max_waiting: int = Field(default=128, ge=0)
    """Requests that may queue; one more is answered 503."""
    max_tokens: int = Field(default=256, ge=1)
    """Longest answer unless the request asks for less, in tokens."""
    temperature: float = Field(default=0.7, ge=0, le=2)
    """Sampling temperature of the chat page."""
    top_p: float = Field(default=0.9, gt=0, le=1)
    """Nucleus of the chat page."""
    content: Literal["off", "redacted", "full"] = "off"
    """What is kept of requests that say nothing of it: no words, masked words, or all words."""
    retention_days: float | None = Field(default=30, gt=0)
    """Days until a request's row is deleted; `"none"` keeps it for ever."""
    signals: bool = True
    """Measure every request: likelihoods, entropy, language, repetition, an embedding."""
    swap: Literal["beside", "pause"] = "beside"
    """How new weights come in: beside the old ones, or after a pause where memory holds one."""
    keep_previous: bool = True
    """Keep the engine of the previous weights running, so that a rollback takes no start."""

    @field_validator("retention_days", mode="before")
    @classmethod
    def _read_none(cls, value: object) -> object:
        return None if value == "none" else value
