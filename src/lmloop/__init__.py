"""lmloop: raw text to a language model that is trained, served, watched and refreshed.

The names below are bound on first use, so that `import lmloop` does not import torch.
"""

from __future__ import annotations

import importlib
from typing import Any

__all__ = [
    "Engine",
    "Sampling",
    "compress",
    "decide",
    "evaluate",
    "export",
    "find",
    "finetune",
    "forget",
    "gc",
    "generate",
    "load",
    "loop",
    "monitor",
    "plan",
    "prepare",
    "pretrain",
    "pull",
    "reindex",
    "review",
    "rollback",
    "run",
    "runs",
    "serve",
    "show",
    "tokenize",
    "transcribe",
    "tune",
    "update",
    "vectors",
]

_ELSEWHERE = {
    "Engine": "lmloop.inference.engine",
    "Sampling": "lmloop.inference.sampling",
    "plan": "lmloop.planning",
    **dict.fromkeys(
        (
            *("decide", "forget", "gc", "loop", "monitor"),
            *("reindex", "review", "rollback", "runs", "update"),
        ),
        "lmloop.care",
    ),
    "tune": "lmloop.tuning.search",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'lmloop' has no attribute {name!r}")
    return getattr(importlib.import_module(_ELSEWHERE.get(name, "lmloop.api")), name)


def __dir__() -> list[str]:
    return __all__
