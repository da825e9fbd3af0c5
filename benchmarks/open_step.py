"""Open a checkpoint with ours, or make those that are opened: a child script."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from peers.opened import measure

from lmloop.model.config import ModelConfig
from lmloop.model.init import initialise
from lmloop.model.transformer import Transformer
from lmloop.weights.checkpoint import load_model, save_model

SHAPE = ModelConfig(
    vocab_size=49_152,
    num_layers=30,
    hidden_size=576,
    num_heads=9,
    num_kv_heads=3,
    head_dim=64,
    intermediate_size=1536,
    context_length=8192,
    qk_norm=False,
    family="llama",
)
"""SmolLM2-135M."""


def make(folder: Path) -> None:
    """Write the same random model in each dtype."""
    model = Transformer(SHAPE)
    initialise(model, seed=0)
    for dtype in (torch.float32, torch.bfloat16):
        target = folder / str(dtype).removeprefix("torch.")
        target.mkdir()
        save_model(model.to(dtype), target, stop_id=2, document_id=0)


if __name__ == "__main__":
    what, folder = sys.argv[1:]
    if what == "make":
        make(Path(folder))
    else:
        print(json.dumps(measure(lambda: load_model(folder))))
