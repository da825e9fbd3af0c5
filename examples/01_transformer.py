"""P1. A Transformer language model out of its parts, trained from scratch, then writing.

The text is the language reference that every Python brings along (pydoc_data). The shape is that of
"Attention Is All You Need": sinusoidal positions, layer norms, ReLU between two matrices, dropout.
"""

from __future__ import annotations

import argparse
from pydoc_data.topics import topics

import torch
from torch.nn import functional as F

from lmloop.model.cache import Chunk, SlotCache
from lmloop.model.config import ModelConfig
from lmloop.model.init import initialise
from lmloop.model.transformer import Transformer
from lmloop.tokens.tokenizer import train_tokenizer

ROW, ROWS = 128, 16
"""Tokens of a training text, and texts a step."""


def make_model(vocab_size: int, *, d_model: int = 128, heads: int = 4) -> Transformer:
    """Four blocks of attention and feed-forward layer, with random weights."""
    config = ModelConfig(
        vocab_size=vocab_size,
        num_layers=4,
        hidden_size=d_model,
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=d_model // heads,
        intermediate_size=4 * d_model,
        context_length=512,
        positions="sinusoidal",
        embedding_scale=50.0,  # tokens begin at 0.02: as large as the sinusoids, not drowned
        norm="layer",
        qk_norm=False,
        activation="relu",
        gated=False,
        dropout=0.1,
    )
    model = Transformer(config)
    initialise(model, seed=0)
    return model


def train(model: Transformer, ids: torch.Tensor, *, steps: int) -> None:
    """Learn to tell each token from those before it."""
    windows = ids.unfold(0, ROW + 1, 1)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=4e-3, pct_start=0.1, total_steps=steps
    )
    model.train()
    for step in range(1, steps + 1):
        rows = windows[torch.randint(len(windows), (ROWS,))]
        logits = model(rows[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step in (1, steps) or step % 100 == 0:
            print(f"step {step:4d}  loss {loss.item():.3f}", flush=True)


@torch.inference_mode()
def write(model: Transformer, ids: list[int], *, tokens: int, temperature: float) -> list[int]:
    """`ids` and what follows: each step reads only what the cache has not seen yet."""
    model.eval()
    cache = SlotCache(model.config, slots=1, length=len(ids) + tokens, dtype=torch.float32)
    ids, seen = list(ids), 0
    for _ in range(tokens):
        view = cache.view([Chunk(slot=0, start=seen, count=len(ids) - seen)])
        states = model.encode(torch.tensor(ids[seen:]), view.positions, view)
        chances = (model.project(states[-1:])[0] / temperature).softmax(-1)
        seen = len(ids)
        ids.append(int(torch.multinomial(chances, 1)))
    return ids


def main() -> None:
    """Train, then continue the prompt."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--prompt", default="The statement is executed")
    parser.add_argument("--tokens", type=int, default=80)
    arguments = parser.parse_args()

    torch.manual_seed(0)
    text = "\n\n".join(topics.values())
    tokenizer = train_tokenizer([text], vocab_size=1024)
    model = make_model(tokenizer.vocab_size)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    ids = torch.tensor(tokenizer.encode(text))
    print(f"{parameters:,} parameters, {len(ids):,} tokens of text")
    train(model, ids, steps=arguments.steps)
    prompt = tokenizer.encode(arguments.prompt)
    print(tokenizer.decode(write(model, prompt, tokens=arguments.tokens, temperature=0.7)))


if __name__ == "__main__":
    main()
