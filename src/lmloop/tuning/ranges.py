"""What is searched: a key of the recipe, and the values that it may take.

Takes: `pretrain.learning_rate=1e-4..1e-2:log` as a user writes it. Gives: ranges and choices whose
every end the recipe allows, or one line that says what is wrong.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from lmloop.config import find_key, parse_value
from lmloop.errors import RecipeError

FORMS = "write KEY=LOW..HIGH, KEY=LOW..HIGH:log, KEY=LOW..HIGH:STEP or KEY=ONE,OTHER"
DIGITS = 4
"""Significant digits of a number that was drawn: more would say nothing, and nobody pastes them."""

Value = bool | int | float | str


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """All numbers from `low` to `high`, both included."""

    low: float
    high: float
    log: bool = False
    """Whether each factor is as likely as any other, instead of each difference."""
    step: float | None = None
    is_whole: bool = False

    def settle(self, drawn: Value) -> Value:
        """The number as it is trained with: few digits, within the range."""
        if self.is_whole or self.step is not None or isinstance(drawn, bool | str):
            return drawn
        return min(self.high, max(self.low, float(f"{drawn:.{DIGITS}g}")))

    def allows(self, value: object) -> bool:
        """Whether `value` lies in the range, and on a step of it."""
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        is_within = self.low <= value <= self.high
        return is_within and (self.step is None or _divides(self.step, value - self.low))


@dataclass(frozen=True, slots=True)
class Choice:
    """One of some values that have no order."""

    values: tuple[Value, ...]

    def settle(self, drawn: Value) -> Value:
        """The value as it is trained with."""
        return drawn

    def allows(self, value: object) -> bool:
        """Whether `value` is one of them."""
        return value in self.values


Space = Mapping[str, Range | Choice]
"""Ranges and choices by key."""


def parse_space(texts: Iterable[str]) -> Space:
    """Read what was given with `--over`, each key once; raises `RecipeError`."""
    space: dict[str, Range | Choice] = {}
    for text in texts:
        key, equals, given = text.partition("=")
        if not equals or not given:
            raise RecipeError(f"--over {text} is no range: {FORMS}")
        if key in space:
            raise RecipeError(f"--over gives {key} twice: once is enough")
        field = find_key(key)
        if key == "name" or not _types(field) & {bool, int, float, str}:
            raise RecipeError(
                f"{key} cannot be searched: only keys of single values that change a result can"
            )
        space[key] = _parse(key, given, field)
    if not space:
        raise RecipeError(f"there is nothing to search: {FORMS.replace('write', 'give --over')}")
    return space


def _parse(key: str, given: str, field: FieldInfo) -> Range | Choice:
    if ".." not in given:
        return _parse_choice(key, given, field)
    ends, _, how = given.partition(":")
    try:
        low, high = (_read_number(each) for each in ends.split(".."))
        step = None if how in ("", "log") else _read_number(how)
    except ValueError:
        raise RecipeError(f"{key}={given} is no range: {FORMS}") from None
    if not low < high:
        raise RecipeError(f"{key}={given} is empty: the first number must be below the second")
    if how == "log" and low <= 0:
        raise RecipeError(f"{key}={given}: a logarithmic range begins above 0")
    if step is not None and (step <= 0 or not _divides(step, high - low)):
        raise RecipeError(f"{key}={given}: steps of {how} do not lead from one end to the other")
    is_whole = float not in _types(field)
    for number in (low, high) if step is None else (low, high, step):
        _check(key, int(number) if is_whole and number.is_integer() else number, field)
    return Range(low=low, high=high, log=how == "log", step=step, is_whole=is_whole)


def _parse_choice(key: str, given: str, field: FieldInfo) -> Choice:
    values = tuple(parse_value(each.strip()) for each in given.split(","))
    if len(values) < 2:
        raise RecipeError(f"{key}={given} is one value, there is nothing to search: {FORMS}")
    if len(set(map(repr, values))) < len(values):
        raise RecipeError(f"{key}={given} names a value twice: once is enough")
    for value in values:
        _check(key, value, field)
    return Choice(values)


def _divides(step: float, distance: float) -> bool:
    steps = distance / step
    return math.isclose(steps, round(steps), abs_tol=1e-9)


def _read_number(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError
    return number


def _check(key: str, value: object, field: FieldInfo) -> None:
    """Raise `RecipeError` where the recipe would not take `value`, whatever else it says."""
    kind: Any = (
        Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation
    )
    adapter: TypeAdapter[Any] = TypeAdapter(
        kind, config=ConfigDict(strict=True, allow_inf_nan=False)
    )
    try:
        adapter.validate_python(value)
    except ValidationError as error:
        raise RecipeError(f"{key}: {error.errors()[0]['msg']}, given {value!r}") from None


def _types(field: FieldInfo) -> set[object]:
    """The types of a key's values: of `int | None` both, of a literal those of its values."""
    annotation = field.annotation
    alternatives = (
        get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    )
    found: set[object] = set()
    for each in alternatives:
        is_literal = get_origin(each) is Literal
        found |= set(map(type, get_args(each))) if is_literal else {get_origin(each) or each}
    return found
