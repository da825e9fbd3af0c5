"""The engine: many answers grow together, one token a step each.

Takes: prompts as ids, at any time. Gives: pieces of text, a step at a time. A step runs the new
tokens of all running sequences through the model at once: one token of those that answer, a chunk
of the prompt of those that have just arrived.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch

from lmloop.errors import ArtifactError, ContextLengthError, RequestError, UsageError
from lmloop.inference.load import LoadedModel
from lmloop.inference.sampling import Sampling, choose
from lmloop.inference.signals import Meter, Signals, Tally
from lmloop.inference.text import TextAssembler
from lmloop.model.cache import Chunk, SlotCache
from lmloop.model.config import ModelConfig

PREFILL_TOKENS = 512
"""Prompt tokens that one step may read besides the running answers."""


@dataclass(frozen=True, slots=True)
class Piece:
    """What one step added to one answer."""

    request_id: str
    text: str
    num_tokens: int
    """Tokens of the answer so far, the stop token not counted."""
    finish_reason: str | None
    """"stop" or "length" with the last piece."""
    signals: Signals | None = None
    """With the last piece, where the engine measures them and all are finite."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A finished answer."""

    text: str
    tokens: tuple[int, ...]
    finish_reason: str


@dataclass(slots=True)
class Request:
    """One request under way."""

    request_id: str
    tokens: list[int]
    prompt_length: int
    sampling: Sampling
    generator: torch.Generator
    assembler: TextAssembler
    tally: Tally
    """Stays empty in an engine that does not measure."""
    slot: int = -1
    computed: int = 0
    """Tokens whose keys and values are in the cache."""
    finish_reason: str | None = field(default=None)

    @property
    def num_answer_tokens(self) -> int:
        """Tokens chosen so far."""
        return len(self.tokens) - self.prompt_length


class Engine:
    """Generates for up to `max_running` requests together, first come first served.

    With `signals`, an answer's last piece carries what the model says of it; the answers themselves
    are the same to the token.
    """

    def __init__(
        self,
        model: LoadedModel,
        *,
        max_running: int = 16,
        signals: bool = False,
        context_length: int | None = None,
    ) -> None:
        """Makes room for `max_running` sequences of `context_length` tokens, absent: the model's.

        Where it is known how long they can become, less room holds them as well.
        """
        _require_continuation(model.config)
        self._model = model
        self._meter: Meter | None = None
        if signals:
            transformer = model.transformer
            self._meter = Meter(
                transformer.project,
                hidden_size=model.config.hidden_size,
                vocab_size=model.config.vocab_size,
            )
        self._tokenizer = model.require_tokenizer()
        self._stops = frozenset(self._tokenizer.stop_ids)
        longest = model.config.context_length
        self._context = longest if context_length is None else min(longest, context_length)
        self._cache = SlotCache(
            model.config,
            slots=max_running,
            length=self._context,
            dtype=model.transformer.embedding.weight.dtype,
            device=model.transformer.device,
        )
        self._free = list(range(max_running))
        self._waiting: deque[Request] = deque()
        self._running: list[Request] = []

    @property
    def num_running(self) -> int:
        """Requests that have a slot."""
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        """Requests that wait for a slot."""
        return len(self._waiting)

    def has_work(self) -> bool:
        """Whether `step` would do anything."""
        return bool(self._running or self._waiting)

    def add(self, request_id: str, tokens: Sequence[int], sampling: Sampling) -> None:
        """Queue a prompt; raises `RequestError` where it is empty or has ids that are not known,
        `ContextLengthError` where no room is left for an answer.
        """
        if len(tokens) == 0:
            raise RequestError("The prompt is empty: give at least one token.", param="prompt")
        vocab_size = self._model.config.vocab_size
        if not 0 <= min(tokens) <= max(tokens) < vocab_size:
            raise RequestError(
                f"The prompt has token ids outside 0 to {vocab_size - 1}.", param="prompt"
            )
        if len(tokens) >= self._context:
            raise ContextLengthError(prompt_tokens=len(tokens), context_length=self._context)
        generator = torch.Generator()
        if sampling.seed is None:
            generator.seed()
        else:
            generator.manual_seed(sampling.seed)
        assembler = TextAssembler(self._tokenizer, sampling.stop)
        self._waiting.append(
            Request(
                request_id,
                list(tokens),
                len(tokens),
                sampling,
                generator,
                assembler,
                Tally(tuple(tokens)),
            )
        )

    def cancel(self, request_id: str) -> None:
        """Forget a request; its slot is free for the next step. Unknown ids are ignored."""
        self._waiting = deque(each for each in self._waiting if each.request_id != request_id)
        for sequence in [each for each in self._running if each.request_id == request_id]:
            self._release(sequence)

    @torch.inference_mode()
    def step(self) -> list[Piece]:
        """Admit, run the model once, choose a token each; give what each answer gained."""
        self._admit()
        batch = self._schedule()
        if not batch:
            return []
        logits = self._run(batch)
        done = [seq for seq, chunk in batch if chunk.stop == len(seq.tokens)]
        chosen = [
            choose(row, seq.sampling, seq.generator) for seq, row in zip(done, logits, strict=True)
        ]
        if self._meter is not None and done:
            self._meter.note_answers([seq.tally for seq in done], chosen)
        pieces = [self._accept(seq, token) for seq, token in zip(done, chosen, strict=True)]
        for sequence in [each for each in done if each.finish_reason is not None]:
            self._release(sequence)
        return pieces

    def generate(
        self, prompts: Sequence[str | Sequence[int]], sampling: Sampling | Sequence[Sampling]
    ) -> Iterator[Answer]:
        """Answers to prompts (text, or ids) in the order given.

        `sampling` is one for all, whose seed all use, or one a prompt. Raises `UsageError` where
        their number is another, and where the engine is at work for somebody else.
        """
        if self.has_work():
            raise UsageError("this engine is at work already: finish that, or make another engine")
        asked = [sampling] * len(prompts) if isinstance(sampling, Sampling) else sampling
        if len(asked) != len(prompts):
            raise UsageError(f"{len(prompts)} prompts have {len(asked)} samplings: give one each")
        requests: list[Request] = []
        try:
            for index, (prompt, wanted) in enumerate(zip(prompts, asked, strict=True)):
                if isinstance(prompt, str):
                    prompt = self._tokenizer.encode_document(prompt)
                self.add(str(index), prompt, wanted)
                requests.append(self._waiting[-1])
            yield from self._finish(requests)
        finally:
            for request in requests:
                self.cancel(request.request_id)

    def _finish(self, requests: Sequence[Request]) -> Iterator[Answer]:
        """Step until all is answered; give each answer as soon as those before it are given."""
        texts = {request.request_id: "" for request in requests}
        for request in requests:
            while request.finish_reason is None:
                for piece in self.step():
                    texts[piece.request_id] += piece.text
            tokens = tuple(request.tokens[request.prompt_length :])
            yield Answer(texts[request.request_id], tokens, request.finish_reason)

    def _admit(self) -> None:
        while self._waiting and self._free:
            sequence = self._waiting.popleft()
            sequence.slot = self._free.pop(0)
            self._running.append(sequence)

    def _schedule(self) -> list[tuple[Request, Chunk]]:
        """Who runs in this step, and how many of its tokens: answers first, then prompts."""
        budget = PREFILL_TOKENS
        batch = []
        for sequence in self._running:
            missing = len(sequence.tokens) - sequence.computed
            count = missing if missing == 1 else min(missing, budget)
            if count:
                budget -= count if missing > 1 else 0
                batch.append((sequence, Chunk(sequence.slot, sequence.computed, count)))
        return batch

    def _run(self, batch: Sequence[tuple[Request, Chunk]]) -> torch.Tensor:
        """Logits, fp32 [n, V], behind the last token of the n sequences that are complete."""
        tokens = [token for seq, chunk in batch for token in seq.tokens[chunk.start : chunk.stop]]
        view = self._cache.view([chunk for _, chunk in batch])
        transformer = self._model.transformer
        given = torch.tensor(tokens, device=transformer.device)
        hidden = transformer.encode(given, view.positions, view)
        last, prompts, row = [], [], 0
        for sequence, chunk in batch:
            if chunk.start < sequence.prompt_length:
                prompts.append((sequence.tally, row, chunk.start, chunk.count))
            row += chunk.count
            sequence.computed = chunk.stop
            if chunk.stop == len(sequence.tokens):
                last.append(row - 1)
        if self._meter is not None:
            self._meter.read_prompts(hidden, prompts)
        logits = transformer.project(hidden[torch.tensor(last, device=hidden.device).long()])
        # At once for all rows: whoever draws from them or measures them needs them so. On the
        # processor, where a seed draws the same on every machine.
        return logits.float().cpu() if self._meter is None else self._meter.hold(logits)

    def _accept(self, sequence: Request, token: int) -> Piece:
        """Take the token chosen for one request and say what it adds."""
        if token in self._stops:
            sequence.finish_reason = "stop"
            text = sequence.assembler.finish()
        else:
            sequence.tokens.append(token)
            text, stopped = sequence.assembler.add(token)
            if stopped:
                sequence.finish_reason = "stop"
            elif self._is_full(sequence):
                sequence.finish_reason = "length"
                text += sequence.assembler.finish()
        signals = None
        if self._meter is not None and sequence.finish_reason is not None:
            signals = self._meter.finish(sequence.tally)
        return Piece(
            sequence.request_id,
            text,
            sequence.num_answer_tokens,
            sequence.finish_reason,
            signals,
        )

    def _is_full(self, sequence: Request) -> bool:
        asked = sequence.num_answer_tokens >= sequence.sampling.max_tokens
        return asked or len(sequence.tokens) >= self._context

    def _release(self, sequence: Request) -> None:
        self._running.remove(sequence)
        self._free.append(sequence.slot)
        self._free.sort()


def _require_continuation(config: ModelConfig) -> None:
    """Raise `ArtifactError` for a model that does not continue text."""
    if config.encoder is not None:
        raise ArtifactError(
            "this model answers a source, it does not continue text: use .answer of what "
            "lmloop.load gives, or lmloop.transcribe for speech"
        )
    if not config.causal or config.head == "none":
        raise ArtifactError(
            "this model reads text, it does not continue it: use .encode or .embed of what "
            "lmloop.load gives"
        )
