"""What the tests beside other libraries share."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest

import lmloop
from lmloop.model.transformer import Transformer
from lmloop.weights.checkpoint import load_model, save_model

from .beside_llama_cpp import Peer, build_peer

SMOLLM2 = "smollm2-135m-instruct"


@pytest.fixture(scope="session")
def transformers() -> Any:
    """The library, imported without what it warns of itself."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import transformers

        return transformers


@pytest.fixture(scope="session")
def peer() -> Peer:
    return build_peer()


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of real weights."""
    (file,) = lmloop.pull(SMOLLM2, home=tmp_path_factory.mktemp("home")).path.glob("*.gguf")
    return file


def save_again(theirs: Any, folder: Path, **ids: int) -> Transformer:
    """Their model as we open it, saved by us in `folder` / ours."""
    theirs.save_pretrained(folder / "theirs")
    ours = load_model(folder / "theirs")
    (folder / "ours").mkdir()
    save_model(ours, folder / "ours", **ids)
    return ours
