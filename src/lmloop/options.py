"""What the verbs have in common: their arguments, and recipe keys on the command line."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperCommand

from lmloop.errors import RecipeError, UsageError

if TYPE_CHECKING:
    from lmloop.training.glove import GloveOptions
    from lmloop.training.skip_gram import SkipGramOptions

OVERRIDES = {"allow_extra_args": True, "ignore_unknown_options": True}
_CIRCLE = ("monitor", "collect", "update", "gate", "rollout", "loop")
_SECTIONS = {
    "tokenize": ("tokenize", "model"),
    "pretrain": ("model", "pretrain"),
    "update": _CIRCLE,
    "loop": _CIRCLE,
}
"""Sections that a verb's help lists where they are not just the one of its name."""

Recipe = Annotated[Path, typer.Argument(help="Recipe, a TOML file.", metavar="RECIPE")]
Home = Annotated[
    Path | None,
    typer.Option("--home", help="Where everything lies [default: $LMLOOP_HOME or .lmloop]."),
]
Name = Annotated[
    str | None,
    typer.Argument(
        help="Name of a model (NAME/previous, NAME/candidate), a fingerprint's beginning, or a "
        "folder "
        "[default: the model made live last].",
        metavar="[NAME]",
        show_default=False,
    ),
]
Served = Annotated[
    str | None,
    typer.Argument(
        help="Name of a live model, a recipe (its settings are taken then), or a folder "
        "[default: the model made live last].",
        metavar="[NAME]",
        show_default=False,
    ),
]
ModelName = Annotated[
    str | None,
    typer.Argument(
        help="Name of a model [default: the one made live last].",
        metavar="[NAME]",
        show_default=False,
    ),
]
Host = Annotated[str | None, typer.Option("--host", help="Address to listen on.")]
Port = Annotated[
    int | None,
    typer.Option("--port", min=0, max=65535, help="Port to listen on; 0: a free one."),
]
Weights = Annotated[
    str | None,
    typer.Argument(help="Name of the weights [default: list them].", show_default=False),
]
FileFormat = Annotated[
    str, typer.Option("--format", help="hf: transformers, vLLM; gguf: llama.cpp; onnx: a graph.")
]
WeightType = Annotated[
    str | None,
    typer.Option("--type", help="With gguf: F32, F16, BF16, Q8_0, Q4_0, Q4_K [default: Q8_0]."),
]
MaxLoss = Annotated[
    float | None,
    typer.Option(min=0, help="Rise of the nats that rounding may cost, relative [default: 0.05]."),
]
VectorFile = Annotated[
    Path, typer.Argument(help="File of word vectors: .vec, .txt, .bin or .glove.", metavar="FILE")
]
TextSources = Annotated[
    list[str] | None,
    typer.Option(
        "--train", help="Make FILE from this text: a file, folder or prepared corpus; repeatable."
    ),
]
Nearest = Annotated[
    list[str] | None, typer.Option("--nearest", help="Show a word's neighbours; repeatable.")
]
Analogy = Annotated[
    list[str] | None,
    typer.Option("--analogy", help='"man king woman": man is to king as woman is to what?'),
]
Method = Annotated[
    Literal["skip-gram", "glove"] | None,
    typer.Option("--method", help="How --train learns [default: skip-gram]."),
]
Dimensions = Annotated[
    int | None, typer.Option("--dimensions", min=1, help="Numbers a word [default: 100].")
]
Window = Annotated[
    int | None,
    typer.Option("--window", min=1, help="Words to each side [default: 5; 10 for glove]."),
]
Epochs = Annotated[
    int | None, typer.Option("--epochs", min=1, help="Passes [default: 5; 50 for glove].")
]
Threads = Annotated[
    int | None,
    typer.Option(
        "--threads", min=1, help="Of skip-gram; above 1 no two runs are the same [default: 1]."
    ),
]


def choose_vector_options(
    method: str | None, *, train: bool, **given: int | None
) -> SkipGramOptions | GloveOptions | None:
    """The options of training that were given; raises `UsageError` where they serve nothing."""
    told = {name: value for name, value in given.items() if value is not None}
    if not train:
        if method or told:
            raise UsageError(f"--{next(iter(told), 'method')} needs --train TEXT")
        return None
    if method == "glove":
        from lmloop.training.glove import GloveOptions

        if "threads" in told:
            raise UsageError("--threads is an option of skip-gram: leave it out for glove")
        return GloveOptions(**told)
    from lmloop.training.skip_gram import SkipGramOptions

    return SkipGramOptions(**told)


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
