"""A BPE that SentencePiece trains in a moment, and its entries in a GGUF file's metadata."""

from __future__ import annotations

import io
from array import array
from typing import Any

from sentencepiece import SentencePieceProcessor, SentencePieceTrainer

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6
SENTENCES = [
    "do you like the sea? I like the sea a lot, and the small house by the sea.",
    "where is the train? the train is 12 minutes late, 345 people wait.",
    "火车站在哪里？火车在海边。我很喜欢大海和火车。",
    "def add(left, right):  return left + right",
]
TEXTS = [
    *SENTENCES,
    "",
    " ",
    "the  sea   is    wide",
    "  two in front, two behind  ",
    "lines\nof\n\ntext\n\n\n",
    "\tdef f(x):\n\t\treturn x\r\n",
    "🐢 and 👩‍👩‍👧 and é́ ﷺ \x00\x7f",
    "seaseaseasea thethethethe aaaaaaaaaaaaaaaaa",
    "<s> </s> <unk> <turn> <0x0A> spelt out",
    "the sea " * 200,
]
FIXED = ["  ", "   ", "    ", "\n", "\n\n", "<br>"]
"""Pieces fixed by the maker of a vocabulary, as Gemma's are."""


def train_pieces(*, prefix: bool, fixed: list[str]) -> SentencePieceProcessor:
    """320 pieces out of the sentences above; `prefix` puts a space in front of every text."""
    written = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES * 9),
        model_writer=written,
        vocab_size=400,
        hard_vocab_limit=False,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=prefix,
        user_defined_symbols=[piece.replace(" ", "\u2581") for piece in fixed],
        control_symbols=["<turn>"],
        pad_id=-1,
        minloglevel=2,
    )
    return SentencePieceProcessor(model_proto=written.getvalue())


def kind_of(processor: SentencePieceProcessor, place: int) -> int:
    """GGUF's kind of a piece; the processor does not say what was fixed."""
    asked = (
        (processor.is_unknown, UNKNOWN),
        (processor.is_control, CONTROL),
        (processor.is_byte, BYTE),
    )
    found = [kind for is_one, kind in asked if is_one(place)]
    is_fixed = processor.id_to_piece(place).replace("\u2581", " ") in FIXED
    return found[0] if found else USER_DEFINED if is_fixed else NORMAL


def metadata_of(processor: SentencePieceProcessor, **changes: Any) -> dict[str, Any]:
    """As llama.cpp's converter lays the vocabulary into a file."""
    ids = range(processor.vocab_size())
    kinds = [kind_of(processor, place) for place in ids]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": [
            processor.id_to_piece(place).replace(
                "\u2581", " " if kind == USER_DEFINED else "\u2581"
            )
            for place, kind in zip(ids, kinds, strict=True)
        ],
        "tokenizer.ggml.scores": array("f", map(processor.get_score, ids)),
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.bos_token_id": processor.bos_id(),
        "tokenizer.ggml.eos_token_id": processor.eos_id(),
        "tokenizer.ggml.unknown_token_id": processor.unk_id(),
        "tokenizer.ggml.add_bos_token": True,
    } | {f"tokenizer.ggml.{name}": value for name, value in changes.items()}
