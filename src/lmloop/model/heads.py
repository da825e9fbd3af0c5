"""A transformer with another head than the language model's: labels, spans, numbers, embeddings.

Takes: rows of tokens. Gives: a score a label, or one vector a text. Axes: B texts,
T tokens, D width, L labels.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lmloop.model.config import ModelConfig, Task
from lmloop.model.embedding import HeadTransform
from lmloop.model.transformer import Transformer

if TYPE_CHECKING:
    from jaxtyping import Float, Int, Shaped

Pooling = Literal["mean", "cls", "last"]
"""Whose state stands for a text: the mean of all, the first, the last."""
_SHARPNESS = 20.0
"""What cosines are multiplied with before a softmax over them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadConfig:
    """What is asked of the final states."""

    kind: Task
    num_labels: int = 2
    """One: a number, learnt by regression."""
    labels: tuple[str, ...] = ()
    """What they are called; empty: LABEL_0 and so on."""
    pooling: Pooling = "cls"
    layer: Literal["none", "tanh", "transform"] = "none"
    """One more layer before the scores: dense and tanh, or as before a masked language model's."""
    bias: bool = True
    normalise: bool = False
    """Whether embeddings have length one."""


class TanhLayer(nn.Module):
    """tanh(dense(x)), as BERT's pooler."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, width)

    def forward(self, x: Float[Tensor, "*B D"]) -> Float[Tensor, "*B D"]:
        """Each state by itself."""
        return torch.tanh(self.dense(x))


class Head(nn.Module):
    """output(layer(x)), of these what the head has."""

    def __init__(self, config: ModelConfig, head: HeadConfig) -> None:
        super().__init__()
        width, self.dropout = config.hidden_size, config.dropout
        self.layer: nn.Module | None = None
        if head.layer != "none":
            self.layer = TanhLayer(width) if head.layer == "tanh" else HeadTransform(config)
        self.output = None
        if head.kind != "embedding":
            self.output = nn.Linear(width, head.num_labels, bias=head.bias)

    def forward(self, x: Float[Tensor, "*B D"]) -> Float[Tensor, "*B L"]:
        """Each state by itself."""
        x = x if self.layer is None else self.layer(x)
        x = F.dropout(x, self.dropout) if self.dropout and self.training else x
        return x if self.output is None else self.output(x)


class TaskModel(nn.Module):
    """A transformer, whose own head is left out, and a head for one task."""

    def __init__(self, transformer: Transformer, head: HeadConfig) -> None:
        """The weights of the transformer are shared, not copied."""
        super().__init__()
        self.config = head
        self.transformer = _without_head(transformer)
        self.head = Head(transformer.config, head)

    def forward(
        self,
        tokens: Int[Tensor, "B T"],
        *,
        lengths: Int[Tensor, "B"] | None = None,
        types: Int[Tensor, "B T"] | None = None,
    ) -> Float[Tensor, "B *T L"]:
        """Scores [B, L] of texts, [B, T, L] of tokens, [B, T, 2] of spans; embeddings [B, D]."""
        states = self.transformer.states(tokens, lengths=lengths, types=types)
        if self.config.kind in ("sequence", "embedding"):
            states = pool(states, lengths=lengths, pooling=self.config.pooling)
        output: Tensor = self.head(states)
        return F.normalize(output, dim=-1) if self.config.normalise else output

    def loss(
        self, output: Float[Tensor, "B *T L"], targets: Shaped[Tensor, "B *wanted"]
    ) -> Float[Tensor, ""]:
        """How far an output is from its targets, as a mean.

        Targets: numbers of labels, int64 [B] or [B, T] with -100 for tokens that do not count;
        shares of several labels, float [B, L]; numbers, float [B], for one label; first and last
        token, int64 [B, 2], outside the text where there is no answer; embeddings [B, D] of the
        texts that belong to these, where the other rows are what does not belong (Henderson et al.
        2017, Efficient Natural Language Response Suggestion, section 4.4).
        """
        if self.config.kind == "embedding":
            cosines = F.normalize(output, dim=-1) @ F.normalize(targets, dim=-1).t()
            own = torch.arange(len(output), device=output.device)
            return F.cross_entropy(_SHARPNESS * cosines, own)
        if self.config.kind == "span":
            outside = (targets < 0) | (targets >= output.shape[1])
            targets = targets.masked_fill(outside, -100)
            ends = [F.cross_entropy(output[..., end], targets[:, end]) for end in (0, 1)]
            return torch.stack(ends).mean()
        if self.config.num_labels == 1:
            return F.mse_loss(output.squeeze(-1), targets.to(output.dtype))
        if targets.is_floating_point():
            return F.binary_cross_entropy_with_logits(output, targets)
        return F.cross_entropy(output.flatten(0, -2), targets.flatten())


def pool(
    states: Float[Tensor, "B T D"], *, lengths: Int[Tensor, "B"] | None, pooling: Pooling
) -> Float[Tensor, "B D"]:
    """One state for each text."""
    if pooling == "cls":
        return states[:, 0]
    rows, length, _ = states.shape
    lengths = torch.full((rows,), length, device=states.device) if lengths is None else lengths
    if pooling == "last":
        return states[torch.arange(rows, device=states.device), (lengths - 1).clamp_min(0)]
    inside = torch.arange(length, device=states.device) < lengths[:, None]
    return (states * inside[..., None]).sum(1) / lengths.clamp_min(1)[:, None]


def _without_head(model: Transformer) -> Transformer:
    """The same parts in a model that gives states alone."""
    if model.config.head == "none":
        return model
    with torch.device("meta"):
        bare = Transformer(replace(model.config, head="none"))
    for name, part in model.named_children():
        if name not in ("transform", "head"):
            setattr(bare, name, part)
    return bare.train(model.training)
