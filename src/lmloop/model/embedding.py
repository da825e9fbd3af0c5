"""From tokens, sound or pictures to the first hidden states; what a masked head adds at the end.

Axes: N tokens, B recordings or pictures, F mel bins, T frames, C channels, H, W pixels, D width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lmloop.model.config import ModelConfig, Picture
from lmloop.model.feed_forward import ACTIVATIONS
from lmloop.model.norms import make_norm
from lmloop.model.positions import sinusoids

if TYPE_CHECKING:
    from jaxtyping import Float, Int


def make_embedding(config: ModelConfig) -> nn.Embedding | AudioStem | PatchStem:
    """What makes vectors of tokens, of sound or of pictures."""
    if config.audio_bins is not None:
        return AudioStem(config, config.audio_bins)
    if config.picture is not None:
        return PatchStem(config, config.picture)
    # Given weights: drawing random ones would import a compiler, a second of every start.
    sizes = config.vocab_size, config.hidden_size
    return nn.Embedding(*sizes, _weight=torch.zeros(sizes))


class InputLayer(nn.Module):
    """What is added to the vectors of the tokens before the first block, and their norm."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.sinusoidal = config.positions == "sinusoidal"
        self.scale, self.dropout = config.embedding_scale, config.dropout
        self.positions = self.types = None
        if config.positions == "learned":
            self.positions = nn.Parameter(torch.zeros(config.context_length, width))
        if config.token_types:
            self.types = nn.Parameter(torch.zeros(config.token_types, width))
        self.norm = make_norm(config) if config.embedding_norm else None

    def forward(
        self,
        x: Float[Tensor, "N D"],
        positions: Int[Tensor, "N"],
        types: Int[Tensor, "N"] | None = None,
    ) -> Float[Tensor, "N D"]:
        """norm(scale · x + vector of the position + vector of the type)."""
        x = x if self.scale == 1.0 else x * torch.tensor(self.scale, dtype=x.dtype, device=x.device)
        if self.types is not None:
            x = x + (self.types[0] if types is None else F.embedding(types, self.types))
        if self.positions is not None:
            x = x + F.embedding(positions, self.positions)
        if self.sinusoidal:
            x = x + sinusoids(positions, width=x.shape[1]).to(x.dtype)
        x = x if self.norm is None else self.norm(x)
        return F.dropout(x, self.dropout) if self.dropout and self.training else x


class AudioStem(nn.Module):
    """Two convolutions over the frames of a spectrogram; the second halves their number.

    Source: Radford et al. 2022, Whisper, section 2.2.
    """

    def __init__(self, config: ModelConfig, bins: int) -> None:
        super().__init__()
        width = config.hidden_size
        self.first = nn.Conv1d(bins, width, kernel_size=3, padding=1)
        self.second = nn.Conv1d(width, width, kernel_size=3, stride=2, padding=1)

    @property
    def weight(self) -> Float[Tensor, "D F 3"]:
        """What tells in which type and place the vectors are made, as a table's does."""
        return self.first.weight

    def forward(self, features: Float[Tensor, "B F T"]) -> Float[Tensor, "B t D"]:
        """Half as many vectors as frames."""
        return F.gelu(self.second(F.gelu(self.first(features)))).transpose(1, 2)


class PatchStem(nn.Module):
    """The patches of a picture, row by row, through one linear map; learnt vectors in front.

    Source: Dosovitskiy et al. 2020, An Image is Worth 16x16 Words, section 3.1.
    """

    def __init__(self, config: ModelConfig, picture: Picture) -> None:
        super().__init__()
        self.shape = (picture.channels, picture.size, picture.size)
        sizes = picture.channels, config.hidden_size, picture.patch
        self.projection = nn.Conv2d(*sizes, stride=picture.patch)
        self.leading = None
        if picture.leading:
            self.leading = nn.Parameter(torch.zeros(picture.leading, config.hidden_size))

    @property
    def weight(self) -> Float[Tensor, "D C h w"]:
        """What tells in which type and place the vectors are made, as a table's does."""
        return self.projection.weight

    def forward(self, pictures: Float[Tensor, "B C H W"]) -> Float[Tensor, "B n D"]:
        """A vector for each that leads and for each patch; `ValueError` for another size."""
        if pictures.shape[1:] != self.shape:
            raise ValueError(f"pictures of {list(pictures.shape[1:])}: {list(self.shape)} is seen")
        x: Tensor = self.projection(pictures).flatten(2).transpose(1, 2)
        if self.leading is None:
            return x
        return torch.cat([self.leading.expand(len(x), -1, -1), x], dim=1)


class HeadTransform(nn.Module):
    """One more layer between the last states and the logits: norm(activation(dense(x)))."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[config.activation]
        bias = config.feed_forward_bias
        self.dense = nn.Linear(config.hidden_size, config.hidden_size, bias=bias)
        self.norm = make_norm(config)

    def forward(self, x: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
        """Each token by itself."""
        normed: Tensor = self.norm(self.activation(self.dense(x)))
        return normed
