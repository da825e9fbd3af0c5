"""llama.cpp in an environment of its own, and our files for it.

llama.cpp is compiled once into `.venv-peers/llama-cpp-python`, which takes about six minutes on two
cores. Without its AMX kernels: they crash on some virtual machines, on any file.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

import lmloop
from lmloop.inference.export import export_gguf
from lmloop.inference.load import LoadedModel, load

BUILD_SECONDS = 2400
VERSION = "0.3.36"
ROOT = Path(__file__).resolve().parents[2]
SCRIPT = Path(__file__).with_name("llama_cpp_peer.py")
TOKENS = 24


@dataclass(frozen=True)
class Peer:
    """llama-cpp-python in its own environment."""

    python: Path

    def ask(
        self,
        path: Path,
        *,
        texts: Sequence[str] = (),
        prompts: Sequence[list[int]] = (),
        shown: Sequence[list[int]] = (),
        tokens: int = TOKENS,
        batch: int = 256,
        show_logits: bool = False,
        trace: Path | None = None,
    ) -> dict[str, Any]:
        """What the script prints; it ends, or the test does. `trace` is a folder for arrays."""
        asked = {
            "path": str(path),
            "texts": list(texts),
            "prompts": list(prompts),
            "shown": list(shown),
            "tokens": tokens,
            "batch": batch,
            "show_logits": show_logits,
            "trace": None if trace is None else str(trace),
        }
        done = subprocess.run(
            [str(self.python), str(SCRIPT)],
            input=json.dumps(asked),
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        answered: dict[str, Any] = json.loads(done.stdout)
        return answered


def build_peer() -> Peer:
    """The environment, built where it is not there yet."""
    folder = ROOT / ".venv-peers" / "llama-cpp-python"
    python, ready = folder / "bin" / "python", folder / f"ready-{VERSION}"
    if not ready.exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        done = subprocess.run(
            [str(python), "-m", "pip", "install", f"llama-cpp-python=={VERSION}"],
            env={**os.environ, "CMAKE_ARGS": "-DGGML_NATIVE=off -DLLAVA_BUILD=off"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=BUILD_SECONDS,
        )
        if done.returncode:
            pytest.fail(
                f"llama-cpp-python {VERSION} cannot be built: it needs g++ and cmake, and a "
                f"package index that has it\n{done.stdout[-3000:]}"
            )
        ready.touch()
    return Peer(python)


def write(source: Path, folder: Path, *, weight_type: str) -> tuple[Path, LoadedModel]:
    """Our file of a model, and what we read out of it again, in fp32."""
    path = folder / f"{weight_type}.gguf"
    export_gguf(source, path, name="peer", weight_type=weight_type, max_loss=math.inf)
    return path, load(path, dtype=torch.float32)


def greedy(
    model: LoadedModel, prompts: Sequence[list[int]], *, tokens: int = TOKENS
) -> list[lmloop.Answer]:
    """Our answers, each by itself."""
    sampling = lmloop.Sampling(max_tokens=tokens, temperature=0)
    return list(lmloop.Engine(model, max_running=1).generate(prompts, sampling))
