"""The Python face of the verbs: each takes a recipe or a name, and gives what it made.

`lmloop.pretrain("recipes/chat.toml", **{"pretrain.steps": 200})` is `lmloop pretrain` from Python.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmloop.config import home_directory, load_recipe
from lmloop.errors import ArtifactError
from lmloop.pipeline import Made, code_version, open_home, walk
from lmloop.progress import Progress, Silent
from lmloop.sections import ServeConfig
from lmloop.store.artifact import MANIFEST, Artifact, ArtifactStore, open_artifact
from lmloop.store.lineage import Ancestor, trace
from lmloop.store.registry import (
    ALIASES,
    Entry,
    Registry,
    find_live,
    index_artifact,
    mirror_folder,
)
from lmloop.upkeep import MonitorConfig

if TYPE_CHECKING:
    import sqlalchemy as sa
    import torch
    from fastapi import APIRouter

    from lmloop.inference.engine import Answer
    from lmloop.inference.load import LoadedModel
    from lmloop.inference.sampling import Sampling
    from lmloop.records import Record
    from lmloop.tokens.vectors import WordVectors
    from lmloop.tokens.words import Segmenter
    from lmloop.training.glove import GloveOptions
    from lmloop.training.skip_gram import SkipGramOptions


def run(
    recipe: str | Path,
    *,
    home: str | Path | None = None,
    progress: Progress | None = None,
    **overrides: Any,
) -> Made:
    """Walk all stages of a recipe, skipping what is made; the result is the live model."""
    return walk(
        load_recipe(recipe, overrides),
        home=home_directory(home),
        until=None,
        progress=progress or Silent(),
    )


def _make(
    stage: str,
    recipe: str | Path,
    *,
    home: str | Path | None = None,
    progress: Progress | None = None,
    **overrides: Any,
) -> Artifact:
    made = walk(
        load_recipe(recipe, overrides),
        home=home_directory(home),
        until=stage,
        progress=progress or Silent(),
    )
    return made.artifacts[stage]


Verb = Callable[..., Artifact]
prepare: Verb = partial(_make, "prepare")
tokenize: Verb = partial(_make, "tokenize")
pretrain: Verb = partial(_make, "pretrain")
finetune: Verb = partial(_make, "finetune")
evaluate: Verb = partial(_make, "evaluate")
compress: Verb = partial(_make, "compress")


def find(name: str | Path | None = None, *, home: str | Path | None = None) -> Artifact:
    """The artifact that `name` means: a folder, a model, or the beginning of a fingerprint.

    A model is `NAME` (the live one), `NAME/previous`, `NAME/candidate`, or an alias alone, which
    means the model that was made live last, as None does. A name that no model has may be that of
    pulled weights. Raises `ArtifactError` where there is nothing.
    """
    where = home_directory(home)
    if name is not None and (Path(name) / MANIFEST).is_file():
        return open_artifact(name)
    if name is not None and len(str(name)) >= 6:
        found = ArtifactStore(where).resolve(str(name))
        if found is not None:
            return found
    try:
        with existing_database(home) as database:
            entry = _find_entry(database, None if name is None else str(name))
    except ArtifactError:
        from lmloop.store.catalogue import read_catalogue
        from lmloop.store.pull import find_pulled

        weights = read_catalogue().get(str(name))
        if weights is None:
            raise
        return find_pulled(weights, ArtifactStore(where))
    return open_artifact(entry.path)


def _find_entry(database: sa.Engine, name: str | None) -> Entry:
    """The registry's row of `NAME`, `ALIAS` or `NAME/ALIAS`."""
    model, _, alias = (name or "").rpartition("/")
    if alias not in ALIASES:
        model, alias = name or "", "live"
    live = find_live(database, model or None)
    rows = Registry(database, live.name).read()
    if alias not in rows:
        raise ArtifactError(f"{live.name} has no {alias}: it has {', '.join(sorted(rows))}")
    return rows[alias]


@contextmanager
def existing_database(home: str | Path | None) -> Iterator[sa.Engine]:
    """The database of a home that is there; raises `ArtifactError` where none is."""
    where = home_directory(home)
    if not where.is_dir():
        raise ArtifactError(f"{where} does not exist: run a recipe first, or name another --home")
    database = open_home(where)
    try:
        yield database
    finally:
        database.dispose()


def show(name: str | Path | None = None, *, home: str | Path | None = None) -> Ancestor:
    """The ancestry of an artifact, from what is served back to the raw files."""
    where = home_directory(home)
    artifact = find(name, home=home)
    tree = trace(artifact, ArtifactStore(where))
    if not where.is_dir():
        return tree
    with existing_database(home) as database:
        rows = Registry(database, artifact.name).read()
    for alias, entry in sorted(rows.items()):
        if entry.path == str(artifact.path):
            detail = f"generation {entry.generation}, code {artifact.code_version}"
            return Ancestor(f"{alias} model {artifact.name}", detail, (tree,))
    return tree


def generate(
    prompt: str,
    *,
    model: str | Path | None = None,
    home: str | Path | None = None,
    sampling: Sampling | None = None,
    chat: bool = True,
) -> Answer:
    """One answer to a prompt: the user's turn of a chat, or with `chat` False text to continue."""
    from lmloop.inference.engine import Engine
    from lmloop.inference.load import load
    from lmloop.inference.sampling import Sampling
    from lmloop.records import Turn

    loaded = load(_find_weights(model, home=home))
    ids = (
        loaded.template.encode([Turn("user", prompt)])
        if chat
        else loaded.require_tokenizer().encode_document(prompt)
    )
    return next(Engine(loaded, max_running=1).generate([ids], sampling or Sampling()))


def load(
    name: str | Path | None = None,
    *,
    home: str | Path | None = None,
    dtype: torch.dtype | None = None,
) -> LoadedModel:
    """Open a model: `.transformer`, `.tokenizer`, `.template`, and a call.

    `name` is that of a live model, a folder, ours or Hugging Face's, or a `.gguf` file; `dtype`
    None is what this processor computes fastest. Calling the result on ids [B, T] (int64) gives
    logits [B, T, V].
    """
    from lmloop.inference.load import load as work

    return work(_find_weights(name, home=home), dtype=dtype)


def transcribe(
    path: str | Path,
    *,
    model: str | Path = "whisper-tiny.en",
    language: str | None = None,
    home: str | Path | None = None,
) -> str:
    """The text of a WAV file with speech, heard by a Whisper; see `LoadedModel.transcribe`."""
    return load(model, home=home).transcribe(path, language=language)


def _find_weights(name: str | Path | None, *, home: str | Path | None) -> Path:
    """What can be opened: a `.gguf` file, also that of pulled weights, or a checkpoint's folder."""
    if name is not None and Path(name).suffix == ".gguf" and Path(name).is_file():
        return Path(name)
    folder = find_checkpoint(name, home=home)
    files = sorted(folder.glob("*.gguf"))
    return files[0] if len(files) == 1 and not (folder / "config.json").exists() else folder


def find_checkpoint(name: str | Path | None, *, home: str | Path | None = None) -> Path:
    """The folder that `name` means: any Hugging Face folder, or what `find` gives of weights."""
    if name is not None and (Path(name) / "config.json").is_file():
        return Path(name)
    artifact = find(name, home=home)
    if artifact.kind not in ("checkpoint", "weights"):
        raise ArtifactError(f"{artifact} is no checkpoint: name a model")
    return artifact.path


def pull(
    name: str, *, home: str | Path | None = None, progress: Progress | None = None
) -> Artifact:
    """Weights of others as an artifact of the home: found if they are there, else downloaded.

    `name` is one of `lmloop.store.catalogue.read_catalogue()`. Raises `SourceError` where the name
    is unknown or its files cannot be had, `DiskFullError` where they have no room.
    """
    from lmloop.store.pull import pull as work

    where = home_directory(home)
    artifact = work(name, ArtifactStore(where), code_version=code_version(), progress=progress)
    with existing_database(home) as database:
        index_artifact(database, artifact)
    return artifact


def export(
    name: str | Path | None,
    target: str | Path,
    *,
    home: str | Path | None = None,
    file_format: str = "hf",
    weight_type: str | None = None,
    max_loss: float | None = None,
    progress: Progress | None = None,
) -> Path:
    """Write a model, verified, for other programs.

    `file_format` "hf" copies its folder for transformers, vLLM or a hub. "gguf" writes one file for
    llama.cpp, which `target` names if it ends in `.gguf`, else the folder to hold it; its weights
    become `weight_type`: F32, F16, BF16, Q8_0 (if None), Q4_0 or Q4_K. "onnx" writes a graph in
    fp32, into a file that ends in `.onnx` or a folder. Both are compared with the original, which
    `progress` is told. Raises `ArtifactError` where `target` exists or cannot be written, where the
    format cannot hold the model, and where its nats rise by more than `max_loss` (0.05 if None).
    """
    from lmloop.inference.export import export as work

    find = find_checkpoint if file_format == "hf" else _find_weights
    source = find(name, home=home)
    folder = source if source.is_dir() else source.parent
    artifact = open_artifact(folder) if _is_artifact(folder) else None
    if artifact is not None:
        artifact.verify()
    difference = work(
        source,
        Path(target),
        name=source.resolve().stem if artifact is None else artifact.name,
        file_format=file_format,
        weight_type=weight_type,
        max_loss=max_loss,
    )
    if difference is not None and progress is not None:
        progress.say(str(difference))
    return Path(target)


def vectors(
    file: str | Path,
    *,
    train: Sequence[str] = (),
    options: SkipGramOptions | GloveOptions | None = None,
    min_count: int = 5,
    segmenter: Segmenter = "jieba",
    seed: int = 0,
    home: str | Path | None = None,
    progress: Progress | None = None,
) -> WordVectors:
    """Word vectors out of a file, or with `train` out of text and then written into it.

    `train` names sources as a recipe does, or prepared corpora (a folder, or the beginning of a
    fingerprint), of which the split `train` is read. The file's suffix says its layout: `.vec` and
    `.txt` are word2vec's text, `.bin` its binary form, `.glove` GloVe's. Raises a `UsageError`.
    """
    from lmloop.tokens.vector_files import layout_of, load_vectors, save_vectors

    if not train:
        return load_vectors(file)
    layout = layout_of(file)
    if not Path(file).parent.is_dir():
        raise ArtifactError(f"{Path(file).parent} is no folder: make it, or name another file")
    records = [_read_text(each, home=home) for each in train]
    from lmloop.training.skip_gram import SkipGramOptions
    from lmloop.training.vectors import train_vectors

    made = train_vectors(
        chain.from_iterable(records),
        options=options or SkipGramOptions(),
        min_count=min_count,
        segmenter=segmenter,
        seed=seed,
        progress=progress,
    )
    save_vectors(made, file, layout=layout)
    return made


def _read_text(name: str, *, home: str | Path | None) -> Iterable[Record]:
    """The records of a prepared corpus, or of what a recipe would name as a source."""
    from lmloop.corpus.read import read_sources
    from lmloop.corpus.splits import read_split

    where = Path(name)
    found = None if where.exists() else ArtifactStore(home_directory(home)).resolve(name)
    artifact = open_artifact(where) if _is_artifact(where) else found
    if artifact is None:
        return (each.record for each in read_sources([name]))
    if artifact.kind != "corpus":
        raise ArtifactError(f"{artifact} is no corpus: name one that `prepare` made, or a file")
    return read_split(artifact.path, "train")


def serve(
    name: str | Path | None = None,
    *,
    home: str | Path | None = None,
    config: ServeConfig | None = None,
    monitor: MonitorConfig | None = None,
    on_ready: Callable[[str], None],
) -> None:
    """Serve a model over HTTP until interrupted; `on_ready` is told the address.

    A model of the registry is followed: what becomes live later is served then. A folder or a
    `.gguf` file is served as it is.
    """
    from lmloop.serving.server import serve as work

    where = home_directory(home)
    folder = _find_weights(name, home=home)
    model_name = (
        open_artifact(folder).name
        if _is_artifact(folder)
        else folder.resolve().name.removesuffix(".gguf")
    )
    database = open_home(where)
    registry = Registry(database, model_name, mirror=mirror_folder(where))
    entry = registry.read().get("live")
    follows = entry is not None and entry.path == str(folder)

    def build_pages() -> Sequence[APIRouter]:
        from lmloop.monitoring.pages import build_monitor_pages

        return [build_monitor_pages(database, name=model_name, config=monitor or MonitorConfig())]

    work(
        folder,
        config or ServeConfig(),
        model_name=model_name,
        database=database,
        registry=registry if follows else None,
        pages=build_pages,
        on_ready=on_ready,
    )


def _is_artifact(folder: Path) -> bool:
    return (folder / MANIFEST).exists()
