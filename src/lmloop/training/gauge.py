"""What a run tells of itself at each step: bits per byte, tokens a second, share of the peak.

Takes: lines of its journal. Gives: figures that follow from them, and the words beside the bar. It
decides nothing and looks at no clock: with it and without it a run is the same.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any

from lmloop.learning import PretrainConfig, TaughtConfig, TrainConfig
from lmloop.model.cost import training_flops_per_token
from lmloop.model.transformer import Transformer
from lmloop.tokens.shards import Shards
from lmloop.training.peak import measure_peak
from lmloop.training.ranks import Ranks

REMEMBERED = 15
"""Steps whose median is the speed: a validation or a snapshot between two of them is left out."""


class Gauge:
    """Follows one run."""

    def __init__(
        self,
        *,
        bytes_per_token: float | None = None,
        flops_per_token: Callable[[float], float] | None = None,
        peak: float | None = None,
    ) -> None:
        """`bytes_per_token` of the text where the loss is nats of each of its tokens.

        `flops_per_token` are the model's when a share of the budget is spent, for its rows grow;
        `peak` operations a second that all ranks could do
        together; what is None is not told.
        """
        self._bytes_per_token = bytes_per_token
        self._flops_per_token, self._peak = flops_per_token, peak
        self._last: Mapping[str, Any] | None = None
        self._rates: deque[float] = deque(maxlen=REMEMBERED)

    def read(self, entry: Mapping[str, Any]) -> dict[str, float]:
        """`bpb` of the step's own batch, `tokens_per_second` and `peak_share`: what is known."""
        figures = {}
        loss = entry.get("loss")
        if loss is not None and self._bytes_per_token:
            figures["bpb"] = loss / math.log(2) / self._bytes_per_token
        last, self._last = self._last, entry
        if last is not None and entry["step"] == last["step"] + 1:
            seconds = max(entry["seconds"] - last["seconds"], 1e-9)
            self._rates.append((entry["tokens"] - last["tokens"]) / seconds)
        if self._rates:
            rate = figures["tokens_per_second"] = median(self._rates)
            if self._flops_per_token and self._peak:
                figures["peak_share"] = rate * self._flops_per_token(entry["share"]) / self._peak
        return figures


def describe_step(entry: Mapping[str, Any]) -> str:
    """One line: step, loss, bits per byte, tokens a second, share of the peak; what is there."""
    told = [f"step {entry['step']}"]
    told.append(f"loss {entry['loss']:.3f}" if "loss" in entry else "left out")
    forms = {
        "bpb": "{:.3f} bits/byte",
        "tokens_per_second": "{:,.0f} tok/s",
        "peak_share": "{:.0%} of peak",
    }
    told += [form.format(entry[key]) for key, form in forms.items() if key in entry]
    return "  ".join(told)


def make_gauge(
    model: Transformer,
    config: TrainConfig,
    *,
    splits: Sequence[Shards],
    is_of_text: bool,
    source_tokens: int,
    ranks: Ranks,
) -> Gauge:
    """The gauge of the first rank, which takes a tenth of a second; that of the others is empty.

    `splits` are the text that is learnt and what is rehearsed beside it; `is_of_text` where each of
    their tokens is a target. A share of the peak is told where a step costs what is counted: all
    weights learn, from one kind of rows, and no teacher has a word.
    """
    if not ranks.is_first:
        return Gauge()
    bytes_per_token = None
    is_taught = isinstance(config, TaughtConfig) and config.teacher is not None
    if is_of_text and not config.label_smoothing and not is_taught:
        rates = [each.raw_bytes / max(1, each.num_tokens) for each in splits]
        share = config.rehearsal_share if isinstance(config, PretrainConfig) else 0.0
        bytes_per_token = rates[0] + share * (rates[-1] - rates[0])
    has_tasks = isinstance(config, PretrainConfig) and bool(config.tasks)
    is_whole = not config.frozen and all(each.requires_grad for each in model.parameters())
    if not is_whole or is_taught or has_tasks:
        return Gauge(bytes_per_token=bytes_per_token)
    shape, weight = model.config, model.embedding.weight

    def flops(share: float) -> float:
        return training_flops_per_token(
            shape, row_tokens=config.row_length(share), source_tokens=source_tokens
        )

    peak = ranks.size * measure_peak(weight.dtype, device=weight.device)
    return Gauge(bytes_per_token=bytes_per_token, flops_per_token=flops, peak=peak)
