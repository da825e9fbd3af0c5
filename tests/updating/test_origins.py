"""Descent and overlap on small manifests: what is known, when it was sealed, what was seen."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from lmloop.progress import Silent
from lmloop.records import Document, Record
from lmloop.store.artifact import Artifact, ArtifactStore
from lmloop.updating.checks import Check
from lmloop.updating.origins import check_lineage, check_overlap, trace_descent
from lmloop.updating.pledge import Pledge
from lmloop.upkeep import GateConfig

from .gate_world import write_records

CONFIG = GateConfig(min_documents=2)


def document(name: str, *, text: str | None = None) -> Document:
    """A text of fourteen words that no other name shares."""
    words = text or " ".join(f"{name}{place}" for place in range(14))
    return Document(name, words, len(words))


def texts(letter: str, count: int) -> list[Record]:
    return [document(f"{letter}{number}x") for number in range(count)]


class Home:
    """Artifacts whose files hardly matter."""

    def __init__(self, home: Path) -> None:
        self.store = ArtifactStore(home)
        self.made = 0
        self.sets: dict[str, Sequence[Record]] = {
            "target": texts("t", 4),
            "general": texts("g", 20),
            "twin": texts("w", 10),
        }
        self.old = self.add("corpus", text=texts("o", 5))
        self.live = self.add("checkpoint", self.add("shards", self.old))
        self.sealed = self.add("pledge", self.old, created=100.0)
        self.pledge = Pledge(artifact=self.sealed, config=CONFIG, sealed=100.0, sets=self.sets)

    def add(
        self,
        kind: str,
        *origins: Artifact,
        text: Iterable[Record] = (),
        created: float = 200.0,
        made_from: Sequence[dict[str, str]] = (),
    ) -> Artifact:
        self.made += 1
        with self.store.write(kind, f"{self.made:016x}") as draft:
            (draft.path / "content").write_text(f"{self.made}")
            if records := list(text):
                write_records(records, draft.path / "train.parquet")
            known = [{"kind": each.kind, "fingerprint": each.fingerprint} for each in origins]
            return draft.finish(
                kind=kind,
                name="test",
                made_from=[*known, *made_from],
                settings={},
                counts={},
                code_version="0",
                environment={},
                created=created,
            )

    def lineage(self, candidate: Artifact, config: GateConfig = CONFIG) -> Check:
        return check_lineage(config, trace_descent(candidate, self.store), self.pledge)

    def overlap(self, candidate: Artifact) -> tuple[Check, dict[str, frozenset[int]]]:
        return check_overlap(
            trace_descent(candidate, self.store),
            trace_descent(self.live, self.store),
            self.pledge,
            confidence=0.95,
            progress=Silent(),
        )

    def train(self, *text: Record, created: float = 200.0) -> Artifact:
        """A candidate of live model, pledge and a corpus with this text."""
        corpus = self.add("corpus", text=text or texts("n", 3))
        return self.add("checkpoint", self.live, self.sealed, corpus, created=created)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


def test_the_descent_reaches_the_text_and_names_it(home: Home) -> None:
    candidate = home.train()
    descent = trace_descent(candidate, home.store)
    assert descent.is_known
    assert len(descent.corpora) == 2
    assert home.old.fingerprint in descent.corpora
    assert home.sealed.fingerprint in descent.artifacts


def test_what_a_pledge_was_made_from_is_no_training_text(home: Home) -> None:
    tests = home.add("corpus", text=texts("t", 4))
    pledge = home.add("pledge", tests)
    candidate = home.add("checkpoint", pledge, home.live)
    assert tests.fingerprint not in trace_descent(candidate, home.store).artifacts


class Ring(ArtifactStore):
    """Two artifacts made from each other: no writer can make them, but a walk must end."""

    def all(self) -> list[Artifact]:
        one, other = super().all()[:2]
        return [
            replace(
                each,
                kind="checkpoint",
                made_from=({"kind": "checkpoint", "fingerprint": origin.fingerprint},),
                files={},
            )
            for each, origin in ((one, other), (other, one))
        ]


def test_a_walk_in_a_ring_ends(home: Home) -> None:
    ring = Ring(home.store.home)
    descent = trace_descent(ring.all()[0], ring)
    assert len(descent.artifacts) == 2
    assert not descent.corpora


def test_a_pledge_before_training_passes(home: Home) -> None:
    check = home.lineage(home.train(created=160.0))
    assert check.passed
    assert "thresholds sealed 60 s before training began" in check.reason


def test_the_first_training_under_the_pledge_counts_not_the_last_step(home: Home) -> None:
    trained = home.train(created=90.0)
    compressed = home.add("checkpoint", trained, created=500.0)
    check = home.lineage(compressed)
    assert not check.passed
    assert check.reason == "thresholds were sealed 10 s after training began"


def test_a_late_pledge_is_refused_even_where_lineage_is_not_asked_for(home: Home) -> None:
    loose = CONFIG.model_copy(update={"require_lineage": False})
    assert not home.lineage(home.train(created=99.0), loose).passed


def unknown_candidates(home: Home) -> dict[str, Artifact]:
    lost = [{"kind": "corpus", "fingerprint": "f" * 64}]
    return {
        "does not say what it was made from": home.add("checkpoint"),
        "corpus ffffffffffff is no longer on disk": home.add(
            "checkpoint", home.live, home.sealed, made_from=lost
        ),
        f"not made under the pledge {home.sealed.fingerprint[:12]}": home.add(
            "checkpoint", home.live
        ),
    }


@pytest.mark.parametrize("number", range(3))
def test_an_unknown_descent_is_refused_unless_the_recipe_allows_it(home: Home, number: int) -> None:
    told, candidate = list(unknown_candidates(home).items())[number]
    check = home.lineage(candidate)
    assert not check.passed
    assert check.reason.startswith("lineage unknown: ")
    assert told in check.reason
    allowed = home.lineage(candidate, CONFIG.model_copy(update={"require_lineage": False}))
    assert allowed.passed
    assert told in allowed.reason


def test_clean_text_passes_and_the_counts_are_told(home: Home) -> None:
    check, shared = home.overlap(home.train())
    assert check.passed
    assert "0 of 4 target documents; 0 of 20 general documents" in check.reason
    assert not any(shared.values())


def test_a_target_document_in_the_training_text_is_a_leak(home: Home) -> None:
    check, shared = home.overlap(home.train(*texts("n", 3), home.sets["target"][2]))
    assert not check.passed
    assert check.reason.startswith(
        "leak: 1 of 4 target documents stand in the candidate's training text, such as 't2x0 t2x1"
    )
    assert shared["target"] == {2}


def test_text_that_the_live_model_learnt_too_is_no_leak(home: Home) -> None:
    home.old = home.add("corpus", text=home.sets["target"])
    home.live = home.add("checkpoint", home.old)
    check, _ = home.overlap(home.train())
    assert check.passed


def test_one_guard_document_is_left_out_and_many_are_a_leak(home: Home) -> None:
    check, shared = home.overlap(home.train(home.sets["general"][5]))
    assert check.passed
    assert shared["general"] == {5}
    check, _ = home.overlap(home.train(*home.sets["general"][:12]))
    assert not check.passed
    assert check.reason.startswith("leak: 12 of 20 general documents")


def test_what_custom_alone_brings_about_is_no_leak(home: Home) -> None:
    # Half of general stands in the text, but so does half of its twin: people talk like that.
    seen = [*home.sets["general"][:10], *home.sets["twin"][:5]]
    check, shared = home.overlap(home.train(*seen))
    assert check.passed
    assert (len(shared["general"]), len(shared["twin"])) == (10, 5)


def test_the_target_is_named_before_other_sets(home: Home) -> None:
    seen = [*home.sets["general"], *home.sets["target"]]
    check, _ = home.overlap(home.train(*seen))
    assert check.reason.startswith("leak: 4 of 4 target documents")


def test_the_feedback_itself_may_be_learnt(home: Home) -> None:
    feedback = texts("f", 3)
    home.sets["target_twin"] = feedback
    check, shared = home.overlap(home.train(*feedback))
    assert check.passed
    assert "target_twin" not in shared


def test_an_unknown_descent_says_that_little_was_compared(home: Home) -> None:
    check, _ = home.overlap(home.add("checkpoint"))
    assert check.passed
    assert check.reason.startswith("of the training text only this much is known: 0 corpora; ")


def test_times_are_those_of_the_manifests(home: Home) -> None:
    candidate = home.train(created=time.time())
    check = home.lineage(candidate)
    assert check.numbers["sealed"] == 100.0
    assert check.numbers["training_began"] == candidate.created
