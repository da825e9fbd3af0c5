"""A decoder whose vocabulary holds letters and codes: it is told a text, and writes codes.

A document is `<|endoftext|>seven<|code|><|c12|><|c400|>…<|end|>`: the text, then what it looks or
sounds like.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import process_time

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.utils.rnn import pad_sequence

import lmloop
from lmloop.corpus.codebook import Codebook
from lmloop.inference.load import LoadedModel
from lmloop.model.config import ModelConfig
from lmloop.model.hardware import fast_dtype
from lmloop.model.init import initialise
from lmloop.model.transformer import Transformer
from lmloop.tokens.code_tokens import CodeTokens, name_codes
from lmloop.tokens.tokenizer import DOCUMENT, STOP, Tokenizer, train_tokenizer
from lmloop.training.loss import head_loss
from lmloop.training.optim import Optimizer
from lmloop.training.schedule import rate_factor

Document = tuple[str, NDArray[np.int64]]
"""A text, and its codes [S, L]."""
CODE = "<|code|>"
"""Stands between text and codes."""
NOTHING = -1
"""The target where nothing is to be learnt."""


class CodeWriter:
    """The model, its tokenizer, and which of its tokens are codes."""

    def __init__(self, book: Codebook, *, context_length: int, layers: int = 4) -> None:
        names = (CODE, *name_codes(book.num_codes, num_levels=book.num_levels))
        # Bytes, the usual special tokens and codes: no pairs of letters are joined.
        size = 256 + 5 + len(names)
        tokenizer = train_tokenizer(
            [""], vocab_size=size, context_length=context_length, extra_tokens=names
        )
        self.codes = CodeTokens(tokenizer, num_codes=book.num_codes, num_levels=book.num_levels)
        config = ModelConfig(
            vocab_size=size,
            num_layers=layers,
            hidden_size=128,
            num_heads=4,
            num_kv_heads=4,
            head_dim=32,
            intermediate_size=384,
            context_length=context_length,
        )
        transformer = Transformer(config)
        initialise(transformer, seed=0)
        self.model = LoadedModel(transformer.to(fast_dtype()), tokenizer, "unversioned")

    @property
    def tokenizer(self) -> Tokenizer:
        """Its letters and codes."""
        return self.model.require_tokenizer()

    def prompt(self, text: str) -> list[int]:
        """Ids of a text whose codes are to follow."""
        return self.tokenizer.encode_markup(f"{DOCUMENT}{text}{CODE}")

    def train(self, draw: Callable[[], Sequence[Document]], *, steps: int) -> None:
        """Learn to write the codes of texts; `draw` gives the documents of each step."""
        transformer, began = self.model.transformer, process_time()
        optimizer = Optimizer(
            transformer, learning_rate=3e-3, matrix_learning_rate=2e-2, weight_decay=0.01
        )
        for step in range(1, steps + 1):
            tokens, targets = self._batch(draw())
            states = transformer.states(tokens).flatten(0, 1)
            learnt = (targets.flatten() != NOTHING).nonzero()[:, 0]
            loss = head_loss(transformer, states[learnt], targets.flatten()[learnt])
            loss.backward()
            factor = rate_factor(step / steps, curve="wsd", warmup_share=0.02, decay_share=0.6)
            optimizer.step(factor, clip=1.0)
            if step == 1 or step % 50 == 0 or step == steps:
                seconds = process_time() - began
                told = f"step {step:4}  loss {loss.item():.3f}  {seconds:.0f} s of one core"
                print(told, flush=True)

    def _batch(self, documents: Sequence[Document]) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids [B, T] side by side, and what follows each where that is a code or the end."""
        stop = self.tokenizer.special_id(STOP)
        rows, targets = [], []
        for text, codes in documents:
            prompt, answer = self.prompt(text), [*self.codes.encode(codes), stop]
            rows.append(torch.tensor(prompt + answer[:-1]))
            targets.append(torch.tensor([NOTHING] * (len(prompt) - 1) + answer))
        side = pad_sequence(rows, batch_first=True)
        return side, pad_sequence(targets, batch_first=True, padding_value=NOTHING)

    def write(
        self, texts: Sequence[str], *, max_tokens: int, temperature: float
    ) -> list[NDArray[np.int64]]:
        """Codes [S, L] of each text, all written together."""
        sampling = [
            lmloop.Sampling(max_tokens=max_tokens, temperature=temperature, seed=seed)
            for seed in range(len(texts))
        ]
        engine = lmloop.Engine(self.model, max_running=min(64, len(texts)))
        answers = engine.generate([self.prompt(text) for text in texts], sampling)
        return [self.codes.decode(answer.tokens) for answer in answers]
