"""P2. What an encoder makes of a sentence: one vector a token, and one for the whole.

The encoder is all-MiniLM-L6-v2, fetched once and verified by hash (91 MB).
"""

from __future__ import annotations

import torch

import lmloop

NAME = "all-minilm-l6-v2"
SENTENCE = "Hello, my dog is cute"
OTHERS = ("My puppy looks lovely", "The train leaves at nine")


def main() -> None:
    """Print hidden states of the sentence, and how near other sentences are to it."""
    lmloop.pull(NAME)
    model = lmloop.load(NAME, dtype=torch.float32)
    tokenizer = model.require_tokenizer()

    ids = tokenizer.encode_inputs([SENTENCE], max_length=model.config.context_length)
    states = model.encode(torch.tensor(ids))
    print(f"last hidden states {list(states.shape)}: texts, tokens, numbers a token")
    for number, state in zip(ids[0], states[0], strict=True):
        beginning = " ".join(f"{value:7.4f}" for value in state[:5].tolist())
        print(f"{tokenizer.decode([number]) or 'special':>8}  {beginning} …")

    sentence, *others = model.embed([SENTENCE, *OTHERS])
    for text, vector in zip(OTHERS, others, strict=True):
        print(f"cosine {float(sentence @ vector):.2f}  {text}")


if __name__ == "__main__":
    main()
