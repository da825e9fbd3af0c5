"""What training keeps of a forward for the way back, before the model exists: bytes, a part each.

Takes: a `ModelConfig` and the sizes of a batch. Gives: the bytes of all tensors that autograd holds
on a CPU between tokens and final states, a tensor that two operators share counted once. A tensor
is counted where it is read: an input with the product that it enters, a sum with the norm behind
it. Rows are one text each; of a single row some pieces are no copies but hold the whole that they
are cut from. On CUDA less is kept, since attention there holds no weights.

Axes: D width, I inner width, H query heads, K key heads, d width of a head, E experts, B rows, T
tokens of a row, S tokens of its source.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from lmloop.model import kernels
from lmloop.model.compiled import are_native
from lmloop.model.config import ModelConfig
from lmloop.model.recompute import Checkpointing, of_layer

_INDEX, _EXACT = 8, 4
"""Bytes of an index, and of a number that stays fp32 whatever the others are."""
_GENERATOR = 5056
"""Bytes of the state of a CPU's random numbers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Rows that pass the model together."""

    rows: int
    row_tokens: int
    source_tokens: int = 0
    """Tokens of the source of each row."""
    element_bytes: int = 2

    @property
    def tokens(self) -> int:
        """Of all rows."""
        return self.rows * self.row_tokens


def activation_bytes(
    config: ModelConfig,
    batch: Batch,
    *,
    checkpointing: Checkpointing = "none",
    since: int = 0,
    encoder_since: int = 0,
) -> int:
    """Bytes that the forward of a batch keeps until its backward, head and loss left out.

    Layers below `since`, and the encoder's below `encoder_since`, have no way back: nothing in them
    or below them learns.
    """
    total = _places(config, batch) + (0 if since else _input(config, batch))
    if config.encoder is not None:
        source = replace(batch, row_tokens=batch.source_tokens)
        total += source.tokens * config.encoder.hidden_size * batch.element_bytes  # all layers read
        total += activation_bytes(
            config.encoder, source, checkpointing=checkpointing, since=encoder_since
        )
    for layer in range(since, config.num_layers):
        total += _kept(config, batch, layer, checkpointing)
    return total + _norm(config, batch) * config.final_norm


def way_back_bytes(config: ModelConfig, batch: Batch) -> int:
    """Bytes of gradients on their way through a block whose activations are there."""
    passing = _numbers(batch, 2 * config.hidden_size) + _way_back(config, batch)
    if config.encoder is None:
        return passing
    source = replace(batch, row_tokens=batch.source_tokens)
    return max(passing, way_back_bytes(config.encoder, source))


def unkept_bytes(config: ModelConfig, batch: Batch) -> int:
    """Bytes that a block takes at most on a way forward that nobody asks a gradient of."""
    inner = config.intermediate_size if config.experts is None else config.experts.shared_size
    thinking = (3 if config.gated else 2) * inner  # attention's own operator holds no scores
    taken = _numbers(batch, 3 * config.hidden_size + max(thinking, sum(config.qkv_rows)))
    if config.encoder is None:
        return taken
    return max(taken, unkept_bytes(config.encoder, replace(batch, row_tokens=batch.source_tokens)))


def recomputed_bytes(config: ModelConfig, batch: Batch, *, checkpointing: Checkpointing) -> int:
    """Bytes of the largest block while it is computed again; 0 where all is kept.

    Its states are there beside what its layers keep, and what its way back makes on the way.
    """
    if checkpointing == "none":
        return 0
    blocks = (
        _block(config, batch, layer) - _known(config, batch, layer, checkpointing)
        for layer in range(config.num_layers)
    )
    largest = _numbers(batch, 2 * config.hidden_size) + _way_back(config, batch) + max(blocks)
    if config.encoder is None:
        return largest
    source = replace(batch, row_tokens=batch.source_tokens)
    return max(largest, recomputed_bytes(config.encoder, source, checkpointing=checkpointing))


def _way_back(config: ModelConfig, batch: Batch) -> int:
    """Gradients on their way through the activation, or later those of scores and weights.

    Compiled passes make nothing on the way through the activation, and tiles no scores.
    """
    inner = config.intermediate_size if config.experts is None else config.experts.shared_size
    ways = 2 if config.gated else 1
    is_native = batch.element_bytes != _EXACT and are_native()
    thinking = _numbers(batch, (ways + (not is_native)) * inner)
    if _is_tiled(config, batch):
        return thinking
    seeing = 2 * _numbers(batch, config.num_heads * batch.row_tokens)
    seeing -= _inner(config, batch, inner)  # is gone by then
    return max(thinking, seeing)


def _known(config: ModelConfig, batch: Batch, layer: int, checkpointing: Checkpointing) -> int:
    """What a block takes over of its kept products while it is computed again: they go with it."""
    kept = of_layer(checkpointing, mixer=config.mixer(layer))
    return _products(config, batch, layer) if kept == "selective" else 0


def _kept(config: ModelConfig, batch: Batch, layer: int, checkpointing: Checkpointing) -> int:
    """`recompute.py`: a whole block, or what goes into it, the noise and some products."""
    kept = of_layer(checkpointing, mixer=config.mixer(layer))
    if kept == "none":
        return _block(config, batch, layer)
    total = _numbers(batch, config.hidden_size) + _GENERATOR
    return total + (_products(config, batch, layer) if kept == "selective" else 0)


def _products(config: ModelConfig, batch: Batch, layer: int) -> int:
    """What the matrices of a block's layers give."""
    width, total = config.hidden_size, 0
    if config.mixer(layer) not in ("attention", "local"):
        total += _numbers(batch, width)
    elif config.projections:
        total += _numbers(batch, sum(config.qkv_rows) + width)
    if config.encoder is not None:
        queries, keys, values = config.qkv_rows
        total += _numbers(batch, queries + width)
        total += batch.rows * batch.source_tokens * (keys + values) * batch.element_bytes
    ways = 2 if config.gated else 1
    experts = config.experts
    if experts is None:
        inner = config.intermediate_size
        return total + _numbers(batch, ways * inner + width * (inner > 0))
    shared = ways * experts.shared_size + width * (experts.shared_size > 0)
    each = ways * experts.size + width
    return total + _numbers(batch, experts.count + experts.active * each + shared)


def _input(config: ModelConfig, batch: Batch) -> int:
    """`embedding.py`: which vectors were taken, and what a stem reads of sound or of a picture."""
    width, size = config.hidden_size, batch.element_bytes
    total = batch.tokens * _INDEX * (config.reads_tokens + (config.positions == "learned"))
    if config.audio_bins is not None:
        # Twice as many frames as tokens, as sound and through a convolution; gelus before, behind.
        total += _numbers(batch, 2 * config.audio_bins + 5 * width)
    if config.picture is not None:
        total += batch.rows * config.picture.channels * config.picture.size**2 * size
    total += size * (config.embedding_scale != 1.0)  # as a tensor
    total += _norm(config, batch) * config.embedding_norm
    return total + _dropout(config, batch)


def _places(config: ModelConfig, batch: Batch) -> int:
    """`positions.py`: angles, or buckets and what is hidden, once for layers that share them."""
    kinds = {config.mixer(layer) for layer in range(config.num_layers)} & {"attention", "local"}
    hides = sum(config.causal or kind == "local" for kind in kinds)
    if config.positions == "relative":
        return (_INDEX * len(kinds) + hides) * batch.row_tokens**2
    masks = hides * batch.element_bytes * batch.row_tokens**2 * _is_tiled(config, batch)
    if config.positions == "rotary":
        count = len(kinds) if config.local_rope_theta is not None else min(len(kinds), 1)
        return masks + count * batch.tokens * config.rotary_dim * batch.element_bytes
    return masks


def mixer_bytes(config: ModelConfig, batch: Batch, layer: int) -> int:
    """Bytes that the part of a block keeps in which tokens see each other."""
    first = config.first_norm or layer > 0
    kind = config.mixer(layer)
    if kind in ("attention", "local"):
        total = _sublayer(config, batch, reads=config.projections, first=first)
        return total + _attention(config, batch)
    # Recurrences and convolutions read a copy of theirs.
    total = _sublayer(config, batch, reads=False, first=first)
    mixer = {"lstm": _lstm, "gru": _gru, "convolution": _convolution}[kind]
    return total + mixer(config, batch) + _numbers(batch, config.hidden_size)  # output's input


def _block(config: ModelConfig, batch: Batch, layer: int) -> int:
    """`block.py`: every part with the norms around it."""
    total = mixer_bytes(config, batch, layer)
    if config.encoder is not None:
        total += _sublayer(config, batch) + _cross(config, batch)
    if config.experts is None and not config.intermediate_size:
        return total
    total += _sublayer(config, batch)
    total += _inner(config, batch, config.intermediate_size) if config.experts is None else 0
    total += _experts(config, batch)
    # Both norms of a parallel block hold the same input; a root-mean-square norm holds none.
    shared = config.parallel and config.norm != "rms"
    return total - _numbers(batch, config.hidden_size) * shared


def _sublayer(config: ModelConfig, batch: Batch, *, reads: bool = True, first: bool = True) -> int:
    """What a part reads, if it holds that, and what stands around the part."""
    norms = {"pre": int(first), "post": 1, "both": 1 + int(first)}[config.norm_place]
    read = _numbers(batch, config.hidden_size) * reads
    return read + norms * _norm(config, batch) + _dropout(config, batch)


def _norm(config: ModelConfig, batch: Batch) -> int:
    """`norms.py`: the normed input and a scale; the input, a mean and a deviation, a token each.

    A batch norm has mean and deviation of each of the D numbers over all tokens.
    """
    width = config.hidden_size
    if config.norm == "batch":
        return _numbers(batch, width) + 2 * width * batch.element_bytes
    return _numbers(batch, width + (1 if config.norm == "rms" else 2))


def _dropout(config: ModelConfig, batch: Batch) -> int:
    """The factors that it drew: on a CPU they are numbers, not bits."""
    return _numbers(batch, config.hidden_size) * (config.dropout > 0)


def _attention(config: ModelConfig, batch: Batch) -> int:
    """`attention.py`: what makes queries and keys, their scores, the input of the output."""
    queries, keys, values = config.qkv_rows
    heads, numbers, weights = config.num_heads + config.num_kv_heads, 0, 0
    if config.qk_norm:
        numbers += queries + keys + heads
        weights = heads * config.head_dim
    if config.positions != "relative" and _is_tiled(config, batch):
        is_made = config.qk_norm or config.positions == "rotary" or config.beta is not None
        # Values, a piece of the fused product, hold it; so do queries and keys that nothing made.
        numbers += queries + keys + values + (queries + keys) * is_made
        if config.beta is not None:
            numbers += queries + (queries + keys) * config.qk_norm + 2 * heads
        return _numbers(batch, numbers) + weights * batch.element_bytes + _gathered(config, batch)
    if config.beta is not None:
        # What is divided is a piece of the fused product, unless a norm made a tensor of its own;
        # a length and the length that it is divided by, a head each.
        numbers += queries + keys + (0 if config.qk_norm else values) + 2 * heads
        numbers += (queries + keys) * config.learn_beta
    numbers += queries * config.projections
    numbers += _uncut(config, batch) if batch.rows == 1 else 0
    biased = config.positions == "relative"
    scores = _scores(config, batch, keys=batch.row_tokens, biased=biased)
    return _numbers(batch, numbers) + weights * batch.element_bytes + scores


def _cross(config: ModelConfig, batch: Batch) -> int:
    """As attention; queries and keys are products of their own."""
    queries, keys, values = config.qkv_rows
    numbers, read = queries, 0
    if config.beta is not None:
        numbers += queries * (2 if config.learn_beta else 1) + 2 * config.num_heads
        read = keys + values + 2 * config.num_kv_heads
    scores = _scores(config, batch, keys=batch.source_tokens)
    if _is_tiled(config, batch):
        read += keys if config.beta is not None else keys + values
        scores = _gathered(config, batch) + batch.tokens * batch.source_tokens * batch.element_bytes
    source = batch.rows * batch.source_tokens * read * batch.element_bytes
    return _numbers(batch, numbers) + source + scores


def _is_tiled(config: ModelConfig, batch: Batch) -> bool:
    """Whether attention makes no score matrix: `kernels.can_attend`."""
    is_plain = batch.element_bytes != _EXACT and config.attention_cap is None
    return is_plain and kernels.has_tiles()


def _gathered(config: ModelConfig, batch: Batch) -> int:
    """What tiles give, the input of the output, and two fp32 numbers for each query."""
    return _numbers(batch, config.qkv_rows[0]) + 2 * _EXACT * batch.tokens * config.num_heads


def _uncut(config: ModelConfig, batch: Batch) -> int:
    """What the scores of a single row hold beside their pieces, numbers a token.

    Under a cap queries are cut from what was turned or normed, or from the fused product; beside a
    learnt bias values in fp32 are cut from that product, which a cosine may hold already.
    """
    queries, keys, values = config.qkv_rows
    if config.attention_cap is not None:
        values *= not (config.qk_norm or config.positions == "rotary")
        return 0 if config.beta is not None else keys + values
    is_cut = config.num_heads == config.num_kv_heads and batch.element_bytes == _EXACT
    if config.positions != "relative" or not is_cut:
        return 0
    return -values if config.beta is not None and not config.qk_norm else queries + keys


def _scores(config: ModelConfig, batch: Batch, *, keys: int, biased: bool = False) -> int:
    """`scores.py`: queries, keys and values as products read them, and what the softmax gave.

    A cap, or a bias that is learnt, spells the formula out: heads that share keys have copies of
    them, and what passes the softmax is fp32.
    """
    queries, *shared = config.qkv_rows
    size, read = batch.element_bytes, batch.tokens * queries
    weights = batch.tokens * config.num_heads * keys
    copies = 2 * batch.rows * keys * queries
    if config.attention_cap is not None:
        rounded = 0 if size == _EXACT else weights
        return size * (read + copies + weights + rounded) + _EXACT * weights
    if biased:
        return _EXACT * (read + copies + weights)
    return size * (read + batch.rows * keys * sum(shared) + weights)


def _inner(config: ModelConfig, batch: Batch, inner: int) -> int:
    """`feed_forward.py` between its products: what the activation reads and what it gives."""
    if config.gated:  # gate and up are one tensor; a fused SwiGLU makes its factors again
        count = {"silu": 3, "relu2": 5}.get(config.activation, 4)
    else:  # relu reads its own result
        count = 1 if config.activation == "relu" else 2
    return _numbers(batch, count * inner)


def _experts(config: ModelConfig, batch: Batch) -> int:
    """Chances, choices, and of each choice what its expert reads, makes and gives.

    It does not depend on the router: every token passes as many experts.
    """
    experts = config.experts
    if experts is None:
        return 0
    active = experts.active
    chances = _EXACT * (experts.count + (active + 1) * experts.normalise)
    indices = _INDEX * 3 * active  # the expert, the row, the place among the row's choices
    total = batch.tokens * (chances + indices)
    total += _EXACT * experts.count * (experts.balance > 0)
    # Input, output and its share, and their product.
    total += active * (_numbers(batch, 3 * config.hidden_size + 1))
    return total + _inner(config, batch, active * experts.size + experts.shared_size)


def _gru(config: ModelConfig, batch: Batch) -> int:
    """The input, copied for each way; of a step its product [3, D], gates, proposal and result."""
    inputs = 1 if config.causal or batch.rows == 1 else 2
    return _numbers(batch, (inputs + 7) * config.hidden_size)


def _convolution(config: ModelConfig, batch: Batch) -> int:
    """`mixers.py`: the places under the kernel, what they give, and which of them were largest."""
    places = batch.row_tokens + config.kernel_size + config.pooling - 2
    given = batch.row_tokens + config.pooling - 1
    total = batch.rows * (places + given) * batch.element_bytes
    chosen = batch.tokens * _INDEX * (config.pooling > 1)
    return config.hidden_size * (total + chosen)


def _lstm(config: ModelConfig, batch: Batch) -> int:
    """Input and output, first and last states, and for each way the workspace of oneDNN.

    Where a processor has no bfloat16 of its own, PyTorch steps through the text itself in that
    type, and keeps less. Source of the workspace: oneDNN, cpu/rnn/rnn_utils.cpp.
    """
    width, size = config.hidden_size, batch.element_bytes
    ways = 1 if config.causal else 2
    state = width // ways
    between = 2 * (batch.row_tokens + 1) * batch.rows  # of each layer and what is below it
    parts = (
        batch.tokens * _stride(4 * state, size) * size,  # gates
        batch.tokens * _stride(state, size) * size,
        between * _stride(width, size) * size,
        between * state * size,
        between * state * _EXACT,  # cells
        between * _stride(width, _EXACT) * _EXACT,  # gradients of both directions
        between * _stride(width, _EXACT) * _EXACT,
    )
    page = 4096
    workspace = sum(-(-part // page) * page for part in parts)
    # Of a single row that is read one way, what comes out is what the next product reads.
    kept = 1 if batch.rows == 1 and config.causal else 2
    return ways * workspace + _numbers(batch, kept * width) + 4 * batch.rows * width * size


def _stride(length: int, size: int) -> int:
    """Numbers from one row of a matrix to the next: whole lines of 64 bytes, never 256 numbers."""
    line = 64 // size
    rounded = -(-length // line) * line
    return rounded + line if rounded % 256 == 0 else rounded


def _numbers(batch: Batch, count: int) -> int:
    """Bytes of `count` numbers a token."""
    return batch.tokens * count * batch.element_bytes
