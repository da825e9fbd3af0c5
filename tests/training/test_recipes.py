"""Pre-training and fine-tuning from shards to a checkpoint folder."""

from __future__ import annotations

import itertools
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import lmloop
from lmloop.errors import CorpusError, DiskFullError, TokenizerError, TrainingError
from lmloop.inference.load import load
from lmloop.learning import FinetuneConfig, PretrainConfig
from lmloop.model.hardware import fast_dtype
from lmloop.progress import Silent
from lmloop.records import Document, Record
from lmloop.sections import ModelSection, TokenizeConfig
from lmloop.tokens.loader import PackedLoader
from lmloop.tokens.mixture import MixedLoader
from lmloop.tokens.tokenize import tokenize
from lmloop.tokens.vector_files import load_vectors, save_vectors
from lmloop.tokens.vectors import WordVectors
from lmloop.training import beginning, recipes
from lmloop.training.recipes import finetune, pretrain
from lmloop.training.shape import model_config
from lmloop.weights.adapter_files import load_adapter
from lmloop.weights.adapters import AdapterBank

from ..conftest import (
    CONTEXT_LENGTH,
    EXTRA_TOKENS,
    VOCAB_SIZE,
    write_recipe,
)
from .conftest import SHAPE, make_clock

SIZES: dict[str, Any] = {"batch_tokens": 64, "row_tokens": 32, "precision": "float32"}


class Place(NamedTuple):
    """Where one stage writes."""

    folder: Path
    run: Path


@pytest.fixture
def make_place(tmp_path: Path) -> Callable[[str], Place]:
    def make(name: str) -> Place:
        (tmp_path / name).mkdir()
        return Place(tmp_path / name, tmp_path / "runs" / name)

    return make


def run_pretrain(
    shards: Path,
    place: Place,
    shape: ModelSection = SHAPE,
    *,
    base: Path | None = None,
    **changes: Any,
) -> dict[str, Any]:
    return pretrain(
        PretrainConfig(**(SIZES | {"steps": 6} | changes)),
        shape,
        shards=shards,
        folder=place.folder,
        run=place.run,
        seed=0,
        validate=lambda model: 2.5,
        clock=make_clock(),
        progress=Silent(),
        base=base,
    )


def run_finetune(
    shards: Path, base: Path, place: Place, *, freeze_embedding: bool = False, **changes: Any
) -> dict[str, Any]:
    return finetune(
        FinetuneConfig(**(SIZES | {"steps": 6} | changes)),
        base=base,
        shards=shards,
        folder=place.folder,
        run=place.run,
        seed=0,
        validate=lambda model: 2.5,
        clock=make_clock(),
        progress=Silent(),
        freeze_embedding=freeze_embedding,
    )


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def test_a_pretrained_folder_is_whole(
    shards_folder: Path, make_place: Callable[[str], Place]
) -> None:
    place = make_place("base")
    counts = run_pretrain(shards_folder, place)
    assert sorted(path.name for path in place.folder.iterdir()) == [
        "config.json",
        "generation_config.json",
        "journal.jsonl",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    model = load(place.folder, dtype=torch.float32)
    assert model.config == model_config(SHAPE, vocab_size=VOCAB_SIZE)
    assert model.template.encode([]) == [0, 4]
    assert counts["parameters"] == sum(each.numel() for each in model.transformer.parameters())
    assert (counts["steps"], counts["tokens"], counts["precision"]) == (6, 384, "float32")
    assert counts["validation_bits_per_byte"] == 2.5
    assert json.dumps(counts, allow_nan=False)
    journal = (place.folder / "journal.jsonl").read_text("utf-8").splitlines()
    assert len(journal) == 6


def test_the_same_seed_gives_the_same_bytes(
    shards_folder: Path, make_place: Callable[[str], Place]
) -> None:
    one, two = make_place("one"), make_place("two")
    for place in (one, two):
        run_pretrain(shards_folder, place)
    assert weights(one.folder) == weights(two.folder)


@pytest.mark.parametrize("precision", ["auto", "bfloat16", "float32"])
def test_the_weights_have_the_precision_asked_for(
    shards_folder: Path, make_place: Callable[[str], Place], precision: str
) -> None:
    counts = run_pretrain(shards_folder, make_place("base"), steps=1, precision=precision)
    expected = str(fast_dtype()).removeprefix("torch.") if precision == "auto" else precision
    assert counts["precision"] == expected


def test_a_precision_that_the_device_lacks_is_told_before_anything_is_trained(
    shards_folder: Path, make_place: Callable[[str], Place], monkeypatch: pytest.MonkeyPatch
) -> None:
    place = make_place("base")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Old GPU")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    monkeypatch.setattr(beginning, "free_memory", lambda: 1 << 40)
    with pytest.raises(TrainingError, match="'bfloat16' is more than Old GPU can") as told:
        run_pretrain(shards_folder, place, steps=1, precision="bfloat16")
    assert "\n" not in str(told.value)
    assert not place.run.exists()
    assert list(place.folder.iterdir()) == []


def test_fine_tuning_goes_on_from_the_base_and_leaves_it_as_it_was(
    shards_folder: Path, make_place: Callable[[str], Place]
) -> None:
    base, chat = make_place("base"), make_place("chat")
    run_pretrain(shards_folder, base)
    before = weights(base.folder)
    run_finetune(shards_folder, base.folder, chat, learning_rate=1e-9, matrix_learning_rate=1e-9)
    assert weights(base.folder) == before
    first, second = (load(place.folder, dtype=torch.float32) for place in (base, chat))
    tokens = torch.arange(10)[None]
    torch.testing.assert_close(first(tokens), second(tokens), rtol=1e-3, atol=1e-4)
    assert weights(chat.folder) != before


def test_pretraining_learns_everything_and_fine_tuning_the_answers_in_another_order(
    shards_folder: Path, make_place: Callable[[str], Place], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    real = recipes.train

    def spy(model: Any, loader: PackedLoader, *rest: Any, **options: Any) -> Any:
        seen.append(loader.rows(0, 8))
        return real(model, loader, *rest, **options)

    monkeypatch.setattr(recipes, "train", spy)
    base, chat = make_place("base"), make_place("chat")
    run_pretrain(shards_folder, base, steps=1)
    run_finetune(shards_folder, base.folder, chat, steps=1)
    everything, answers = seen
    assert everything.learnt.all()
    assert 0.1 < answers.learnt.mean() < 0.9
    assert everything.tokens.tolist() != answers.tokens.tolist()


def test_fine_tuning_learns_the_answers(
    shards_folder: Path, make_place: Callable[[str], Place]
) -> None:
    base, chat = make_place("base"), make_place("chat")
    run_pretrain(shards_folder, base)
    run_finetune(shards_folder, base.folder, chat, steps=40, batch_tokens=256)
    losses = [
        json.loads(line)["loss"]
        for line in (chat.folder / "journal.jsonl").read_text("utf-8").splitlines()
    ]
    assert sum(losses[-5:]) / 5 < losses[0] - 1


def test_fine_tuning_refuses_a_corpus_without_answers(
    splits: dict[str, list[Record]],
    shards_folder: Path,
    make_place: Callable[[str], Place],
    tmp_path: Path,
) -> None:
    plain: list[Record] = [
        Document("d", turn.content, 9)
        for each in splits["train"]
        for turn in each.turns  # type: ignore[union-attr]
    ]
    shards = tmp_path / "plain"
    shards.mkdir()
    tokenize(
        TokenizeConfig(vocab_size=VOCAB_SIZE),
        lambda split: plain,
        shards,
        context_length=CONTEXT_LENGTH,
        progress=Silent(),
    )
    base, chat = make_place("base"), make_place("chat")
    run_pretrain(shards, base, steps=1)
    with pytest.raises(CorpusError, match="no assistant's answers to learn from"):
        run_finetune(shards, base.folder, chat)
    assert list(chat.folder.iterdir()) == []
    assert not chat.run.exists()


def test_fine_tuning_refuses_a_template_whose_stop_is_not_learnt(
    shards_folder: Path, make_place: Callable[[str], Place], tmp_path: Path
) -> None:
    shards = tmp_path / "shards"
    shutil.copytree(shards_folder, shards)
    path = shards / "tokenizer_config.json"
    config = json.loads(path.read_text("utf-8"))
    config["chat_template"] = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}"
    path.write_text(json.dumps(config))
    base, chat = make_place("base"), make_place("chat")
    run_pretrain(shards, base, steps=1)
    with pytest.raises(TokenizerError, match="never learn to stop"):
        run_finetune(shards, base.folder, chat)
    assert not chat.run.exists()


@pytest.mark.parametrize("runs_exist", [True, False])
def test_a_disk_without_room_for_the_snapshots_is_told_before_the_first_step(
    shards_folder: Path,
    make_place: Callable[[str], Place],
    monkeypatch: pytest.MonkeyPatch,
    runs_exist: bool,
) -> None:
    place, asked = make_place("base"), []
    if runs_exist:
        place.run.parent.mkdir()

    class Usage(NamedTuple):
        free: int = 1000

    monkeypatch.setattr(recipes.shutil, "disk_usage", lambda path: asked.append(path) or Usage())
    with pytest.raises(DiskFullError, match=r"snapshots need .* and the disk of .* has 0\.0 MB"):
        run_pretrain(shards_folder, place)
    # The disk of the home, whether or not there has been a run in it before.
    assert asked == [place.run.parent if runs_exist else place.run.parent.parent]
    assert not place.run.exists()
    assert list(place.folder.iterdir()) == []


def test_a_split_shorter_than_a_row_is_refused(
    splits: dict[str, list[Record]], make_place: Callable[[str], Place], tmp_path: Path
) -> None:
    shards = tmp_path / "shards"
    shards.mkdir()
    text = "".join(chr(0x4E00 + number) for number in range(300))
    tokenize(
        TokenizeConfig(vocab_size=300),
        lambda split: [Document("d", text, 900), Document("e", text, 900)],
        shards,
        context_length=CONTEXT_LENGTH,
        progress=Silent(),
    )
    with pytest.raises(CorpusError, match="fewer than one row"):
        run_pretrain(shards, make_place("base"), batch_tokens=1 << 13, row_tokens=1 << 13)


OBJECTIVES = {
    "masked": "encoder",
    "causal+masked": "decoder",
    "prefix": "decoder",
    "fill-in-the-middle": "decoder",
    "permutation": "encoder",
    "span-corruption": "encoder-decoder",
}


class KilledError(Exception):
    """Stands for `kill -9`: nothing of the run catches it."""


def pretrain_with(objective: str, shards: Path, place: Place, **changes: Any) -> dict[str, Any]:
    config = {**SIZES, "steps": 6, "objective": objective, **changes}
    return pretrain(
        PretrainConfig.model_validate(config),
        SHAPE.model_copy(update={"kind": OBJECTIVES[objective]}),
        shards=shards,
        folder=place.folder,
        run=place.run,
        seed=0,
        validate=lambda model: 2.5,
        clock=make_clock(),
        progress=Silent(),
    )


def read_journal(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "journal.jsonl").read_text("utf-8").splitlines()]


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_what_is_measured_while_pretraining_goes_by_its_true_name(
    extended_shards_folder: Path, make_place: Callable[[str], Place], objective: str
) -> None:
    place = make_place("base")
    counts = pretrain_with(objective, extended_shards_folder, place, validate_every=3)
    measured = [entry for entry in read_journal(place.folder) if entry["step"] % 3 == 0]
    if objective in ("masked", "permutation", "span-corruption"):
        assert "validation_bits_per_byte" not in counts
        assert measured[-1]["validation_loss"] == counts["validation_loss"]
        # Of 340 ids, after six small steps: not far from a blind guess, in nats.
        assert 4 < counts["validation_loss"] < math.log(VOCAB_SIZE) + 0.1
        assert not any("validation_bpb" in entry for entry in measured)
    else:
        assert counts["validation_bits_per_byte"] == 2.5
        assert "validation_loss" not in counts
        assert [entry["validation_bpb"] for entry in measured] == [2.5, 2.5]
        assert not any("validation_loss" in entry for entry in measured)
    assert json.dumps(counts, allow_nan=False)


@pytest.mark.parametrize("objective", ["masked", "span-corruption"])
def test_a_killed_run_of_an_objective_ends_in_the_same_weights(
    extended_shards_folder: Path,
    make_place: Callable[[str], Place],
    monkeypatch: pytest.MonkeyPatch,
    objective: str,
) -> None:
    whole, broken = make_place("whole"), make_place("broken")
    settings = {"steps": 10, "save_every": 3, "validate_every": 4}
    pretrain_with(objective, extended_shards_folder, whole, **settings)
    real = PackedLoader.rows
    for step in (2, 5, 8):

        def rows(self: PackedLoader, start: int, count: int, last: int = step) -> Any:
            if start == 2 * last:
                raise KilledError
            return real(self, start, count)

        monkeypatch.setattr(PackedLoader, "rows", rows)
        with pytest.raises(KilledError):
            pretrain_with(objective, extended_shards_folder, broken, **settings)
    monkeypatch.setattr(PackedLoader, "rows", real)
    pretrain_with(objective, extended_shards_folder, broken, **settings)
    assert weights(broken.folder) == weights(whole.folder)
    one, other = read_journal(whole.folder), read_journal(broken.folder)
    assert [{**e, "seconds": 0} for e in one] == [{**e, "seconds": 0} for e in other]


def test_a_missing_special_token_is_told_before_anything_is_trained(
    shards_folder: Path, make_place: Callable[[str], Place]
) -> None:
    place = make_place("base")
    with pytest.raises(TokenizerError, match=r"no token '<\|mask\|>'.* tokenize.extra_tokens"):
        pretrain_with("masked", shards_folder, place)
    assert not place.run.exists()
    assert list(place.folder.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_recipe_of_an_objective_is_learnt(tmp_path: Path, objective: str) -> None:
    recipe = write_recipe(tmp_path)
    made = lmloop.pretrain(
        recipe,
        home=tmp_path / "home",
        **{
            "tokenize.extra_tokens": EXTRA_TOKENS,
            "model.kind": OBJECTIVES[objective],
            "pretrain.objective": objective,
            "pretrain.steps": 120,
            "pretrain.batch_tokens": 256,
        },
    )
    losses = [entry["loss"] for entry in read_journal(made.path)]
    assert sum(losses[-10:]) / 10 < losses[0] - 1
    load(made.path, dtype=torch.float32)


def write_vectors(path: Path, *, dimensions: int = 16) -> Path:
    numbers = np.random.default_rng(0).normal(size=(3, dimensions)).astype(np.float32)
    save_vectors(WordVectors(("sea", "train", "火车"), numbers), path, layout="word2vec-text")
    return path


@pytest.fixture
def word_shards(splits: dict[str, list[Record]], tmp_path: Path) -> Path:
    (tmp_path / "words").mkdir()
    config = TokenizeConfig(kind="word", segmenter="characters", vocab_size=300)
    tokenize(
        config,
        splits.__getitem__,
        tmp_path / "words",
        context_length=CONTEXT_LENGTH,
        progress=Silent(),
    )
    return tmp_path / "words"


def test_an_embedding_that_is_frozen_on_vectors_is_the_same_bytes_after_all_training(
    word_shards: Path, make_place: Callable[[str], Place], tmp_path: Path
) -> None:
    base, tuned = make_place("base"), make_place("tuned")
    vectors = write_vectors(tmp_path / "sea.vec")
    entries = {"vectors": str(vectors), "freeze_embedding": True, "tie_embeddings": False}
    counts = run_pretrain(word_shards, base, SHAPE.model_copy(update=entries))
    model = load(base.folder)
    frozen = model.transformer.embedding.weight
    words = model.require_tokenizer().words
    expected, found = load_vectors(vectors).align(words)
    assert counts["words_with_vectors"] == found.sum() >= 2
    cosines = torch.cosine_similarity(frozen[found].float(), torch.from_numpy(expected[found]))
    assert (cosines > 0.9999).all()  # the file has bfloat16
    run_finetune(word_shards, base.folder, tuned, freeze_embedding=True)
    again = load(tuned.folder).transformer
    assert again.embedding.weight.view(torch.uint8).equal(frozen.view(torch.uint8))
    assert not again.head.weight.equal(model.transformer.head.weight)


def test_vectors_that_are_not_frozen_are_learnt_further(
    word_shards: Path, make_place: Callable[[str], Place], tmp_path: Path
) -> None:
    base, tuned = make_place("base"), make_place("tuned")
    shape = SHAPE.model_copy(update={"vectors": str(write_vectors(tmp_path / "sea.vec"))})
    run_pretrain(word_shards, base, shape)
    run_finetune(word_shards, base.folder, tuned)
    first, last = (load(each.folder).transformer.embedding.weight for each in (base, tuned))
    assert not first.equal(last)


def test_vectors_that_do_not_fit_end_the_stage_before_its_first_step(
    word_shards: Path, make_place: Callable[[str], Place], tmp_path: Path
) -> None:
    place = make_place("base")
    vectors = write_vectors(tmp_path / "sea.vec", dimensions=8)
    with pytest.raises(TrainingError, match="8 numbers a word and the embedding 16"):
        run_pretrain(word_shards, place, SHAPE.model_copy(update={"vectors": str(vectors)}))
    assert not place.run.exists()


def test_a_micro_batch_that_is_left_open_is_chosen_once_and_kept(
    shards_folder: Path, make_place: Callable[[str], Place], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, pieces = make_place("whole"), make_place("pieces")
    run_pretrain(shards_folder, pieces, steps=4, micro_batch_tokens=32)
    # Room for one row alone where the run begins, and for all where it goes on or is replayed.
    monkeypatch.setattr(recipes, "choose_micro_batch", lambda *_, **__: 32)
    run_pretrain(shards_folder, whole, steps=4, micro_batch_tokens="auto")
    assert {each["micro_batch_tokens"] for each in read_journal(whole.folder)} == {32}
    assert weights(whole.folder) == weights(pieces.folder)
    monkeypatch.setattr(recipes, "choose_micro_batch", lambda *_, **__: 64)
    run_pretrain(shards_folder, whole, steps=8, micro_batch_tokens="auto")
    assert {each["micro_batch_tokens"] for each in read_journal(whole.folder)} == {32}
    again, journal = make_place("again"), str(pieces.folder / "journal.jsonl")
    run_pretrain(shards_folder, again, steps=None, replay=journal, micro_batch_tokens="auto")
    assert weights(again.folder) == weights(pieces.folder)


BASED = ModelSection(base="theirs", context_length=CONTEXT_LENGTH)
LORA: dict[str, Any] = {"lora_rank": 2, "lora_dropout": 0.2, "learning_rate": 0.05}


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return load(folder, dtype=torch.float32).transformer.state_dict()


def test_a_base_goes_on_learning_with_its_own_shape(
    shards_folder: Path, model_folder: Path, make_place: Callable[[str], Place]
) -> None:
    place = make_place("more")
    still = {"learning_rate": 1e-9, "matrix_learning_rate": 1e-9}
    run_pretrain(shards_folder, place, BASED, base=model_folder, steps=1, **still)
    before, after = tensors(model_folder), tensors(place.folder)
    for name, tensor in before.items():
        torch.testing.assert_close(after[name], tensor)
    run_pretrain(shards_folder, make_place("far"), BASED, base=model_folder)
    assert load(place.folder.parent / "far").config == load(model_folder).config


def test_an_adapter_learns_beside_four_bits_and_a_killed_run_ends_in_the_same_bytes(
    shards_folder: Path,
    model_folder: Path,
    make_place: Callable[[str], Place],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = LORA | {"base_bits": 4, "save_every": 2, "base": model_folder}
    plain, whole, broken = map(make_place, ("plain", "whole", "broken"))
    dense = run_pretrain(shards_folder, plain, BASED, **(options | {"base_bits": None}))
    counts = run_pretrain(shards_folder, whole, BASED, **options)
    assert counts["weight_bytes"] < dense["weight_bytes"]
    assert weights(whole.folder) != weights(plain.folder)
    looks = itertools.count()

    def stop_looking() -> float:
        if next(looks) > 9:
            raise InterruptedError
        return 0.0

    with monkeypatch.context() as patch:
        patch.setitem(globals(), "make_clock", lambda: stop_looking)
        with pytest.raises(InterruptedError):
            run_pretrain(shards_folder, broken, BASED, **options)
    assert list(broken.run.glob("snapshot-*"))
    run_pretrain(shards_folder, broken, BASED, **options)
    assert weights(broken.folder) == weights(whole.folder)
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        one, other = (place.folder / "adapter" / name for place in (broken, whole))
        assert one.read_bytes() == other.read_bytes()


def test_an_adapter_is_written_beside_the_sum_and_only_it_was_learnt(
    shards_folder: Path, model_folder: Path, make_place: Callable[[str], Place]
) -> None:
    place = make_place("tuned")
    counts = run_pretrain(shards_folder, place, BASED, base=model_folder, **LORA)
    base = load(model_folder, dtype=torch.float32).transformer
    adapter = load_adapter(place.folder / "adapter", base)
    assert counts["learnt_parameters"] == sum(each.numel() for each in adapter.parameters())
    assert counts["learnt_parameters"] < counts["parameters"] / 4
    state = load_file(next(place.run.glob("snapshot-*/state.safetensors")))
    masters = [name for name in state if name.startswith("master.")]
    assert masters and all(name.startswith("master.adapter.") for name in masters)
    AdapterBank(base, adapter).merge()
    merged, kept = base.state_dict(), tensors(place.folder)
    assert merged.keys() == kept.keys()
    changed = 0
    before = tensors(model_folder)
    for name, tensor in merged.items():
        torch.testing.assert_close(kept[name], tensor)
        changed += not torch.equal(kept[name], before[name])
    assert changed == len(adapter.pairs)


@pytest.mark.parametrize("kills", [[3], [2, 4]])
def test_an_adapter_that_is_killed_ends_in_the_very_same_bytes(
    shards_folder: Path,
    model_folder: Path,
    make_place: Callable[[str], Place],
    monkeypatch: pytest.MonkeyPatch,
    kills: list[int],
) -> None:
    whole, broken = make_place("whole"), make_place("broken")
    options: dict[str, Any] = {**LORA, "dora": True, "save_every": 1}
    run_pretrain(shards_folder, whole, BASED, base=model_folder, **options)
    real, count = PackedLoader.rows, 0

    def stop(self: PackedLoader, start: int, rows: int) -> Any:
        nonlocal count
        count += 1
        if count in kills:
            raise KeyboardInterrupt
        return real(self, start, rows)

    monkeypatch.setattr(PackedLoader, "rows", stop)
    for _ in kills:
        with pytest.raises(KeyboardInterrupt):
            run_pretrain(shards_folder, broken, BASED, base=model_folder, **options)
    run_pretrain(shards_folder, broken, BASED, base=model_folder, **options)
    for name in ("model.safetensors", "adapter/adapter_model.safetensors"):
        assert (broken.folder / name).read_bytes() == (whole.folder / name).read_bytes()


def test_fine_tuning_takes_an_adapter_as_well(
    shards_folder: Path, model_folder: Path, make_place: Callable[[str], Place]
) -> None:
    place = make_place("chat")
    counts = run_finetune(shards_folder, model_folder, place, **LORA)
    assert counts["learnt_parameters"] < counts["parameters"] / 4
    assert (place.folder / "adapter" / "adapter_config.json").is_file()


def test_text_to_rehearse_is_mixed_in(
    shards_folder: Path,
    make_place: Callable[[str], Place],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shards = tmp_path / "both"
    shutil.copytree(shards_folder, shards)
    shutil.copytree(shards_folder, shards / "rehearsal")
    seen = []
    real = recipes.train

    def spy(model: Any, loader: Any, *rest: Any, **options: Any) -> Any:
        seen.append(loader)
        return real(model, loader, *rest, **options)

    monkeypatch.setattr(recipes, "train", spy)
    base = make_place("base")
    run_pretrain(shards, base, steps=1, rehearsal_share=0.5)
    run_finetune(shards, base.folder, make_place("chat"), steps=1)
    mixed, alone = seen
    assert (type(mixed), mixed.share) == (MixedLoader, 0.5)
    assert type(alone) is PackedLoader


def test_the_snapshots_of_a_resumed_run_count_as_room_for_them(
    shards_folder: Path, make_place: Callable[[str], Place], monkeypatch: pytest.MonkeyPatch
) -> None:
    place = make_place("place")
    (place.run / "snapshot-00000001").mkdir(parents=True)
    with (place.run / "snapshot-00000001" / "state.safetensors").open("wb") as file:
        file.truncate(1_000_000_000)
    monkeypatch.setattr(recipes, "free_space", lambda path: 0)
    counts = run_pretrain(shards_folder, place)
    assert counts["steps"] > 0
