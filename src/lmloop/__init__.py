"""lmloop: raw text to a language model that is trained, evaluated, compressed and served.

The names below are bound on first use, so that `import lmloop` does not import torch.
"""

from __future__ import annotations

import importlib
from typing import Any

__all__ = [
    "Engine",
    "Sampling",
    "compress",
    "evaluate",
    "export",
    "find",
    "finetune",
    "generate",
    "load",
    "plan",
    "prepare",
    "pretrain",
    "run",
    "serve",
    "show",
    "tokenize",
]

_ELSEWHERE = {
    "Engine": "lmloop.inference.engine",
    "Sampling": "lmloop.inference.sampling",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'lmloop' has no attribute {name!r}")
    return getattr(importlib.import_module(_ELSEWHERE.get(name, "lmloop.api")), name)


def __dir__() -> list[str]:
    return __all__
