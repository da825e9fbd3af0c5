"""How far a model that was written for others is from the model that it was made of.

Takes: what both say of the same text. Gives: a `Difference`, which is told, and refused above a
limit. Axes: T tokens, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from lmloop.errors import ArtifactError
from lmloop.model.config import ModelConfig
from lmloop.tokens.tokenizer import Tokenizer

SAMPLE = (
    "The ferry left before dawn, and by the time the fog had lifted the island was a line of grey "
    "behind us. Nobody spoke. 第二天早上，海面很平静，我们在甲板上喝茶。 "
    "for row in table: total += row['price'] * 3  # 12.50, 7 and 1,004"
)
LONGEST = 128
"""Tokens that are compared."""


@dataclass(frozen=True, slots=True)
class Difference:
    """What the original and the copy say of the same tokens."""

    largest: float
    """Of any two logits (or numbers of a state, where the model has no logits)."""
    before: float
    """Mean nats a token by the original; without logits the largest number of a state."""
    after: float
    """Without logits `before` and what is added to it at most."""
    agreement: float
    """Share of the places where the likeliest token is the same."""
    places: int
    are_logits: bool = True

    def __str__(self) -> str:
        """In one line."""
        if not self.are_logits:
            return f"states of up to {self.before:.3g} differ by at most {self.largest:.2g}"
        return (
            f"logits differ by at most {self.largest:.2g}, nats a token {self.before:.4f} and "
            f"{self.after:.4f}, the same likeliest token at {self.agreement:.0%} of {self.places}"
        )

    def require(self, *, max_loss: float) -> None:
        """Raise `ArtifactError` where the copy finds the text less likely than is allowed."""
        # A copy that is no number fails the comparison, whichever way it is written.
        if not self.after <= self.before * (1 + max_loss) + 1e-6:
            raise ArtifactError(
                f"nothing was written: {self}; allowed is a rise by {max_loss:.0%}: "
                "choose a finer type, or allow more with --max-loss"
            )


def choose_tokens(config: ModelConfig, tokenizer: Tokenizer | None) -> Tensor:
    """Ids int64 [1, T] of the sample, without a tokenizer any; any picture [1, C, H, W] of one
    that sees."""
    longest = min(LONGEST, config.context_length)
    generator = torch.Generator().manual_seed(0)
    if config.picture is not None:
        side = config.picture.size
        return torch.rand(1, config.picture.channels, side, side, generator=generator)
    if tokenizer is None:
        return torch.randint(0, config.vocab_size, (1, longest), generator=generator)
    return torch.tensor([list(tokenizer.encode_document(SAMPLE))[:longest]])


def compare(original: Tensor, copy: Tensor, tokens: Tensor, *, are_logits: bool) -> Difference:
    """Both of one row, [T, V] or states [T, D], in fp32; `tokens` [1, T] are what they are of."""
    largest = float((original - copy).abs().max())
    if not are_logits:
        size = float(original.abs().max())
        return Difference(largest, size, size + largest, 1.0, len(original), are_logits=False)
    before, after = (
        float(F.cross_entropy(each[:-1], tokens[0, 1:]).double()) for each in (original, copy)
    )
    agreement = float((original.argmax(-1) == copy.argmax(-1)).float().mean())
    return Difference(largest, before, after, agreement, len(original))
