"""P3. A decoder continues "The quick brown fox jumps over the lazy dog".

Real weights write the text: SmolLM2-135M-Instruct, fetched once and verified by hash (98 MB). The
shape of GPT-2 itself is there as well, with random weights: its folder opens in transformers.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

import lmloop
from lmloop.model.config import ModelConfig
from lmloop.model.cost import count_parameters
from lmloop.model.init import initialise
from lmloop.model.transformer import Transformer
from lmloop.weights.checkpoint import save_model

NAME = "smollm2-135m-instruct"
PROMPT = "The quick brown fox jumps over the lazy dog"

GPT2 = ModelConfig(
    family="gpt2",
    vocab_size=50_257,
    num_layers=12,
    hidden_size=768,
    num_heads=12,
    num_kv_heads=12,
    head_dim=64,
    intermediate_size=3072,
    context_length=1024,
    positions="learned",
    norm="layer",
    norm_epsilon=1e-5,
    qk_norm=False,
    qkv_bias=True,
    output_bias=True,
    activation="gelu_tanh",
    gated=False,
    feed_forward_bias=True,
)
"""The smallest of the four of 2019."""


def write_small_gpt2(folder: Path) -> None:
    """Two layers of the same shape as a Hugging Face folder of the family gpt2."""
    model = Transformer(replace(GPT2, num_layers=2, vocab_size=1000))
    initialise(model, seed=0)
    save_model(model, folder, stop_id=0, document_id=0)


def main() -> None:
    """Continue the prompt; write GPT-2's shape and open it again."""
    lmloop.pull(NAME)
    greedy = lmloop.Sampling(temperature=0, max_tokens=40)
    answer = lmloop.generate(PROMPT, model=NAME, chat=False, sampling=greedy)
    print(PROMPT + answer.text)

    print(f"\nGPT-2: {count_parameters(GPT2):,} parameters")
    with TemporaryDirectory() as folder:
        write_small_gpt2(Path(folder))
        print("two layers of it, written:", *sorted(file.name for file in Path(folder).iterdir()))
        logits = lmloop.load(folder)(torch.tensor([[1, 2, 3]]))
        print(f"opened again: logits {list(logits.shape)}")


if __name__ == "__main__":
    main()
