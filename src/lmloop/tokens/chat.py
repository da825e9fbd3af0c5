"""The one chat template: training, evaluation and serving all lay conversations out with it.

Takes: turns. Gives: ids, and which of them are the assistant's answers. The template is rendered
around place holders; utterances are encoded apart, so what a person types is never markup.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from lmloop.errors import TokenizerError
from lmloop.records import Turn
from lmloop.tokens.tokenizer import Tokenizer

DEFAULT_TEMPLATE = (
    "<|endoftext|>"
    "{% for message in messages %}"
    "{% if message['role'] not in ['system', 'user', 'assistant'] %}"
    "{{ raise_exception('unknown role ' + message['role']) }}"
    "{% endif %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
_PLACE_HOLDER = re.compile("\ue000(\\d+)\ue001")


class ChatTemplate:
    """Lays turns out as the model has learnt them."""

    def __init__(self, source: str, *, tokenizer: Tokenizer) -> None:
        self.source = source
        self.tokenizer = tokenizer
        self._markup: dict[str, list[int]] = {}

    @staticmethod
    def of(tokenizer: Tokenizer) -> ChatTemplate:
        """The template that a tokenizer carries; `TokenizerError` where it carries none."""
        if tokenizer.chat_template is None:
            raise TokenizerError(
                "this tokenizer has no chat template: it cannot chat; take one that has, or write "
                "chat_template into its tokenizer_config.json"
            )
        return ChatTemplate(tokenizer.chat_template, tokenizer=tokenizer)

    @cached_property
    def _template(self) -> jinja2.Template:
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        environment.globals["raise_exception"] = _refuse
        try:
            return environment.from_string(self.source)
        except (jinja2.TemplateError, RecursionError) as error:
            reason = " ".join(str(error).split())
            raise TokenizerError(f"the chat template cannot be read: {reason}") from error

    def render(self, turns: Sequence[Turn], *, add_generation_prompt: bool = False) -> str:
        """The text that the model sees; `TokenizerError` where the template refuses the turns."""
        messages = [{"role": turn.role, "content": turn.content} for turn in turns]
        try:
            return self._template.render(
                messages=messages, add_generation_prompt=add_generation_prompt
            )
        except Exception as error:  # a template is a program: it may fail in any way
            raise TokenizerError(f"the chat template refuses these messages: {error}") from error

    def encode(self, turns: Sequence[Turn], *, add_generation_prompt: bool = True) -> list[int]:
        """Ids of a conversation; with `add_generation_prompt`, ready for the assistant's answer."""
        contents = self.tokenizer.encode_batch([turn.content for turn in turns])
        pieces = self._lay_out(turns, contents, add_generation_prompt=add_generation_prompt)
        return [token for ids, _ in pieces for token in ids]

    def encode_answers(
        self, turns: Sequence[Turn], contents: Sequence[list[int]]
    ) -> tuple[list[int], list[bool]]:
        """Ids, and True where an id belongs to an answer or is the stop token right after it.

        `contents` are the ids of the turns' utterances, so that a caller can encode many at once.
        """
        pieces = self._lay_out(turns, contents, add_generation_prompt=False)
        ids: list[int] = []
        answers: list[bool] = []
        in_answer = False
        for piece, turn in pieces:
            ids += piece
            if turn is not None:
                in_answer = turn.role == "assistant"
                answers += [in_answer] * len(piece)
            else:
                stops = in_answer and piece[:1] == [self.tokenizer.stop_ids[0]]
                answers += [stops] + [False] * (len(piece) - 1) if piece else []
                in_answer = False
        return ids, answers

    def check_stop_is_learnt(self) -> None:
        """Raise `TokenizerError` unless the stop token lies inside the loss mask of an answer.

        A model that never sees its stop token as a target does not stop: the commonest fault of
        fine-tuned models.
        """
        turns = (Turn("user", "a"), Turn("assistant", "b"))
        contents = self.tokenizer.encode_batch([turn.content for turn in turns])
        ids, answers = self.encode_answers(turns, contents)
        learnt = {token for token, answer in zip(ids, answers, strict=True) if answer}
        if self.tokenizer.stop_ids[0] not in learnt:
            raise TokenizerError(
                "the chat template puts no stop token right behind an answer, so the model would "
                "never learn to stop: end assistant messages with the tokenizer's eos_token"
            )

    def _lay_out(
        self, turns: Sequence[Turn], contents: Sequence[list[int]], *, add_generation_prompt: bool
    ) -> list[tuple[list[int], Turn | None]]:
        """Pieces in order: markup (without a turn) and utterances (with theirs)."""
        held = [Turn(turn.role, f"\ue000{index}\ue001") for index, turn in enumerate(turns)]
        rendered = self.render(held, add_generation_prompt=add_generation_prompt)
        parts = _PLACE_HOLDER.split(rendered)
        if [int(part) for part in parts[1::2]] != list(range(len(turns))):
            raise TokenizerError(
                "the chat template does not show every message once and in order: it cannot be "
                "used for training or serving"
            )
        pieces: list[tuple[list[int], Turn | None]] = [(self._encode_markup(parts[0]), None)]
        for index, markup in zip(parts[1::2], parts[2::2], strict=True):
            pieces.append((contents[int(index)], turns[int(index)]))
            pieces.append((self._encode_markup(markup), None))
        return pieces

    def _encode_markup(self, text: str) -> list[int]:
        if text not in self._markup:
            self._markup[text] = self.tokenizer.encode_markup(text)
        return self._markup[text]


def _refuse(message: str) -> Any:
    raise jinja2.TemplateError(message)
