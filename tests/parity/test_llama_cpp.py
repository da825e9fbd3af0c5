"""llama.cpp beside us: what we write opens there, cuts text alike and answers alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import lmloop
from lmloop.inference.load import LoadedModel
from lmloop.tokens.gguf_vocabulary import CUTS, read_vocabulary
from lmloop.tokens.gguf_vocabulary_writer import describe_vocabulary
from lmloop.tokens.tokenizer import Tokenizer
from lmloop.weights.checkpoint import save_model
from lmloop.weights.families import FAMILIES
from lmloop.weights.gguf_decoder_writer import FILE_TYPES, describe_decoder, name_tensors
from lmloop.weights.gguf_writer import write_gguf
from lmloop.weights.stored import read_tensors

from ..conftest import make_conversations, random_model, tiny_shape
from ..tokens import sentence_pieces
from ..tokens.test_gguf_vocabulary import metadata_of
from .beside_llama_cpp import BUILD_SECONDS, TOKENS, Peer, greedy, write

pytestmark = [pytest.mark.slow, pytest.mark.timeout(BUILD_SECONDS + 300)]

TOLERANCES = {
    "F32": (0.0, 1e-4),
    "F16": (0.0, 0.03),
    "BF16": (0.1, 0.2),
    "Q8_0": (0.25, 0.6),
    "Q4_0": (0.25, 0.6),
    "Q4_K": (0.25, 0.6),
}
"""By how many logits a choice may be the less likely one to us, and by how many logits may differ.

llama.cpp rounds what it multiplies with weights as well: to 16 bits with F16 and BF16, to 8 bits a
block of 32 or 256 with the others. We compute in fp32 with the weights that are in the file. The
logits here have a standard deviation of 1.5.
"""
TINY_PROMPTS = ["do you like the sea?", "火车 is a train", "12345 green  tea\n\n", "I saw"]
REAL_PROMPTS = ["The capital of France is", "def add(a, b):\n", "Once upon a time, in a village"]
TEXTS = [
    *sentence_pieces.TEXTS,
    *(turn.content for talk in make_conversations(20, seed=3) for turn in talk.turns),
    "It's we'LL THEY'RE i'm don't 'tis ''s",
    "3.14159 1,000,000 ２０２４ ١٢٣ ½ x² 1st",
    "a\u00a0b\u2003c \u3000 d\t\t e\r\n\r\nf \n g   ",
    "<|endoftext|><|end|> <|user|>",
    "ßẞ İı ǅ naïve Ελλάδα Привет مرحبا שלום नमस्ते ไทย 한국어 日本語",
    "(a+b)*c != d; // $x <= ~y ^ z | `w` — “q” … ¿¡ €£¥",
]


@pytest.fixture(scope="module", params=["llama", "qwen3"])
def tiny(
    request: pytest.FixtureRequest, tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A random model whose rows are whole blocks of every type, with a tokenizer of its own."""
    shape = tiny_shape(
        vocab_size=tokenizer.vocab_size,
        hidden_size=256,
        num_heads=8,
        num_kv_heads=2,
        head_dim=32,
        intermediate_size=512,
        tie_embeddings=request.param == "qwen3",
        family=request.param,
        **FAMILIES[request.param].stack.shape,
    )
    folder = tmp_path_factory.mktemp(request.param)
    tokenizer.save(folder)
    stop, document = tokenizer.stop_ids[0], tokenizer.document_id
    save_model(random_model(shape), folder, stop_id=stop, document_id=document)
    return folder


def gaps(model: LoadedModel, prompt: list[int], chosen: list[int]) -> Tensor:
    """By how many logits another token is likelier to us than each of theirs [T]."""
    logits = model(torch.tensor([prompt + chosen[:-1]]))[0, len(prompt) - 1 :]
    return logits.amax(-1) - logits.gather(-1, torch.tensor(chosen)[:, None])[:, 0]


def check_choices(
    model: LoadedModel,
    prompts: list[list[int]],
    answers: list[lmloop.Answer],
    answered: dict[str, Any],
    *,
    gap: float,
) -> None:
    """Greedy answers are the same, but where two tokens are as likely within `gap` logits."""
    for prompt, ours, theirs in zip(prompts, answers, answered["answers"], strict=True):
        chosen = theirs["tokens"]
        lead = gaps(model, prompt, chosen)
        assert float(lead.max()) <= gap
        assert float((lead == 0).float().mean()) >= 0.75
        if not gap:
            assert chosen[: len(ours.tokens)] == list(ours.tokens)
            assert (
                len(ours.tokens) == TOKENS
                or chosen[len(ours.tokens)] in model.require_tokenizer().stop_ids
            )


@pytest.mark.parametrize("weight_type", list(FILE_TYPES))
def test_a_random_model_answers_alike(
    peer: Peer, tiny: Path, tmp_path: Path, weight_type: str
) -> None:
    path, model = write(tiny, tmp_path, weight_type=weight_type)
    prompts = [model.require_tokenizer().encode_document(text) for text in TINY_PROMPTS]
    answered = peer.ask(path, prompts=prompts, show_logits=True)
    gap, difference = TOLERANCES[weight_type]
    check_choices(model, prompts, greedy(model, prompts), answered, gap=gap)
    for prompt, theirs in zip(prompts, answered["answers"], strict=True):
        read = torch.tensor([prompt + theirs["tokens"][:-1]])
        logits = torch.tensor(theirs["logits"])
        torch.testing.assert_close(model(read)[0], logits, atol=difference, rtol=0)


@pytest.mark.parametrize("weight_type", list(FILE_TYPES))
def test_a_real_model_written_again_answers_alike(
    peer: Peer, smollm2: Path, tmp_path: Path, weight_type: str
) -> None:
    path, model = write(smollm2, tmp_path, weight_type=weight_type)
    tokenizer = model.require_tokenizer()
    prompts = [tokenizer.encode_document(text) for text in REAL_PROMPTS]
    ours = greedy(model, prompts)
    shown = [list(answer.tokens) for answer in ours]
    answered = peer.ask(path, texts=TEXTS, prompts=prompts, shown=shown)
    assert answered["ids"] == [tokenizer.encode(text) for text in TEXTS]
    assert answered["texts"] == [answer.text for answer in ours]
    check_choices(model, prompts, ours, answered, gap=TOLERANCES[weight_type][0])


def write_vocabulary(path: Path, vocabulary: dict[str, Any]) -> Tokenizer:
    """A file with this vocabulary around a random model, and how we read it."""
    tokenizer = read_vocabulary(vocabulary)
    shape = tiny_shape(vocab_size=tokenizer.vocab_size)
    save_model(random_model(shape), path.parent, stop_id=0, document_id=0)
    write_gguf(
        path,
        metadata=describe_decoder(shape, name="peer", weight_type="F32") | vocabulary,
        tensors=name_tensors(shape, read_tensors(path.parent), weight_type="F32"),
    )
    return tokenizer


@pytest.mark.parametrize("name", CUTS)
def test_text_is_cut_alike(peer: Peer, tokenizer: Tokenizer, tmp_path: Path, name: str) -> None:
    path = tmp_path / "model.gguf"
    ours = write_vocabulary(path, metadata_of(tokenizer, pre=name))
    assert peer.ask(path, texts=TEXTS)["ids"] == [ours.encode(text) for text in TEXTS]


@pytest.mark.parametrize("prefix", [True, False])
def test_pieces_are_found_alike(peer: Peer, tmp_path: Path, prefix: bool) -> None:
    fixed = [] if prefix else sentence_pieces.FIXED
    original = sentence_pieces.train_pieces(prefix=prefix, fixed=fixed)
    vocabulary = sentence_pieces.metadata_of(original, add_space_prefix=prefix)
    size = original.vocab_size()
    path = tmp_path / "model.gguf"
    ours = write_vocabulary(path, describe_vocabulary(read_vocabulary(vocabulary), size=size))
    assert peer.ask(path, texts=TEXTS)["ids"] == [ours.encode(text) for text in TEXTS]
