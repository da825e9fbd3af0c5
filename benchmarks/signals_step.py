"""Tokens a second of the engine with and without signals, in turns on a model folder: a child."""

from __future__ import annotations

import copy
import json
import random
import sys
import time
from dataclasses import replace

from lmloop.inference.engine import Engine
from lmloop.inference.load import LoadedModel, load
from lmloop.inference.sampling import Sampling

REQUESTS = {16: 96, 1: 6}
"""Requests by number of streams."""
PROMPTS, ANSWERS = (20, 60), (40, 80)
"""Fewest and most tokens."""


def main(folder: str) -> None:
    """Print the rates with signals and without, by number of streams."""
    model = load(folder)
    # No token ends an answer: both engines do the same work.
    tokenizer = copy.copy(model.require_tokenizer())
    tokenizer.stop_ids = ()
    model = replace(model, tokenizer=tokenizer)
    results = {}
    for streams in REQUESTS:
        compare(model, streams=streams)
        results[str(streams)] = compare(model, streams=streams)
    print(json.dumps(results))


def compare(model: LoadedModel, *, streams: int) -> dict[str, float]:
    """Tokens a second of greedy answers to requests that come in as places get free.

    The engines step in turns: what else the machine does slows both.
    """
    engines = {
        name: Engine(model, max_running=streams, signals=name == "on") for name in ("on", "off")
    }
    for engine in engines.values():
        fill(engine, requests=REQUESTS[streams])
    tokens, seconds = dict.fromkeys(engines, 0), dict.fromkeys(engines, 0.0)
    order = list(engines)
    while engines["on"].has_work():
        for name in order:
            start = time.perf_counter()
            tokens[name] += len(engines[name].step())
            seconds[name] += time.perf_counter() - start
        order.reverse()
    return {name: tokens[name] / seconds[name] for name in engines}


def fill(engine: Engine, *, requests: int) -> None:
    """Queue the same requests every time."""
    draw = random.Random(0)
    for number in range(requests):
        prompt = draw.choices(range(5, 4000), k=draw.randint(*PROMPTS))
        sampling = Sampling(max_tokens=draw.randint(*ANSWERS), temperature=0)
        engine.add(str(number), prompt, sampling)


if __name__ == "__main__":
    main(sys.argv[1])
