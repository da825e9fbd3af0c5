"""What llama.cpp makes of a GGUF file; run by `test_llama_cpp.py` in an environment of its own.

Takes: one JSON object on the standard input: path, texts, prompts as ids, tokens to choose. Gives:
one on the standard output: ids of the texts, then each prompt's greedy answer and the logits [T, V]
of all that was read.
"""

from __future__ import annotations

import json
import sys
from itertools import islice
from typing import Any

from llama_cpp import Llama

F32 = 0
"""ggml's number of the type in which keys and values are kept, so that nothing else is rounded."""


def answer(model: Any, prompt: list[int], *, tokens: int, show_logits: bool) -> dict[str, Any]:
    """So many greedy tokens, whatever they are: the caller knows which of them stops."""
    model.reset()
    chosen = list(islice(model.generate(prompt, temp=0.0, repeat_penalty=1.0), tokens))
    read = len(prompt) + len(chosen) - 1
    return {
        "tokens": chosen,
        "logits": model.scores[:read].tolist() if show_logits else None,
    }


def main() -> None:
    """Answer one request."""
    asked = json.load(sys.stdin)
    model = Llama(
        asked["path"],
        n_ctx=256,
        n_threads=2,
        n_threads_batch=2,
        logits_all=True,
        type_k=F32,
        type_v=F32,
        flash_attn=False,
        verbose=False,
    )
    ids = [model.tokenize(text.encode(), add_bos=False, special=False) for text in asked["texts"]]
    answers = [
        answer(model, prompt, tokens=asked["tokens"], show_logits=asked["show_logits"])
        for prompt in asked["prompts"]
    ]
    texts = [model.detokenize(ids).decode(errors="replace") for ids in asked["shown"]]
    json.dump({"ids": ids, "answers": answers, "texts": texts}, sys.stdout)


main()
