"""One block: tokens learn of each other, of a source, and then each thinks for itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn
from torch.nn import functional as F

from lmloop.model.attention import Attention, CrossAttention
from lmloop.model.config import ModelConfig
from lmloop.model.feed_forward import FeedForward, MixtureOfExperts
from lmloop.model.mixers import Convolution, Recurrent
from lmloop.model.norms import make_norm
from lmloop.model.views import Place, View

if TYPE_CHECKING:
    from jaxtyping import Float


class Sublayer(nn.Module):
    """A part of a block, added to what it was given, with the norms that stand around it."""

    def __init__(self, config: ModelConfig, part: nn.Module, *, norm_first: bool = True) -> None:
        super().__init__()
        place = config.norm_place
        self.norm = make_norm(config) if place != "post" and norm_first else None
        self.part = part
        self.part_norm = make_norm(config) if place == "both" else None
        self.sum_norm = make_norm(config) if place == "post" else None
        self.dropout = config.dropout

    def forward(self, x: Float[Tensor, "N D"], *given: Place | View) -> Float[Tensor, "N D"]:
        """norm(x + norm(part(norm(x)))), of the norms those that the shape has."""
        total: Tensor = x + self.branch(x, *given)
        return total if self.sum_norm is None else self.sum_norm(total)

    def branch(self, x: Float[Tensor, "N D"], *given: Place | View) -> Float[Tensor, "N D"]:
        """What is to be added to x."""
        y: Tensor = self.part(x if self.norm is None else self.norm(x), *given)
        y = y if self.part_norm is None else self.part_norm(y)
        return F.dropout(y, self.dropout) if self.dropout and self.training else y


class Block(nn.Module):
    """Mixer, cross-attention where there is a source, feed-forward layer."""

    def __init__(self, config: ModelConfig, *, layer: int) -> None:
        super().__init__()
        self.parallel = config.parallel
        norm_first = config.first_norm or layer > 0
        self.mixer = Sublayer(config, make_mixer(config, layer=layer), norm_first=norm_first)
        self.cross, self.feed_forward = None, None
        if config.encoder is not None:
            self.cross = Sublayer(config, CrossAttention(config, layer=layer))
        if config.experts is not None:
            self.feed_forward = Sublayer(config, MixtureOfExperts(config, config.experts))
        elif config.intermediate_size:
            self.feed_forward = Sublayer(config, FeedForward(config, size=config.intermediate_size))

    def forward(self, x: Float[Tensor, "N D"], place: Place, view: View) -> Float[Tensor, "N D"]:
        """The figure of the paper, a line each."""
        if self.parallel and self.feed_forward is not None:
            x = self.mixer(x, place, view) + self.feed_forward.branch(x)
            return x if self.cross is None else self.cross(x, view)
        x = self.mixer(x, place, view)
        x = x if self.cross is None else self.cross(x, view)
        return x if self.feed_forward is None else self.feed_forward(x)


def make_mixer(config: ModelConfig, *, layer: int) -> nn.Module:
    """What lets the tokens of a layer learn of each other."""
    kind = config.mixer(layer)
    if kind in ("lstm", "gru"):
        return Recurrent(config, layer=layer)
    if kind == "convolution":
        return Convolution(config, layer=layer)
    return Attention(config, layer=layer)
