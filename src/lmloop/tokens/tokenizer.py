"""The tokenizer: byte-level BPE, or whole words, resting in Hugging Face's two files.

Takes: text. Gives: ids, and text again, byte for byte. Text never turns into a special token, so
nobody can write a role or a stop into a message.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import tokenizers
from tokenizers import Regex, decoders, models, pre_tokenizers, trainers

from lmloop.errors import CorpusError, TokenizerError
from lmloop.tokens.whole_words import train_words
from lmloop.tokens.words import Segmenter, WordSplitter

DOCUMENT = "<|endoftext|>"
"""Stands before every document and conversation; its prediction says that one is over."""
STOP = "<|end|>"
"""Ends every turn; the model stops here."""
SPECIAL_TOKENS = (DOCUMENT, STOP, "<|system|>", "<|user|>", "<|assistant|>")
MASK = "<|mask|>"
"""Stands for what a model is to guess; one of the extra tokens that a recipe may ask for."""

Kind = Literal["bpe", "word", "character"]
"""What an id of a new tokenizer stands for: a frequent piece of text, a word, a character."""

WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""What text is cut into before pairs are joined, as in Qwen2."""


class Tokenizer:
    """Text to ids and back."""

    def __init__(self, backend: tokenizers.Tokenizer, *, config: dict[str, Any]) -> None:
        self._backend = backend
        self._config = config
        self._backend.encode_special_tokens = True
        self._backend.no_truncation()  # some files bring a length of their own for both
        self._backend.no_padding()
        self._splitter = _find_splitter(config)
        self._special = _match_special(backend)
        self.vocab_size: int = backend.get_vocab_size()
        stop = _first_name(config, "eos_token", "sep_token") or STOP
        begins = _first_name(config, "document_token", "bos_token", "cls_token")
        document = begins or _find_document(backend, stop)
        self.document_id = self.special_id(document)
        self.stop_ids: tuple[int, ...] = self.special_id(stop), self.document_id
        """Any of these ends an answer."""
        puts = config.get("add_bos_token")
        ours = (document, stop) == (DOCUMENT, STOP)
        self._begins = ours or self._puts_in_front() if puts is None else bool(puts)

    @staticmethod
    def open(folder: str | Path, *, settings: dict[str, Any] | None = None) -> Tokenizer:
        """Read `tokenizer.json`, its `_config` and `chat_template.jinja`, if there is one.

        `settings` are instead of `tokenizer_config.json` where a folder has none. Raises
        `TokenizerError` where they fail.
        """
        path = Path(folder) / "tokenizer.json"
        try:
            backend = tokenizers.Tokenizer.from_str(path.read_text(encoding="utf-8"))
            config = settings
            if config is None:
                config = json.loads(path.with_name("tokenizer_config.json").read_text("utf-8"))
            if not isinstance(config, dict):
                raise ValueError("tokenizer_config.json is no JSON object")
            template = path.with_name("chat_template.jinja")
            if template.exists():  # newer than the entry, where a folder has both
                config["chat_template"] = template.read_text(encoding="utf-8")
        except FileNotFoundError as error:
            raise TokenizerError(
                f"{error.filename} is missing: {folder} has no tokenizer"
            ) from None
        except Exception as error:  # the backend raises bare Exception on a damaged file
            raise TokenizerError(f"{path} cannot be read: {error}") from error
        return Tokenizer(backend, config=config)

    def part_documents(self) -> Tokenizer:
        """The same, with a token that begins documents and no turns, where it has one.

        Some chat models name as `bos_token` what begins every turn; documents were parted by
        another token when they learnt to read. An entry `document_token` tells it from then on.
        """
        if self._backend.token_to_id(DOCUMENT) is None:
            return self
        return Tokenizer(self._backend, config=self._config | {"document_token": DOCUMENT})

    def save(self, folder: Path) -> None:
        """Write both files."""
        (folder / "tokenizer.json").write_text(self._backend.to_str(), encoding="utf-8")
        text = json.dumps(self._config, indent=1, ensure_ascii=False)
        (folder / "tokenizer_config.json").write_text(text + "\n", encoding="utf-8")

    @property
    def chat_template(self) -> str | None:
        """The Jinja source of the chat template, if there is one."""
        template: str | None = self._config.get("chat_template")
        return template

    @property
    def definition(self) -> dict[str, Any]:
        """What `tokenizer.json` says."""
        told: dict[str, Any] = json.loads(self._backend.to_str())
        return told

    @property
    def special_ids(self) -> tuple[int, ...]:
        """The ids of all special tokens."""
        added = self._backend.get_added_tokens_decoder()
        return tuple(sorted(number for number, token in added.items() if token.special))

    @property
    def byte_names(self) -> list[str] | None:
        """How each id spells its bytes, in GPT-2's letters; `None` where ids are no bytes."""
        if not isinstance(self._backend.decoder, decoders.ByteLevel):
            return None
        return [self._backend.id_to_token(number) or "" for number in range(self.vocab_size)]

    @property
    def words(self) -> list[str]:
        """The text of each id, without a space before it; nothing for special tokens."""
        return [self.decode([number]).removeprefix(" ") for number in range(self.vocab_size)]

    def special_id(self, token: str) -> int:
        """The id of a special token; raise `TokenizerError` where there is none."""
        found = self._backend.token_to_id(token)
        if found is None:
            raise TokenizerError(f"the tokenizer has no token {token!r}")
        return found

    def encode(self, text: str) -> list[int]:
        """Ids of text; special tokens spelt in it stay text."""
        ids: list[int] = self._backend.encode(
            self._part(text), is_pretokenized=self._is_parted, add_special_tokens=False
        ).ids
        return ids

    def encode_document(self, text: str) -> list[int]:
        """Ids of text as the beginning of a document: what a model is given to continue.

        A tokenizer that says `add_bos_token: false` puts nothing in front.
        """
        ids = self.encode(text)
        return [self.document_id, *ids] if self._begins else ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of many texts, on all cores."""
        encoded = self._backend.encode_batch_fast(
            list(map(self._part, texts)), is_pretokenized=self._is_parted, add_special_tokens=False
        )
        return [each.ids for each in encoded]

    def encode_inputs(self, texts: Sequence[str], *, max_length: int) -> list[list[int]]:
        """Ids of whole texts as an encoder reads them: between the tokens that its tokenizer puts
        around, of which none is lost where the text is cut at `max_length`."""
        room = max(0, max_length - self._backend.num_special_tokens_to_add(is_pair=False))
        encoded = self._backend.encode_batch(
            list(map(self._part, texts)), is_pretokenized=self._is_parted, add_special_tokens=False
        )
        for each in encoded:
            each.truncate(room)
        return [self._backend.post_process(each).ids for each in encoded]

    def encode_markup(self, text: str) -> list[int]:
        """Ids of a template's own text, in which special tokens are meant."""
        # Cut here, not by a switch of the backend: another thread may be encoding a user's text.
        ids: list[int] = []
        for place, part in enumerate(self._special.split(text)):
            ids += [self.special_id(part)] if place % 2 else self.encode(part)
        return ids

    def _part(self, text: str) -> str | list[str]:
        """A text as the backend takes it: in parts where its own pattern cannot find the words."""
        return text if self._splitter is None else self._splitter.cut(text)

    @property
    def _is_parted(self) -> bool:
        return self._splitter is not None

    def _puts_in_front(self) -> bool:
        """Whether the backend's own processing of a text begins with the document token."""
        return bool(self._backend.encode("").ids[:1] == [self.document_id])

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids; special tokens are left out, cut characters become U+FFFD."""
        text: str = self._backend.decode(list(ids), skip_special_tokens=True)
        return text


def _find_splitter(config: dict[str, Any]) -> WordSplitter | None:
    """What parts runs of Han characters, where the config names a segmenter."""
    segmenter = config.get("segmenter")
    if segmenter is None:
        return None
    if segmenter not in get_args(Segmenter):
        raise TokenizerError(
            f"tokenizer_config.json names the segmenter {segmenter!r}: allowed is "
            f"{' or '.join(get_args(Segmenter))}"
        )
    return WordSplitter(segmenter=segmenter)


def _first_name(config: dict[str, Any], *entries: str) -> str | None:
    """The text of the first of these tokens: plain, or with its settings around it."""
    told = [config.get(entry) for entry in entries]
    names = [each.get("content") if isinstance(each, dict) else each for each in told]
    return next((name for name in names if isinstance(name, str) and name), None)


def _find_document(backend: tokenizers.Tokenizer, stop: str) -> str:
    """What stands before a document where the config names nothing: ours, else what ends one."""
    return stop if backend.token_to_id(DOCUMENT) is None else DOCUMENT


def _match_special(backend: tokenizers.Tokenizer) -> re.Pattern[str]:
    """Matches each special token of the backend, the longest first."""
    added = backend.get_added_tokens_decoder().values()
    names = sorted((each.content for each in added if each.special), key=len, reverse=True)
    return re.compile(f"({'|'.join(map(re.escape, names)) or '(?!)'})")


def train_tokenizer(
    texts: Iterable[str],
    *,
    vocab_size: int,
    kind: Kind = "bpe",
    segmenter: Segmenter = "jieba",
    chat_template: str | None = None,
    context_length: int | None = None,
    extra_tokens: Sequence[str] = (),
) -> Tokenizer:
    """Learn a vocabulary of `vocab_size` entries; `CorpusError` if the text is too small.

    Its first ids are those of `SPECIAL_TOKENS` and, behind them, `extra_tokens`. `segmenter` parts
    runs of Han characters where `kind` is "word".
    """
    for token in extra_tokens:
        if token in SPECIAL_TOKENS:
            raise TokenizerError(
                f"every tokenizer has {token!r}: leave it out of tokenize.extra_tokens"
            )
    special_tokens = [*SPECIAL_TOKENS, *extra_tokens]
    if kind == "bpe":
        backend = _train_bpe(texts, vocab_size=vocab_size, special_tokens=special_tokens)
    else:
        backend = train_words(
            texts,
            vocab_size=vocab_size,
            special_tokens=special_tokens,
            cut=WordSplitter(segmenter=segmenter).cut,
            whole=kind == "word",
        )
    if backend.get_vocab_size() < vocab_size:
        raise CorpusError(
            f"the corpus gives {backend.get_vocab_size()} vocabulary entries, the recipe asks for "
            f"tokenize.vocab_size = {vocab_size}: add text or lower it"
        )
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": DOCUMENT,
        "eos_token": STOP,
        "pad_token": DOCUMENT,
        **({"mask_token": MASK} if MASK in extra_tokens else {}),
        "segmenter": segmenter if kind == "word" else None,
        "model_max_length": context_length,
        "clean_up_tokenization_spaces": False,
        "chat_template": chat_template,
    }
    config = {key: value for key, value in config.items() if value is not None}
    return Tokenizer(backend, config=config)


def _train_bpe(
    texts: Iterable[str], *, vocab_size: int, special_tokens: Sequence[str]
) -> tokenizers.Tokenizer:
    """Byte-level BPE at most of that size.

    Source: Sennrich, Haddow and Birch 2016; bytes as in GPT-2, words cut as in Qwen.
    """
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(special_tokens),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer=trainer)
    return backend
