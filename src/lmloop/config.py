"""How a recipe is read: TOML, overridden by `--a.b=value`, checked whole before any work.

Takes: a TOML file and overrides. Gives: a `Recipe`, or a `RecipeError` that names the nearest known
key. The only file that reads the environment.
"""

from __future__ import annotations

import difflib
import json
import os
import textwrap
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from lmloop.errors import RecipeError, TrainingError
from lmloop.recipe import Recipe

DEFAULT_HOME = Path(".lmloop")
BUDGETS = frozenset({"budget", "steps", "replay"})


def load_recipe(path: str | Path, overrides: Mapping[str, Any] | None = None) -> Recipe:
    """Read a recipe and lay `overrides` (`{"pretrain.steps": 200}`) over it.

    Raises `RecipeError` where the file or a key cannot be used.
    """
    path = Path(path)
    try:
        # Some editors begin a file with a byte-order mark.
        data = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise RecipeError(
            f"recipe {path} cannot be read ({error.strerror}): give the path of a TOML file"
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RecipeError(f"recipe {path} is no valid TOML: {error}") from error
    return build_recipe(data, overrides, origin=str(path))


def build_recipe(
    data: Mapping[str, Any], overrides: Mapping[str, Any] | None = None, *, origin: str = "recipe"
) -> Recipe:
    """Check a recipe that is already a mapping; see `load_recipe`."""
    overrides = overrides or {}
    merged = json.loads(json.dumps(data, default=str))
    if merged.get("model") == "auto":  # so that an override of one of its keys finds a section
        merged["model"] = {"auto": True}
    # The ways of giving a budget exclude each other: an override wins over the file.
    for dotted, value in overrides.items():
        if value is not None:
            _drop_other_budgets(merged, dotted)
    for dotted, value in overrides.items():
        _override(merged, dotted, value, origin=origin)
    return check_recipe(merged, origin=origin)


def check_recipe(sections: Mapping[str, Any], *, origin: str) -> Recipe:
    """The recipe that these sections make; a `RecipeError` tells in a line why they make none."""
    try:
        return Recipe.model_validate(sections)
    except ValidationError as error:
        line = f"{origin}: " + "; ".join(map(_explain, error.errors()))
        raise RecipeError(" ".join(line.split())) from error


def parse_value(text: str) -> Any:
    """The value of `--key=text`: TOML where it is TOML, else the text itself."""
    try:
        data = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    return data["value"] if len(data) == 1 else text


def _drop_other_budgets(data: dict[str, Any], dotted: str) -> None:
    section, _, key = dotted.rpartition(".")
    if key in BUDGETS and isinstance(data.get(section), dict):
        for other in BUDGETS - {key}:
            data[section].pop(other, None)


def _override(data: dict[str, Any], dotted: str, value: Any, *, origin: str) -> None:
    *sections, key = dotted.split(".")
    target = data
    for section in sections:
        target = target.setdefault(section, {})
        if not isinstance(target, dict):
            raise RecipeError(
                f"{origin}: {dotted} cannot be set: {section} is a value and has no keys"
            )
    target[key] = value


def _explain(error: Any) -> str:
    location = [str(part) for part in error["loc"]]
    dotted = ".".join(location) or "recipe"
    if error["type"] == "extra_forbidden":
        return _explain_unknown(location)
    message = error["msg"].removeprefix("Value error, ").replace("valid tuple", "list")
    if error["type"] == "model_type":
        message = f"is a section with keys of its own: {', '.join(_known_keys(location))}"
    if error["type"] in ("missing", "value_error"):
        return f"{dotted}: {message}"
    return f"{dotted}: {message}, given {textwrap.shorten(repr(error['input']), 80)}"


def _explain_unknown(location: Sequence[str]) -> str:
    known = _known_keys(location[:-1])
    near = difflib.get_close_matches(location[-1], known, n=1)
    hint = f"did you mean {'.'.join([*location[:-1], near[0]])}?" if near else ""
    return f"unknown key {'.'.join(location)}; {hint or 'known here: ' + ', '.join(known)}"


def find_key(dotted: str) -> FieldInfo:
    """What the recipe says of a key such as `pretrain.steps`: its type, limits and meaning.

    Raises `RecipeError` for a key that is not known, with the nearest one.
    """
    section: type[BaseModel] = Recipe
    location = dotted.split(".")
    for number, part in enumerate(location):
        if part not in section.model_fields:
            raise RecipeError(_explain_unknown(location[: number + 1]))
        field = section.model_fields[part]
        if number + 1 == len(location):
            return field
        if not (isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)):
            break
        section = field.annotation
    raise RecipeError(f"{dotted}: {part} is a value and has no keys")


def describe_keys(sections: Sequence[str]) -> dict[str, str]:
    """Keys of these sections of a recipe (of all, where none is one) with meaning and default."""
    described = {}
    known = [name for name in sections if name in Recipe.model_fields]
    for name in known or Recipe.model_fields:
        section = Recipe.model_fields[name].annotation
        if not (isinstance(section, type) and issubclass(section, BaseModel)):
            continue
        for key, field in section.model_fields.items():
            given = "required" if field.is_required() else f"default: {field.default}"
            described[f"{name}.{key}"] = f"{field.description}  [{given}]"
    return described


def _known_keys(location: Sequence[str]) -> list[str]:
    model: type[BaseModel] = Recipe
    parts = iter(location)
    for part in parts:
        annotation = model.model_fields[part].annotation if part in model.model_fields else None
        if get_origin(annotation) is dict:  # sections by names that the recipe gives
            annotation = get_args(annotation)[1]
            next(parts, None)
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return []
        model = annotation
    return list(model.model_fields)


def home_directory(given: str | Path | None = None) -> Path:
    """Where everything of a project lives: `given`, else `$LMLOOP_HOME`, else `./.lmloop`."""
    return Path(given or os.environ.get("LMLOOP_HOME") or DEFAULT_HOME).expanduser().resolve()


def database_setting() -> str | None:
    """URL of the database, where `$LMLOOP_DATABASE` says so; else it lies in the home."""
    return os.environ.get("LMLOOP_DATABASE") or None


def compiler_setting() -> str | None:
    """The C++ compiler: `$CXX`, else g++; None where `$LMLOOP_KERNELS` is "off"."""
    is_off = os.environ.get("LMLOOP_KERNELS") == "off"
    return None if is_off else os.environ.get("CXX") or "g++"


def instruction_setting() -> str | None:
    """The most that products of matrices may take, as `$ONEDNN_MAX_CPU_ISA` says it."""
    return os.environ.get("ONEDNN_MAX_CPU_ISA") or None


def cache_directory() -> Path:
    """Where what can be made again lies, for all projects of a user."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "lmloop")


@dataclass(frozen=True, slots=True)
class Place:
    """One process among those that torchrun has started for one run."""

    rank: int
    size: int
    local_rank: int
    """Among those of its machine: which of its GPUs is meant."""


def rank_setting() -> Place | None:
    """This process's place as torchrun's environment tells it; None where it is alone.

    Raises `TrainingError` where the environment tells only a part.
    """
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    if "WORLD_SIZE" not in os.environ or os.environ["WORLD_SIZE"] == "1":
        return None
    try:
        rank, size, local_rank = (int(os.environ[name]) for name in names)
    except (KeyError, ValueError) as error:
        raise TrainingError(
            f"WORLD_SIZE = {os.environ['WORLD_SIZE']} means a run of many processes, and {error} "
            "is wrong or missing: start with torchrun, or unset WORLD_SIZE"
        ) from None
    return Place(rank=rank, size=size, local_rank=local_rank)


def silence_telemetry() -> None:
    """Keep the libraries that report home from doing so; call before they are imported."""
    for name in ("DO_NOT_TRACK", "SCARF_NO_ANALYTICS", "HF_HUB_DISABLE_TELEMETRY"):
        os.environ[name] = "1"
    os.environ["DAFT_ANALYTICS_ENABLED"] = "0"
    os.environ.setdefault("DAFT_PROGRESS_BAR", "0")


def keep_trackers_local() -> None:
    """Let MLflow and W&B write files and tell nobody; call before they are imported.

    MLflow's default store needs a database of its own; plain files are as complete, and it asks for
    a word before it writes them.
    """
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    os.environ["WANDB_ERROR_REPORTING"] = "false"
    os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")


def calm_threads() -> None:
    """Let OpenMP's waiting threads sleep soon; call before torch is imported.

    By default they spin for milliseconds. On a machine that does anything else, the spinning
    keeps the very thread waited for from running, and training is fifty times slower.
    """
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
