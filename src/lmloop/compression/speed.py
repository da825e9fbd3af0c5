"""How fast a checkpoint decodes before and after compression, measured in turns.

Takes: two loaded models and a prompt. Gives: tokens a second of one stream and of sixteen. Only
steps in which every stream gains a token are timed: reading the prompt is no decoding.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from itertools import count

from lmloop.inference.engine import Engine
from lmloop.inference.load import LoadedModel
from lmloop.inference.sampling import Sampling
from lmloop.progress import Progress

STREAMS = (1, 16)
PROMPT_TOKENS = 16
"""So short that one step reads the prompts of all streams."""
TIMED_STEPS = 64
ROUNDS = 3


def compare_speed(
    before: LoadedModel,
    after: LoadedModel,
    prompt: Sequence[int],
    *,
    clock: Callable[[], float],
    progress: Progress,
    rounds: int = ROUNDS,
) -> dict[str, dict[str, float | None]]:
    """Tokens a second by number of streams, before and after: medians of rounds run in turns.

    Both answer the same prompt greedily. None where a model ends each answer at once.
    """
    speeds: dict[str, dict[str, float | None]] = {}
    with progress.task("decode speed", total=len(STREAMS) * rounds, unit="rounds") as task:
        for done, streams in enumerate(STREAMS):
            measured: list[tuple[float | None, float | None]] = []
            for turn in range(rounds):
                measured.append(
                    (
                        decode_speed(before, prompt, streams=streams, clock=clock),
                        decode_speed(after, prompt, streams=streams, clock=clock),
                    )
                )
                task.update(done * rounds + turn + 1)
            slow, fast = zip(*measured, strict=True)
            speeds[str(streams)] = {"before": _median(slow), "after": _median(fast)}
    return speeds


def decode_speed(
    model: LoadedModel,
    prompt: Sequence[int],
    *,
    streams: int,
    clock: Callable[[], float],
    steps: int = TIMED_STEPS,
) -> float | None:
    """Tokens a second of `streams` greedy answers that grow together; None if none ever grows.

    Answers that end early are begun again, as often as `steps` timed steps need, within bounds.
    """
    engine = Engine(model, max_running=streams)
    sampling = Sampling(max_tokens=steps + 1, temperature=0)
    numbers = count()
    tokens, seconds = 0, 0.0
    for _ in range(steps):
        for _ in range(streams):
            engine.add(str(next(numbers)), prompt[:PROMPT_TOKENS], sampling)
        engine.step()
        while engine.has_work() and tokens < steps * streams:
            begun = clock()
            gained = len(engine.step())
            seconds += clock() - begun
            tokens += gained
        if tokens >= steps * streams:
            break
    return tokens / seconds if tokens else None


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return round(statistics.median(known), 1) if known else None
