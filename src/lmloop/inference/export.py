"""A model written for other programs: its own folder, a GGUF file, or an ONNX graph.

Takes: a checkpoint's folder or a `.gguf` file. Gives: a folder or a file, whole or not at all, and
how far it is from the original: above a limit nothing is written.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from lmloop.errors import ArtifactError
from lmloop.inference.load import LoadedModel, load
from lmloop.inference.parity import Difference, choose_tokens, compare
from lmloop.model.config import ModelConfig
from lmloop.tokens.gguf_vocabulary import read_vocabulary
from lmloop.tokens.gguf_vocabulary_writer import describe_vocabulary
from lmloop.tokens.tokenizer import Tokenizer
from lmloop.weights.checkpoint import load_config
from lmloop.weights.gguf import open_gguf
from lmloop.weights.gguf_decoder import read_named, read_shape
from lmloop.weights.gguf_decoder_writer import describe_decoder, name_tensors
from lmloop.weights.gguf_writer import write_gguf
from lmloop.weights.onnx_export import LARGEST_FILE, count_bytes, run_onnx, write_onnx
from lmloop.weights.stored import read_tensors

SUFFIX = ".gguf"
_PROCESSOR = torch.device("cpu")
MAX_LOSS = 0.05
"""Rise of the nats a token that an export may cost, relative."""


def export(
    source: Path,
    target: Path,
    *,
    name: str,
    file_format: str,
    weight_type: str | None = None,
    max_loss: float | None = None,
) -> Difference | None:
    """Write a model in a format, hf, gguf or onnx; how far it is from the original, if it can be.

    Raises `ArtifactError` for a format that is not known, a `target` that exists, and as below.
    """
    if file_format not in ("hf", "gguf", "onnx"):
        raise ArtifactError(
            f"the format {file_format!r} is not written: allowed are hf, gguf, onnx"
        )
    if weight_type is not None and file_format != "gguf":
        raise ArtifactError(f"{weight_type} is a type of GGUF weights: add --format gguf")
    if target.exists():
        kind = "file" if target.is_file() else "folder"
        raise ArtifactError(f"{target} exists: name a {kind} that does not")
    loss = MAX_LOSS if max_loss is None else max_loss
    if file_format == "gguf":
        chosen = weight_type or "Q8_0"
        return export_gguf(source, target, name=name, weight_type=chosen, max_loss=loss)
    if file_format == "onnx":
        return export_onnx(source, target, name=name, max_loss=loss)
    export_folder(source, target)
    return None


def export_folder(source: Path, target: Path) -> None:
    """Copy a checkpoint's folder; raise `ArtifactError` where `target` cannot be made."""
    with _make_whole(target) as made:
        made.mkdir()
        # File by file: `copytree` hides what went wrong, a full disk for one, in a list of its own.
        for file in (path for path in source.rglob("*") if path.is_file()):
            copy = made / file.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy)


def export_gguf(
    source: Path, target: Path, *, name: str, weight_type: str, max_loss: float = MAX_LOSS
) -> Difference:
    """Write a model, called `name`, with its tokenizer and chat template.

    `target` is a file where it ends in `.gguf`, else a folder to hold one. `weight_type` is one of
    `gguf_decoder_writer.FILE_TYPES`. Raises `ArtifactError` or `TokenizerError` for what a GGUF
    file cannot hold, where it would lose more than `max_loss`, and where `target` cannot be made.
    """
    config, tokenizer = _describe(source)
    metadata = describe_decoder(config, name=name, weight_type=weight_type)
    if tokenizer is not None:
        metadata |= describe_vocabulary(tokenizer, size=config.vocab_size)
    # Opening compares the tensors with the shape: none is missing or spare in what is written.
    original = load(source, dtype=torch.float32, verify=False, device=_PROCESSOR)
    tensors = name_tensors(config, _read(source, config), weight_type=weight_type)
    with _make_whole(target) as made:
        if target.suffix != SUFFIX:
            made.mkdir()
            made /= f"{name}-{weight_type}{SUFFIX}"
        write_gguf(made, metadata=metadata, tensors=tensors)
        copy = load(made, dtype=torch.float32, verify=False, device=_PROCESSOR)
        tokens = choose_tokens(config, tokenizer)
        difference = compare(original(tokens)[0], copy(tokens)[0], tokens, are_logits=True)
        difference.require(max_loss=max_loss)
    return difference


def export_onnx(source: Path, target: Path, *, name: str, max_loss: float = MAX_LOSS) -> Difference:
    """Write a model, called `name`, as an ONNX graph with weights in fp32.

    `target` is a file where it ends in `.onnx`, else a folder to hold one. Raises `ArtifactError`
    for what a graph cannot express, where it would lose more than `max_loss`, and where `target`
    cannot be made.
    """
    loaded = load(source, dtype=torch.float32, verify=False, device=_PROCESSOR)
    model = loaded.transformer
    if target.suffix == ".onnx" and count_bytes(model) > LARGEST_FILE:
        raise ArtifactError(f"{target} cannot hold more than 2 GB of weights: name a folder")
    with _make_whole(target) as made:
        if target.suffix != ".onnx":
            made.mkdir()
            made /= f"{name}.onnx"
        write_onnx(model, made)
        tokens = choose_tokens(loaded.config, loaded.tokenizer)
        encoder = loaded.config.encoder
        given = tokens
        if encoder is not None and not encoder.reads_tokens:
            given = choose_tokens(encoder, None)
        copy, original = run_onnx(made, tokens, given)[0], _answer(loaded, tokens, given)
        difference = compare(original, copy, tokens, are_logits=model.head is not None)
        difference.require(max_loss=max_loss)
    return difference


@torch.inference_mode()
def _answer(loaded: LoadedModel, tokens: Tensor, source: Tensor) -> Tensor:
    """Logits, or states where there are none, of one row; only an encoder reads the source."""
    model = loaded.transformer
    read = None if model.encoder is None else model.read(source)
    if model.head is None:
        return model.states(tokens, source=read)[0]
    answer: Tensor = model(tokens, source=read)[0]
    return answer


def _describe(source: Path) -> tuple[ModelConfig, Tokenizer | None]:
    """Shape and tokenizer; None where there is no tokenizer."""
    if source.suffix == SUFFIX:
        file = open_gguf(source)
        has_tokenizer = "tokenizer.ggml.model" in file.metadata
        return read_shape(file), read_vocabulary(file.metadata) if has_tokenizer else None
    has_tokenizer = (source / "tokenizer.json").exists()
    return load_config(source), Tokenizer.open(source) if has_tokenizer else None


def _read(source: Path, config: ModelConfig) -> dict[str, Tensor]:
    """The tensors by Hugging Face's names."""
    is_file = source.suffix == SUFFIX
    theirs = read_named(open_gguf(source), config) if is_file else read_tensors(source)
    if config.tie_embeddings:  # some folders hold the same matrix twice
        theirs.pop("lm_head.weight", None)
    return theirs


@contextmanager
def _make_whole(target: Path) -> Iterator[Path]:
    """A path in a folder beside `target`: what is made there moves when the block ends well."""
    beside = target.with_name(f".{target.name}.part")
    shutil.rmtree(beside, ignore_errors=True)  # of a process that was killed
    try:
        beside.mkdir(parents=True)
        yield beside / target.name
        (beside / target.name).rename(target)
    except OSError as error:
        raise ArtifactError(
            f"{target} cannot be written ({error.strerror}): name another place"
        ) from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)
