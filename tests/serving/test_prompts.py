"""From a request to token ids and sampling."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from lmloop.errors import ContextLengthError, RequestError, TokenizerError
from lmloop.records import Turn
from lmloop.serving.prompts import Limits, Plan, Texts, plan_chat, plan_completion
from lmloop.serving.schemas import parse_chat, parse_completion
from lmloop.tokens.tokenizer import Tokenizer
from lmloop.weights.gguf_writer import write_gguf

from ..tokens.test_gguf_vocabulary import metadata_of
from .harness import ByteTokenizer, open_fake_texts

LIMITS = Limits(context_length=20, vocab_size=256, max_tokens=10)


def complete(prompt: Any = "abc", **fields: Any) -> Plan:
    body = json.dumps({"model": "m", "prompt": prompt, **fields}).encode()
    return plan_completion(parse_completion(body), texts=open_fake_texts(), limits=LIMITS)


def converse(content: str = "a", *, texts: Texts | None = None, **fields: Any) -> Plan:
    messages = [{"role": "user", "content": content}]
    body = json.dumps({"model": "m", "messages": messages, **fields}).encode()
    return plan_chat(parse_chat(body), texts=texts or open_fake_texts(), limits=LIMITS)


def test_a_plain_request_samples_as_openai_says() -> None:
    assert complete().sequences == [
        (
            [97, 98, 99],
            {
                "max_tokens": 10,
                "temperature": 1.0,
                "top_p": 1.0,
                "top_k": None,
                "stop": [],
                "seed": None,
            },
        )
    ]


@pytest.mark.parametrize(
    ("fields", "sampling"),
    [
        ({"temperature": 0}, {"temperature": 0.0}),
        ({"temperature": 1e-300}, {"temperature": 0.0}),
        ({"temperature": 0.5}, {"temperature": 0.5}),
        ({"top_p": 0}, {"temperature": 0.0, "top_p": 1.0}),
        ({"top_p": 0.5}, {"top_p": 0.5}),
        ({"top_k": -1}, {"top_k": None}),
        ({"top_k": 0}, {"top_k": None}),
        ({"top_k": 5}, {"top_k": 5}),
        ({"top_k": 10**9}, {"top_k": 256}),
        ({"stop": "x"}, {"stop": ["x"]}),
        ({"seed": 7}, {"seed": 7}),
        ({"seed": -1}, {"seed": 2**63 - 1}),
        ({"max_tokens": 3}, {"max_tokens": 3}),
        ({"max_tokens": 10**6}, {"max_tokens": 10}),
    ],
)
def test_a_field_becomes_sampling(fields: dict[str, Any], sampling: dict[str, Any]) -> None:
    found = complete(**fields).sequences[0][1]
    assert {name: found[name] for name in sampling} == sampling


def test_the_answer_is_no_longer_than_the_room_behind_the_prompt() -> None:
    assert complete("a" * 17, max_tokens=9).sequences[0][1]["max_tokens"] == 3
    assert complete("a" * 19).sequences[0][1]["max_tokens"] == 1


def test_a_prompt_without_room_for_an_answer_is_refused() -> None:
    with pytest.raises(ContextLengthError) as caught:
        complete("a" * 20)
    error = caught.value
    assert (error.status, error.code, error.param) == (400, "context_length_exceeded", "prompt")
    with pytest.raises(ContextLengthError) as caught:
        converse("a" * 20)
    assert caught.value.param == "messages"


def test_choices_and_prompts_multiply_and_prompt_tokens_count_once() -> None:
    plan = complete(["ab", "c"], n=2, seed=2**63 - 1)
    assert [tokens for tokens, _ in plan.sequences] == [[97, 98], [97, 98], [99], [99]]
    assert [sampling["seed"] for _, sampling in plan.sequences] == [2**63 - 1, 0, 2**63 - 1, 0]
    assert plan.prompt_tokens == 3


def test_a_chat_is_laid_out_by_the_template_with_developers_as_system() -> None:
    messages = [{"role": "developer", "content": "b"}, {"role": "user", "content": "a"}]
    body = json.dumps({"model": "m", "messages": messages, "max_completion_tokens": 2}).encode()
    limits = Limits(context_length=90, vocab_size=256, max_tokens=10)
    plan = plan_chat(parse_chat(body), texts=open_fake_texts(), limits=limits)
    assert bytes(plan.sequences[0][0]) == b"system: b\nuser: a\n"
    assert plan.sequences[0][1]["max_tokens"] == 2


def test_a_chat_answers_up_to_the_servers_limit_by_default() -> None:
    assert converse().sequences[0][1]["max_tokens"] == 10


@pytest.mark.parametrize("prompt", ["", [256], [-1], [[1], [10**30]]])
def test_prompts_that_name_no_tokens_are_refused(prompt: Any) -> None:
    with pytest.raises(RequestError) as caught:
        complete(prompt)
    assert (caught.value.status, caught.value.param) == (400, "prompt")


def test_what_the_template_refuses_is_the_clients_fault() -> None:
    class Refusing:
        def encode(self, turns: Sequence[Turn], *, add_generation_prompt: bool = True) -> list[int]:
            raise TokenizerError("the chat template refuses these messages: no")

    with pytest.raises(RequestError, match="refuses these messages") as caught:
        converse(texts=Texts(ByteTokenizer(), Refusing(), fingerprint=""))
    assert caught.value.status == 400


def test_a_model_without_a_template_does_not_chat() -> None:
    with pytest.raises(RequestError, match="/v1/completions"):
        converse(texts=Texts(ByteTokenizer(), None, fingerprint=""))


@pytest.mark.slow
def test_a_folder_gives_its_tokenizer_and_template(checkpoint: Path) -> None:
    texts = Texts.open(checkpoint)
    body = b'{"model": "m", "messages": [{"role": "user", "content": "the <|end|>"}]}'
    ids = texts.encode_chat(parse_chat(body).messages)
    stop = 1
    assert ids.count(stop) == 1, "a stop token that is typed stays text"
    assert len(texts.fingerprint) == 64
    document = 0
    assert texts.encode_document("the")[0] == texts.encode_document("")[0] == document
    with pytest.raises(TokenizerError):
        Texts.open(checkpoint / "nothing")


@pytest.mark.slow
def test_a_gguf_file_gives_the_tokenizer_and_template_in_it(
    checkpoint: Path, tmp_path: Path
) -> None:
    folder = Tokenizer.open(checkpoint)
    path = tmp_path / "model.gguf"
    write_gguf(path, metadata=metadata_of(folder), tensors={})
    texts = Texts.open(path)
    assert texts.encode_document("hello there") == folder.encode_document("hello there")
    body = b'{"model": "m", "messages": [{"role": "user", "content": "hello there"}]}'
    messages = parse_chat(body).messages
    assert texts.encode_chat(messages) == Texts.open(checkpoint).encode_chat(messages)
    assert texts.fingerprint != Texts.open(checkpoint).fingerprint
