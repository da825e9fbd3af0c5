"""Bind a checkpoint folder together: model, tokenizer and chat template as one object."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lmloop.corpus.audio import read_wav
from lmloop.corpus.pictures import prepare_picture, read_picture, read_picture_rules
from lmloop.errors import ArtifactError, TokenizerError, UsageError
from lmloop.inference.embedding import Embedding, embed, read_embedding
from lmloop.inference.seq2seq import generate
from lmloop.inference.speech import transcribe_speech
from lmloop.inference.transcribe import read_rules
from lmloop.model.config import ModelConfig
from lmloop.model.hardware import best_device, fast_dtype
from lmloop.model.transformer import Transformer
from lmloop.store.artifact import MANIFEST, open_artifact
from lmloop.tokens.chat import ChatTemplate
from lmloop.tokens.gguf_vocabulary import read_vocabulary
from lmloop.tokens.tokenizer import Tokenizer
from lmloop.weights.checkpoint import CONFIG, assemble, load_model
from lmloop.weights.ctranslate2 import open_ctranslate2
from lmloop.weights.ctranslate2_whisper import read_whisper_config, read_whisper_tensors
from lmloop.weights.families import read_config
from lmloop.weights.gguf import open_gguf
from lmloop.weights.gguf_decoder import read_decoder
from lmloop.weights.stored import read_json

CTRANSLATE2 = "model.bin"
PREPROCESSOR = "preprocessor_config.json"


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model with everything that is needed to talk to it."""

    transformer: Transformer
    tokenizer: Tokenizer | None
    """None where the folder has none."""
    fingerprint: str
    """Of the artifact, or "unversioned" for a folder without a manifest."""
    embedding: Embedding | None = None
    """How texts become vectors, where the folder says it."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """What the folder says of generation: which ids are never said, where answers begin."""
    preprocessor: Mapping[str, Any] = field(default_factory=dict)
    """What the folder says of how files become what the model sees or hears."""

    @property
    def config(self) -> ModelConfig:
        """The model's shape."""
        return self.transformer.config

    @property
    def template(self) -> ChatTemplate:
        """How conversations are laid out; raises `TokenizerError` where that is not known."""
        return ChatTemplate.of(self.require_tokenizer())

    def require_tokenizer(self) -> Tokenizer:
        """The tokenizer; raises `TokenizerError` where there is none."""
        if self.tokenizer is None:
            raise TokenizerError("this checkpoint has no tokenizer: it takes ids only")
        return self.tokenizer

    def transcribe(self, path: str | Path, *, language: str | None = None) -> str:
        """The text of a WAV file with speech; a `language` where the model knows several.

        Raises `ArtifactError` for a model that does not hear, `CorpusError` for a bad file,
        `TokenizerError` for an unknown language.
        """
        if self.config.encoder is None or self.config.encoder.audio_bins is None:
            raise ArtifactError("this model does not hear: name a Whisper, as 'whisper-tiny.en'")
        tokenizer = self.require_tokenizer()
        rules = read_rules(self.settings, tokenizer, language=language)
        return transcribe_speech(self.transformer, read_wav(path), tokenizer=tokenizer, rules=rules)

    def caption(
        self, path: str | Path, *, prompt: str = "", max_tokens: int = 64, beams: int = 1
    ) -> str:
        """What the model says of a picture in a file; with a `prompt`, how it goes on from that.

        Raises `ArtifactError` for a model that does not see, `CorpusError` for a bad file,
        `UsageError` for a prompt that fills the model's length.
        """
        picture = None if self.config.encoder is None else self.config.encoder.picture
        if picture is None:
            raise ArtifactError("this model does not see: name a pair of a ViT and a decoder")
        tokenizer = self.require_tokenizer()
        asked = tokenizer.encode(prompt)
        if len(asked) >= self.config.context_length:
            raise UsageError(
                f"the prompt has {len(asked)} tokens: fewer than {self.config.context_length} "
                "leave room for an answer"
            )
        try:
            rules = read_picture_rules(
                self.preprocessor, size=picture.size, channels=picture.channels
            )
        except (TypeError, ValueError) as error:
            raise ArtifactError(f"{PREPROCESSOR} cannot be followed: {error}") from error
        pixels = prepare_picture(read_picture(path, channels=picture.channels), rules)
        (said,) = generate(
            self.transformer,
            [torch.from_numpy(pixels)],
            start_id=self.settings.get("decoder_start_token_id", tokenizer.document_id),
            stop_id=tokenizer.stop_ids[0],
            max_tokens=max_tokens,
            beams=beams,
            prompts=[asked],
        )
        return tokenizer.decode(said).strip()

    @torch.inference_mode()
    def __call__(self, tokens: Tensor) -> Tensor:
        """Logits [B, T, V] of ids [B, T]; raises `ArtifactError` for a model that has none."""
        self._require_one_stack()
        if self.config.head == "none":
            raise ArtifactError("this model has no head and gives no logits: use .encode")
        logits: Tensor = self.transformer(tokens.to(self.transformer.device))
        return logits

    @torch.inference_mode()
    def encode(self, tokens: Tensor) -> Tensor:
        """Final hidden states [B, T, D] of ids [B, T]."""
        self._require_one_stack()
        return self.transformer.states(tokens.to(self.transformer.device))

    def embed(self, texts: Sequence[str]) -> Tensor:
        """A vector for each text, fp32 [n, D].

        As the folder's files for sentence-transformers say; where it has none, the mean of the last
        hidden states. Texts are cut at the model's length.
        """
        self._require_one_stack()
        settings = self.embedding or Embedding()
        return embed(self.transformer, self.require_tokenizer(), texts, settings=settings)

    def answer(self, texts: Sequence[str], *, max_tokens: int = 128, beams: int = 1) -> list[str]:
        """What an encoder-decoder writes to each text, greedily or by beams.

        Texts are cut at the encoder's length. Raises `ArtifactError` for a model that reads no
        text as a source, `UsageError` for an empty text.
        """
        encoder = self.config.encoder
        if encoder is None or not encoder.reads_tokens:
            raise ArtifactError("this model writes no answer to a text: it is no encoder-decoder")
        tokenizer = self.require_tokenizer()
        sources = tokenizer.encode_inputs(texts, max_length=encoder.context_length)
        if not all(sources):
            raise UsageError(f"text {sources.index([])} is empty: give at least one token")
        answers = generate(
            self.transformer,
            [torch.tensor(ids) for ids in sources],
            start_id=self.settings.get("decoder_start_token_id", tokenizer.document_id),
            stop_id=tokenizer.stop_ids[0],
            max_tokens=max_tokens,
            beams=beams,
        )
        return [tokenizer.decode(ids) for ids in answers]

    def _require_one_stack(self) -> None:
        if self.config.encoder is not None:
            raise ArtifactError(
                "this model reads one text and writes another: use .answer, or .transformer with "
                "a source"
            )


def load(
    folder: str | Path,
    *,
    dtype: torch.dtype | None = None,
    verify: bool = True,
    device: torch.device | None = None,
) -> LoadedModel:
    """Open a checkpoint: our folder, Hugging Face's, a CTranslate2 Whisper, or a `.gguf` file.

    `dtype` None takes what this machine computes fastest, `device` None its GPU where it has one.
    With `verify`, every file is compared with the manifest's hash first. Raises `ArtifactError`
    naming the file that fails.
    """
    opened = _open(folder, dtype=dtype, verify=verify)
    if opened.config.int8:  # products of 8 bits are those of processors
        return opened
    opened.transformer.to(best_device() if device is None else device)
    return opened


def _open(folder: str | Path, *, dtype: torch.dtype | None, verify: bool) -> LoadedModel:
    """What `load` opens, on the processor."""
    path = Path(folder)
    is_file = path.suffix == ".gguf" and not path.is_dir()
    fingerprint = _identify(path.parent if is_file else path, verify=verify)
    dtype = fast_dtype() if dtype is None else dtype
    if is_file:
        file = open_gguf(path)
        has_tokenizer = "tokenizer.ggml.model" in file.metadata
        return LoadedModel(
            transformer=read_decoder(file, dtype=dtype),
            tokenizer=read_vocabulary(file.metadata) if has_tokenizer else None,
            fingerprint=fingerprint,
        )
    if (path / CTRANSLATE2).is_file():
        return _load_whisper(path, dtype=dtype, fingerprint=fingerprint)
    has_tokenizer = (path / "tokenizer.json").exists()
    return LoadedModel(
        transformer=load_model(path, dtype=dtype),
        tokenizer=Tokenizer.open(path) if has_tokenizer else None,
        fingerprint=fingerprint,
        embedding=read_embedding(path),
        settings=_read_json(path / CONFIG) | _read_json(path / "generation_config.json"),
        preprocessor=_read_json(path / PREPROCESSOR),
    )


def load_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer alone of what `load` opens; `TokenizerError` where there is none."""
    if path.suffix == ".gguf" and not path.is_dir():
        return read_vocabulary(open_gguf(path).metadata)
    return Tokenizer.open(path)


def _load_whisper(folder: Path, *, dtype: torch.dtype, fingerprint: str) -> LoadedModel:
    """A Whisper that CTranslate2 wrote; its tokenizer's settings are those of every Whisper."""
    file = open_ctranslate2(folder / CTRANSLATE2)
    settings = read_whisper_config(file, _read_json(folder / CONFIG))
    tensors = read_whisper_tensors(file, dtype=dtype)
    end = dict.fromkeys(("bos_token", "eos_token"), "<|endoftext|>")
    return LoadedModel(
        transformer=assemble(read_config(settings), tensors, path=file.path),
        tokenizer=Tokenizer.open(folder, settings=end),
        fingerprint=fingerprint,
        settings=settings,
    )


def _read_json(path: Path) -> dict[str, Any]:
    """The entries of a file, none where it is missing; raise `ArtifactError` for a damaged one."""
    try:
        data = read_json(path) if path.exists() else {}
        if not isinstance(data, dict):
            raise ValueError("no JSON object")
    except ValueError as error:
        raise ArtifactError(f"{path} is damaged: {error}") from error
    return data


def _identify(folder: Path, *, verify: bool) -> str:
    """The fingerprint of an artifact's folder, "unversioned" of any other."""
    if not (folder / MANIFEST).exists():
        return "unversioned"
    artifact = open_artifact(folder)
    if verify:
        artifact.verify()
    return artifact.fingerprint
