"""A model of which only the sizes are known: what lies there, what of it learns, what it keeps.

Takes: a shape, a recipe's section, the sizes of a batch. Gives: a model without storage, frozen and
adapted as it would be for training, and the bytes of its activations: what a frozen matrix reads is
not kept, below the lowest part that learns nothing is, and an adapter keeps something of its own.
Axes: N tokens, I inputs and O outputs of a matrix, r rank.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch

from lmloop.learning import TrainConfig
from lmloop.model.activations import (
    Batch,
    activation_bytes,
    mixer_bytes,
    recomputed_bytes,
    unkept_bytes,
    way_back_bytes,
)
from lmloop.model.config import ModelConfig
from lmloop.model.hardware import settle_dtype
from lmloop.model.nf4 import Nf4Linear
from lmloop.model.transformer import Transformer
from lmloop.training.adapting import FOLDER, adapt
from lmloop.training.scales import rate_scales
from lmloop.training.shares import FULL
from lmloop.weights.adapters import Adapter, Linear, Pair, linears_of

_DENSE, _SUM = 14, 4 * FULL
"""Bytes of each weight while 4 bits become numbers, and while DoRA adds up what has a length."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Passing:
    """Bytes of one micro-batch, loss left out."""

    kept: int
    """From the way forward for the way back."""
    recomputed: int
    """Of a block that is computed again, its gradients included; 0 where all is kept."""
    way_back: int
    """Gradients on their way through a block, or a frozen matrix that is unpacked there."""
    unkept: int
    """Of a frozen block below all that learns."""


def outline(config: ModelConfig, section: TrainConfig) -> Transformer:
    """The model that a section trains, on no device; `requires_grad` says what learns.

    Raises `TrainingError` as `rate_scales`, `ArtifactError` as `adapt`.
    """
    with torch.device("meta"):
        model = Transformer(config)
    model.to(settle_dtype(section.precision))
    adapt(model, section, seed=0)
    scales = rate_scales(model, frozen=section.frozen, layer_decay=section.layer_decay)
    for name, each in model.named_parameters():
        each.requires_grad_(each.requires_grad and scales[name] > 0)
    return model


def passing_bytes(
    model: Transformer, config: ModelConfig, section: TrainConfig, batch: Batch
) -> Passing:
    """What a micro-batch leaves on its way through a model that `outline` gave.

    `config` is the model's, or the part of it that one of many ranks computes.
    """
    checkpointing = section.checkpointing
    since, encoder_since = _lowest(model)
    kept = activation_bytes(
        config, batch, checkpointing=checkpointing, since=since, encoder_since=encoder_since
    )
    recomputed = recomputed_bytes(config, batch, checkpointing=checkpointing)
    blocks = [_change(model, block, section, batch) for block in _blocks(model)]
    if checkpointing == "none":
        kept += sum(plain for plain, _ in blocks)
        if since < config.num_layers and not _has_way_back(model, since):
            kept -= mixer_bytes(config, batch, since)
    else:
        is_selective = checkpointing == "selective"
        kept += is_selective * sum(products for _, products in blocks)
        # What was kept of a block goes with it while it is computed again.
        recomputed += max((plain - is_selective * known for plain, known in blocks), default=0)
        states = 2 * batch.tokens * config.hidden_size * batch.element_bytes
        recomputed = max(recomputed, _unpacked_bytes(model) + states)
    return Passing(
        kept=kept,
        recomputed=recomputed if blocks else 0,
        way_back=_way_back_bytes(model, section, batch) if blocks else 0,
        unkept=unkept_bytes(config, batch) if since or encoder_since else 0,
    )


def _adapter(model: Transformer) -> Mapping[str, Mapping[str, Pair]]:
    """What learns beside a matrix, by its path and name; nothing where all of a model learns."""
    found = getattr(model, FOLDER, None)
    return found.pairs if isinstance(found, Adapter) else {}


def _learning(model: Transformer) -> list[str]:
    """Names of what learns, and paths of what something learns beside."""
    named = [name for name, each in model.named_parameters() if each.requires_grad]
    adapted = [
        f"{path}."
        for path, pairs in _adapter(model).items()
        if any(each.requires_grad for pair in pairs.values() for each in pair.parameters())
    ]
    return adapted + [name for name in named if not name.startswith(f"{FOLDER}.")]


def _has_way_back(model: Transformer, layer: int) -> bool:
    """Whether what a block's mixer reads or has learns."""
    below = ("embedding.", "input.", "relative.", "encoder.", f"blocks.{layer}.mixer.")
    return any(name.startswith(below) for name in _learning(model))


def _lowest(model: Transformer) -> tuple[int, int]:
    """The first layers with a way back, of the model and of its encoder; 0: the input has one."""
    learning = _learning(model)
    if model.encoder is None:
        return _since(learning, model.config), 0
    inside = [name.removeprefix("encoder.") for name in learning if name.startswith("encoder.")]
    inside += [name for name in learning if name.startswith("embedding.")]  # both read it
    since = 0 if inside else _since(learning, model.config)
    return since, _since(inside, model.encoder.config)


def _since(learning: list[str], config: ModelConfig) -> int:
    if any(name.startswith(("embedding.", "input.", "relative.")) for name in learning):
        return 0
    found = (re.match(r"blocks\.(\d+)\.", name) for name in learning)
    return min((int(each[1]) for each in found if each is not None), default=config.num_layers)


def _blocks(model: Transformer) -> Iterator[list[tuple[str, Linear]]]:
    """The matrices of each block that has a way back, with their paths."""
    linears = linears_of(model)
    for prefix, since in zip(("blocks", "encoder.blocks"), _lowest(model), strict=True):
        stack = model if prefix == "blocks" else model.encoder
        for layer in range(since, 0 if stack is None else len(stack.blocks)):
            start = f"{prefix}.{layer}."
            yield [(path, each) for path, each in linears.items() if path.startswith(start)]


def _change(
    model: Transformer, block: list[tuple[str, Linear]], section: TrainConfig, batch: Batch
) -> tuple[int, int]:
    """How much more a block keeps than one of which all learns; and more of its products.

    The second is what `selective` keeps: it knows an adapter's products from no others.
    """
    adapter, size, plain, products = _adapter(model), batch.element_bytes, 0, 0
    for path, linear in block:
        tokens = batch.tokens
        if path.startswith("encoder.") or path.endswith("cross.part.kv"):
            tokens = batch.rows * batch.source_tokens
        pairs = adapter.get(path, {}).values()
        if not pairs and not any(each.requires_grad for each in linear.parameters()):
            plain -= tokens * _only_read(model.config, path, linear) * size
        if pairs and section.lora_dropout:
            plain += tokens * _inputs(linear) * size
        for pair in pairs:
            outputs, rank = pair.b.shape
            numbers = pair.a.numel() + pair.b.numel()
            plain += size * (tokens * (rank + outputs * section.dora) + numbers)
            products += size * tokens * (rank + outputs)
            products += FULL * outputs * _inputs(linear) * section.dora
    return plain, products


def _only_read(config: ModelConfig, path: str, linear: Linear) -> int:
    """Numbers of a token that a matrix reads and nothing else keeps."""
    layer = path.rpartition(".")[2]
    if layer in ("kv", "router"):  # all layers read the source, and experts what a router does
        return 0
    is_kept = layer == "down" and not config.gated and config.activation == "relu"
    return 0 if is_kept else _inputs(linear)


def _inputs(linear: Linear) -> int:
    """Numbers of a token that a matrix reads; 4 bits lie two a byte."""
    return linear.in_features if isinstance(linear, Nf4Linear) else int(linear.weight.shape[1])


def _unpacked_bytes(model: Transformer) -> int:
    """Of the frozen matrix that takes the most while it is read."""
    adapter, most = _adapter(model), 0
    for path, linear in linears_of(model).items():
        if isinstance(linear, Nf4Linear):
            most = max(most, _DENSE * linear.in_features * linear.out_features)
        for pair in adapter.get(path, {}).values():
            if pair.magnitude is not None:
                most = max(most, _SUM * _inputs(linear) * len(pair.b))
    return most


def _way_back_bytes(model: Transformer, section: TrainConfig, batch: Batch) -> int:
    """Of gradients on their way, or of the matrix that takes the most while it is read."""
    config, a_number = model.config, batch.tokens * batch.element_bytes
    # What the activation has read and given is gone by then, or not there yet; with DoRA what both
    # products around it gave as well.
    inner = config.intermediate_size
    gone = 3 * inner + (2 * inner + config.hidden_size) * section.dora
    unpacked = _unpacked_bytes(model) + a_number * (2 * config.hidden_size - gone)
    on_the_way = way_back_bytes(config, batch)
    if section.lora_dropout:  # so is what was forgotten of it, and what was left
        on_the_way -= a_number * 2 * inner
    return max(on_the_way, unpacked)
