"""Make artifacts of random weights that can be told apart by what they say: a child script.

Each version speaks in letters of its own, whatever it is asked: an answer in which two versions had
a hand shows it in its text.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

from lmloop.config import load_recipe
from lmloop.model.init import initialise
from lmloop.model.transformer import Transformer
from lmloop.store.artifact import Artifact, ArtifactStore
from lmloop.tokens.chat import DEFAULT_TEMPLATE
from lmloop.tokens.tokenizer import Tokenizer, train_tokenizer
from lmloop.training.shape import model_config
from lmloop.weights.checkpoint import save_model

LETTERS = {"A": "abcdefgh", "B": "ijklmnop", "C": "qrstuvwx"}
NAME = "versions"
QUIET = 0.02
"""The embeddings of all other tokens are this small: they never win."""


def speaker(text: str) -> str | None:
    """The version whose letters make up a text; None where it is nobody's or more than one's."""
    found = [name for name, letters in LETTERS.items() if text and set(text) <= set(letters)]
    return found[0] if found else None


def train_shared_tokenizer(context_length: int) -> Tokenizer:
    """One tokenizer for all versions, with tokens of each version's letters."""
    draw = random.Random(0)
    words = [
        "".join(draw.choices(letters, k=draw.randint(2, 9)))
        for letters in LETTERS.values()
        for _ in range(7000)
    ]
    return train_tokenizer(
        words, vocab_size=4096, chat_template=DEFAULT_TEMPLATE, context_length=context_length
    )


def make_version(store: ArtifactStore, version: str, tokenizer: Tokenizer) -> Artifact:
    """Write one version as an artifact."""
    import torch

    shape = load_recipe(Path(__file__).parent.parent / "recipes" / "chat.toml").model
    model = Transformer(model_config(shape, vocab_size=tokenizer.vocab_size))
    initialise(model, seed=ord(version))
    loud = torch.tensor(
        [speaker(tokenizer.decode([index])) == version for index in range(tokenizer.vocab_size)]
    )
    with torch.no_grad():
        model.embedding.weight[~loud] *= QUIET
    with store.write("update", version * 16) as draft:
        tokenizer.save(draft.path)
        save_model(
            model.to(torch.bfloat16),
            draft.path,
            stop_id=tokenizer.stop_ids[0],
            document_id=tokenizer.document_id,
        )
        return draft.finish(
            kind="checkpoint",
            name=NAME,
            made_from=(),
            settings={"version": version},
            counts={},
            code_version="",
            environment={},
            created=0.0,
        )


def main(home: Path) -> None:
    """Make all versions; print their folders as JSON."""
    store = ArtifactStore(home)
    shape = load_recipe(Path(__file__).parent.parent / "recipes" / "chat.toml").model
    tokenizer = train_shared_tokenizer(shape.context_length)
    made = {version: str(make_version(store, version, tokenizer).path) for version in LETTERS}
    print(json.dumps(made))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
