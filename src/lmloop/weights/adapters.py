"""Adapters: small learnt changes of a model's matrices, LoRA and DoRA, many beside one model.

Takes: a model, which stays as it is. Gives: y + scale · B A x in the place of y = W x for each
matrix that is adapted. The pairs A and B lie beside the model and reach it through hooks; where
none hangs, it computes as ever. Axes: N tokens, I inputs, O outputs, r rank.

Sources: Hu et al. 2021, LoRA; Kalajdzievski 2023, rsLoRA; Liu et al. 2024, DoRA, equation 5.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lmloop.errors import ArtifactError
from lmloop.model.names import fused_rows
from lmloop.model.nf4 import Nf4Linear, expand_from_nf4
from lmloop.model.quantized import Int8Linear, quantize_rows
from lmloop.model.transformer import Transformer
from lmloop.weights.families import family_of

if TYPE_CHECKING:
    from jaxtyping import Float, Int

ALL_LINEAR = "all-linear"
Linear = nn.Linear | Int8Linear | Nf4Linear


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraConfig:
    """What an adapter is made of."""

    rank: int = 8
    alpha: float = 16.0
    """The change is multiplied with alpha / rank."""
    dropout: float = 0.0
    """Of what goes into A while the model trains."""
    targets: tuple[str, ...] | str = ALL_LINEAR
    """The family's names of matrices or their ends, as `q_proj`; or all but head and routers."""
    dora: bool = False
    """Whether the length of each row of the sum is learnt by itself."""
    rslora: bool = False
    """Whether it is alpha / √rank instead."""

    def __post_init__(self) -> None:
        """Raise `ValueError` for numbers that make no sense."""
        if not (1 <= self.rank <= 65_536 and 0 <= self.dropout < 1 and math.isfinite(self.alpha)):
            raise ValueError(f"rank {self.rank}, alpha {self.alpha}, dropout {self.dropout}")


class Pair(nn.Module):
    """What is learnt for one matrix: A [r, I], B [O, r] and, with DoRA, its rows' lengths [O]."""

    def __init__(self, layer: Linear, rows: slice, config: LoraConfig) -> None:
        super().__init__()
        self.rows, rank, weight = rows, config.rank, _dense(layer, rows)
        self.scale = config.alpha / (math.sqrt(rank) if config.rslora else rank)
        self.a = nn.Parameter(torch.zeros(rank, weight.shape[1]))
        self.b = nn.Parameter(torch.zeros(len(weight), rank))
        self.magnitude = nn.Parameter(_lengths(weight)) if config.dora else None

    def forward(
        self, inner: Float[Tensor, "N r"], y: Float[Tensor, "N O"], layer: Linear
    ) -> Float[Tensor, "N O"]:
        """What becomes of y [N, O], these rows of layer(x), where inner [N, r] is A x."""
        y = torch.addmm(y, inner, self.b.to(inner.dtype).t(), alpha=self.scale)
        if self.magnitude is None:
            return y
        # The sum's lengths count as constants: section 4.3 of DoRA.
        gain = (self.magnitude / _lengths(self._sum(layer).detach())).to(y.dtype)
        return y * gain if layer.bias is None else torch.lerp(layer.bias[self.rows].to(y), y, gain)

    @torch.no_grad()
    def merge(self, layer: Linear) -> None:
        """Fold into the layer's rows; those of 8 bits are rounded again."""
        weight = self._sum(layer)
        if self.magnitude is not None:
            weight *= (self.magnitude / _lengths(weight))[:, None]
        if isinstance(layer, Int8Linear):
            layer.weight[self.rows], layer.scale[self.rows] = quantize_rows(weight)
        else:
            layer.weight[self.rows] = weight.to(layer.weight)

    def _sum(self, layer: Linear) -> Float[Tensor, "O I"]:
        weight = _dense(layer, self.rows)
        return weight + self.scale * (self.b.to(weight.dtype) @ self.a.to(weight.dtype))


class Adapter(nn.Module):
    """The pairs of one set of changes."""

    def __init__(self, model: Transformer, config: LoraConfig) -> None:
        """Raise `ArtifactError` where a target is none of the model's matrices."""
        super().__init__()
        named = {name: (path, rows) for path, name, rows in _matrices(model)}
        targets = tuple(named) if config.targets == ALL_LINEAR else tuple(config.targets)
        lost = [each for each in targets if not any(_fits(name, each) for name in named)]
        if lost or not targets:
            there = ", ".join(sorted({name.rpartition(".")[2] for name in named}))
            raise ArtifactError(f"no matrix has a name that ends in {lost[:3]}: there are {there}")
        self.config, linears = replace(config, targets=targets), linears_of(model)
        self.pairs: dict[str, dict[str, Pair]] = {}
        """By the path of the layer in the model and the family's name of the matrix."""
        for name, (path, rows) in named.items():
            if any(_fits(name, each) for each in targets):
                pair = Pair(linears[path], rows, config)
                self.pairs.setdefault(path, {})[name] = pair
                self.add_module(name.replace(".", "/"), pair)

    def change(
        self, path: str, layer: Linear, x: Float[Tensor, "N I"], y: Float[Tensor, "N O"]
    ) -> Float[Tensor, "N O"]:
        """What becomes of y [N, O] = layer(x [N, I]): all A's of a layer are one product."""
        pairs = list(self.pairs[path].values())
        x = F.dropout(x, self.config.dropout, training=layer.training)
        a = pairs[0].a if len(pairs) == 1 else torch.cat([pair.a for pair in pairs])
        inner = F.linear(x, a.to(x.dtype)).chunk(len(pairs), dim=1)
        parts, end = [], 0
        for pair, own in zip(pairs, inner, strict=True):
            parts += [y[:, end : pair.rows.start], pair(own, y[:, pair.rows], layer)]
            end = pair.rows.stop
        parts = [part for part in [*parts, y[:, end:]] if part.shape[1]]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


class AdapterBank:
    """Adapters that hang on a frozen model; each token passes the one that is chosen for it.

    All tokens pass the first until another choice is made. A model has one bank at a time.
    """

    def __init__(self, model: Transformer, *adapters: Adapter) -> None:
        self.model, self.adapters = model, adapters
        self._learnt = [each for each in model.parameters() if each.requires_grad]
        model.requires_grad_(False)
        linears = linears_of(model)
        paths = dict.fromkeys(path for adapter in adapters for path in adapter.pairs)
        hooks = {path: partial(self._change, path) for path in paths}
        self._hooks = [linears[path].register_forward_hook(hook) for path, hook in hooks.items()]
        self.choose(0)

    def choose(self, index: Int[Tensor, "N"] | int | None) -> None:
        """Say which adapter each token of the steps to come passes; -1 or None: none.

        Raises `ValueError` for a number that no adapter has.
        """
        self._count = index.numel() if isinstance(index, Tensor) else None
        tokens = torch.as_tensor(-1 if index is None else index).flatten()
        numbers = sorted(set(tokens.tolist()))
        if not all(-1 <= each < len(self.adapters) for each in numbers):
            raise ValueError(f"adapters {numbers} of {len(self.adapters)}")
        self._groups: list[tuple[Adapter, Tensor | None]] = []
        for each in numbers:
            if each >= 0:
                rows = (tokens == each).nonzero()[:, 0] if len(numbers) > 1 else None
                self._groups.append((self.adapters[each], rows))

    def detach(self) -> None:
        """Leave the model exactly as it was before."""
        for hook in self._hooks:
            hook.remove()
        for parameter in self._learnt:
            parameter.requires_grad_(True)

    def merge(self, number: int = 0) -> None:
        """Fold one adapter into the model's weights, and detach all.

        Weights of 4 bits become dense first, as what they stand for.
        """
        expand_from_nf4(self.model, dtype=self.model.embedding.weight.dtype)
        linears = linears_of(self.model)
        for path, pairs in self.adapters[number].pairs.items():
            for pair in pairs.values():
                pair.merge(linears[path])
        self.detach()

    def _change(self, path: str, layer: Linear, given: tuple[Tensor], y: Tensor) -> Tensor:
        x = given[0]
        if self._count not in (None, len(x)):
            raise ValueError(f"adapters are chosen for {self._count} tokens, not for {len(x)}")
        for adapter, rows in self._groups:
            if path in adapter.pairs and rows is None:
                y = adapter.change(path, layer, x, y)
            elif path in adapter.pairs and rows is not None:
                y = y.index_copy(0, rows, adapter.change(path, layer, x[rows], y[rows]))
        return y


def make_adapter(model: Transformer, config: LoraConfig, *, generator: torch.Generator) -> Adapter:
    """A new adapter, which changes nothing yet: B is zero, A drawn as PEFT draws it.

    Raises `ArtifactError` where a target is none of the model's matrices.
    """
    adapter = Adapter(model, config)
    for pairs in adapter.pairs.values():
        for pair in pairs.values():
            nn.init.kaiming_uniform_(pair.a, a=math.sqrt(5), generator=generator)
    return adapter.to(model.embedding.weight.device)


def linears_of(model: Transformer) -> dict[str, Linear]:
    """The layers that adapters may change, by their paths."""
    return {
        path: layer
        for path, layer in model.named_modules()
        if isinstance(layer, Linear) and not path.endswith(("head", "router"))
    }


def _matrices(model: Transformer) -> Iterator[tuple[str, str, slice]]:
    """Each matrix in them: the layer's path, the family's name, the rows."""
    family, config = family_of(model.config), model.config
    for path, layer in linears_of(model).items():
        names, size = family.names_of(f"{path}.weight", config), len(layer.weight)
        sizes = fused_rows(config, f"{path}.weight", size) if len(names) > 1 else [size]
        for name, rows, end in zip(names, sizes, accumulate(sizes), strict=True):
            yield path, name.removesuffix(".weight"), slice(end - rows, end)


def _fits(name: str, target: str) -> bool:
    return f".{name}".endswith(f".{target}")


def _dense(layer: Linear, rows: slice) -> Float[Tensor, "O I"]:
    if isinstance(layer, Nf4Linear):
        return layer.dense(rows)
    exact = torch.promote_types(layer.weight.dtype, torch.float32)
    weight = layer.weight[rows].detach().to(exact)
    return weight * layer.scale[rows, None] if isinstance(layer, Int8Linear) else weight


def _lengths(weight: Float[Tensor, "O I"]) -> Float[Tensor, "O"]:
    lengths: Tensor = torch.linalg.vector_norm(weight, dim=1)
    return lengths.clamp_min(torch.finfo(weight.dtype).tiny)  # rows may be zero
