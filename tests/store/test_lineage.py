"""Ancestry, from an artifact back to the raw files."""

from __future__ import annotations

import shutil
from collections.abc import Callable

from lmloop.store.artifact import Artifact, ArtifactStore
from lmloop.store.lineage import Ancestor, trace

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
