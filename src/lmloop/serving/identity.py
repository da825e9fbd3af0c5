"""Who is who without names: ids of answers that only this server can issue, and pseudonyms.

Takes: the secrets of a database, read once. Gives: signed ids, checked without looking anything up,
and hashes in place of users and sessions. No name that a client sends goes any further than this.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass

import sqlalchemy as sa
from starlette.datastructures import Headers

from lmloop.serving.schemas import ChatRequest, CompletionRequest
from lmloop.store.events import read_secret
from lmloop.store.identity import SESSIONS_SECRET, USERS_SECRET, pseudonym

RESPONSES_SECRET = "responses"
"""Name of the secret that signs the ids of answers."""
USER_HEADER = "x-lmloop-user"
SESSION_HEADER = "x-lmloop-session"
SESSION_CHARACTERS = 1000
"""So much of what tells a conversation is hashed: a message may have a million."""
_ANSWER_ID = re.compile(r"((?:chatcmpl|cmpl)-[0-9a-f]{24})([0-9a-f]{24})")

logger = logging.getLogger(__name__)


def random_token() -> str:
    """96 random bits as hex."""
    return secrets.token_hex(12)


@dataclass(frozen=True, slots=True, kw_only=True)
class Person:
    """Who sent a request, as far as the database may know."""

    user_hash: str | None
    """Pseudonym of the user, None where the request names none."""
    session_hash: str | None
    """Pseudonym of the conversation, None where nothing tells it from others."""


class Identity:
    """Issues and checks ids of answers, and turns names into pseudonyms."""

    def __init__(
        self,
        *,
        responses: bytes,
        sessions: bytes,
        users: bytes | None,
        make_token: Callable[[], str] = random_token,
    ) -> None:
        """Without the secret `users` no pseudonym of a user is ever made."""
        self._responses = responses
        self._sessions = sessions
        self._users = users
        self._make_token = make_token

    @staticmethod
    def open(database: sa.Engine) -> Identity:
        """Read the secrets of a database, or go without where it is away."""
        try:
            return Identity(
                responses=read_secret(database, RESPONSES_SECRET),
                sessions=read_secret(database, SESSIONS_SECRET),
                users=read_secret(database, USERS_SECRET),
            )
        except sa.exc.SQLAlchemyError as error:
            # Serving goes on. A user's rows could not be found again by `forget`: none are named.
            logger.warning(
                "the database's secrets cannot be read (%s): answers of this run can be rated "
                "in this run only, and no user is noted",
                type(error).__name__,
            )
            return Identity(
                responses=secrets.token_bytes(32), sessions=secrets.token_bytes(32), users=None
            )

    def issue(self, prefix: str) -> str:
        """A new id: the prefix, 24 random hex characters, and 24 that sign both."""
        begin = prefix + self._make_token()
        return begin + self._sign(begin)

    def verify(self, response_id: str) -> bool:
        """Whether this database's servers issued the id; takes the same time for every guess."""
        match = _ANSWER_ID.fullmatch(response_id)
        return match is not None and hmac.compare_digest(self._sign(match[1]), match[2])

    def describe(self, headers: Headers, request: ChatRequest | CompletionRequest) -> Person:
        """Pseudonyms of who sent a request and of the conversation that it belongs to.

        A conversation without a session or a user is told by its opening, so that it stays with
        one weights version from turn to turn.
        """
        user = request.safety_identifier or request.user or _read_header(headers, USER_HEADER)
        session = _read_header(headers, SESSION_HEADER) or user or request.opening or ""
        session = session[:SESSION_CHARACTERS]
        return Person(
            user_hash=pseudonym(self._users, user) if user and self._users else None,
            session_hash=pseudonym(self._sessions, session) if session else None,
        )

    def _sign(self, text: str) -> str:
        return hmac.digest(self._responses, text.encode(), hashlib.sha256).hex()[:24]


def _read_header(headers: Headers, name: str) -> str:
    """A header's text: UTF-8, which HTTP's libraries take for Latin-1."""
    return headers.get(name, "").encode("latin-1").decode("utf-8", "replace").strip()
