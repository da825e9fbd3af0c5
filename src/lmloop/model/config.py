"""The shape of a decoder and its two spellings: ours and Hugging Face's `config.json` (Qwen3)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lmloop.errors import ArtifactError

ARCHITECTURE = "Qwen3ForCausalLM"
_FIXED = {"rope_type": "default", "hidden_act": "silu", "use_sliding_window": False}
"""What our forward computes; a folder that says otherwise would be misread without a word."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderConfig:
    """Everything that fixes the parameters of a Qwen3-shaped decoder."""

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
    norm_epsilon: float = 1e-6
    tie_embeddings: bool = True
    int8: bool = False
    """Whether the matrices of the blocks rest in 8 bits."""

    @property
    def qkv_rows(self) -> tuple[int, int, int]:
        """Rows of queries, keys and values in their fused product."""
        keys = self.num_kv_heads * self.head_dim
        return self.num_heads * self.head_dim, keys, keys

    def to_hugging_face(self, *, stop_id: int, pad_id: int, dtype: str) -> dict[str, Any]:
        """The `config.json` that transformers, vLLM and the GGUF converter read."""
        return {
            "architectures": [ARCHITECTURE],
            "model_type": "qwen3",
            "vocab_size": self.vocab_size,
            "num_hidden_layers": self.num_layers,
            "hidden_size": self.hidden_size,
            "num_attention_heads": self.num_heads,
            "num_key_value_heads": self.num_kv_heads,
            "head_dim": self.head_dim,
            "intermediate_size": self.intermediate_size,
            "max_position_embeddings": self.context_length,
            "rope_theta": self.rope_theta,
            "rope_parameters": {"rope_type": "default", "rope_theta": self.rope_theta},
            "rms_norm_eps": self.norm_epsilon,
            "tie_word_embeddings": self.tie_embeddings,
            "hidden_act": "silu",
            "attention_bias": False,
            "attention_dropout": 0.0,
            "use_sliding_window": False,
            "bos_token_id": None,
            "eos_token_id": stop_id,
            "pad_token_id": pad_id,
            "dtype": dtype,
            "use_cache": True,
        }

    @staticmethod
    def from_hugging_face(data: Mapping[str, Any]) -> DecoderConfig:
        """Read a `config.json`; raise `ArtifactError` for a family that is not known here.

        Raises `KeyError`, `TypeError` or `ValueError` where an entry is missing or makes no sense.
        """
        if data.get("model_type") != "qwen3":
            raise ArtifactError(
                f"model_type {data.get('model_type')!r} cannot be opened: known here is 'qwen3'"
            )
        rope = data.get("rope_parameters") or data.get("rope_scaling") or {}
        told = {"rope_type": rope.get("rope_type", rope.get("type")), **data}
        for name, known in _FIXED.items():
            if told.get(name) not in (None, known):
                raise ArtifactError(
                    f"{name} {told[name]!r} cannot be opened: known here is {known!r}"
                )
        return DecoderConfig(
            vocab_size=_size(data, "vocab_size"),
            num_layers=_size(data, "num_hidden_layers"),
            hidden_size=_size(data, "hidden_size"),
            num_heads=_size(data, "num_attention_heads"),
            num_kv_heads=_size(data, "num_key_value_heads"),
            head_dim=_size(data, "head_dim"),
            intermediate_size=_size(data, "intermediate_size"),
            context_length=_size(data, "max_position_embeddings"),
            rope_theta=rope.get("rope_theta", data.get("rope_theta", 10_000.0)),
            norm_epsilon=data["rms_norm_eps"],
            tie_embeddings=data["tie_word_embeddings"],
            int8=_is_int8(data.get("quantization_config")),
        )


def _size(data: Mapping[str, Any], name: str) -> int:
    if type(data[name]) is not int or data[name] < 1:
        raise ValueError(f"{name} is {data[name]!r}, no positive whole number")
    return int(data[name])


def _is_int8(quantization: Mapping[str, Any] | None) -> bool:
    if quantization is None:
        return False
    told = quantization.get("format"), *_weight_schemes(quantization)
    if told != ("pack-quantized", {"num_bits": 8, "strategy": "channel", "symmetric": True}):
        raise ArtifactError(
            f"quantization {told} cannot be opened: known here is 'pack-quantized' of "
            "compressed-tensors with symmetric 8-bit channels"
        )
    return True


def _weight_schemes(quantization: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What decides how weights are read, a group each."""
    groups = quantization.get("config_groups", {}).values()
    known = ("num_bits", "strategy", "symmetric")
    return [{key: group["weights"].get(key) for key in known} for group in groups]
