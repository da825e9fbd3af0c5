"""The tokenizer that lies in the metadata of a GGUF file.

Takes: metadata, of which nothing is believed. Gives: a `Tokenizer`. Read are byte-level BPE
(`tokenizer.ggml.model` = gpt2) whose way of cutting words is known, and SentencePiece's BPE
(llama), whose pairs are found again from the pieces' scores.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers

from lmloop.errors import TokenizerError
from lmloop.tokens.tokenizer import WORDS, Tokenizer

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
_PATTERNS = {
    "default": (r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]"),
    "llama-bpe": (WORDS.replace(r"|\p{N}|", r"|\p{N}{1,3}|"),),
    "qwen2": (WORDS,),
}
"""llama.cpp's patterns (`llama-vocab.cpp`), each of which cuts what the one before has left."""
CUTS = ("gpt-2", "smollm", *_PATTERNS)
"""Values of `tokenizer.ggml.pre` that are known: how text is cut before pairs are joined."""
WHOLE_WORDS = ("llama-bpe",)
"""Where a word that is a token is taken whole, whatever pairs it would be joined from."""

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
"""GGUF's kinds of tokens."""
SPACE = "\u2581"
"""What SentencePiece writes for a space."""
LONGEST_PIECE = 256
"""Characters of a piece; SentencePiece's own limit is 16 unless told otherwise."""


def read_vocabulary(metadata: Mapping[str, Any]) -> Tokenizer:
    """The file's tokenizer with its chat template; `TokenizerError` where it is not known here."""
    model = metadata.get("tokenizer.ggml.model")
    if model not in ("gpt2", "llama"):
        raise TokenizerError(
            f"tokenizer.ggml.model {model!r} cannot be opened: known here are 'gpt2', 'llama'"
        )
    tokens = _texts(metadata, "tokens")
    kinds = list(metadata.get("tokenizer.ggml.token_type") or [NORMAL] * len(tokens))
    if len(kinds) != len(tokens) or len(set(tokens)) != len(tokens):
        raise _damage("its lists do not fit")
    build = _build_bytes if model == "gpt2" else _build_pieces
    try:
        backend = build(metadata, tokens, kinds)
    except TokenizerError:
        raise
    except Exception as error:  # the backend raises bare Exception where a merge makes no token
        raise _damage(error) from error
    return Tokenizer(backend, config=_describe(metadata, tokens))


def cut(name: object) -> pre_tokenizers.PreTokenizer:
    """How the text is cut that `tokenizer.ggml.pre` names; `TokenizerError` where it is unknown."""
    if name in ("gpt-2", "smollm"):
        words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        digits = pre_tokenizers.Digits(individual_digits=True)
        return words if name == "gpt-2" else pre_tokenizers.Sequence([digits, words])
    if name not in CUTS:
        raise TokenizerError(
            f"tokenizer.ggml.pre {name!r} cannot be opened: known here are {', '.join(CUTS)}"
        )
    patterns = map(Regex, _PATTERNS[str(name)])
    letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    pieces = [pre_tokenizers.Split(pattern, behavior="isolated") for pattern in patterns]
    return pre_tokenizers.Sequence([*pieces, letters])


def _build_bytes(
    metadata: Mapping[str, Any], tokens: list[str], kinds: Sequence[int]
) -> tokenizers.Tokenizer:
    pairs: list[tuple[str, ...]] = [tuple(merge.split(" ")) for merge in _texts(metadata, "merges")]
    if any(len(pair) != 2 for pair in pairs):
        raise _damage("its lists do not fit")
    name = metadata.get("tokenizer.ggml.pre", "default")
    places = {token: place for place, token in enumerate(tokens)}
    bpe = models.BPE(places, pairs, ignore_merges=name in WHOLE_WORDS)  # type: ignore[arg-type]
    backend = tokenizers.Tokenizer(bpe)
    backend.pre_tokenizer = cut(name)
    backend.decoder = decoders.ByteLevel()
    _add_tokens(backend, tokens, kinds)
    return backend


def _build_pieces(
    metadata: Mapping[str, Any], tokens: list[str], kinds: Sequence[int]
) -> tokenizers.Tokenizer:
    """SentencePiece's BPE: the best pair is the one that makes the piece of the highest score.

    A space put in front stays in the decoded text: an answer is shown piece by piece, and only its
    caller knows where a text begins.
    """
    # These are matched in the text as it is, before its spaces turn into SPACE, as llama.cpp does.
    tokens = [
        token.replace(SPACE, " ") if kind == USER_DEFINED else token
        for token, kind in zip(tokens, kinds, strict=True)
    ]
    scores = metadata.get("tokenizer.ggml.scores")
    unknown = metadata.get("tokenizer.ggml.unknown_token_id", 0)
    if scores is None or len(scores) != len(tokens) or unknown not in range(len(tokens)):
        raise _damage("its lists do not fit")
    places = {token: place for place, token in enumerate(tokens)}
    pieces = {
        token: float(score)
        for token, score, kind in zip(tokens, scores, kinds, strict=True)
        if kind == NORMAL
    }
    backend = tokenizers.Tokenizer(
        models.BPE(
            places,
            find_pairs(pieces),
            unk_token=tokens[unknown],
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    in_front = metadata.get("tokenizer.ggml.add_space_prefix", True)
    steps = [normalizers.Prepend(SPACE)] if in_front else []
    backend.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", SPACE)])
    backend.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    _add_tokens(backend, tokens, kinds)
    return backend


def find_pairs(scores: Mapping[str, float]) -> list[tuple[str, str]]:
    """Every pair of pieces that makes a piece, in the order in which pairs are joined.

    `scores` are those of the normal pieces; the highest is joined first. Of equal scores the longer
    left half comes first, as in transformers' converter.
    """
    if any(len(piece) > LONGEST_PIECE for piece in scores):
        raise _damage(f"a piece is longer than {LONGEST_PIECE} characters")
    found = [
        (score, place, piece)
        for piece, score in scores.items()
        for place in range(1, len(piece))
        if piece[:place] in scores and piece[place:] in scores
    ]
    found.sort(key=lambda row: row[:2], reverse=True)
    return [(piece[:place], piece[place:]) for _, place, piece in found]


def _add_tokens(backend: tokenizers.Tokenizer, tokens: list[str], kinds: Sequence[int]) -> None:
    """Tokens that are matched before anything else: markup, and what is fixed by its maker."""
    matched: dict[bool, list[AddedToken]] = {True: [], False: []}
    for token, kind in zip(tokens, kinds, strict=True):
        if kind in (UNKNOWN, CONTROL, USER_DEFINED):
            special = kind != USER_DEFINED
            matched[special].append(AddedToken(token, special=special, normalized=False))
    # All at once: the backend builds its matcher again at every call.
    backend.add_special_tokens(matched[True])
    backend.add_tokens(matched[False])


def _damage(reason: object) -> TokenizerError:
    return TokenizerError(f"the tokenizer in the GGUF file is damaged: {reason}")


def _texts(metadata: Mapping[str, Any], name: str) -> list[str]:
    found = metadata.get(f"tokenizer.ggml.{name}")
    if not isinstance(found, list) or not all(isinstance(each, str) for each in found):
        raise TokenizerError(f"the GGUF file has no tokenizer: tokenizer.ggml.{name} is missing")
    return found


def _describe(metadata: Mapping[str, Any], tokens: list[str]) -> dict[str, Any]:
    """The entries of `tokenizer_config.json`."""
    begins = (
        metadata.get("tokenizer.ggml.model") == "llama"
        or metadata.get("tokenizer.ggml.pre") in WHOLE_WORDS
    )
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "add_bos_token": bool(metadata.get("tokenizer.ggml.add_bos_token", begins)),
        "chat_template": metadata.get("tokenizer.chat_template"),
    }
    for ours, theirs in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"), ("unk", "unknown")):
        place = metadata.get(f"tokenizer.ggml.{theirs}_token_id")
        if isinstance(place, int) and 0 <= place < len(tokens):
            config[f"{ours}_token"] = tokens[place]
    if "eos_token" not in config:
        raise TokenizerError("the GGUF file does not say which token ends an answer")
    config.setdefault("bos_token", config["eos_token"])
    return config
