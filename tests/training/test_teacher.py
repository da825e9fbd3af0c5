"""A teacher: who may be one, what it says of a batch, and that a run with one is as exact."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from lmloop.corpus.read import read_sources
from lmloop.errors import TokenizerError, TrainingError
from lmloop.learning import PretrainConfig
from lmloop.model.config import ModelConfig
from lmloop.model.transformer import Transformer
from lmloop.records import Conversation
from lmloop.tokens.loader import Batch, PackedLoader
from lmloop.tokens.shards import Shards
from lmloop.tokens.tokenizer import Tokenizer
from lmloop.training.batch import batch_loss
from lmloop.training.teacher import Teacher, hash_vocabulary, open_teacher
from lmloop.weights.checkpoint import save_model

from ..conftest import VOCAB_SIZE, random_model, tiny_shape
from .conftest import Run, make_config

MakeRun = Callable[..., Run]


def make_teacher(**changes: Any) -> Teacher:
    shape = tiny_shape(vocab_size=VOCAB_SIZE, hidden_size=24)
    model = random_model(shape, seed=1).requires_grad_(False)
    return Teacher(model=model, **({"share": 0.5, "temperature": 2.0} | changes))


def read_rows(shards: Path, *, answers_only: bool = False) -> Batch:
    loader = PackedLoader(
        Shards.open(shards, "train"),
        row_tokens=16,
        document_id=Tokenizer.open(shards).document_id,
        answers_only=answers_only,
        seed=0,
    )
    return loader.rows(0, 3)


def save_teacher(
    folder: Path, shards: Path | None, *, shape: ModelConfig | None = None
) -> Transformer:
    """A checkpoint with the tokenizer of `shards`."""
    folder.mkdir()
    model = random_model(shape or tiny_shape(vocab_size=VOCAB_SIZE), seed=1)
    save_model(model, folder, stop_id=1, document_id=0)
    if shards is not None:
        Tokenizer.open(shards).save(folder)
    return model


def open_for(
    folder: Path, shards: Path, student: ModelConfig | None = None, **changes: Any
) -> Teacher:
    config = make_config(teacher=str(folder), **changes)
    student = student or tiny_shape(vocab_size=VOCAB_SIZE)
    return open_teacher(folder, config, student, tokenizer=Tokenizer.open(shards))


@pytest.mark.parametrize("answers_only", [False, True])
def test_the_loss_with_a_teacher_is_hintons_over_the_learnt_places(
    shards_folder: Path, answers_only: bool
) -> None:
    batch, teacher = read_rows(shards_folder, answers_only=answers_only), make_teacher()
    student = random_model(tiny_shape(vocab_size=VOCAB_SIZE))
    plain = batch_loss(student, batch)
    learnt = torch.from_numpy(batch.learnt).flatten()
    assert learnt.all() != answers_only
    states = teacher.teach(batch).states
    assert states.shape == (int(learnt.sum()), 24)
    heard: list[torch.Tensor] = []
    hook = student.norm.register_forward_hook(lambda *given: heard.append(given[-1]))
    loss = batch_loss(student, batch, teach=teacher.teach)
    hook.remove()
    logits = student.project(heard[0][learnt])
    apart = F.kl_div(
        F.log_softmax(logits / 2, dim=-1),
        F.softmax(teacher.model.project(states) / 2, dim=-1),
        reduction="batchmean",
    )
    torch.testing.assert_close(loss, 0.5 * plain + 0.5 * 4 * apart, rtol=1e-4, atol=1e-5)


def test_a_teacher_learns_nothing(shards_folder: Path) -> None:
    batch, teacher = read_rows(shards_folder), make_teacher(share=1.0)
    student = random_model(tiny_shape(vocab_size=VOCAB_SIZE))
    batch_loss(student, batch, teach=teacher.teach).backward()
    assert not teacher.teach(batch).states.requires_grad
    assert all(each.grad is None for each in teacher.model.parameters())
    assert student.embedding.weight.grad is not None


def test_a_killed_run_with_a_teacher_ends_in_the_same_weights_and_journal(
    make_run: MakeRun,
) -> None:
    teach = make_teacher().teach
    plain, whole, broken = (
        make_run("plain"),
        make_run("whole", teach=teach),
        make_run("broken", teach=teach),
    )
    plain.go()
    whole.go()

    def kill(step: int) -> None:
        if step == 7:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        broken.go(before_step=kill)
    broken.go()
    assert whole.weights() == broken.weights() != plain.weights()
    losses = [[entry["loss"] for entry in run.journal()] for run in (whole, broken)]
    assert losses[0] == losses[1]


def test_pieces_of_a_batch_add_up_to_it_with_a_teacher(make_run: MakeRun) -> None:
    runs = []
    for name, tokens in (("whole", None), ("pieces", 16)):
        config = make_config(micro_batch_tokens=tokens, steps=2)
        runs.append(make_run(name, teach=make_teacher().teach, config=config))
        runs[-1].go()
    one, other = (run.journal()[0]["loss"] for run in runs)
    assert one == pytest.approx(other, rel=1e-5)


def test_a_checkpoint_with_the_same_tokenizer_may_teach(
    shards_folder: Path, tmp_path: Path
) -> None:
    model = save_teacher(tmp_path / "large", shards_folder)
    teacher = open_for(tmp_path / "large", shards_folder, teacher_share=0.7)
    assert (teacher.share, teacher.temperature) == (0.7, 1.0)
    assert not teacher.model.training
    assert not any(each.requires_grad for each in teacher.model.parameters())
    for name, tensor in model.state_dict().items():
        expected = tensor.to(teacher.model.state_dict()[name].dtype)
        assert torch.equal(teacher.model.state_dict()[name], expected)


def test_a_teacher_with_another_tokenizer_is_refused_with_both_hashes(
    shards_folder: Path, extended_shards_folder: Path, tmp_path: Path
) -> None:
    save_teacher(tmp_path / "large", extended_shards_folder)
    theirs, ours = (
        hash_vocabulary(Tokenizer.open(each)) for each in (extended_shards_folder, shards_folder)
    )
    assert re.fullmatch(r"[0-9a-f]{12}", ours)
    told = f"teacher 'large' has the tokenizer {theirs} and the student {ours}"
    with pytest.raises(TrainingError, match=told):
        open_for(tmp_path / "large", shards_folder)
    save_teacher(tmp_path / "mute", None)
    with pytest.raises(TokenizerError, match="no tokenizer"):
        open_for(tmp_path / "mute", shards_folder)


def test_a_teacher_of_another_kind_or_with_short_rows_is_refused(
    shards_folder: Path, tmp_path: Path
) -> None:
    shape = tiny_shape(vocab_size=VOCAB_SIZE)
    save_teacher(tmp_path / "large", shards_folder)
    encoder = tiny_shape(vocab_size=VOCAB_SIZE, causal=False)
    with pytest.raises(TrainingError, match="another kind of model than the student"):
        open_for(tmp_path / "large", shards_folder, encoder)
    rows = {"row_tokens": 2 * shape.context_length, "batch_tokens": 4 * shape.context_length}
    with pytest.raises(TrainingError, match=f"sees {shape.context_length} tokens"):
        open_for(tmp_path / "large", shards_folder, **rows)


def test_keys_of_a_teacher_need_one() -> None:
    with pytest.raises(ValueError, match="teacher_share needs teacher: name a model"):
        PretrainConfig(steps=1, teacher_share=0.3)


def test_what_a_teacher_says_becomes_text_to_learn_from(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = Path(__file__).parents[2] / "docs" / "train.md"
    (example,) = re.findall(r"```python\n(import json\n.*?)```", page.read_text("utf-8"), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(example.replace('"chat"', repr(str(model_folder))), {})
    found = [each.record for each in read_sources(["taught.jsonl"])]
    assert [len(each.turns) for each in found if isinstance(each, Conversation)] == [2, 2]
    assert [each.turns[0].content for each in found if isinstance(each, Conversation)] == [
        "Hi!",
        "How are you?",
    ]
