"""Pseudonyms: what stands in the database in place of a person's name.

Takes: a secret of the database and a name. Gives: the same 32 characters for the same name, from
which nobody without the secret can tell whether a guess is right.
"""

from __future__ import annotations

import hashlib
import hmac

USERS_SECRET = "users"
"""Name of the secret (see `lmloop.store.events.read_secret`) behind `requests.user_hash`."""
SESSIONS_SECRET = "sessions"
"""Name of the secret behind `requests.session_hash`."""


def pseudonym(secret: bytes, text: str) -> str:
    """The first 128 bits of the text's HMAC-SHA256, as 32 hex characters."""
    # Whoever asks to be forgotten may type the name with other marks for the same letters or with
    # half a surrogate pair: neither may end in an error.
    return hmac.digest(secret, text.encode("utf-8", "surrogatepass"), hashlib.sha256).hex()[:32]
