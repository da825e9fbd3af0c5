"""The command line: one thin function a verb, which parses, calls and prints.

Libraries are imported by the verb that needs them, so that `lmloop --help` is instant.
"""

from __future__ import annotations

import errno
import sys
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from lmloop import plan_verb
from lmloop.errors import LmloopError, RequestError, UsageError
from lmloop.options import (
    OVERRIDES,
    Analogy,
    Dimensions,
    Epochs,
    FileFormat,
    Home,
    Host,
    MaxLoss,
    Method,
    ModelName,
    Name,
    Nearest,
    Port,
    Recipe,
    RecipeCommand,
    Served,
    TextSources,
    Threads,
    VectorFile,
    Weights,
    WeightType,
    Window,
    choose_vector_options,
    parse_overrides,
)
from lmloop.store.disk import FULL
from lmloop.verbs import add_verbs

INTERRUPTED = 130
REFUSED = 3
"""Exit code of an update whose candidate was refused or called back."""

app = typer.Typer(
    name="lmloop",
    help="Raw text to a language model that is trained, evaluated, compressed, served, watched and "
    "refreshed.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


@app.callback()
def _prepare() -> None:
    from lmloop.config import calm_threads, silence_telemetry

    silence_telemetry()
    calm_threads()


def _make(stage: str, recipe: Path, home: Path | None, context: typer.Context) -> None:
    from lmloop import api
    from lmloop.config import rank_setting
    from lmloop.console import make_progress

    overrides = parse_overrides(context.args)
    artifact = getattr(api, stage)(recipe, home=home, progress=make_progress(), **overrides)
    place = rank_setting()
    if place is None or place.rank == 0:
        print(artifact.path)


@app.command(cls=RecipeCommand, context_settings=OVERRIDES)
def run(
    context: typer.Context,
    recipe: Recipe,
    home: Home = None,
    serve: Annotated[bool, typer.Option(help="Serve the model at the end.")] = True,
) -> None:
    """Walk all stages of a recipe, then serve the model."""
    from lmloop import api
    from lmloop.config import load_recipe
    from lmloop.console import make_progress, show_ready

    overrides = parse_overrides(context.args)
    made = api.run(recipe, home=home, progress=make_progress(), **overrides)
    if serve and made.live is not None:
        checked = load_recipe(recipe, overrides)
        work = partial(api.serve, config=checked.serve, monitor=checked.monitor)
        work(checked.name, home=home, on_ready=show_ready)


@app.command(cls=RecipeCommand, context_settings=OVERRIDES)
def prepare(context: typer.Context, recipe: Recipe, home: Home = None) -> None:
    """Read, clean, mask and deduplicate text; split it by hash."""
    _make("prepare", recipe, home, context)


@app.command(cls=RecipeCommand, context_settings=OVERRIDES)
def tokenize(context: typer.Context, recipe: Recipe, home: Home = None) -> None:
    """Train the tokenizer and write token shards."""
    _make("tokenize", recipe, home, context)


@app.command(cls=RecipeCommand, context_settings=OVERRIDES)
def pretrain(context: typer.Context, recipe: Recipe, home: Home = None) -> None:
    """Train a new model on the text."""
    _make("pretrain", recipe, home, context)


@app.command(cls=RecipeCommand, context_settings=OVERRIDES)
def finetune(context: typer.Context, recipe: Recipe, home: Home = None) -> None:
    """Train the model to answer: loss on the assistant's turns only."""
    _make("finetune", recipe, home, context)


@app.command(cls=RecipeCommand, context_settings=OVERRIDES)
def evaluate(context: typer.Context, recipe: Recipe, home: Home = None) -> None:
    """Measure the model on held-out text and write a report."""
    _make("evaluate", recipe, home, context)


@app.command(cls=RecipeCommand, context_settings=OVERRIDES)
def compress(context: typer.Context, recipe: Recipe, home: Home = None) -> None:
    """Round the weights to 8 bits, refused if that costs too much."""
    _make("compress", recipe, home, context)


@app.command()
def generate(
    prompt: Annotated[str, typer.Argument(help="What the user says.")],
    model: Annotated[
        str | None, typer.Option(help="Name, folder or .gguf file of the model.")
    ] = None,
    home: Home = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 256,
    temperature: Annotated[float, typer.Option(min=0, max=2, help="0: the likeliest.")] = 0.7,
    top_p: Annotated[float, typer.Option(min=0.01, max=1, help="Nucleus.")] = 0.9,
    seed: Annotated[int | None, typer.Option(min=0, help="Makes the answer repeatable.")] = None,
    raw: Annotated[bool, typer.Option(help="Continue the text instead of answering it.")] = False,
) -> None:
    """Answer one prompt."""
    from lmloop import api
    from lmloop.inference.sampling import Sampling

    sampling = Sampling(max_tokens=max_tokens, temperature=temperature, top_p=top_p, seed=seed)
    answer = api.generate(prompt, model=model, home=home, sampling=sampling, chat=not raw)
    print(answer.text)


@app.command()
def serve(name: Served = None, home: Home = None, host: Host = None, port: Port = None) -> None:
    """Serve a model over HTTP, with a chat page. What becomes live later is served then."""
    from lmloop import api
    from lmloop.config import load_recipe
    from lmloop.console import show_ready
    from lmloop.sections import ServeConfig

    given = {key: value for key, value in (("host", host), ("port", port)) if value is not None}
    if name is not None and name.endswith(".toml"):
        recipe = load_recipe(name, {f"serve.{key}": value for key, value in given.items()})
        name, config, watch = recipe.name, recipe.serve, recipe.monitor
    else:
        config, watch = ServeConfig.model_validate(given), None
    api.serve(name, home=home, config=config, monitor=watch, on_ready=show_ready)


@app.command()
def monitor(
    name: Served = None,
    home: Home = None,
    minutes: Annotated[float, typer.Option(min=1, help="How far to look back.")] = 60.0,
) -> None:
    """Show traffic, times, ratings, signals and drift of a model."""
    from lmloop import care
    from lmloop.console import show_monitor

    show_monitor(care.monitor(name, home=home, seconds=60 * minutes))


@app.command()
def review(
    ids: Annotated[list[str] | None, typer.Argument(help="Beginnings of ids to decide.")] = None,
    name: Annotated[
        str | None, typer.Option("--model", help="Name of a model, or a recipe.")
    ] = None,
    home: Home = None,
    accept: Annotated[bool, typer.Option("--accept", help="Let them be learnt from.")] = False,
    reject: Annotated[bool, typer.Option("--reject", help="Never learn from them.")] = False,
    every: Annotated[bool, typer.Option("--all", help="All that wait.")] = False,
    reason: Annotated[str | None, typer.Option(help="Why, for the record.")] = None,
) -> None:
    """List exchanges that wait for a decision, or decide. They were rated or corrected."""
    from lmloop import care
    from lmloop.console import show_reviews

    if not accept and not reject:
        show_reviews(care.review(name, home=home))
        return
    if accept and reject or every == bool(ids):
        raise UsageError("give --accept or --reject, and beginnings of ids or --all")
    chosen = None if every else ids
    decided = care.decide(chosen, accept=accept, reason=reason, name=name, home=home)
    print(f"{len(decided)} {'accepted' if accept else 'rejected'}")


@app.command(cls=RecipeCommand, context_settings=OVERRIDES)
def update(
    context: typer.Context,
    recipe: Recipe,
    home: Home = None,
    rollout: Annotated[bool, typer.Option(help="Take it to the users if it passes.")] = True,
) -> None:
    """Learn from what was collected: train, judge, roll out. No better: it is refused."""
    from lmloop import care
    from lmloop.console import make_progress

    overrides = parse_overrides(context.args)
    turned = care.update(recipe, home=home, progress=make_progress(), rollout=rollout, **overrides)
    print(f"{turned.result}: {turned.reason}")
    if turned.verdict is not None:
        print(turned.verdict.path)
    if turned.result not in ("promoted", "passed"):
        raise typer.Exit(REFUSED)


@app.command()
def rollback(name: ModelName = None, home: Home = None) -> None:
    """Make the previous model live again, at once."""
    from lmloop import care
    from lmloop.console import show_rollback

    show_rollback(care.rollback(name, home=home))


@app.command(cls=RecipeCommand, context_settings=OVERRIDES)
def loop(
    context: typer.Context,
    recipe: Recipe,
    home: Home = None,
    once: Annotated[bool, typer.Option("--once", help="Look once, then end.")] = False,
) -> None:
    """Turn the whole circle unattended. Schedule, alarms and feedback begin a round."""
    from lmloop import care
    from lmloop.console import make_progress

    overrides = parse_overrides(context.args)
    care.loop(recipe, home=home, progress=make_progress(), once=once, **overrides)


@app.command()
def gc(
    home: Home = None,
    max_size: Annotated[
        str | None, typer.Option(help="Keep at most this, such as 20GB [default: what is needed].")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
) -> None:
    """Remove what no live, previous or candidate model needs."""
    from lmloop import care
    from lmloop.console import show_collected

    show_collected(care.gc(home=home, max_size=max_size, dry_run=dry_run), dry_run=dry_run)


@app.command()
def reindex(home: Home = None) -> None:
    """Rebuild the database's index and registry from the home."""
    from lmloop import care
    from lmloop.console import show_reindexed

    show_reindexed(care.reindex(home=home))


@app.command()
def forget(
    user: Annotated[str, typer.Argument(help="The user's name, as their requests gave it.")],
    home: Home = None,
) -> None:
    """Delete all that is kept of a user. The models that have learnt from it are named."""
    from lmloop import care

    print("\n".join(care.forget(user, home=home).lines()))


@app.command()
def show(name: Name = None, home: Home = None) -> None:
    """Show what an artifact was made from, back to the raw files."""
    from lmloop import api
    from lmloop.console import show_ancestry

    show_ancestry(api.show(name, home=home))


app.command(cls=RecipeCommand, context_settings=OVERRIDES)(plan_verb.plan)


@app.command()
def pull(
    name: Weights = None,
    home: Home = None,
) -> None:
    """Fetch weights of others, checked by hash. Without a name, list what there is."""
    from lmloop import api
    from lmloop.console import make_progress, show_catalogue
    from lmloop.store.catalogue import read_catalogue

    if name is None:
        show_catalogue(list(read_catalogue().values()))
    else:
        print(api.pull(name, home=home, progress=make_progress()).path)


@app.command()
def export(
    name: Annotated[str, typer.Argument(help="Name, folder or .gguf file of the model.")],
    folder: Annotated[Path, typer.Argument(help="Folder to make, or a .gguf or .onnx file.")],
    home: Home = None,
    file_format: FileFormat = "hf",
    weight_type: WeightType = None,
    max_loss: MaxLoss = None,
) -> None:
    """Write a model as its Hugging Face folder, GGUF or ONNX."""
    from lmloop import api
    from lmloop.console import make_progress

    write = partial(api.export, file_format=file_format, weight_type=weight_type, max_loss=max_loss)
    print(write(name, folder, home=home, progress=make_progress()))


@app.command()
def vectors(
    file: VectorFile,
    train: TextSources = None,
    nearest: Nearest = None,
    analogy: Analogy = None,
    count: Annotated[int, typer.Option(min=1, help="Words to show.")] = 10,
    method: Method = None,
    dimensions: Dimensions = None,
    window: Window = None,
    epochs: Epochs = None,
    min_count: Annotated[int, typer.Option(min=1, help="Rarer words are left out.")] = 5,
    threads: Threads = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the start and the order.")] = 0,
    home: Home = None,
) -> None:
    """Train word vectors, or open a file: neighbours, analogies."""
    from lmloop import api
    from lmloop.console import make_progress, show_vectors

    sizes = {"dimensions": dimensions, "window": window, "epochs": epochs, "threads": threads}
    made = api.vectors(
        file,
        train=train or (),
        options=choose_vector_options(method, train=bool(train), **sizes),
        min_count=min_count,
        seed=seed,
        home=home,
        progress=make_progress(),
    )
    if train or not (nearest or analogy):
        print(f"{file}: {made.matrix.shape[0]:,} words of {made.matrix.shape[1]} numbers")
    show_vectors(made, nearest=nearest or (), analogies=analogy or (), count=count)


add_verbs(app)


def main() -> None:
    """Run the command line; a user's mistake is one line and exit code 2."""
    try:
        app()
    except RequestError as error:
        _fail(str(error), UsageError.exit_code)
    except LmloopError as error:
        _fail(str(error), error.exit_code)
    except OSError as error:
        if error.errno not in (*FULL, errno.EROFS, errno.EACCES):
            raise
        _fail(f"{error.strerror}: {error.filename or 'while writing'}", UsageError.exit_code)
    except (KeyboardInterrupt, SystemExit) as ending:
        # Typer makes this code, and no word, of Ctrl-C.
        if isinstance(ending, SystemExit) and ending.code != INTERRUPTED:
            raise
        _fail("interrupted; what is finished stays, and the same command goes on", INTERRUPTED)


def _fail(message: str, code: int) -> None:
    print(f"lmloop: {message}", file=sys.stderr)
    raise SystemExit(code)
