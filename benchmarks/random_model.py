"""Write a random model of the chat recipe's shape with a small tokenizer: a child script."""

from __future__ import annotations

import random
import sys
from pathlib import Path

from lmloop.config import load_recipe
from lmloop.model.init import initialise
from lmloop.model.transformer import Transformer
from lmloop.tokens.chat import DEFAULT_TEMPLATE
from lmloop.tokens.tokenizer import train_tokenizer
from lmloop.training.shape import model_config
from lmloop.weights.checkpoint import save_model

VOCABULARY = 4096


def main(folder: Path) -> None:
    """Make `folder`/model."""
    import torch

    draw = random.Random(0)
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["".join(draw.choices(letters, k=draw.randint(2, 9))) for _ in range(20_000)]
    shape = load_recipe(Path(__file__).parent.parent / "recipes" / "chat.toml").model
    tokenizer = train_tokenizer(
        words,
        vocab_size=VOCABULARY,
        chat_template=DEFAULT_TEMPLATE,
        context_length=shape.context_length,
    )
    model = Transformer(model_config(shape, vocab_size=VOCABULARY))
    initialise(model, seed=0)
    target = folder / "model"
    target.mkdir(parents=True)
    tokenizer.save(target)
    save_model(
        model.to(torch.bfloat16),
        target,
        stop_id=tokenizer.stop_ids[0],
        document_id=tokenizer.document_id,
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
