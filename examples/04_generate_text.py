"""P4. `generate_text(prompt, max_length)` as a function of one's own.

The weights are SmolLM2-135M-Instruct's, fetched once and verified by hash (98 MB).
"""

from __future__ import annotations

from functools import cache

import lmloop
from lmloop.inference.load import LoadedModel

NAME = "smollm2-135m-instruct"
PROMPTS = (
    "Once upon a time, in a small village by the sea,",
    "The most important thing about code",
)


@cache
def open_model() -> tuple[LoadedModel, lmloop.Engine]:
    """The model and an engine that runs it, opened at the first call."""
    lmloop.pull(NAME)
    model = lmloop.load(NAME)
    return model, lmloop.Engine(model, max_running=1)


def generate_text(prompt: str, max_length: int, *, seed: int = 0) -> str:
    """The prompt and what follows, at most `max_length` tokens in all."""
    model, engine = open_model()
    ids = model.require_tokenizer().encode_document(prompt)
    room = max_length - len(ids)
    sampling = lmloop.Sampling(max_tokens=room, temperature=0.7, top_p=0.9, seed=seed)
    return prompt + next(engine.generate([ids], sampling)).text


def main() -> None:
    """Two texts of 60 tokens."""
    for prompt in PROMPTS:
        print(generate_text(prompt, max_length=60), end="\n\n")


if __name__ == "__main__":
    main()
