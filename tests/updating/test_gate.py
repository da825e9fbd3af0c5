"""The gate on planted candidates: each bad one is refused, for its own reason before all others."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from lmloop.errors import ArtifactError, UpdateError
from lmloop.model.init import initialise
from lmloop.model.transformer import Transformer
from lmloop.progress import Silent
from lmloop.records import Conversation, Record, Turn
from lmloop.store.artifact import Artifact, ArtifactStore
from lmloop.tokens.tokenizer import Tokenizer, train_tokenizer
from lmloop.updating import budgets
from lmloop.updating.gate import LAST, ORDER, judge
from lmloop.updating.verdict import Verdict

from .gate_world import CONFIG, Files, GateWorld, change_weights, copy_files, watch_work

LOOSE = CONFIG.model_copy(update={"require_lineage": False})


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> GateWorld:
    return GateWorld(ArtifactStore(tmp_path_factory.mktemp("home")))


@pytest.fixture(scope="module")
def better(world: GateWorld) -> Artifact:
    """Trained on the feedback and much old text."""
    return world.add_candidate(
        lambda folder: world.train(world.feedback, folder, replay_share=0.8, passes=2)
    )


@pytest.fixture(scope="module")
def cheat(world: GateWorld) -> Artifact:
    """Trained on what the gate asks, as its descent tells."""
    asked = world.sets["target"] + world.sets["general"]
    return world.add_candidate(
        lambda folder: world.train(asked, folder, steps=100, rate=3),
        corpora=[world.add_corpus(asked)],
    )


Judge = Callable[..., Verdict]


@pytest.fixture
def judged(world: GateWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Judge]:
    """Judges a candidate by the work it does instead of the time it takes."""
    monkeypatch.setattr(budgets, "STEPS", 4)

    with watch_work() as clock:

        def ask(candidate: Artifact, **changes: object) -> Verdict:
            options: dict[str, object] = {
                "pledge": world.pledge,
                "live": world.live,
                "store": world.store,
                "folder": tmp_path,
                "seed": 0,
                "progress": Silent(),
                "clock": clock,
            }
            config = changes.pop("config", CONFIG)
            return judge(config, candidate=candidate, **(options | changes))  # type: ignore[arg-type]

        yield ask


def failed(verdict: Verdict) -> list[str]:
    return [check.name for check in verdict.checks if check.passed is False]


def test_a_better_candidate_passes(judged: Judge, better: Artifact, tmp_path: Path) -> None:
    verdict = judged(better)
    assert verdict.reasons == []
    assert verdict.passed
    assert verdict.headline.startswith("passed: better on target: bits per byte ")
    assert [check.name for check in verdict.checks] == [*ORDER, "general", *LAST]
    assert (tmp_path / "verdict.md").read_text().startswith("# Gate: passed: better on target")
    assert json.loads((tmp_path / "verdict.json").read_text())["passed"] is True
    assert len(verdict.pairs) == CONFIG.openers


def test_an_identical_copy_gains_nothing_and_has_no_other_fault(
    judged: Judge, world: GateWorld
) -> None:
    verdict = judged(world.add_candidate(copy_files(world.live)))
    assert failed(verdict) == ["target"]
    assert verdict.headline.startswith("refused because no gain on target: ")
    assert "+0.00% (+0.00% to +0.00%)" in verdict.headline


def randomise(model: Transformer) -> None:
    initialise(model, seed=1)


def break_layer(model: Transformer) -> None:
    with torch.no_grad():
        model.blocks[1].feed_forward.part.down.weight[0, 0] = float("nan")


def deepen(model: Transformer) -> Transformer:
    """One layer more whose outputs are multiplied by zero: the same function, half more work."""
    config = dataclasses.replace(model.config, num_layers=model.config.num_layers + 1)
    deeper = Transformer(config).to(model.embedding.weight.dtype)
    initialise(deeper, seed=0)
    deeper.load_state_dict(model.state_dict(), strict=False)
    last = deeper.blocks[-1]
    last.mixer.part.output.weight.zero_()
    last.feed_forward.part.down.weight.zero_()
    return deeper


@pytest.mark.parametrize(
    ("change", "first", "told"),
    [
        (
            break_layer,
            "finite",
            "not finite: layer 1, feed_forward.part.down.weight, has 1 weights",
        ),
        (deepen, "speed", "slower: processor time a token in one stream +50%"),
        (randomise, "general", "worse on general: "),
    ],
)
def test_a_fault_in_the_weights_of_a_better_candidate_is_named(
    judged: Judge,
    world: GateWorld,
    better: Artifact,
    change: Callable[[Transformer], Transformer | None],
    first: str,
    told: str,
) -> None:
    verdict = judged(world.add_candidate(change_weights(better, change)))
    assert failed(verdict)[0] == first
    assert verdict.headline.startswith(f"refused because {told}")


def test_what_a_broken_layer_keeps_from_being_asked_is_told(
    judged: Judge, world: GateWorld, better: Artifact
) -> None:
    verdict = judged(world.add_candidate(change_weights(better, break_layer)))
    assert failed(verdict) == ["finite"]
    skipped = [check for check in verdict.checks if check.passed is None]
    assert [check.name for check in skipped] == ["memorised", "answers", "general", *LAST]
    assert {check.reason for check in skipped} == {"not run: the check 'finite' failed"}
    assert verdict.pairs == ()


def other_tokenizer(world: GateWorld, better: Artifact) -> Files:
    """The better candidate's weights with a tokenizer of the same size from other text."""

    def write(folder: Path) -> None:
        copy_files(better)(folder)
        old = Tokenizer.open(better.path)
        texts = [turn.content[::-1] for each in world.old for turn in each.turns]  # type: ignore[union-attr]
        train_tokenizer(
            texts,
            vocab_size=old.vocab_size,
            chat_template=old.chat_template or "",
            context_length=64,
        ).save(folder)

    return write


def test_a_wrong_tokenizer_is_refused_before_anything_is_scored(
    judged: Judge, world: GateWorld, better: Artifact
) -> None:
    verdict = judged(world.add_candidate(other_tokenizer(world, better)))
    assert failed(verdict) == ["tokenizer"]
    assert verdict.headline == (
        "refused because another tokenizer than the live model's: tokenizer.json"
    )


@pytest.mark.slow
def test_a_model_over_trained_on_fifty_lines_is_worse_elsewhere(
    judged: Judge, world: GateWorld
) -> None:
    lines = world.feedback[:50]
    verdict = judged(
        world.add_candidate(lambda folder: world.train(lines, folder, steps=100, rate=4))
    )
    assert verdict.headline.startswith("refused because worse on general: ")
    # The gain that it was trained for is there: it alone would have let it pass.
    assert "target" not in failed(verdict)


def test_a_model_trained_on_the_test_is_a_leak_by_its_descent(
    judged: Judge, cheat: Artifact
) -> None:
    verdict = judged(cheat)
    assert verdict.headline.startswith(
        "refused because leak: 20 of 20 target documents stand in the candidate's training text"
    )
    assert failed(verdict) == ["overlap", "memorised"]


@pytest.mark.slow
def test_a_model_trained_on_the_test_is_a_leak_without_descent(
    judged: Judge, world: GateWorld, cheat: Artifact
) -> None:
    bare = world.add(copy_files(cheat), kind="checkpoint", origins=[])
    refused = judged(bare)
    assert refused.headline.startswith("refused because lineage unknown: ")
    verdict = judged(bare, config=LOOSE, pledge=world.seal(LOOSE))
    assert verdict.headline.startswith("refused because leak: general was learnt by heart: ")
    assert failed(verdict) == ["memorised"]


def cut_answers(records: list[Record]) -> list[Record]:
    """The same conversations with answers of a word."""
    return [
        dataclasses.replace(
            each,
            turns=tuple(
                Turn(turn.role, turn.content[:2]) if turn.role == "assistant" else turn
                for turn in each.turns
            ),
        )
        for each in records
        if isinstance(each, Conversation)
    ]


@pytest.mark.slow
def test_a_model_whose_answers_are_cut_short_is_refused_for_them(
    judged: Judge, world: GateWorld
) -> None:
    verdict = judged(
        world.add_candidate(
            lambda folder: world.train(cut_answers(world.old), folder, steps=80, rate=3)
        )
    )
    assert verdict.headline.startswith("refused because shorter answers: mean length ")


def test_a_damaged_file_is_refused_and_nothing_is_loaded(
    judged: Judge, world: GateWorld, better: Artifact
) -> None:
    candidate = world.add_candidate(copy_files(better))
    path = candidate.path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    verdict = judged(candidate)
    assert verdict.headline.startswith("refused because the files do not hold: ")
    assert failed(verdict) == ["files"]


def test_thresholds_sealed_after_training_began_are_refused(
    judged: Judge, world: GateWorld, better: Artifact
) -> None:
    late = world.add(
        copy_files(better),
        kind="checkpoint",
        origins=[world.live, world.pledge, world.collected],
        created=world.pledge.created - 60,
    )
    verdict = judged(late)
    assert verdict.headline == "refused because thresholds were sealed 60 s after training began"


def test_changed_thresholds_are_no_verdict_but_an_error(
    judged: Judge, better: Artifact, tmp_path: Path
) -> None:
    changed = CONFIG.model_copy(update={"min_gain": 0.0})
    with pytest.raises(UpdateError, match="changed after training began: min_gain was 0.01, is 0"):
        judged(better, config=changed)
    assert not list(tmp_path.iterdir())


def test_a_damaged_live_model_is_no_fault_of_the_candidate(
    judged: Judge, world: GateWorld, better: Artifact
) -> None:
    live = world.add(copy_files(world.live), kind="checkpoint", origins=[world.corpus])
    (live.path / "config.json").write_text("{}")
    with pytest.raises(ArtifactError, match="config.json changed since it was written"):
        judged(better, live=live)


@pytest.mark.slow
def test_a_shared_guard_document_is_left_out_of_what_is_scored(
    judged: Judge, world: GateWorld
) -> None:
    seen = [*world.feedback, world.sets["general"][0]]
    verdict = judged(
        world.add_candidate(
            lambda folder: world.train(seen, folder, replay_share=0.8, passes=2),
            corpora=[world.add_corpus(seen)],
        )
    )
    general = next(check for check in verdict.checks if check.name == "general")
    assert verdict.passed
    assert general.measures[0].count == len(world.sets["general"]) - 1


@pytest.mark.slow
def test_a_guard_of_the_users_own_is_asked_too(
    judged: Judge, world: GateWorld, better: Artifact
) -> None:
    config = CONFIG.model_copy(update={"guards": {"speed": "speed.jsonl"}, "golden": ("hi",)})
    world.sets["speed"] = world.sets["twin"]
    try:
        pledge = world.seal(config)
    finally:
        del world.sets["speed"]
    candidate = world.add(
        copy_files(better),
        kind="checkpoint",
        origins=[world.live, pledge, world.collected],
    )
    verdict = judged(candidate, config=config, pledge=pledge)
    names = [check.name for check in verdict.checks]
    assert names == [*ORDER, "general", "guard speed", *LAST]
    assert verdict.passed
