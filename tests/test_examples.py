"""The programs of examples/ do what their first lines say."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from math import log
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import pytest

from lmloop.corpus.audio import read_wav

from .conftest import random_model

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from lmloop.inference.load import LoadedModel

    LoadProgram = Callable[[int], ModuleType]
    Project = Callable[[torch.Tensor], torch.Tensor]

EXAMPLES = Path(__file__).parent.parent / "examples"
PROGRAMS = sorted(EXAMPLES.glob("[0-9]*.py"))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the programs fetch is fetched once."""
    return tmp_path_factory.mktemp("home")


def find(number: int) -> Path:
    (path,) = EXAMPLES.glob(f"{number:02}_*.py")
    return path


def play(number: int, home: Path, *arguments: str) -> str:
    """What a program prints, run as people run it; a warning is an error."""
    done = subprocess.run(
        [sys.executable, "-W", "error", str(find(number)), *arguments],
        env={**os.environ, "LMLOOP_HOME": str(home), "PYTHONIOENCODING": "utf-8"},
        cwd=home,
        capture_output=True,
        encoding="utf-8",
        timeout=500,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def load_program(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], ModuleType]:
    """Opens a program as a module, with its neighbours in reach."""
    monkeypatch.syspath_prepend(EXAMPLES)

    def load(number: int) -> ModuleType:
        path = find(number)
        spec = importlib.util.spec_from_file_location(f"example_{path.stem}", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


def numbers_after(word: str, text: str) -> list[float]:
    return [float(number) for number in re.findall(rf"{word} +(-?[\d.]+)", text)]


def likeliest(model: torch.nn.Module, ids: list[int], *, count: int) -> list[int]:
    """The greedy continuation, everything computed anew for each token."""
    import torch

    ids = list(ids)
    for _ in range(count):
        ids.append(int(model.eval()(torch.tensor([ids]))[0, -1].argmax()))
    return ids


@pytest.mark.parametrize("page", ["README.md", "README.zh-CN.md"])
def test_the_page_names_every_program(page: str) -> None:
    named = re.findall(r"\[`(\d\d_\w+\.py)`\]", (EXAMPLES / page).read_text(encoding="utf-8"))
    assert named == [path.name for path in PROGRAMS]


def test_the_transformer_writes_with_a_cache_what_it_would_write_without(
    load_program: LoadProgram,
) -> None:
    program = load_program(1)
    model = random_model(program.make_model(60).config)
    written = program.write(model, [3, 1, 4], tokens=12, temperature=1e-6)
    assert written == likeliest(model, [3, 1, 4], count=12)


@pytest.mark.parametrize("name", ["cosine, β learnt", "cosine, bare", "CNN → RNN"])
def test_every_mixer_writes_with_a_cache(load_program: LoadProgram, name: str) -> None:
    program = load_program(8)
    model = random_model(program.make_shapes(60)[name])
    model.project = sharpen(model.project)  # type: ignore[method-assign]
    assert program.write(model, [3, 1, 4], count=12) == likeliest(model, [3, 1, 4], count=12)


def sharpen(project: Project) -> Project:
    """So that drawing takes the likeliest."""
    return lambda states: project(states) * 1e6


def test_several_sequences_begin_with_the_prompt_and_differ(
    load_program: LoadProgram, loaded: LoadedModel
) -> None:
    tokenizer = loaded.require_tokenizer()
    texts = load_program(7).generate(loaded, "the sea", max_length=30, num_return_sequences=3)
    assert len(set(texts)) == 3
    assert all(text.startswith("the sea") for text in texts)
    (short,) = load_program(7).generate(loaded, "the sea", max_length=9, num_return_sequences=1)
    added = short.removeprefix("the sea")
    assert 0 < len(tokenizer.encode_document("the sea")) < 9
    assert texts[0].startswith("the sea" + added.rstrip("\ufffd"))


@pytest.mark.slow
def test_a_decoder_writes_the_codes_of_each_text(monkeypatch: pytest.MonkeyPatch) -> None:
    import numpy as np

    from lmloop.corpus.codebook import Codebook

    monkeypatch.syspath_prepend(EXAMPLES)
    program = importlib.import_module("code_writer")
    book = Codebook(np.zeros((2, 4, 1), np.float32), "sound")
    writer = program.CodeWriter(book, context_length=32, layers=1)
    documents = [("one", np.array([[0, 1], [2, 3]])), ("two", np.array([[3, 3], [1, 0], [2, 2]]))]
    writer.train(lambda: documents, steps=40)
    written = writer.write(["two", "one"], max_tokens=20, temperature=0)
    assert [each.tolist() for each in written] == [
        [[3, 3], [1, 0], [2, 2]],
        [[0, 1], [2, 3]],
    ]


@pytest.mark.slow
def test_01_the_transformer_learns_and_continues_the_prompt(home: Path) -> None:
    told = play(1, home, "--steps", "40", "--tokens", "20", "--prompt", "The statement")
    first, last = numbers_after("loss", told)
    assert first == pytest.approx(log(1024), abs=0.5)
    assert last < first - 1
    assert re.search(r"^The statement.+", told, re.MULTILINE)


@pytest.mark.slow
def test_02_hidden_states_are_those_of_sentence_transformers(home: Path) -> None:
    told = play(2, home)
    assert "[1, 8, 384]" in told
    rows = re.findall(r"^ *\S+((?: +-?\d\.\d{4}){5}) …$", told, re.MULTILINE)
    expected = token_embeddings(next(home.glob("artifacts/*/modules.json")).parent)
    found = [[float(value) for value in row.split()] for row in rows]
    for ours, theirs in zip(found, expected.tolist(), strict=True):
        assert ours == pytest.approx(theirs[:5], abs=1e-4)
    near, far = numbers_after("cosine", told)
    assert near > 0.5 > 0.3 > far


def token_embeddings(folder: Path) -> torch.Tensor:
    """[T, D] of the sentence, by sentence-transformers."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from sentence_transformers import SentenceTransformer

        peer = SentenceTransformer(str(folder), device="cpu")
        return peer.encode(
            "Hello, my dog is cute", output_value="token_embeddings", show_progress_bar=False
        )


@pytest.mark.slow
def test_03_the_prompt_is_continued_and_the_shape_is_that_of_gpt2(home: Path) -> None:
    told = play(3, home)
    assert re.match(r"The quick brown fox jumps over the lazy dog\s*\S+", told)
    assert "124,439,808 parameters" in told
    assert "logits [1, 3, 1000]" in told


@pytest.mark.slow
def test_03_transformers_opens_the_folder_as_gpt2(
    load_program: LoadProgram, tmp_path: Path
) -> None:
    import torch
    from transformers import AutoModelForCausalLM, GPT2LMHeadModel

    import lmloop

    load_program(3).write_small_gpt2(tmp_path)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert isinstance(theirs, GPT2LMHeadModel)
    ids = torch.tensor([[5, 6, 7]])
    ours = lmloop.load(tmp_path, dtype=torch.float32)(ids)
    torch.testing.assert_close(ours, theirs.eval()(ids).logits.detach(), rtol=0, atol=1e-5)


@pytest.mark.slow
def test_04_a_text_has_max_length_tokens_and_comes_again(
    home: Path, monkeypatch: pytest.MonkeyPatch, load_program: LoadProgram
) -> None:
    monkeypatch.setenv("LMLOOP_HOME", str(home))
    program = load_program(4)
    text = program.generate_text("Once upon a time", max_length=16)
    assert text.startswith("Once upon a time")
    assert program.generate_text("Once upon a time", max_length=16) == text
    tokenizer = program.open_model()[0].require_tokenizer()
    assert len(tokenizer.encode_document(text)) == 16


@pytest.mark.slow
def test_05_a_summary_is_shorter_and_of_the_same_subject(home: Path) -> None:
    told = play(5, home)
    summary = told.partition(":\n")[2]
    assert 15 < len(summary.split()) < 110
    assert re.search("South\\s+America|species|naturalist", summary)
    assert summary.strip().endswith(".")


@pytest.mark.slow
def test_06_the_classifier_tells_praise_from_complaint(home: Path) -> None:
    told = play(6, home, "--reviews", "600", "--epochs", "3")
    losses = numbers_after("validation loss", told)
    assert len(losses) == 3
    assert min(losses[1:]) < losses[0] < log(2)
    assert numbers_after("accuracy", told)[-1] > 65
    assert "好评" in told
    assert "差评" in told


@pytest.mark.slow
def test_07_a_chinese_prompt_is_continued_three_times(home: Path) -> None:
    told = play(7, home, "--steps", "30", "--max-length", "24")
    texts = re.findall(r"^却说曹操(.+)$", told, re.MULTILINE)
    assert len(set(texts)) == 3
    assert all(re.search(r"[\u4e00-\u9fff]", text) for text in texts)


@pytest.mark.slow
def test_08_every_mixer_learns_and_vectors_help(home: Path) -> None:
    told = play(8, home, "--steps", "30")
    vocabulary = int(re.findall(r"([\d,]+) different", told)[0].replace(",", ""))
    losses = numbers_after("held-out loss", told)
    assert len(losses) == 6
    assert max(losses) < log(vocabulary) - 0.5
    *_, cnn_rnn, with_vectors = losses
    assert with_vectors < cnn_rnn
    assert re.search(r"^the class( \S+){25}$", told, re.MULTILINE)


@pytest.mark.slow
def test_09_digits_are_named_and_asked_about(home: Path) -> None:
    told = play(9, home)
    (captions,) = numbers_after("captions right", told)
    (answers,) = numbers_after("answers right", told)
    assert captions > 90
    assert answers > 90
    assert re.search(r"^a \w+; is it larger than \w+\? (yes|no)$", told, re.MULTILINE)


def test_a_shifted_picture_is_the_same_somewhere_else(load_program: LoadProgram) -> None:
    import torch

    picture = torch.full((6, 1, 28, 28), -1.0)
    picture[:, 0, 10, 12] = 1.0
    torch.manual_seed(0)
    moved = load_program(9).shift(picture)
    places = moved.flatten(1).argmax(1)
    assert len({*places.tolist()}) > 1
    assert all(abs(place // 28 - 10) <= 2 and abs(place % 28 - 12) <= 2 for place in places)
    assert torch.equal((moved == 1).sum((1, 2, 3)), torch.ones(6, dtype=torch.int64))


@pytest.mark.slow
def test_10_drawn_digits_are_those_that_were_asked_for(home: Path) -> None:
    told = play(10, home, "--each", "10")
    shares = [float(share) for share in re.findall(r"^\w.*\D ([\d.]+)% of \d+$", told, re.M)]
    real, coded, drawn = shares
    assert real > 90
    assert coded > 88
    assert drawn > 80
    assert (home / "digits.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_11_words_are_spoken_so_that_they_are_understood(home: Path) -> None:
    told = play(11, home, "--rows", "6")
    recordings, coded, spoken = map(float, re.findall(r" ([\d.]+)% of \d+ words wrong", told))
    assert recordings < 25
    assert coded < 40
    assert spoken < 50  # nobody guesses: noise would be 100
    assert len(list((home / "speech").glob("*.wav"))) == 6
    assert read_wav(home / "speech" / "00.wav").size > 16_000
