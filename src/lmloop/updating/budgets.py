"""The checks of cost: time and memory for a token, beside the live model's.

Takes: two loaded models. Gives: checks. Both decode the same prompt in alternating rounds; what is
compared is the time of each round's pair, so that a busy machine slows both alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from lmloop.inference.load import LoadedModel
from lmloop.inference.speed import STREAMS, decode_speed
from lmloop.model.cost import cache_bytes_per_token
from lmloop.progress import Progress
from lmloop.updating.checks import Check, Measure
from lmloop.updating.statistics import Change, median_change
from lmloop.upkeep import GateConfig

FEWEST_ROUNDS = 6
"""So many pairs of rounds give a 95 % interval of their middle."""
MOST_ROUNDS = 24
"""After so many the middle decides, however wide its interval is."""
STEPS = 32
"""Timed steps of one round."""


def check_speed(
    config: GateConfig,
    prompt: Sequence[int],
    *,
    candidate: LoadedModel,
    live: LoadedModel,
    clock: Callable[[], float],
    progress: Progress,
) -> Check:
    """Whether a token takes no longer than allowed, in one stream and in sixteen.

    `clock` gives seconds; processor time of this process is what other processes disturb least.
    Rounds go on until the interval of the middle ratio leaves no doubt, and at most so many.
    """
    changes = {}
    with progress.task("decode speed", total=len(STREAMS), unit="sizes") as task:
        for done, streams in enumerate(STREAMS):
            changes[streams] = _measure(
                config, prompt, candidate=candidate, live=live, streams=streams, clock=clock
            )
            task.update(done + 1)
    slower = [streams for streams, each in changes.items() if each.value > config.max_slowdown]
    told = "; ".join(
        f"{_name(streams)} {change.value:+.0%} ({change.low:+.0%} to {change.high:+.0%}, "
        f"{change.documents} rounds)"
        for streams, change in changes.items()
    )
    told = f"processor time a token in {told}; allowed is {config.max_slowdown:+.0%}"
    return Check(
        name="speed",
        passed=not slower,
        reason=f"slower: {told}" if slower else told,
        measures=tuple(
            Measure(
                what=f"processor time a token, {_name(streams)}",
                value=change.value,
                unit="change",
                low=change.low,
                high=change.high,
                limit=config.max_slowdown,
                count=change.documents,
            )
            for streams, change in changes.items()
        ),
    )


def _measure(
    config: GateConfig,
    prompt: Sequence[int],
    *,
    candidate: LoadedModel,
    live: LoadedModel,
    streams: int,
    clock: Callable[[], float],
) -> Change:
    """The relative change of the time for a token."""

    def time_of(model: LoadedModel) -> float:
        return 1 / decode_speed(model, prompt, streams=streams, clock=clock, steps=STEPS)

    for model in (live, candidate):
        time_of(model)  # the first round fills caches that later ones find filled
    ratios: list[float] = []
    while True:
        # Who begins changes from round to round: what warms or tires the machine is shared fairly.
        if len(ratios) % 2:
            now, before = time_of(candidate), time_of(live)
        else:
            before, now = time_of(live), time_of(candidate)
        ratios.append(now / before)
        change = median_change(ratios, confidence=config.confidence)
        certain = change.high <= config.max_slowdown or change.low > config.max_slowdown
        if len(ratios) >= MOST_ROUNDS or (len(ratios) >= FEWEST_ROUNDS and certain):
            return change


def _name(streams: int) -> str:
    return "one stream" if streams == 1 else f"{streams} streams"


def check_memory(config: GateConfig, *, candidate: LoadedModel, live: LoadedModel) -> Check:
    """Whether weights, and the cache of a token, take no more bytes than allowed."""
    sizes = {
        "weights": (weight_bytes(live), weight_bytes(candidate)),
        "cache a token": (_cache_bytes(live), _cache_bytes(candidate)),
    }
    limit = 1 + config.max_memory_growth
    larger = [name for name, (before, now) in sizes.items() if now > limit * before]
    told = "; ".join(
        f"{name} {before:,} → {now:,} bytes ({now / before - 1:+.0%})"
        for name, (before, now) in sizes.items()
    )
    told = f"{told}; allowed is {config.max_memory_growth:+.0%}"
    return Check(
        name="memory",
        passed=not larger,
        reason=f"more memory: {told}" if larger else told,
        measures=tuple(
            Measure(
                what=f"bytes of {name}",
                value=now / before - 1,
                unit="change",
                limit=config.max_memory_growth,
            )
            for name, (before, now) in sizes.items()
        ),
        numbers={name: {"live": before, "candidate": now} for name, (before, now) in sizes.items()},
    )


def weight_bytes(model: LoadedModel) -> int:
    """Bytes of all weights as they are held, each matrix once."""
    tensors = {each.data_ptr(): each for each in model.transformer.state_dict().values()}
    return sum(each.numel() * each.element_size() for each in tensors.values())


def _cache_bytes(model: LoadedModel) -> int:
    size = model.transformer.embedding.weight.element_size()
    return cache_bytes_per_token(model.config, element_bytes=size)
