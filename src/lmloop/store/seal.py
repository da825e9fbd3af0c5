"""A seal: what only who holds a secret can put on plain data."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Mapping
from typing import Any


def seal(secret: bytes, fields: Mapping[str, Any]) -> str:
    """HMAC-SHA256 of plain data (names sorted, as JSON), as hex."""
    text = json.dumps(dict(fields), sort_keys=True)
    return hmac.new(secret, text.encode(), hashlib.sha256).hexdigest()


def is_sealed(secret: bytes, fields: Mapping[str, Any], found: object) -> bool:
    """Whether `found` is the seal of these fields; takes the same time whatever it is."""
    try:
        expected = seal(secret, fields)
    except TypeError:
        # Other hands can put bytes where text or numbers belong.
        return False
    return isinstance(found, str) and hmac.compare_digest(found.encode(), expected.encode())
