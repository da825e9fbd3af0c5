"""What the tests beside other libraries share."""

from __future__ import annotations

import warnings
from typing import Any

import pytest


@pytest.fixture(scope="session")
def transformers() -> Any:
    """The library, imported without what it warns of itself."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import transformers

        return transformers
