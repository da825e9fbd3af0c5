"""What llama.cpp makes of a GGUF file; run by `test_llama_cpp.py` in an environment of its own.

Takes: one JSON object on the standard input: path, texts, prompts as ids, tokens to choose. Gives:
one on the standard output: ids of the texts, then each prompt's greedy answer and the logits [T, V]
of all that was read. With a folder `trace` those and what was multiplied with weights, by the name
of the weights, are arrays in a file `N.npz` for each prompt instead.
"""

from __future__ import annotations

import ctypes
import json
import sys
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from llama_cpp import Llama, llama_cpp

F32 = 0
"""ggml's number of the type in which keys and values are kept, so that nothing else is rounded."""
MULTIPLIED = {"attn_q", "attn_output", "ffn_gate", "ffn_down", "token_embd", "output"}
"""One of the matrices that take in the same numbers."""


class Node(ctypes.Structure):
    """`struct ggml_tensor` of `ggml.h`."""


Node._fields_ = [
    ("type", ctypes.c_int),
    ("buffer", ctypes.c_void_p),
    ("sizes", ctypes.c_int64 * 4),
    ("strides", ctypes.c_size_t * 4),
    ("op", ctypes.c_int),
    ("op_params", ctypes.c_int32 * 16),
    ("flags", ctypes.c_int32),
    ("sources", ctypes.POINTER(Node) * 10),
    ("view_source", ctypes.c_void_p),
    ("view_offset", ctypes.c_size_t),
    ("data", ctypes.c_void_p),
    ("name", ctypes.c_char * 64),
]


class Trace:
    """What llama.cpp multiplies with weights, as it goes by."""

    def __init__(self) -> None:
        self.seen: dict[str, list[np.ndarray]] = {}
        self._callback = llama_cpp.ggml_backend_sched_eval_callback(self._watch)

    def attach(self) -> None:
        """Be called by every model that is opened from now on."""
        plain = llama_cpp.llama_context_default_params

        def watched() -> Any:
            params = plain()
            params.cb_eval = self._callback
            return params

        llama_cpp.llama_context_default_params = watched

    def _watch(self, address: int, ask: bool, _: object) -> bool:
        """Asked whether a node is looked at; then once more, when it is computed."""
        weights, x = Node.from_address(address).sources[:2]
        if not weights or not x or x.contents.type != F32:
            return not ask
        name = weights.contents.name.decode()
        *_, part, kind = ("", *name.split("."))
        if kind != "weight" or part not in MULTIPLIED:
            return not ask
        if not ask:
            self.seen.setdefault(name, []).append(numbers_of(x.contents))
        return True


def numbers_of(node: Node) -> np.ndarray:
    """The numbers [N, D] of a node."""
    width, rows, *more = node.sizes
    assert more == [1, 1] and list(node.strides[:2]) == [4, 4 * width]
    data = ctypes.cast(node.data, ctypes.POINTER(ctypes.c_float))
    return np.ctypeslib.as_array(data, (rows, width)).copy()


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
    trace = Trace()
    if asked["trace"]:
        trace.attach()
    model = Llama(
        asked["path"],
        n_ctx=256,
        n_batch=asked["batch"],
        n_threads=2,
        n_threads_batch=2,
        logits_all=True,
        type_k=F32,
        type_v=F32,
        flash_attn=False,
        verbose=False,
    )
    ids = [model.tokenize(text.encode(), add_bos=False, special=False) for text in asked["texts"]]
    answers = []
    for number, prompt in enumerate(asked["prompts"]):
        trace.seen.clear()
        answers.append(
            answer(model, prompt, tokens=asked["tokens"], show_logits=asked["show_logits"])
        )
        if asked["trace"]:
            logits = model.scores[: len(prompt) + asked["tokens"] - 1]
            seen = {name: np.concatenate(rows) for name, rows in trace.seen.items()}
            np.savez(Path(asked["trace"]) / f"{number}.npz", logits=logits, **seen)
    texts = [model.detokenize(ids).decode(errors="replace") for ids in asked["shown"]]
    json.dump({"ids": ids, "answers": answers, "texts": texts}, sys.stdout)


main()
