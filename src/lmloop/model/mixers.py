"""Layers that read a text in order: recurrent networks, and convolutions with pooling.

Each has what attention has: a form for whole texts, and one that goes on from a state of fixed
size, so that they train and generate through the same views. Axes: N tokens, R texts, T tokens of
each, D width, S numbers of state.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from lmloop.model.config import ModelConfig
from lmloop.model.linear import Linear
from lmloop.model.views import Place, View

if TYPE_CHECKING:
    from jaxtyping import Float, Int


def state_size(config: ModelConfig, *, layer: int) -> int | None:
    """Numbers that one sequence keeps for a layer; None for attention: that keeps keys, values."""
    kept = {"lstm": 2, "gru": 1, "convolution": config.kernel_size + config.pooling - 2}
    kind = config.mixer(layer)
    return kept[kind] * config.hidden_size if kind in kept else None


class Recurrent(nn.Module):
    """A long short-term memory or a gated recurrent unit; an encoder's reads both ways.

    Sources: Hochreiter and Schmidhuber 1997; Cho et al. 2014.
    """

    def __init__(self, config: ModelConfig, *, layer: int) -> None:
        super().__init__()
        self.layer, self.causal = layer, config.causal
        width = config.hidden_size
        ways = 1 if config.causal else 2
        kind = nn.LSTM if config.mixer(layer) == "lstm" else nn.GRU
        self.cell = kind(width, width // ways, batch_first=True, bidirectional=not config.causal)
        self.output = Linear(width, width, bias=config.output_bias)

    def forward(self, x: Float[Tensor, "N D"], place: Place, view: View) -> Float[Tensor, "N D"]:
        """Each token after all before it in its text."""
        output: Tensor = self.output(view.run(self, x))
        return output

    def run(
        self,
        x: Float[Tensor, "R T D"],
        state: Float[Tensor, "R S"] | None = None,
        lengths: Int[Tensor, "R"] | None = None,
    ) -> tuple[Float[Tensor, "R T D"], Float[Tensor, "R S"]]:
        """See `SequenceMixer`."""
        if not self.causal and lengths is not None:  # the way back begins at each text's end
            packed = pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False)
            y, _ = pad_packed_sequence(self.cell(packed)[0], batch_first=True)
            return y, x.new_zeros(len(x), 0)
        if state is None:
            y, after = self.cell(x)
        else:
            parts = [part.contiguous() for part in torch.split(state[None], x.shape[2], dim=2)]
            y, after = self.cell(x, tuple(parts) if len(parts) == 2 else parts[0])
        after = torch.cat(after, dim=2) if isinstance(after, tuple) else after
        return y, after[0]


class Convolution(nn.Module):
    """max over `pooling` places of relu(convolution over `kernel_size` tokens).

    A decoder's sees the token and what came before, an encoder's lies around it. Source: Kim et al.
    2016, Character-Aware Neural Language Models, section 2.2, here with a window of the maximum.
    """

    def __init__(self, config: ModelConfig, *, layer: int) -> None:
        super().__init__()
        self.layer, self.causal = layer, config.causal
        self.pooling, self.reach = config.pooling, config.kernel_size + config.pooling - 2
        self.convolution = nn.Conv1d(config.hidden_size, config.hidden_size, config.kernel_size)
        self.output = Linear(config.hidden_size, config.hidden_size, bias=config.output_bias)

    def forward(self, x: Float[Tensor, "N D"], place: Place, view: View) -> Float[Tensor, "N D"]:
        """Each token with its neighbours."""
        output: Tensor = self.output(view.run(self, x))
        return output

    def run(
        self,
        x: Float[Tensor, "R T D"],
        state: Float[Tensor, "R S"] | None = None,
        lengths: Int[Tensor, "R"] | None = None,
    ) -> tuple[Float[Tensor, "R T D"], Float[Tensor, "R S"]]:
        """See `SequenceMixer`; the state is the tokens before."""
        behind = 0 if self.causal else self.reach // 2
        before = x.new_zeros(x.shape[0], self.reach - behind, x.shape[2])
        if state is not None:
            before = state.view_as(before)
        joined = F.pad(torch.cat([before, x], dim=1), (0, 0, 0, behind))
        y = F.relu(self.convolution(joined.transpose(1, 2)))
        y = F.max_pool2d(y, (1, self.pooling), stride=1) if self.pooling > 1 else y
        return y.transpose(1, 2), joined[:, x.shape[1] :].flatten(1)
