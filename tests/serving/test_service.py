"""What the routes share."""

from __future__ import annotations

from pathlib import Path

import pytest

from lmloop.errors import RequestError
from lmloop.sections import ServeConfig
from lmloop.serving.router import Router
from lmloop.serving.service import open_service, random_token
from lmloop.store.database import open_database

from .harness import fake_spec


def test_tokens_are_long_and_never_the_same() -> None:
    tokens = {random_token() for _ in range(100)}
    assert len(tokens) == 100
    assert {len(token) for token in tokens} == {24}


def test_only_the_served_model_is_known_and_odd_names_are_cut(tmp_path: Path) -> None:
    database = open_database(f"sqlite:///{tmp_path / 'a.db'}")
    service = open_service(
        ServeConfig(),
        router=Router(fake_spec(tmp_path)),
        model_name="m",
        model_created=1,
        database=database,
    )
    service.check_model("m")
    for name in ("", "M", "m ", "x" * 10_000, "a\r\nb"):
        with pytest.raises(RequestError) as caught:
            service.check_model(name)
        assert (caught.value.status, caught.value.code) == (404, "model_not_found")
        assert len(str(caught.value)) < 250
        assert "\n" not in str(caught.value)
    service.events.close()
    database.dispose()
