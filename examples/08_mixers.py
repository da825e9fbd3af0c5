"""P8. How tokens may learn of each other: attention, cosines with β, CNN → RNN, word vectors.

Six shapes are trained alike on the same words (the language reference that every Python brings
along). Then the CNN → RNN writes.
"""

from __future__ import annotations

import argparse
import re
from dataclasses import replace
from pydoc_data.topics import topics

import torch
from torch import Tensor
from torch.nn import functional as F

from lmloop.model.cache import Chunk, SlotCache
from lmloop.model.config import ModelConfig
from lmloop.model.init import initialise
from lmloop.model.transformer import Transformer
from lmloop.tokens.vectors import WordVectors
from lmloop.tokens.words import WordSplitter, WordStream, index_words
from lmloop.training.embeddings import initialise_embedding
from lmloop.training.skip_gram import SkipGramOptions, train_skip_gram

ROW, ROWS = 64, 16
"""Words of a training text, and texts a step."""


def read_words() -> WordStream:
    """The words of the reference, a sentence or list entry at a time."""
    sentences = re.split(r"[.:;]\s|\n\s*\n", "\n\n".join(topics.values()))
    return index_words(map(WordSplitter().split, sentences), min_count=3)


def make_shapes(vocab_size: int) -> dict[str, ModelConfig]:
    """The Transformer, and what differs from it in the others."""
    transformer = ModelConfig(
        vocab_size=vocab_size,
        num_layers=2,
        hidden_size=96,
        num_heads=3,
        num_kv_heads=3,
        head_dim=32,
        intermediate_size=256,
        context_length=256,
        qk_norm=False,
    )
    cnn_rnn = replace(transformer, mixers=("convolution", "lstm"), kernel_size=3, pooling=2)
    cosine = replace(transformer, beta=8.0)
    return {
        "scaled products": transformer,
        "cosine, β = 8": cosine,
        "cosine, β learnt": replace(cosine, learn_beta=True),
        "cosine, bare": replace(cosine, projections=False),
        "CNN → RNN": cnn_rnn,
        "CNN → RNN, vectors": cnn_rnn,
    }


def train(model: Transformer, ids: Tensor, *, steps: int) -> None:
    """Learn to tell each word from those before it; every model sees the same rows."""
    windows, draw = ids.unfold(0, ROW + 1, 1), torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=4e-3, pct_start=0.1, total_steps=steps
    )
    for _ in range(steps):
        loss = loss_of(model, windows[torch.randint(len(windows), (ROWS,), generator=draw)])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()


def loss_of(model: Transformer, rows: Tensor) -> Tensor:
    """Mean cross-entropy of each word after those before it; rows [B, T + 1]."""
    return F.cross_entropy(model(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten())


@torch.inference_mode()
def write(model: Transformer, ids: list[int], *, count: int) -> list[int]:
    """`ids` and the words that follow; a recurrent layer's cache is its state."""
    cache = SlotCache(model.config, slots=1, length=len(ids) + count, dtype=torch.float32)
    ids, seen = list(ids), 0
    for _ in range(count):
        view = cache.view([Chunk(slot=0, start=seen, count=len(ids) - seen)])
        states = model.encode(torch.tensor(ids[seen:]), view.positions, view)
        seen = len(ids)
        chances = (model.project(states[-1:])[0] / 0.7).softmax(-1)
        ids.append(int(torch.multinomial(chances, 1)))
    return ids


def make_model(config: ModelConfig, words: WordStream, vectors: WordVectors | None) -> Transformer:
    """Random weights; the embedding may begin with word vectors."""
    model = Transformer(config)
    initialise(model, seed=0)
    if vectors is not None:
        small = replace(vectors, matrix=vectors.matrix * (0.02 / vectors.matrix.std()))
        initialise_embedding(model.embedding.weight, vocabulary=words.words, vectors=small)
    return model


def main() -> None:
    """Train and measure every shape, then write with CNN → RNN."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=300)
    arguments = parser.parse_args()

    torch.manual_seed(0)
    words = read_words()
    sentences = len(words.starts) * 95 // 100
    cut = int(words.starts[sentences])
    ids = torch.from_numpy(words.ids).long()
    held_out = ids[cut:].unfold(0, ROW + 1, ROW)
    seen = replace(words, ids=words.ids[:cut], starts=words.starts[: sentences + 1])
    vectors = train_skip_gram(seen, options=SkipGramOptions(dimensions=96), seed=0)
    nearest = ", ".join(word for word, _ in vectors.nearest("class", k=4))
    print(f"{len(ids):,} words, {len(words.words):,} different; near 'class': {nearest}")
    for name, config in make_shapes(len(words.words)).items():
        model = make_model(config, words, vectors if "vectors" in name else None)
        train(model, ids[:cut], steps=arguments.steps)
        with torch.inference_mode():
            loss = float(loss_of(model, held_out))
        parameters = sum(parameter.numel() for parameter in model.parameters())
        betas = [value.mean().item() for key, value in model.named_parameters() if "beta" in key]
        told = "  β " + ", ".join(f"{beta:.1f}" for beta in betas) if betas else ""
        print(f"{name:20} {parameters:9,} parameters  held-out loss {loss:.3f}{told}", flush=True)
    text = write(model, [vectors.row("the"), vectors.row("class")], count=25)
    print(" ".join(words.words[number] for number in text))


if __name__ == "__main__":
    main()
