"""What the verbs have in common: their arguments, and recipe keys on the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from lmloop.errors import RecipeError

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
