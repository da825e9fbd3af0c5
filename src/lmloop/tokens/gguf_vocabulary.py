"""The tokenizer that lies in the metadata of a GGUF file.

Takes: metadata, of which nothing is believed. Gives: a `Tokenizer`. Read are byte-level BPE
vocabularies (`tokenizer.ggml.model` = gpt2) whose way of cutting words is known.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers

from lmloop.errors import TokenizerError
from lmloop.tokens.tokenizer import WORDS, Tokenizer

_LLAMA3 = WORDS.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
CUTS = ("default", "gpt-2", "llama-bpe", "qwen2", "smollm")
"""Values of `tokenizer.ggml.pre` that are known: how text is cut before pairs are joined."""
_CONTROL, _USER_DEFINED = 3, 4


def read_vocabulary(metadata: Mapping[str, Any]) -> Tokenizer:
    """The file's tokenizer with its chat template; `TokenizerError` where it is not known here."""
    model = metadata.get("tokenizer.ggml.model")
    if model != "gpt2":
        raise TokenizerError(
            f"tokenizer.ggml.model {model!r} cannot be opened: known here is 'gpt2'"
        )
    tokens = _texts(metadata, "tokens")
    kinds = list(metadata.get("tokenizer.ggml.token_type") or [1] * len(tokens))
    pairs = [tuple(merge.split(" ")) for merge in _texts(metadata, "merges")]
    if len(kinds) != len(tokens) or any(len(pair) != 2 for pair in pairs):
        raise TokenizerError("the tokenizer in the GGUF file is damaged: its lists do not fit")
    try:
        # The backend raises bare Exception where a merge makes no token.
        bpe = models.BPE({token: place for place, token in enumerate(tokens)}, pairs)  # type: ignore[arg-type]
        backend = tokenizers.Tokenizer(bpe)
        backend.pre_tokenizer = _cut(metadata.get("tokenizer.ggml.pre", "default"))
    except TokenizerError:
        raise
    except Exception as error:
        raise TokenizerError(f"the tokenizer in the GGUF file is damaged: {error}") from error
    backend.decoder = decoders.ByteLevel()
    for token, kind in zip(tokens, kinds, strict=True):
        if kind in (_CONTROL, _USER_DEFINED):
            added = AddedToken(token, special=kind == _CONTROL, normalized=False)
            backend.add_special_tokens([added]) if kind == _CONTROL else backend.add_tokens([added])
    return Tokenizer(backend, config=_describe(metadata, tokens))


def _texts(metadata: Mapping[str, Any], name: str) -> list[str]:
    found = metadata.get(f"tokenizer.ggml.{name}")
    if not isinstance(found, list) or not all(isinstance(each, str) for each in found):
        raise TokenizerError(f"the GGUF file has no tokenizer: tokenizer.ggml.{name} is missing")
    return found


def _cut(name: object) -> pre_tokenizers.PreTokenizer:
    if name in ("default", "gpt-2"):
        return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    if name == "smollm":
        digits = pre_tokenizers.Digits(individual_digits=True)
        words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        return pre_tokenizers.Sequence([digits, words])
    if name in ("qwen2", "llama-bpe"):
        pattern = Regex(WORDS if name == "qwen2" else _LLAMA3)
        pieces = pre_tokenizers.Split(pattern, behavior="isolated")
        letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        return pre_tokenizers.Sequence([pieces, letters])
    raise TokenizerError(
        f"tokenizer.ggml.pre {name!r} cannot be opened: known here are {', '.join(CUTS)}"
    )


def _describe(metadata: Mapping[str, Any], tokens: list[str]) -> dict[str, Any]:
    """The entries of `tokenizer_config.json`."""
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "add_bos_token": bool(metadata.get("tokenizer.ggml.add_bos_token", False)),
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
