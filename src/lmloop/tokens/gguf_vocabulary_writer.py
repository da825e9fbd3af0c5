"""A tokenizer as entries of a GGUF file's metadata, the way llama.cpp computes it.

Takes: a `Tokenizer`. Gives: its `tokenizer.*` entries. A tokenizer of which llama.cpp would make
other ids is refused: a model that is fed other ids answers nonsense, and says nothing of it.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Mapping
from typing import Any

from lmloop.errors import TokenizerError
from lmloop.tokens.gguf_vocabulary import (
    BYTE,
    CONTROL,
    CUTS,
    NORMAL,
    SPACE,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    WHOLE_WORDS,
    cut,
    find_pairs,
)
from lmloop.tokens.tokenizer import Tokenizer

_BYTES = {f"<0x{byte:02X}>" for byte in range(256)}
_TO_SPACE = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
_IN_FRONT = {"type": "Prepend", "prepend": SPACE}
_NO_CUT = {"pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}
"""Gemma's: it looks for spaces where the normalizer has left none."""


def describe_vocabulary(tokenizer: Tokenizer, *, size: int) -> dict[str, Any]:
    """The entries of a vocabulary of `size` tokens, the rows of the model's embedding.

    Ids that the tokenizer does not use are filled. Raises `TokenizerError` where it has more, or
    where llama.cpp has no way to compute the same ids.
    """
    told = tokenizer.definition
    model = told["model"]
    if model["type"] != "BPE" or any(
        model.get(name) for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix")
    ):
        raise _refuse(f"a tokenizer of the type {model['type']} with these settings")
    tokens, kinds = _list_tokens(told, size=size)
    describe = _describe_pieces if model.get("byte_fallback") else _describe_bytes
    entries = describe(told, tokens, kinds)
    entries |= {
        "tokens": tokens,
        "token_type": kinds,
        "bos_token_id": tokenizer.document_id,
        "eos_token_id": tokenizer.stop_ids[0],
        "add_bos_token": tokenizer.encode_document("") == [tokenizer.document_id],
    }
    named = {f"tokenizer.ggml.{name}": value for name, value in entries.items()}
    if tokenizer.chat_template is not None:
        named["tokenizer.chat_template"] = tokenizer.chat_template
    return named


def _list_tokens(told: Mapping[str, Any], *, size: int) -> tuple[list[str], list[int]]:
    """Tokens by id, and their kinds."""
    model, added = told["model"], told["added_tokens"]
    places = {place: token for token, place in model["vocab"].items()}
    kinds = dict.fromkeys(places, NORMAL)
    if model.get("byte_fallback"):
        kinds |= {place: BYTE for place, token in places.items() if token in _BYTES}
    for each in added:
        if not each["special"] and (each["lstrip"] or each["rstrip"] or each["single_word"]):
            raise _refuse(f"the token {each['content']!r}, which takes in what stands beside it")
        places[each["id"]] = each["content"]
        kinds[each["id"]] = CONTROL if each["special"] else USER_DEFINED
    if max(places) >= size:
        raise TokenizerError(
            f"the tokenizer has ids up to {max(places)}, the model has {size}: they do not fit"
        )
    return (
        [places.get(place, f"[PAD{place}]") for place in range(size)],
        [kinds.get(place, UNUSED) for place in range(size)],
    )


def _describe_bytes(told: Mapping[str, Any], tokens: list[str], kinds: list[int]) -> dict[str, Any]:
    # llama.cpp does not compose characters where a tokenizer does (NFC), as for Qwen's own files.
    if (told["normalizer"] or {}).get("type", "NFC") != "NFC":
        raise _refuse(f"the normalizer {told['normalizer']['type']}")
    for name in CUTS:
        same_cut = _plain(told["pre_tokenizer"]) == _plain(json.loads(cut(name).__getstate__()))
        if same_cut and told["model"].get("ignore_merges", False) == (name in WHOLE_WORDS):
            merges = [" ".join(pair) for pair in told["model"]["merges"]]
            return {"model": "gpt2", "pre": name, "merges": merges}
    raise _refuse(f"the way this tokenizer cuts text: it is none of {', '.join(CUTS)}")


def _plain(told: Any) -> Any:
    """A way of cutting without what does not change the pieces."""
    if isinstance(told, dict):
        return {name: _plain(value) for name, value in told.items() if name != "trim_offsets"}
    return [_plain(each) for each in told] if isinstance(told, list) else told


def _describe_pieces(
    told: Mapping[str, Any], tokens: list[str], kinds: list[int]
) -> dict[str, Any]:
    """SentencePiece's BPE: a piece's score is the place of the first pair that makes it."""
    model = told["model"]
    normalizer = told["normalizer"] or {}
    steps = normalizer.get("normalizers", [normalizer])
    pre_tokenizer = {**(told["pre_tokenizer"] or _NO_CUT)}
    pre_tokenizer.pop("type", None)
    if steps not in ([_TO_SPACE], [_IN_FRONT, _TO_SPACE]) or pre_tokenizer != _NO_CUT:
        raise _refuse("the way this tokenizer lays out spaces")
    normal = {token for token, kind in zip(tokens, kinds, strict=True) if kind == NORMAL}
    pairs = [(left, right) for left, right in model["merges"] if {left, right} <= normal]
    scores = {token: float(-len(pairs) - place) for place, token in enumerate(tokens)}
    made = {left + right: float(-place) for place, (left, right) in reversed([*enumerate(pairs)])}
    scores |= made
    if find_pairs({token: scores[token] for token in normal}) != pairs:
        raise _refuse("the order in which this tokenizer joins pairs: it follows from no scores")
    entries: dict[str, Any] = {
        "model": "llama",
        "pre": "default",
        "scores": array("f", [scores[token] for token in tokens]),
        "add_space_prefix": len(steps) == 2,
    }
    if model["unk_token"] in model["vocab"]:
        entries["unknown_token_id"] = model["vocab"][model["unk_token"]]
        kinds[entries["unknown_token_id"]] = UNKNOWN
    for place, kind in enumerate(kinds):
        if kind == USER_DEFINED:  # llama.cpp looks for these in the text as it is
            tokens[place] = tokens[place].replace(SPACE, " ")
    return entries


def _refuse(what: str) -> TokenizerError:
    return TokenizerError(
        f"{what} cannot be written into a GGUF file: export the model with --format hf instead"
    )
