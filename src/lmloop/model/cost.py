"""What a model costs, before it exists: parameters, arithmetic and bytes as pure functions.

Takes: a `ModelConfig` and sizes. Gives: numbers; what training keeps of a forward is counted in
`activations.py`. Arithmetic counts a multiply-add as two, and attention over all keys of a row:
those that are hidden are computed as well. Axes: D width, I inner width, H heads, d width of a
head, T tokens of a row, V vocabulary.
"""

from __future__ import annotations

from lmloop.model.config import ModelConfig
from lmloop.model.mixers import state_size

_GATES = {"lstm": 4, "gru": 3}


def count_parameters(config: ModelConfig) -> int:
    """Parameters, those that are tied counted once."""
    width = config.hidden_size
    total = config.vocab_size * width if config.reads_tokens else 0
    total += _count_input(config) + (_norm(config) if config.final_norm else 0)
    total += config.relative_buckets * config.num_heads * (config.positions == "relative")
    for layer in range(config.num_layers):
        total += sum(a * b for a, b in _mixer_matrices(config, layer) + _inner_matrices(config))
        total += _count_vectors(config, layer)
    if config.experts is not None:  # beside those that a token passes
        rest = config.experts.count - config.experts.active
        total += rest * config.num_layers * sum(a * b for a, b in _expert_matrices(config))
    if config.encoder is not None:
        shared = config.vocab_size * width if config.encoder.reads_tokens else 0
        total += count_parameters(config.encoder) - shared
        total += config.num_layers * _count_cross(config)
    return total + _count_head(config)


def training_flops_per_token(
    config: ModelConfig, *, row_tokens: int, source_tokens: int = 0
) -> float:
    """Forward and backward of one token in a row of `row_tokens`, and its share of a source.

    Three times the forward; for a plain decoder 6·N + 12·L·(H·d)·T. Source: Kaplan et al. 2020,
    section 2.1, with attention counted over the whole row.
    """
    forward = decode_flops(config, keys=row_tokens, source_tokens=source_tokens)
    return 3 * (forward + source_flops(config, source_tokens=source_tokens) / row_tokens)


def prefill_flops(config: ModelConfig, *, length: int, source_tokens: int = 0) -> float:
    """Reading a text of `length` tokens at once, with the logits of the last one."""
    head = _head_flops(config)
    inside = decode_flops(config, keys=length, source_tokens=source_tokens) - head
    return length * inside + head + source_flops(config, source_tokens=source_tokens)


def decode_flops(config: ModelConfig, *, keys: int, source_tokens: int = 0) -> float:
    """One token that looks at `keys` tokens, itself included, and its logits.

    The places of a convolution that pooling looks at again are not counted again.
    """
    looked_at = 0
    matrices: list[tuple[int, int]] = []
    for layer in range(config.num_layers):
        matrices += _mixer_matrices(config, layer) + _inner_matrices(config)
        looked_at += keys if config.mixer(layer) in ("attention", "local") else 0
        if config.encoder is not None:
            queries = config.qkv_rows[0]
            matrices += [(config.hidden_size, queries), (queries, config.hidden_size)]
            looked_at += source_tokens
    products = sum(inputs * outputs for inputs, outputs in matrices)
    return 2 * products + 4 * config.qkv_rows[0] * looked_at + _head_flops(config)


def source_flops(config: ModelConfig, *, source_tokens: int) -> float:
    """What the encoder makes of a source, and what all layers read of that; 0 without one."""
    encoder = config.encoder
    if encoder is None or source_tokens == 0:
        return 0.0
    read = 2 * encoder.hidden_size * sum(config.qkv_rows[1:]) * config.num_layers
    return source_tokens * (decode_flops(encoder, keys=source_tokens) + read + _stem_flops(encoder))


def cache_bytes_per_token(config: ModelConfig, *, element_bytes: int = 2) -> int:
    """Bytes of keys and values that one token keeps in the cache."""
    layers = sum(state_size(config, layer=i) is None for i in range(config.num_layers))
    return layers * sum(config.qkv_rows[1:]) * element_bytes


def cache_bytes_per_sequence(
    config: ModelConfig, *, source_tokens: int = 0, element_bytes: int = 2
) -> int:
    """Bytes that a sequence keeps whatever its length: states, keys and values of its source."""
    states = sum(state_size(config, layer=i) or 0 for i in range(config.num_layers))
    source = config.num_layers * sum(config.qkv_rows[1:]) * source_tokens
    return (states + (source if config.encoder is not None else 0)) * element_bytes


def _mixer_matrices(config: ModelConfig, layer: int) -> list[tuple[int, int]]:
    """Inputs and outputs of the products that a token passes in a mixer."""
    width, kind = config.hidden_size, config.mixer(layer)
    if kind in _GATES:
        ways = 1 if config.causal else 2
        gates = _GATES[kind] * width // ways
        return [(width, gates), (width // ways, gates)] * ways + [(width, width)]
    if kind == "convolution":
        return [(config.kernel_size * width, width), (width, width)]
    rows = config.qkv_rows
    return [(width, sum(rows)), (rows[0], width)] if config.projections else []


def _inner_matrices(config: ModelConfig) -> list[tuple[int, int]]:
    """Of the feed-forward layer, or of the experts that a token passes."""
    width, experts = config.hidden_size, config.experts
    if experts is None:
        return _gated(config, config.intermediate_size)
    shared = _gated(config, experts.shared_size)
    return [(width, experts.count), *shared, *_expert_matrices(config) * experts.active]


def _expert_matrices(config: ModelConfig) -> list[tuple[int, int]]:
    return [] if config.experts is None else _gated(config, config.experts.size)


def _gated(config: ModelConfig, inner: int) -> list[tuple[int, int]]:
    width = config.hidden_size
    return [(width, inner * (2 if config.gated else 1)), (inner, width)] if inner else []


def _head_flops(config: ModelConfig) -> int:
    width = config.hidden_size
    transform = width * width if config.head == "transformed" else 0
    return 2 * (transform + (0 if config.head == "none" else width * config.vocab_size))


def _stem_flops(config: ModelConfig) -> float:
    """Of one of the vectors that sound or a picture becomes."""
    width, picture = config.hidden_size, config.picture
    if config.audio_bins:  # the first of two convolutions reads twice as many frames
        return 2 * 3 * width * (2 * config.audio_bins + width)
    if picture is None:
        return 0.0
    patches = 1 - picture.leading / picture.length  # those in front are not computed
    return 2 * picture.channels * picture.patch**2 * width * patches


def _norm(config: ModelConfig) -> int:
    biased = config.norm == "batch" or (config.norm == "layer" and config.norm_bias)
    return config.hidden_size * (2 if biased else 1)


def _norms(config: ModelConfig, *, first: bool = True) -> int:
    """Parameters of the norms around one part of a block."""
    count = {"pre": int(first), "post": 1, "both": 1 + int(first)}[config.norm_place]
    return count * _norm(config)


def _count_vectors(config: ModelConfig, layer: int) -> int:
    """Norms, biases and what else of a layer is no matrix; without cross-attention."""
    width, kind, rows = config.hidden_size, config.mixer(layer), config.qkv_rows
    total = _norms(config, first=config.first_norm or layer > 0)
    if kind in _GATES:
        total += 2 * _GATES[kind] * width
    elif kind == "convolution":
        total += width
    else:
        total += sum(rows) * (config.qkv_bias and config.projections)
        total += 2 * config.head_dim * config.qk_norm
        total += config.num_heads * (config.beta is not None and config.learn_beta)
    total += width * (config.output_bias and (config.projections or kind in _GATES))
    if config.experts is not None:
        biased = [config.experts.shared_size] if config.experts.shared_size else []
        total += _norms(config)
    else:
        biased = [config.intermediate_size] if config.intermediate_size else []
        total += _norms(config) * bool(biased)
    if config.feed_forward_bias:
        total += sum(size * (2 if config.gated else 1) + width for size in biased)
    return total


def _count_cross(config: ModelConfig) -> int:
    rows, width = config.qkv_rows, config.hidden_size
    source_width = width if config.encoder is None else config.encoder.hidden_size
    matrices = 2 * width * rows[0] + source_width * sum(rows[1:])
    biases = sum(rows) * config.qkv_bias + width * config.output_bias
    betas = config.num_heads * (config.beta is not None and config.learn_beta)
    return matrices + biases + betas + _norms(config)


def _count_input(config: ModelConfig) -> int:
    width, bins = config.hidden_size, config.audio_bins
    total = config.context_length * width if config.positions == "learned" else 0
    total += config.token_types * width + (_norm(config) if config.embedding_norm else 0)
    if config.picture is not None:
        pixels = config.picture.channels * config.picture.patch**2
        total += (pixels + 1 + config.picture.leading) * width
    return total + (3 * bins * width + 3 * width * width + 2 * width if bins else 0)


def _count_head(config: ModelConfig) -> int:
    width = config.hidden_size
    if config.head == "none":
        return 0
    total = 0 if config.tie_embeddings else config.vocab_size * width
    total += config.vocab_size * config.head_bias
    if config.head == "transformed":
        total += width * width + width * config.feed_forward_bias + _norm(config)
    return total
