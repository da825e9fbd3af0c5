"""A round of the circle: what a live model came from, as far as an update needs it."""

from __future__ import annotations

from pathlib import Path

import pytest

from lmloop.errors import UpdateError
from lmloop.rounds import find_parents
from lmloop.store.artifact import ArtifactStore

from .conftest import Walked


def test_a_compressed_model_is_updated_from_what_it_was_before(walked: Walked) -> None:
    live = walked.made.artifacts["compress"]
    parents = find_parents(live, ArtifactStore(walked.home))
    made = walked.made.artifacts
    assert parents.live == live
    assert parents.base == made["finetune"]
    assert parents.corpus == made["prepare"]
    assert parents.shards == made["tokenize"]


def test_an_uncompressed_model_is_updated_from_itself(walked: Walked) -> None:
    tuned = walked.made.artifacts["finetune"]
    assert find_parents(tuned, ArtifactStore(walked.home)).base == tuned


def test_a_model_whose_text_is_gone_is_refused(walked: Walked, tmp_path: Path) -> None:
    with pytest.raises(UpdateError, match="no longer on disk; run its recipe again"):
        find_parents(walked.made.artifacts["compress"], ArtifactStore(tmp_path))
