"""Generation speed of transformers on a model folder, bfloat16, greedy."""

from __future__ import annotations

import json
import sys
import time

import torch
from transformers import AutoModelForCausalLM

PROMPT, LONG, NEW = 32, 256, 100


def main(folder: str) -> None:
    """Print decode rates, prefill rate and time to the first token."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    model.generation_config.eos_token_id = None
    print(
        json.dumps(
            {
                "decode_1": decode_rate(model, streams=1),
                "decode_16": decode_rate(model, streams=16),
                "prefill_256": LONG / generate(model, LONG, 1, 1),
                "first_token": generate(model, PROMPT, 1, 1),
            }
        )
    )


def decode_rate(model: torch.nn.Module, *, streams: int) -> float:
    """Tokens a second of all streams together after their prompts are read."""
    whole, first = generate(model, PROMPT, NEW, streams), generate(model, PROMPT, 1, streams)
    return streams * (NEW - 1) / (whole - first)


def generate(model: torch.nn.Module, length: int, new: int, streams: int) -> float:
    """Median seconds of one greedy `generate`."""
    seconds = []
    for _ in range(3):
        ids = torch.randint(5, 4000, (streams, length))
        start = time.perf_counter()
        with torch.inference_mode():
            model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=new,
                min_new_tokens=new,
                do_sample=False,
                pad_token_id=0,
            )
        seconds.append(time.perf_counter() - start)
    return sorted(seconds)[1]


if __name__ == "__main__":
    main(sys.argv[1])
