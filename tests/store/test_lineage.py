"""Ancestry, from an artifact back to the raw files."""

from __future__ import annotations

import shutil
from collections.abc import Callable

import pytest

from lmloop.store.artifact import Artifact, ArtifactStore
from lmloop.store.lineage import Ancestor, find_ancestors, find_descendants, trace, walk_back

pytestmark = pytest.mark.usefixtures("quick_disk")

MakeArtifact = Callable[..., Artifact]


def origin(artifact: Artifact) -> dict[str, str]:
    return {"kind": artifact.kind, "fingerprint": artifact.fingerprint}


def make_chain(make_artifact: MakeArtifact) -> tuple[Artifact, Artifact, Artifact]:
    corpus = make_artifact("corpus")
    shards = make_artifact("shards", stage="tokenize", made_from=[origin(corpus)])
    model = make_artifact("model", stage="pretrain", made_from=[origin(shards), origin(corpus)])
    return corpus, shards, model


def test_the_tree_goes_from_the_model_to_the_raw_file(
    store: ArtifactStore, make_artifact: MakeArtifact
) -> None:
    corpus, shards, model = make_chain(make_artifact)
    raw = Ancestor("talks.jsonl", "raw file, SHA-256 ffffffffffff")
    told_corpus = Ancestor(str(corpus), "records 3", (raw,))
    told_shards = Ancestor(str(shards), "records 3", (told_corpus,))
    assert trace(model, store) == Ancestor(str(model), "records 3", (told_shards, told_corpus))


def test_an_input_that_is_gone_is_named_and_ends_its_branch(
    store: ArtifactStore, make_artifact: MakeArtifact
) -> None:
    corpus, shards, model = make_chain(make_artifact)
    shutil.rmtree(shards.path)
    gone, told_corpus = trace(model, store).parents
    assert gone == Ancestor(f"corpus {shards.fingerprint[:12]}", "no longer on disk")
    assert told_corpus.label == str(corpus)


def test_the_detail_holds_the_first_six_plain_numbers(
    store: ArtifactStore, make_artifact: MakeArtifact
) -> None:
    counts = {
        "records": 7168,
        "by_rule": {"short": 3},
        "loss": 1.234567,
        "finished": True,
        "note": "fine",
        **{f"n{number}": number for number in range(9)},
    }
    artifact = make_artifact(counts=counts)
    assert trace(artifact, store).detail == "records 7,168, loss 1.235, n0 0, n1 1, n2 2, n3 3"


def test_what_users_said_is_a_leaf_like_a_raw_file(
    store: ArtifactStore, make_artifact: MakeArtifact
) -> None:
    said = {"kind": "events", "fingerprint": "e" * 64, "source": "61 exchanges of 14 users"}
    collected = make_artifact(stage="collect", made_from=[said])
    assert trace(collected, store).parents == (
        Ancestor("61 exchanges of 14 users", "exchanges with users, SHA-256 eeeeeeeeeeee"),
    )


def test_a_damaged_artifact_elsewhere_is_in_nobodys_way(
    store: ArtifactStore, make_artifact: MakeArtifact
) -> None:
    _, shards, model = make_chain(make_artifact)
    whole = trace(model, store)
    stranger = make_artifact("stranger", stage="collect")
    (stranger.path / "manifest.json").write_text("{")
    assert trace(model, store) == whole
    (shards.path / "manifest.json").write_text("{")
    assert trace(model, store).parents[0] == Ancestor(
        f"corpus {shards.fingerprint[:12]}", "no longer on disk"
    )


def test_content_that_was_made_from_itself_is_not_followed_for_ever(
    store: ArtifactStore, make_artifact: MakeArtifact
) -> None:
    corpus = make_artifact("same")
    model = make_artifact("same", stage="update", made_from=[origin(corpus)])
    assert corpus.fingerprint == model.fingerprint
    assert trace(model, store).parents == (Ancestor(str(model), "the same content"),)
    assert [each.path for each in walk_back(model, store)] == [model.path]


def test_a_history_of_many_updates_is_followed_once_each(
    store: ArtifactStore, make_artifact: MakeArtifact
) -> None:
    model = make_artifact("model 0")
    for number in range(1, 30):
        earlier = [origin(model), origin(model)]
        model = make_artifact(f"model {number}", key=f"{number:016}" * 4, made_from=earlier)
    depth, node = 1, trace(model, store)
    while node.parents and node.parents[0].parents:
        assert node.parents[0] is node.parents[1]
        depth, node = depth + 1, node.parents[0]
    assert depth == 30
    assert len({trace(model, store)}) == 1
    assert len(list(walk_back(model, store))) == 30


def test_ancestors_and_descendants_are_everything_before_and_behind(
    store: ArtifactStore, make_artifact: MakeArtifact
) -> None:
    corpus, shards, model = make_chain(make_artifact)
    other = make_artifact("other", stage="evaluate", made_from=[origin(shards)])
    everything = store.all()
    raw = "f" * 64
    assert find_ancestors([model], everything) == {
        *(each.fingerprint for each in (model, shards, corpus)),
        raw,
    }
    assert find_ancestors([], everything) == set()
    assert set(map(str, find_descendants([shards], everything))) == {str(model), str(other)}
    assert find_descendants([model], everything) == []


def test_lineage_goes_on_behind_what_is_gone_as_far_as_it_is_known(
    store: ArtifactStore, make_artifact: MakeArtifact
) -> None:
    corpus, shards, model = make_chain(make_artifact)
    shutil.rmtree(corpus.path)
    assert find_ancestors([model], store.all()) >= {shards.fingerprint, corpus.fingerprint}
    assert set(map(str, find_descendants([corpus], store.all()))) == {str(shards), str(model)}
