"""The command line: one thin function a verb, which parses, calls and prints.

Libraries are imported by the verb that needs them, so that `lmloop --help` is instant.
"""

from __future__ import annotations

import errno
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from lmloop.errors import LmloopError, RecipeError, RequestError, UsageError

INTERRUPTED = 130

app = typer.Typer(
    name="lmloop",
    help="Raw text to a language model that is trained, evaluated, compressed and served.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
_OVERRIDES = {"allow_extra_args": True, "ignore_unknown_options": True}
_SECTIONS = {"tokenize": ("tokenize", "model"), "pretrain": ("model", "pretrain")}
"""Sections that a verb's help lists where they are not just the one of its name."""

Recipe = Annotated[Path, typer.Argument(help="Recipe, a TOML file.", metavar="RECIPE")]
Home = Annotated[
    Path | None,
    typer.Option("--home", help="Where everything lies [default: $LMLOOP_HOME or .lmloop]."),
]
Name = Annotated[
    str | None,
    typer.Argument(
        help="Name of a recipe's live model, a fingerprint's beginning, or a folder "
        "[default: the model made live last].",
        metavar="[NAME]",
        show_default=False,
    ),
]
Host = Annotated[str | None, typer.Option("--host", help="Address to listen on.")]
Port = Annotated[
    int | None,
    typer.Option("--port", min=0, max=65535, help="Port to listen on; 0: a free one."),
]


class RecipeCommand(TyperCommand):
    """A verb that takes a recipe: its help lists the recipe's keys as well."""

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Write the keys of the verb's sections (all, for `run` and `plan`), with defaults."""
        from lmloop.config import describe_keys

        sections = _SECTIONS.get(str(self.name), (str(self.name),))
        with formatter.section("Recipe keys"):
            formatter.write_dl(
                [(f"--{key}=…", text) for key, text in describe_keys(sections).items()]
            )


@app.callback()
def _prepare() -> None:
    from lmloop.config import calm_threads, silence_telemetry

    silence_telemetry()
    calm_threads()


def parse_overrides(arguments: list[str]) -> dict[str, Any]:
    """`--a.b=value` and `--a.b value` as a mapping; raises `RecipeError` for anything else."""
    from lmloop.config import parse_value

    overrides: dict[str, Any] = {}
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        key, equals, value = word.removeprefix("--").partition("=")
        if not word.startswith("--") or ("." not in key and key not in ("name", "seed")):
            raise RecipeError(
                f"{word} is not known here: recipe keys are given as --section.key=value, "
                "for example --pretrain.steps=200"
            )
        if not equals:
            if not rest:
                raise RecipeError(f"{word} has no value: write {word}=VALUE")
            value = rest.pop(0)
        overrides[key] = parse_value(value)
    return overrides


def _make(stage: str, recipe: Path, home: Path | None, context: typer.Context) -> None:
    from lmloop import api
    from lmloop.console import make_progress

    overrides = parse_overrides(context.args)
    artifact = getattr(api, stage)(recipe, home=home, progress=make_progress(), **overrides)
    print(artifact.path)


@app.command(cls=RecipeCommand, context_settings=_OVERRIDES)
def run(
    context: typer.Context,
    recipe: Recipe,
    home: Home = None,
    serve: Annotated[bool, typer.Option(help="Serve the model at the end.")] = True,
) -> None:
    """Walk all stages of a recipe, then serve the model."""
    from lmloop import api
    from lmloop.config import load_recipe
    from lmloop.console import make_progress

    overrides = parse_overrides(context.args)
    made = api.run(recipe, home=home, progress=make_progress(), **overrides)
    if serve and made.live is not None:
        config = load_recipe(recipe, overrides).serve
        api.serve(made.live.path, home=home, config=config, on_ready=_say_ready)


@app.command(cls=RecipeCommand, context_settings=_OVERRIDES)
def prepare(context: typer.Context, recipe: Recipe, home: Home = None) -> None:
    """Read, clean, mask and deduplicate text; split it by hash."""
    _make("prepare", recipe, home, context)


@app.command(cls=RecipeCommand, context_settings=_OVERRIDES)
def tokenize(context: typer.Context, recipe: Recipe, home: Home = None) -> None:
    """Train the tokenizer and write token shards."""
    _make("tokenize", recipe, home, context)


@app.command(cls=RecipeCommand, context_settings=_OVERRIDES)
def pretrain(context: typer.Context, recipe: Recipe, home: Home = None) -> None:
    """Train a new model on the text."""
    _make("pretrain", recipe, home, context)


@app.command(cls=RecipeCommand, context_settings=_OVERRIDES)
def finetune(context: typer.Context, recipe: Recipe, home: Home = None) -> None:
    """Train the model to answer: loss on the assistant's turns only."""
    _make("finetune", recipe, home, context)


@app.command(cls=RecipeCommand, context_settings=_OVERRIDES)
def evaluate(context: typer.Context, recipe: Recipe, home: Home = None) -> None:
    """Measure the model on held-out text and write a report."""
    _make("evaluate", recipe, home, context)


@app.command(cls=RecipeCommand, context_settings=_OVERRIDES)
def compress(context: typer.Context, recipe: Recipe, home: Home = None) -> None:
    """Round the weights to 8 bits, refused if that costs too much."""
    _make("compress", recipe, home, context)


@app.command()
def generate(
    prompt: Annotated[str, typer.Argument(help="What the user says.")],
    model: Annotated[str | None, typer.Option(help="Name or folder of the model.")] = None,
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
def serve(name: Name = None, home: Home = None, host: Host = None, port: Port = None) -> None:
    """Serve a model over HTTP, with a chat page."""
    from lmloop import api
    from lmloop.sections import ServeConfig

    given = {"host": host, "port": port}
    config = ServeConfig.model_validate({k: v for k, v in given.items() if v is not None})
    api.serve(name, home=home, config=config, on_ready=_say_ready)


@app.command()
def show(name: Name = None, home: Home = None) -> None:
    """Show what an artifact was made from, back to the raw files."""
    from lmloop import api
    from lmloop.console import show_ancestry

    show_ancestry(api.show(name, home=home))


@app.command(cls=RecipeCommand, context_settings=_OVERRIDES)
def plan(context: typer.Context, recipe: Recipe) -> None:
    """Foresee parameters, memory, tokens and time of a recipe."""
    from lmloop import api
    from lmloop.console import show_plan

    show_plan(api.plan(recipe, **parse_overrides(context.args)))


@app.command()
def export(
    name: Annotated[str, typer.Argument(help="Name or folder of the model.")],
    folder: Annotated[Path, typer.Argument(help="Folder to make.")],
    home: Home = None,
) -> None:
    """Copy a model to a folder that transformers and vLLM open."""
    from lmloop import api

    print(api.export(name, folder, home=home))


def _say_ready(address: str) -> None:
    print(f"\nReady: chat at {address} (Ctrl-C stops the server)\n", flush=True)


def main() -> None:
    """Run the command line; a user's mistake is one line and exit code 2."""
    try:
        app()
    except (UsageError, RequestError) as error:
        _fail(str(error), UsageError.exit_code)
    except LmloopError as error:
        _fail(str(error), error.exit_code)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
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
