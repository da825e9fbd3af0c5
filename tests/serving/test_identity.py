"""Ids that cannot be made up, and names that go nowhere."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from starlette.datastructures import Headers

from lmloop.serving.identity import Identity, Person, random_token
from lmloop.serving.schemas import ChatRequest, CompletionRequest
from lmloop.store.database import open_database
from lmloop.store.events import read_secret
from lmloop.store.identity import USERS_SECRET, pseudonym

SECRETS = {"responses": b"r" * 32, "sessions": b"s" * 32, "users": b"u" * 32}


def make_identity(**changes: Any) -> Identity:
    return Identity(**{**SECRETS, **changes})


def chat(*said: str, **fields: Any) -> ChatRequest:
    roles = ("user", "assistant")
    messages = [{"role": roles[n % 2], "content": text} for n, text in enumerate(said or ("hi",))]
    return ChatRequest.model_validate({"model": "m", "messages": messages, **fields})


def describe(request: Any, headers: dict[str, str] | None = None, **changes: Any) -> Person:
    return make_identity(**changes).describe(Headers(headers or {}), request)


def test_tokens_are_long_and_never_the_same() -> None:
    tokens = {random_token() for _ in range(100)}
    assert len(tokens) == 100
    assert {len(token) for token in tokens} == {24}


@pytest.mark.parametrize("prefix", ["chatcmpl-", "cmpl-"])
def test_an_id_that_was_issued_is_known_without_any_memory(prefix: str) -> None:
    response_id = make_identity().issue(prefix)
    assert re.fullmatch(prefix + "[0-9a-f]{48}", response_id)
    assert make_identity().verify(response_id)


def test_an_id_is_a_signature_of_its_own_beginning() -> None:
    response_id = make_identity(make_token=lambda: "0" * 24).issue("chatcmpl-")
    # echo -n chatcmpl-000000000000000000000000 |
    #     openssl sha256 -hmac rrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrr
    assert response_id == "chatcmpl-" + "0" * 24 + "b5ea1c8db152433521da18ce"


def test_ids_of_others_are_not_known() -> None:
    identity = make_identity()
    response_id = identity.issue("chatcmpl-")
    assert not make_identity(responses=b"x" * 32).verify(response_id)
    for position in range(len("chatcmpl-"), len(response_id)):
        digit = "0" if response_id[position] != "0" else "1"
        changed = response_id[:position] + digit + response_id[position + 1 :]
        assert not identity.verify(changed)


@pytest.mark.parametrize(
    "made_up",
    [
        *("", "chatcmpl-", "chatcmpl-" + "0" * 24, "chatcmpl-" + "0" * 48, "cmpl-" + "f" * 48),
        *("a'; drop table ratings", "../x", "é" * 60, "\ud800", "chatcmpl-" + "0" * 1_000_000),
    ],
)
def test_made_up_ids_are_not_known(made_up: str) -> None:
    assert not make_identity().verify(made_up)


def test_an_id_belongs_to_its_endpoint_and_to_its_letters() -> None:
    identity = make_identity()
    response_id = identity.issue("chatcmpl-")
    assert not identity.verify(response_id.removeprefix("chat"))
    assert not identity.verify(response_id.upper())
    assert not identity.verify(response_id + "\n")


def test_a_user_is_named_by_the_body_first_and_then_by_the_header() -> None:
    header = {"X-Lmloop-User": "carol"}
    for request, headers, name in [
        (chat(safety_identifier="alice", user="bob"), header, "alice"),
        (chat(user="bob"), header, "bob"),
        (chat(), header, "carol"),
        (chat(safety_identifier="", user=""), header, "carol"),
        (CompletionRequest.model_validate({"model": "m", "prompt": "a", "user": "bob"}), {}, "bob"),
    ]:
        found = describe(request, headers)
        assert found.user_hash == pseudonym(SECRETS["users"], name)
    assert describe(chat()).user_hash is None


def test_a_header_in_utf_8_names_the_same_user_as_the_body() -> None:
    raw = [(b"x-lmloop-user", "  Jörg 张 ".encode())]
    identity = make_identity()
    by_header = identity.describe(Headers(raw=raw), chat())
    assert by_header.user_hash == identity.describe(Headers({}), chat(user="Jörg 张")).user_hash
    broken = identity.describe(Headers(raw=[(b"x-lmloop-user", b"\xff\xfe")]), chat())
    assert broken.user_hash is not None


def test_a_conversation_is_told_by_session_then_user_then_opening() -> None:
    def session(name: str) -> str:
        return pseudonym(SECRETS["sessions"], name)

    header = {"X-Lmloop-Session": "tab 7"}
    assert describe(chat(user="bob"), header).session_hash == session("tab 7")
    assert describe(chat(user="bob")).session_hash == session("bob")
    assert describe(chat("good day")).session_hash == session("good day")
    assert describe(chat("good day", "hello", "how are you?")).session_hash == session("good day")
    assert describe(chat("a" * 1_000_000)).session_hash == session("a" * 1000)
    plain = CompletionRequest.model_validate({"model": "m", "prompt": "good day"})
    assert describe(plain).session_hash is None
    no_user = ChatRequest.model_validate(
        {"model": "m", "messages": [{"role": "system", "content": "be kind"}]}
    )
    assert describe(no_user).session_hash is None


def test_a_user_and_a_session_of_one_name_have_nothing_in_common() -> None:
    found = describe(chat(user="bob"))
    assert found.user_hash != found.session_hash


def test_the_secrets_are_the_databases_own(tmp_path: Path) -> None:
    databases = [open_database(f"sqlite:///{tmp_path / name}") for name in ("a.db", "b.db")]
    first, again, other = (Identity.open(databases[index]) for index in (0, 0, 1))
    response_id = first.issue("cmpl-")
    assert (again.verify(response_id), other.verify(response_id)) == (True, False)
    named = first.describe(Headers({}), chat(user="bob"))
    # What `lmloop forget bob` looks for.
    assert named.user_hash == pseudonym(read_secret(databases[0], USERS_SECRET), "bob")
    for database in databases:
        database.dispose()


def test_without_a_database_ids_are_good_for_this_run_and_no_user_is_noted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    nowhere = sa.create_engine(f"sqlite:///{tmp_path / 'no' / 'a.db'}")
    identity = Identity.open(nowhere)
    assert identity.verify(identity.issue("cmpl-"))
    found = identity.describe(Headers({}), chat(user="bob"))
    assert found.user_hash is None
    assert found.session_hash is not None
    assert "OperationalError" in caplog.text
    assert "bob" not in caplog.text
