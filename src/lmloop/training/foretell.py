"""A training step on many GPUs, foretold: seconds a part, memory a GPU, days and money.

Takes: a model's shape, a `Cluster` and a `Layout`. Gives: a `Step`. Pure arithmetic: products by
their rates, the rest of the arithmetic by the bytes that it moves, exchange by rings. Weights are
gathered and gradients scattered layer by layer while the next one computes (FSDP2); the exchange of
tensor parallelism waits for its products, and its products for it.

Axes: D width, I inner width, Q and K numbers of all query and key heads, L layers, V vocabulary.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

from lmloop.errors import RecipeError
from lmloop.model.activations import Batch, activation_bytes
from lmloop.model.config import ModelConfig
from lmloop.model.cost import count_parameters, training_flops_per_token
from lmloop.training.cluster import COPY_SHARE, TRAINING_SHARE, Cluster

Checkpointing = Literal["none", "selective", "full"]
"""What is made again on the way back: nothing; every second product and all between products; all
of a layer. As torchtitan's `activation_checkpoint.mode`, selective by operator."""

STATE_BYTES = 16
"""Of a parameter: weights, gradients and two moments of AdamW, fp32, sharded."""
UPDATE_BYTES = 32
"""Of a parameter that AdamW moves: four numbers read, three written, one read for clipping."""
FLASH_BACKWARD = 2.5
"""Backward of FlashAttention in forwards: scores are made again. Source: Dao 2023, section 4.1."""
LOGIT_BYTES = 10
"""Of a logit where none are chunked: bf16, its fp32 copy and that one's gradient."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """Bytes that a token moves between products, forward: a number of the width, and so on."""

    width: float
    """Of D: two norms, two additions."""
    heads: float
    """Of Q + K: rotation."""
    inner: float
    """Of I: activation and gate."""
    backward: float
    """The way back, in forwards."""
    logit: float
    """Of V, both ways."""


FUSED = Traffic(width=16, heads=4, inner=6, backward=4 / 3, logit=12)
"""torch.compile: each part reads and writes bf16 once. Norm with addition: 4 · D numbers, twice."""
EAGER = Traffic(width=88, heads=20, inner=10, backward=2, logit=28)
"""Operator by operator: a norm takes six in fp32, a rotation three; keys are repeated."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How a model and its batch are dealt to GPUs: tensor parallel first, then shards."""

    shards: int
    """Ranks that share masters, gradients and optimizer (FSDP2)."""
    replicas: int = 1
    """Such groups beside each other; with more than one a hybrid."""
    tensor_parallel: int = 1
    """Ranks that share each product, and the sequence between products."""
    rows: int
    """In memory at once, of each tensor-parallel group."""
    row_tokens: int
    accumulate: int = 1
    """Micro-batches a step."""
    checkpointing: Checkpointing = "selective"
    float8: bool = False
    """Whether the products of the layers are in 8 bits."""
    compiled: bool = True
    whole_logits: bool = False
    """Whether the logits of all rows exist at once."""

    @property
    def gpus(self) -> int:
        """Of all ranks."""
        return self.replicas * self.shards * self.tensor_parallel

    @property
    def step_tokens(self) -> int:
        """Of all ranks."""
        data_ranks = self.replicas * self.shards
        return self.rows * self.row_tokens * self.accumulate * data_ranks


@dataclass(frozen=True, slots=True, kw_only=True)
class Seconds:
    """A step; exchange only as far as nothing computes meanwhile."""

    products: float
    attention: float
    between: float
    """Norms, activations, rotations, casts, softmax: bound by memory."""
    gather: float
    """Weights, exposed."""
    scatter: float
    """Gradients among shards, exposed."""
    reduce: float
    """Gradients among replicas, exposed."""
    tensor_parallel: float
    optimizer: float

    @property
    def total(self) -> float:
        """Of the step."""
        return float(sum(asdict(self).values()))

    @property
    def exchange(self) -> float:
        """That nothing hides."""
        return self.gather + self.scatter + self.reduce + self.tensor_parallel


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A step, foretold."""

    layout: Layout
    seconds: Seconds
    tokens_per_gpu: float
    """A second."""
    mfu: float
    """Model arithmetic, without what is made again, as a share of the GPU's peak in bf16."""
    memory: int
    """Bytes a GPU."""

    def days(self, tokens: float) -> float:
        """For so many tokens."""
        return tokens / (self.tokens_per_gpu * self.layout.gpus) / 86_400

    def cost(self, tokens: float, *, price: float) -> float:
        """At a price for an hour of one GPU."""
        return self.days(tokens) * 24 * self.layout.gpus * price


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layer:
    """Seconds of one layer in one micro-batch."""

    products: float
    attention: float
    between: float
    exchange: float
    """Tensor parallelism."""

    @property
    def total(self) -> float:
        return self.products + self.attention + self.between + self.exchange


def foretell(config: ModelConfig, cluster: Cluster, layout: Layout) -> Step:
    """Seconds, rate and memory of a step.

    Raises `RecipeError` for models that are no plain decoders, layouts that do not fill the cluster
    or cut heads, and float8 on a GPU without.
    """
    _check(config, cluster, layout)
    forward, backward = (_layer(config, cluster, layout, is_back=back) for back in (False, True))
    head = _head(config, cluster, layout)
    layers, times = config.num_layers, layout.accumulate
    gather, scatter, reduce = _exchange(config, cluster, layout, forward, backward)
    own = count_parameters(config) / (layout.shards * layout.tensor_parallel)
    parts = {
        name: times
        * (layers * (getattr(forward, name) + getattr(backward, name)) + getattr(head, name))
        for name in ("products", "attention", "between")
    }
    seconds = Seconds(
        **parts,
        gather=gather * times,
        scatter=scatter * times,
        reduce=reduce,
        tensor_parallel=times * (layers * (forward.exchange + backward.exchange) + head.exchange),
        optimizer=own * UPDATE_BYTES / (COPY_SHARE * cluster.gpu.memory_bandwidth),
    )
    rate = layout.step_tokens / layout.gpus / seconds.total
    flops = training_flops_per_token(config, row_tokens=layout.row_tokens)
    return Step(
        layout=layout,
        seconds=seconds,
        tokens_per_gpu=rate,
        mfu=rate * flops / cluster.gpu.peak,
        memory=memory_bytes(config, layout),
    )


def memory_bytes(config: ModelConfig, layout: Layout) -> int:
    """Bytes that tensors take on each GPU at the fullest moment, with logits in chunks or whole."""
    degree = layout.tensor_parallel
    parameters, root = count_parameters(config), _root_parameters(config)
    layer = (parameters - root) / config.num_layers
    total = STATE_BYTES * parameters / (layout.shards * degree)
    if layout.shards > 1:
        # Two layers gathered in bf16, the fp32 gradient of one; input and output stay gathered.
        total += (2 * 2 * layer + 4 * layer + 2 * root + 4 * root) / degree
    else:
        total += 2 * parameters / degree
    tokens = layout.rows * layout.row_tokens
    total += _kept_bytes(config, layout) / degree
    if degree > 1:
        # Both parts' inputs, gathered; of one layer where they are gathered again, and then an
        # output before it is scattered and its gradient.
        kept = config.num_layers if layout.checkpointing == "none" else 1
        total += 2 * tokens * config.hidden_size * (2 * kept + 2)
    total += tokens * config.vocab_size * LOGIT_BYTES * layout.whole_logits / degree
    return int(total)


def _check(config: ModelConfig, cluster: Cluster, layout: Layout) -> None:
    is_plain = config.encoder is None and config.experts is None and config.reads_tokens
    mixers = {config.mixer(layer) for layer in range(config.num_layers)}
    if not is_plain or not mixers <= {"attention", "local"} or not config.intermediate_size:
        raise RecipeError(
            "many GPUs are foretold for plain decoders only: attention and one feed-forward layer "
            "a block"
        )
    if layout.gpus != cluster.gpus:
        raise RecipeError(
            f"{layout.replicas} replicas of {layout.shards} shards of {layout.tensor_parallel} "
            f"tensor-parallel ranks are {layout.gpus} GPUs, and there are {cluster.gpus}"
        )
    if config.num_kv_heads % layout.tensor_parallel:
        raise RecipeError(
            f"{config.num_kv_heads} key heads cannot be dealt to {layout.tensor_parallel} "
            "tensor-parallel ranks: take a divisor"
        )
    if layout.float8 and cluster.gpu.products_float8 is None:
        raise RecipeError("this GPU has no products in 8 bits: leave float8 out")


def _products(config: ModelConfig) -> list[tuple[int, int]]:
    """Inputs and outputs of a layer's products, in their order."""
    width, inner = config.hidden_size, config.intermediate_size
    queries, keys, values = config.qkv_rows
    up = [(width, inner)] * (2 if config.gated else 1)
    return [(width, queries), (width, keys), (width, values), (queries, width), *up, (inner, width)]


def _repeated(config: ModelConfig, layout: Layout) -> list[tuple[int, int]]:
    """Products that are made again on the way back; selective: every second, as in torchtitan."""
    products = _products(config)
    return {"none": [], "selective": products[1::2], "full": products}[layout.checkpointing]


def _layer(config: ModelConfig, cluster: Cluster, layout: Layout, *, is_back: bool) -> _Layer:
    gpu, degree = cluster.gpu, layout.tensor_parallel
    tokens = layout.rows * layout.row_tokens / degree
    again = layout.checkpointing != "none"
    flops = 2.0 * sum(a * b for a, b in _products(config))
    repeated = 2.0 * sum(a * b for a, b in _repeated(config, layout))
    rate = gpu.products_float8 if layout.float8 and gpu.products_float8 else gpu.products
    # Of the pairs that a causal row has, half are computed.
    pairs = 4 * config.qkv_rows[0] * layout.row_tokens / (2 if config.causal else 1)
    passes = FLASH_BACKWARD + (layout.checkpointing == "full") if is_back else 1
    traffic = _traffic_bytes(config, layout, is_back=is_back, again=again)
    return _Layer(
        products=tokens * (2 * flops + repeated if is_back else flops) / (TRAINING_SHARE * rate),
        attention=tokens * pairs * passes / gpu.attention,
        between=tokens * traffic / (COPY_SHARE * gpu.memory_bandwidth),
        exchange=_tensor_seconds(config, cluster, layout, is_back=is_back),
    )


def _traffic_bytes(config: ModelConfig, layout: Layout, *, is_back: bool, again: bool) -> float:
    """Of a token in a layer, between its products."""
    traffic = FUSED if layout.compiled else EAGER
    queries, keys, _ = config.qkv_rows
    once = traffic.width * config.hidden_size + traffic.heads * (queries + keys)
    once += traffic.inner * config.intermediate_size
    total = once * (traffic.backward + again) if is_back else once
    if layout.float8:
        # A cast reads its bf16 input twice, for the largest number and to round it, and writes a
        # byte; of queries, keys and values, and of gate and up, the input is the same.
        inputs = 2 * config.hidden_size + queries + config.intermediate_size
        outputs = sum(made for _, made in _products(config))
        total += 5 * (outputs + inputs * again if is_back else inputs)
    return total


def _tensor_seconds(
    config: ModelConfig, cluster: Cluster, layout: Layout, *, is_back: bool
) -> float:
    """Of a layer: its two parts each gather the sequence before, and scatter it behind.

    On the way back as many; what is made again gathers both parts' inputs, and where everything is,
    scatters the first part's output. 8-bit products gather 8-bit inputs.
    """
    group = cluster.group(layout.tensor_parallel)
    numbers = layout.rows * layout.row_tokens * config.hidden_size
    gathers = 2 + 2 * (is_back and layout.checkpointing != "none")
    scatters = 2 + (is_back and layout.checkpointing == "full")
    gather = group.gather_seconds(numbers * (1 if layout.float8 else 2))
    return gathers * gather + scatters * group.gather_seconds(2 * numbers)


def _head(config: ModelConfig, cluster: Cluster, layout: Layout) -> _Layer:
    """Logits and loss, both ways, and what tensor parallelism exchanges at input and output."""
    gpu, tokens = cluster.gpu, layout.rows * layout.row_tokens
    own = tokens / layout.tensor_parallel
    traffic = FUSED if layout.compiled else EAGER
    flops = 6.0 * config.hidden_size * config.vocab_size
    group = cluster.group(layout.tensor_parallel)
    return _Layer(
        products=own * flops / (TRAINING_SHARE * gpu.products),
        attention=0.0,
        between=own * traffic.logit * config.vocab_size / (COPY_SHARE * gpu.memory_bandwidth),
        exchange=4 * group.gather_seconds(2 * tokens * config.hidden_size),
    )


def _exchange(
    config: ModelConfig, cluster: Cluster, layout: Layout, forward: _Layer, backward: _Layer
) -> tuple[float, float, float]:
    """Exposed seconds a micro-batch of gathering and scattering, a step of reducing.

    A layer is gathered while the one before it computes, so the first waits; its gradients leave
    while the next computes, so the last ones wait. Both share the links on the way back.
    """
    degree, layers = layout.tensor_parallel, config.num_layers
    group = cluster.group(layout.shards, stride=degree)
    replicas = cluster.group(layout.replicas, stride=degree * layout.shards)
    root = _root_parameters(config) / degree
    layer = (count_parameters(config) / degree - root) / layers
    gather, scatter = group.gather_seconds(2 * layer), group.gather_seconds(4 * layer)
    reduce = replicas.reduce_seconds(4 * layer / layout.shards)
    late = max(0.0, gather - forward.total) * (layers - 1)
    exposed_gather = group.gather_seconds(2 * root) + gather + late
    behind = max(0.0, gather + scatter - backward.total) * (layers - 1)
    exposed_scatter = group.gather_seconds(4 * root) + behind
    # In the last micro-batch replicas exchange as well.
    longer = max(0.0, gather + scatter + reduce - backward.total) * (layers - 1) - behind
    exposed_reduce = replicas.reduce_seconds(4 * root / layout.shards) + longer
    return exposed_gather, exposed_scatter, exposed_reduce


def _root_parameters(config: ModelConfig) -> int:
    """Embedding and head, which FSDP2 gathers as one."""
    return config.vocab_size * config.hidden_size * (1 if config.tie_embeddings else 2)


def _kept_bytes(config: ModelConfig, layout: Layout) -> float:
    """What a forward keeps for the way back, on all tensor-parallel ranks together.

    FlashAttention keeps no weights: rows of one token have none either, and else the same.
    """
    tokens = layout.rows * layout.row_tokens
    whole = activation_bytes(config, Batch(rows=tokens, row_tokens=1))
    a_layer = whole / config.num_layers
    if layout.checkpointing == "none":
        return whole
    numbers = config.hidden_size  # what the layer read
    if layout.checkpointing == "selective":
        numbers += sum(made for _, made in _products(config)[::2]) + config.qkv_rows[0]
    return 2.0 * tokens * numbers * config.num_layers + a_layer
