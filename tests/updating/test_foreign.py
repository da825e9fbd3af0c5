from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lmloop.updating.exchanges import Exchange, read_exchanges
from lmloop.updating.foreign import find_foreign
from lmloop.updating.screening import Candidate, screen

from .feedback import OPEN, Feedback

SECRET = "my landlady keeps the spare key under the third flower pot by the garden gate"
HAN = "房东把备用钥匙放在花园门边第三个花盆下面的盒子里"


def candidates(feedback: Feedback) -> list[Candidate]:
    found = read_exchanges(feedback.write(), name="chat", config=OPEN)
    return [screen(each, config=OPEN) for each in found if isinstance(each, Exchange)]


def is_foreign(feedback: Feedback, correction: str, **changes: Any) -> bool:
    identity = feedback.correct("What do you know?", correction, user_hash="ann", **changes)
    return find_foreign(feedback.engine, candidates(feedback)) == {identity}


@pytest.mark.parametrize("secret", [SECRET, HAN])
def test_what_another_user_said_is_foreign(tmp_path: Path, secret: str) -> None:
    feedback = Feedback(tmp_path)
    feedback.request(f"Listen: {secret}.", user_hash="bob")
    assert is_foreign(feedback, f"He said {secret}")


def test_what_another_user_was_told_is_foreign(tmp_path: Path) -> None:
    feedback = Feedback(tmp_path)
    feedback.request("Where is it?", f"{SECRET}!", user_hash="bob", consent=False, model="other")
    assert is_foreign(feedback, SECRET.title())


@pytest.mark.parametrize(
    "stored",
    [f'["{SECRET}"]', f'{{"a": [{{"b": "{SECRET}"}}]}}', f"[broken {SECRET}"],
)
def test_every_stored_prompt_is_looked_at_whatever_its_form(tmp_path: Path, stored: str) -> None:
    from lmloop.store.database import requests_table, transaction

    feedback = Feedback(tmp_path)
    identity = feedback.request("x", user_hash="bob")
    with transaction(feedback.write()) as connection:
        where = requests_table.c.id == identity
        connection.execute(requests_table.update().where(where).values(prompt=stored))
    assert is_foreign(feedback, SECRET)


def test_a_few_shared_words_are_not_foreign(tmp_path: Path) -> None:
    feedback = Feedback(tmp_path)
    feedback.request(" ".join(SECRET.split()[:12]), user_hash="bob")
    assert not is_foreign(feedback, SECRET)


def test_ones_own_words_are_not_foreign(tmp_path: Path) -> None:
    feedback = Feedback(tmp_path)
    feedback.request(SECRET, user_hash="ann")
    assert not is_foreign(feedback, SECRET)


def test_words_of_the_same_session_are_ones_own_where_there_is_no_user(tmp_path: Path) -> None:
    feedback = Feedback(tmp_path)
    feedback.request(SECRET, user_hash=None, session_hash="s1")
    own = feedback.correct("So?", SECRET, user_hash=None, session_hash="s1")
    other = feedback.correct("So what?", SECRET, user_hash=None, session_hash="s2")
    assert own != other
    assert find_foreign(feedback.engine, candidates(feedback)) == {other}


def test_a_mended_answer_may_keep_what_the_model_told_others_too(tmp_path: Path) -> None:
    feedback = Feedback(tmp_path)
    feedback.request("What do you know?", SECRET, user_hash="bob")
    assert not is_foreign(feedback, f"{SECRET}, they say", answer=SECRET)


def test_what_others_say_afterwards_takes_nothing_away(tmp_path: Path) -> None:
    feedback = Feedback(tmp_path)
    feedback.request(SECRET, user_hash="bob", created=2e6)
    assert not is_foreign(feedback, SECRET)


def test_an_answer_that_was_rated_up_is_the_models_own(tmp_path: Path) -> None:
    feedback = Feedback(tmp_path)
    feedback.request("Where is it?", SECRET, user_hash="bob")
    feedback.praise("Where?", SECRET, user_hash="ann")
    assert find_foreign(feedback.engine, candidates(feedback)) == set()
