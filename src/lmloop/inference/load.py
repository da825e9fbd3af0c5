"""Bind a checkpoint folder together: model, tokenizer and chat template as one object."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lmloop.errors import TokenizerError
from lmloop.inference.embedding import Embedding, embed, read_embedding
from lmloop.model.checkpoint import load_model
from lmloop.model.config import ModelConfig
from lmloop.model.gguf import open_gguf
from lmloop.model.gguf_decoder import read_decoder
from lmloop.model.hardware import fast_dtype
from lmloop.model.transformer import Transformer
from lmloop.store.artifact import MANIFEST, open_artifact
from lmloop.tokens.chat import ChatTemplate
from lmloop.tokens.gguf_vocabulary import read_vocabulary
from lmloop.tokens.tokenizer import Tokenizer


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

    @torch.inference_mode()
    def __call__(self, tokens: Tensor) -> Tensor:
        """Logits [B, T, V] of ids [B, T]."""
        logits: Tensor = self.transformer(tokens)
        return logits

    @torch.inference_mode()
    def encode(self, tokens: Tensor) -> Tensor:
        """Final hidden states [B, T, D] of ids [B, T]."""
        return self.transformer.states(tokens)

    def embed(self, texts: Sequence[str]) -> Tensor:
        """A vector for each text, fp32 [n, D].

        As the folder's files for sentence-transformers say; where it has none, the mean of the last
        hidden states. Texts are cut at the model's length.
        """
        settings = self.embedding or Embedding()
        return embed(self.transformer, self.require_tokenizer(), texts, settings=settings)


def load(
    folder: str | Path, *, dtype: torch.dtype | None = None, verify: bool = True
) -> LoadedModel:
    """Open a checkpoint: our folder, a Hugging Face folder of a known family, or a `.gguf` file.

    `dtype` None takes what this processor computes fastest. With `verify`, every file is compared
    with the manifest's hash first. Raises `ArtifactError` naming the file that fails.
    """
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
    has_tokenizer = (path / "tokenizer.json").exists()
    return LoadedModel(
        transformer=load_model(path, dtype=dtype),
        tokenizer=Tokenizer.open(path) if has_tokenizer else None,
        fingerprint=fingerprint,
        embedding=read_embedding(path),
    )


def _identify(folder: Path, *, verify: bool) -> str:
    """The fingerprint of an artifact's folder, "unversioned" of any other."""
    if not (folder / MANIFEST).exists():
        return "unversioned"
    artifact = open_artifact(folder)
    if verify:
        artifact.verify()
    return artifact.fingerprint
