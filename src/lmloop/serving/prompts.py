"""From a checked request to what the engine runs: token ids and sampling for every sequence.

Takes: a request and the tokenizer and chat template of the weights that will answer it. Gives: a
`Plan`, or `ContextLengthError` where a prompt leaves no room for an answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from lmloop.errors import ContextLengthError, RequestError, TokenizerError
from lmloop.records import Turn
from lmloop.serving.schemas import ChatRequest, CompletionRequest, GenerationRequest, Message
from lmloop.store.artifact import hash_file
from lmloop.tokens.chat import ChatTemplate
from lmloop.tokens.gguf_vocabulary import read_vocabulary
from lmloop.tokens.tokenizer import Tokenizer

DEFAULT_COMPLETION_TOKENS = 16
"""Longest plain completion unless the request says otherwise (OpenAI's default)."""
GREEDY_TEMPERATURE = 1e-3
"""Below this, sampling is taking the most probable token, and dividing by it would overflow."""


class TextEncoder(Protocol):
    """What is asked of a tokenizer."""

    def encode_document(self, text: str) -> list[int]:
        """Ids of a text as the beginning of a document."""


class TurnEncoder(Protocol):
    """What is asked of a chat template."""

    def encode(self, turns: Sequence[Turn], *, add_generation_prompt: bool = True) -> list[int]:
        """Ids of a conversation, ready for an answer."""


def _open_tokenizer(path: Path) -> tuple[Tokenizer, Path]:
    """The tokenizer, and the file that it lies in."""
    if path.suffix != ".gguf":
        return Tokenizer.open(path), path / "tokenizer.json"
    # Imported here: with torch behind it, a second that a folder's server does not wait for.
    from lmloop.weights.gguf import open_gguf

    return read_vocabulary(open_gguf(path).metadata), path


class Texts:
    """Tokenizer and chat template of one weights version; threads may share it."""

    def __init__(
        self, tokenizer: TextEncoder, template: TurnEncoder | None, *, fingerprint: str
    ) -> None:
        self._tokenizer = tokenizer
        self._template = template
        self.fingerprint = fingerprint
        """SHA-256 of the file that has the tokenizer, as hex."""

    @staticmethod
    def open(path: Path) -> Texts:
        """Read both from a folder or a `.gguf` file; raise `TokenizerError` where that fails."""
        tokenizer, file = _open_tokenizer(path)
        template = None if tokenizer.chat_template is None else ChatTemplate.of(tokenizer)
        return Texts(tokenizer, template, fingerprint=hash_file(file))

    def encode_document(self, text: str) -> list[int]:
        """Ids of a plain prompt: the beginning of a document that is to be continued."""
        return self._tokenizer.encode_document(text)

    def encode_chat(self, messages: Sequence[Message]) -> list[int]:
        """Ids of a chat; raise `RequestError` (400) where the template refuses it."""
        if self._template is None:
            raise RequestError(
                "This model has no chat template: use /v1/completions.", param="messages"
            )
        turns = [Turn(_ROLES.get(each.role, each.role), each.content) for each in messages]
        try:
            return self._template.encode(turns, add_generation_prompt=True)
        except TokenizerError as error:
            raise RequestError(str(error), param="messages") from error


_ROLES = {"developer": "system"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What the engine is to run for one request."""

    sequences: list[tuple[list[int], dict[str, Any]]]
    """Token ids and sampling of each choice of each prompt, in the order of the choices' index."""
    prompt_tokens: int
    """Tokens of all prompts, each counted once however many choices it gets."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What the engine that answers can hold."""

    context_length: int
    vocab_size: int
    max_tokens: int
    """Longest answer that the server gives."""


class Planner(Protocol):
    """A request that waits for the tokenizer of the weights that will answer it."""

    def __call__(self, *, texts: Texts, limits: Limits) -> Plan:
        """Make the plan; raise `RequestError` where the request does not fit."""


def plan_chat(request: ChatRequest, *, texts: Texts, limits: Limits) -> Plan:
    """Lay a chat out with the model's template."""
    prompt = texts.encode_chat(request.messages)
    asked = request.max_completion_tokens or request.max_tokens or limits.max_tokens
    return _plan([prompt], request, asked=asked, limits=limits, param="messages")


def plan_completion(request: CompletionRequest, *, texts: Texts, limits: Limits) -> Plan:
    """Take prompts as they are: text is encoded, ids are checked."""
    prompts = []
    for prompt in request.prompt:
        ids = texts.encode_document(prompt) if isinstance(prompt, str) else list(prompt)
        if not ids:
            raise RequestError("The prompt is empty: send some text.", param="prompt")
        if not 0 <= min(ids) <= max(ids) < limits.vocab_size:
            raise RequestError(
                f"The prompt has token ids outside 0 to {limits.vocab_size - 1}.", param="prompt"
            )
        prompts.append(ids)
    asked = request.max_tokens or DEFAULT_COMPLETION_TOKENS
    return _plan(prompts, request, asked=asked, limits=limits, param="prompt")


def _plan(
    prompts: Sequence[list[int]],
    request: GenerationRequest,
    *,
    asked: int,
    limits: Limits,
    param: str,
) -> Plan:
    sequences = []
    for prompt in prompts:
        room = limits.context_length - len(prompt)
        if room < 1:
            error = ContextLengthError(
                prompt_tokens=len(prompt), context_length=limits.context_length
            )
            error.param = param
            raise error
        for choice in range(request.choices):
            sampling = _sampling(request, choice=choice, vocab_size=limits.vocab_size)
            sampling["max_tokens"] = min(asked, limits.max_tokens, room)
            sequences.append((prompt, sampling))
    return Plan(sequences=sequences, prompt_tokens=sum(map(len, prompts)))


def _sampling(request: GenerationRequest, *, choice: int, vocab_size: int) -> dict[str, Any]:
    """Fields of `lmloop.inference.sampling.Sampling`, which this process does not import."""
    temperature = 1.0 if request.temperature is None else request.temperature
    if temperature < GREEDY_TEMPERATURE or request.top_p == 0:
        temperature = 0.0
    top_k = None if request.top_k is None or request.top_k < 1 else min(request.top_k, vocab_size)
    return {
        "temperature": temperature,
        "top_p": request.top_p or 1.0,
        "top_k": top_k,
        "stop": list(request.stop),
        # Choices differ, and each is the same again when asked again.
        "seed": None if request.seed is None else (request.seed + choice) % 2**63,
    }
