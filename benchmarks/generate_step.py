"""Generation speed of ours on a model folder: a child script."""

from __future__ import annotations

import json
import sys
import time

import torch

from lmloop.inference.engine import Engine
from lmloop.inference.load import load
from lmloop.inference.sampling import Sampling
from lmloop.model.hardware import tune_process

PROMPT, LONG, NEW = 32, 256, 100


def main(folder: str) -> None:
    """Print decode rates, prefill rate and time to the first token."""
    tune_process()
    model = load(folder)
    engine = Engine(model, max_running=16)
    print(
        json.dumps(
            {
                "decode_1": decode_rate(engine, streams=1),
                "decode_16": decode_rate(engine, streams=16),
                "prefill_256": LONG / first_token(engine, LONG),
                "first_token": first_token(engine, PROMPT),
            }
        )
    )


def decode_rate(engine: Engine, *, streams: int) -> float:
    """Tokens a second of all streams together after their prompts are read."""
    greedy = Sampling(max_tokens=NEW, temperature=0)
    for stream in range(streams):
        ids = torch.randint(5, 4000, (PROMPT,)).tolist()
        engine.add(str(stream), ids, greedy)
    engine.step()
    tokens, start = 0, time.perf_counter()
    while engine.has_work():
        tokens += len(engine.step())
    return tokens / (time.perf_counter() - start)


def first_token(engine: Engine, length: int) -> float:
    """Median seconds of reading a prompt and choosing one token."""
    seconds = []
    for _ in range(9):
        ids = torch.randint(5, 4000, (length,)).tolist()
        start = time.perf_counter()
        engine.add("one", ids, Sampling(max_tokens=1, temperature=0))
        engine.step()
        seconds.append(time.perf_counter() - start)
    return sorted(seconds)[4]


if __name__ == "__main__":
    main(sys.argv[1])
