"""How fast a checkpoint decodes before and after compression, measured in turns.

Takes: two loaded models and a prompt. Gives: tokens a second of one stream and of sixteen. Only
steps in which every stream gains a token are timed: reading the prompt is no decoding.
"""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace

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
) -> dict[str, dict[str, float]]:
    """Tokens a second by number of streams, before and after: medians of rounds run in turns.

    Both answer the same prompt greedily.
    """
    speeds: dict[str, dict[str, float]] = {}
    with progress.task("decode speed", total=len(STREAMS) * rounds, unit="rounds") as task:
        for done, streams in enumerate(STREAMS):
            measured: list[tuple[float, float]] = []
            for turn in range(rounds):
                measured.append(
                    (
                        decode_speed(before, prompt, streams=streams, clock=clock),
                        decode_speed(after, prompt, streams=streams, clock=clock),
                    )
                )
                task.update(done * rounds + turn + 1)
            slow, fast = zip(*measured, strict=True)
            speeds[str(streams)] = {
                "before": round(statistics.median(slow), 1),
                "after": round(statistics.median(fast), 1),
            }
    return speeds


def decode_speed(
    model: LoadedModel,
    prompt: Sequence[int],
    *,
    streams: int,
    clock: Callable[[], float],
    steps: int = TIMED_STEPS,
) -> float:
    """Tokens a second of `streams` greedy answers that grow together, stop tokens passed over.

    Where the context ends before `steps` steps were timed, the answers are begun again.
    """
    sampling = Sampling(max_tokens=steps + 1, temperature=0)
    start = prompt[: min(PROMPT_TOKENS, model.config.context_length // 2)]
    needed = len(start) + sampling.max_tokens + 1
    engine = Engine(_without_stop(model), max_running=streams, context_length=needed)
    tokens, seconds = 0, 0.0
    while tokens < steps * streams:
        for stream in range(streams):
            engine.add(str(stream), start, sampling)
        engine.step()
        while engine.has_work() and tokens < steps * streams:
            begun = clock()
            tokens += len(engine.step())
            seconds += clock() - begun
    return tokens / seconds


def _without_stop(model: LoadedModel) -> LoadedModel:
    """The same model, for which no token ends an answer: its taste for short ones is no speed."""
    tokenizer = copy.copy(model.require_tokenizer())
    tokenizer.stop_ids = ()
    return replace(model, tokenizer=tokenizer)
