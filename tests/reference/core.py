"""Every kind of model as slow and plain as can be: one text, one head, one place at a time.

Takes: a state dict and the shape it belongs to. Gives: final hidden states. Shares no code with
lmloop but the dataclass of the shape. Axes: T tokens, D width, H heads, d width of a head.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lmloop.model.config import ModelConfig

Weights = Mapping[str, Tensor]


def states_of(
    state: Weights, config: ModelConfig, tokens: Sequence[int], *, source: Tensor | None = None
) -> Tensor:
    """Final states [T, D] in float64 of one text; `source` are those of the encoder."""
    w = {name: tensor.double() for name, tensor in state.items()}
    x = torch.stack([w["embedding.weight"][token] for token in tokens]) * config.embedding_scale
    if config.positions == "learned":
        x = x + w["input.positions"][: len(x)]
    if config.positions == "sinusoidal":
        x = x + torch.stack([wave(place, config.hidden_size) for place in range(len(x))])
    if config.embedding_norm:
        x = norm(x, w, "input.norm", config)
    for layer in range(config.num_layers):
        x = block(x, w, config, layer, source)
    return norm(x, w, "norm", config) if config.final_norm else x


def wave(place: int, width: int) -> Tensor:
    numbers = []
    for pair in range(width // 2):
        angle = place / 10_000 ** (2 * pair / width)
        numbers += [math.sin(angle), math.cos(angle)]
    return torch.tensor(numbers, dtype=torch.float64)


def norm(x: Tensor, w: Weights, name: str, config: ModelConfig) -> Tensor:
    weight, bias = w[f"{name}.weight"], w.get(f"{name}.bias", torch.zeros(()))
    if config.norm == "batch":
        mean, variance = w[f"{name}.running_mean"], w[f"{name}.running_var"]
        return (x - mean) / (variance + config.norm_epsilon).sqrt() * weight + bias
    if config.norm == "layer":
        x = x - x.mean(-1, keepdim=True)
    return x / (x.pow(2).mean(-1, keepdim=True) + config.norm_epsilon).sqrt() * weight + bias


def block(x: Tensor, w: Weights, config: ModelConfig, layer: int, source: Tensor | None) -> Tensor:
    prefix = f"blocks.{layer}"
    inner = bool(config.intermediate_size or config.experts)
    mixer = {"lstm": recur, "gru": recur, "convolution": convolve}.get(config.mixer(layer), look)
    if config.parallel and inner:
        rest = feed(norm(x, w, f"{prefix}.feed_forward.norm", config), w, config, layer)
        x = rest + around(x, lambda y: mixer(y, w, config, layer), w, f"{prefix}.mixer", config)
        inner = False
    else:
        x = around(x, lambda y: mixer(y, w, config, layer), w, f"{prefix}.mixer", config)
    if source is not None:
        x = around(x, lambda y: cross(y, source, w, config, layer), w, f"{prefix}.cross", config)
    if inner:
        x = around(x, lambda y: feed(y, w, config, layer), w, f"{prefix}.feed_forward", config)
    return x


def around(x: Tensor, part, w: Weights, name: str, config: ModelConfig) -> Tensor:  # type: ignore[no-untyped-def]
    before = norm(x, w, f"{name}.norm", config) if f"{name}.norm.weight" in w else x
    y = part(before)
    if config.norm_place == "both":
        y = norm(y, w, f"{name}.part_norm", config)
    return norm(x + y, w, f"{name}.sum_norm", config) if config.norm_place == "post" else x + y


def linear(x: Tensor, w: Weights, name: str) -> Tensor:
    return x @ w[f"{name}.weight"].T + w.get(f"{name}.bias", torch.zeros(()))


def look(x: Tensor, w: Weights, config: ModelConfig, layer: int) -> Tensor:
    """Attention: scores of one query after the other."""
    name, d = f"blocks.{layer}.mixer.part", config.head_dim
    heads = linear(x, w, f"{name}.qkv") if config.projections else torch.cat([x, x, x], dim=1)
    local = config.mixer(layer) == "local"
    gathered = []
    for head in range(config.num_heads):
        key_head = head // (config.num_heads // config.num_kv_heads)
        q = heads[:, head * d : (head + 1) * d]
        first = (config.num_heads + key_head) * d
        k = heads[:, first : first + d]
        first += config.num_kv_heads * d
        v = heads[:, first : first + d]
        q, k = (
            prepare(each, w, f"{name}.{which}_norm", config, local)
            for which, each in (("q", q), ("k", k))
        )
        places = []
        for i in range(len(x)):
            seen = [j for j in range(len(x)) if not (config.causal and j > i)]
            seen = [j for j in seen if not (local and abs(i - j) >= (config.window or 0))]
            scores = torch.stack([score(q[i], k[j], i - j, w, config, head, name) for j in seen])
            places.append(scores.softmax(0) @ v[seen])
        gathered.append(torch.stack(places))
    joined = torch.cat(gathered, dim=1)
    return linear(joined, w, f"{name}.output") if config.projections else joined


def prepare(x: Tensor, w: Weights, name: str, config: ModelConfig, local: bool) -> Tensor:
    if config.qk_norm:
        x = x / (x.pow(2).mean(-1, keepdim=True) + config.norm_epsilon).sqrt() * w[name]
    if config.beta is not None:
        x = x / x.norm(dim=-1, keepdim=True)
    if config.positions != "rotary":
        return x
    theta = config.local_rope_theta if local and config.local_rope_theta else config.rope_theta
    width = int(config.head_dim * config.rotary_share)
    turned = x.clone()
    for place in range(len(x)):
        for pair in range(width // 2):
            angle = place * theta ** (-2 * pair / width)
            a, b = x[place, pair], x[place, pair + width // 2]
            turned[place, pair] = a * math.cos(angle) - b * math.sin(angle)
            turned[place, pair + width // 2] = b * math.cos(angle) + a * math.sin(angle)
    return turned


def score(
    q: Tensor, k: Tensor, distance: int, w: Weights, config: ModelConfig, head: int, name: str
) -> Tensor:
    found = q @ k
    if config.beta is not None:
        found = found * (w[f"{name}.beta"][head, 0] if config.learn_beta else config.beta)
    else:
        scale = config.attention_scale
        found = found * (config.head_dim**-0.5 if scale is None else scale)
    if config.attention_cap is not None:
        found = config.attention_cap * torch.tanh(found / config.attention_cap)
    if config.positions == "relative":
        found = found + w["relative.weight"][bucket(distance, config), head]
    return found


def bucket(distance: int, config: ModelConfig) -> int:
    """The figure of T5's appendix: near distances one by one, far ones by their logarithm."""
    count, first = config.relative_buckets, 0
    if not config.causal:
        count //= 2
        first = count if distance < 0 else 0
        distance = abs(distance)
    distance = max(distance, 0)
    exact = count // 2
    if distance < exact:
        return first + distance
    share = math.log(distance / exact) / math.log(config.relative_distance / exact)
    return first + min(exact + int(share * (count - exact)), count - 1)


def cross(x: Tensor, source: Tensor, w: Weights, config: ModelConfig, layer: int) -> Tensor:
    name, d = f"blocks.{layer}.cross.part", config.head_dim
    queries, both = linear(x, w, f"{name}.query"), linear(source, w, f"{name}.kv")
    gathered = []
    for head in range(config.num_heads):
        key_head = head // (config.num_heads // config.num_kv_heads)
        k = both[:, key_head * d : (key_head + 1) * d]
        first = (config.num_kv_heads + key_head) * d
        q = queries[:, head * d : (head + 1) * d]
        if config.beta is not None:
            beta = w[f"{name}.beta"][head, 0] if config.learn_beta else config.beta
            scores = (
                beta * (q / q.norm(dim=-1, keepdim=True)) @ (k / k.norm(dim=-1, keepdim=True)).T
            )
        else:
            scale = config.attention_scale
            scores = q @ k.T * (d**-0.5 if scale is None else scale)
        if config.attention_cap is not None:
            scores = config.attention_cap * torch.tanh(scores / config.attention_cap)
        gathered.append(scores.softmax(-1) @ both[:, first : first + d])
    return linear(torch.cat(gathered, dim=1), w, f"{name}.output")


def recur(x: Tensor, w: Weights, config: ModelConfig, layer: int) -> Tensor:
    name = f"blocks.{layer}.mixer.part"
    ways = [step_through(x, w, f"{name}.cell", "", config, layer)]
    if not config.causal:
        back = step_through(x.flip(0), w, f"{name}.cell", "_reverse", config, layer)
        ways.append(back.flip(0))
    return linear(torch.cat(ways, dim=1), w, f"{name}.output")


def step_through(
    x: Tensor, w: Weights, name: str, way: str, config: ModelConfig, layer: int
) -> Tensor:
    """Hochreiter and Schmidhuber's cell with a forget gate, or Cho's, a token after the other."""
    into, within = w[f"{name}.weight_ih_l0{way}"], w[f"{name}.weight_hh_l0{way}"]
    bias_in, bias_within = w[f"{name}.bias_ih_l0{way}"], w[f"{name}.bias_hh_l0{way}"]
    h = c = x.new_zeros(within.shape[1])
    states = []
    for token in x:
        given, kept = into @ token + bias_in, within @ h + bias_within
        if config.mixer(layer) == "lstm":
            i, f, g, o = (given + kept).chunk(4)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
        else:
            (r, z, n), (kept_r, kept_z, kept_n) = given.chunk(3), kept.chunk(3)
            update = (z + kept_z).sigmoid()
            new = (n + (r + kept_r).sigmoid() * kept_n).tanh()
            h = (1 - update) * new + update * h
        states.append(h)
    return torch.stack(states)


def convolve(x: Tensor, w: Weights, config: ModelConfig, layer: int) -> Tensor:
    name = f"blocks.{layer}.mixer.part"
    kernel, bias = w[f"{name}.convolution.weight"], w[f"{name}.convolution.bias"]
    reach = config.kernel_size + config.pooling - 2
    behind = 0 if config.causal else reach // 2
    nothing = x.new_zeros(x.shape[1])

    def at(place: int) -> Tensor:
        return x[place] if 0 <= place < len(x) else nothing

    places = []
    for place in range(len(x)):
        pooled = []
        for shift in range(config.pooling):
            first = place - (reach - behind) + shift
            total = bias
            for tap in range(config.kernel_size):
                total = total + kernel[:, :, tap] @ at(first + tap)
            pooled.append(total.clamp_min(0))
        places.append(torch.stack(pooled).amax(0))
    return linear(torch.stack(places), w, f"{name}.output")


def feed(x: Tensor, w: Weights, config: ModelConfig, layer: int) -> Tensor:
    name = f"blocks.{layer}.feed_forward.part"
    if config.experts is None:
        return think(x, config, w[f"{name}.up.weight"], w[f"{name}.down.weight"], w, name)
    rows = []
    for token in x:
        chances = (w[f"{name}.router.weight"] @ token).softmax(0)
        best = sorted(range(len(chances)), key=lambda e: -float(chances[e]))[
            : config.experts.active
        ]
        total = sum(float(chances[e]) for e in best) if config.experts.normalise else 1.0
        up, down = w[f"{name}.up"], w[f"{name}.down"]
        row = torch.zeros_like(token)
        for e in best:
            row = row + chances[e] / total * think(token[None], config, up[e], down[e], w, "")[0]
        if config.experts.shared_size:
            own = w[f"{name}.shared.up.weight"], w[f"{name}.shared.down.weight"]
            row = row + think(token[None], config, *own, w, f"{name}.shared")[0]
        rows.append(row)
    return torch.stack(rows)


def think(
    x: Tensor, config: ModelConfig, up: Tensor, down: Tensor, w: Weights, name: str
) -> Tensor:
    inner = x @ up.T + w.get(f"{name}.up.bias", torch.zeros(()))
    if config.gated:
        gate, value = inner.chunk(2, dim=1)
        inner = squash(gate, config) * value
    else:
        inner = squash(inner, config)
    return inner @ down.T + w.get(f"{name}.down.bias", torch.zeros(()))


def squash(x: Tensor, config: ModelConfig) -> Tensor:
    if config.activation == "silu":
        return x / (1 + (-x).exp())
    if config.activation == "gelu":
        return x * (1 + torch.erf(x / math.sqrt(2))) / 2
    if config.activation == "gelu_tanh":
        return x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2
    return x.clamp_min(0) ** (2 if config.activation == "relu2" else 1)
