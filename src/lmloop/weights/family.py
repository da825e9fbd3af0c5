"""What a family of checkpoints is: how it spells a shape, and how it names and lays its tensors.

Takes: rows of tables. Gives: their `config.json` as a `ModelConfig` and back, their tensors' names
and how each is changed on the way. The families themselves: `decoders.py`, `encoders.py`,
`pairs.py`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from lmloop.model.config import ModelConfig, Task

Data = Mapping[str, Any]
"""The entries of a `config.json`."""
ReadShape = Callable[[Data, dict[str, Any]], dict[str, Any]]
WriteShape = Callable[[ModelConfig], dict[str, Any]]
LARGEST_SIZE = 2**24
"""Of a width, a vocabulary, a context: more is no model but an attack on memory."""


@dataclass(frozen=True, slots=True)
class Change:
    """How one tensor of theirs becomes ours, and ours theirs; each with the stack's shape."""

    read: Callable[[Tensor, ModelConfig], Tensor]
    write: Callable[[Tensor, ModelConfig], Tensor]


TRANSPOSED = Change(lambda tensor, _: tensor.t().contiguous(), lambda tensor, _: tensor.t())
"""Weights that lie as [inputs, outputs]."""
PLUS_ONE = Change(lambda tensor, _: tensor + 1, lambda tensor, _: tensor - 1)
"""Norms whose weight is what is added to one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    """How a family spells the shape of one stack of blocks."""

    sizes: Mapping[str, str]
    """Positive whole numbers: our name, and theirs."""
    values: Mapping[str, str] = field(default_factory=dict)
    """Other entries that mean the same on both sides."""
    shape: Mapping[str, Any] = field(default_factory=dict)
    """What is the same in the whole family."""
    read: ReadShape | None = None
    """What follows from their entries, beside what has been read of the shape so far."""
    write: WriteShape | None = None
    """Their entries of that."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """What the checkpoints of one `model_type` have in common."""

    architecture: str
    """Class with a language-model head."""
    bare: str | None = None
    """Class without a head, whose tensors' names lack `prefix`."""
    prefix: str = ""
    stack: Stack
    encoder: Stack | None = None
    names: Mapping[str, Sequence[str]]
    """The beginning of our name of a tensor, and of theirs in the order of its rows; `{}` is the
    number of the block, `{expert}` that of an expert."""
    ungated: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Names that are others where feed-forward layers have no gate."""
    heads: Mapping[Task, Mapping[str, str]] = field(default_factory=dict)
    """Of the classes for other tasks, the beginnings of a head's tensors, ours and theirs; and
    `transformer`: what is in front of all others, where it is not `prefix`."""
    changes: Mapping[str, Change] = field(default_factory=dict)
    """By the beginning of our name."""
    older: Mapping[str, str] = field(default_factory=dict)
    """Ends of their names in older files, and what they have become."""
    absent: Sequence[str] = ()
    """Ends of their names of tensors that are all zero and not stored."""
    ignored: Sequence[str] = ()
    """Parts of their names of tensors that the model's states do not depend on."""
    fixed: Data = field(default_factory=dict)
    """Entries that change the computation, with the one value that is computed here."""
    settings: Data = field(default_factory=dict)
    """What else is written, because other programs ask for it."""
    read: Sequence[str] = ()
    """Entries that the stacks' `read` takes in, beside those that all families have."""
    harmless: Sequence[str] = ()
    """Entries of this family that change nothing about what is computed."""
    layer_types: Sequence[str] = ("full_attention",)
    """Kinds of layers that `layer_types` may name."""
    tied: bool = False
    """Whether embedding and head are one matrix where a config does not say."""

    def names_of(self, name: str, config: ModelConfig) -> list[str]:
        """Their names of the tensor that we call `name`, in the order of its rows.

        Raises `KeyError` for a tensor that no model of this family has.
        """
        names = self.names if config.gated else {**self.names, **self.ungated}
        key, layer = _key(name, names)
        rest = name.removeprefix(key.format(layer))
        rest = ".weight_scale" if rest == ".scale" else rest
        experts = range(config.experts.count) if config.experts else range(1)
        several = [one for one in experts if one == 0 or "{expert}" in names[key][0]]
        theirs = [
            each.format(layer, expert=expert) + rest for expert in several for each in names[key]
        ]
        if config.head == "none" and self.bare is not None:
            theirs = [each.removeprefix(self.prefix) for each in theirs]
        return theirs

    def change_of(self, name: str) -> Change | None:
        """How the tensor that we call `name` is changed."""
        try:
            return self.changes[_key(name, self.changes)[0]]
        except KeyError:
            return None


def read_size(data: Data, name: str) -> int:
    """An entry that is a positive whole number; `KeyError` or `ValueError` where it is not."""
    return check_size(name, data[name])


def check_size(name: str, value: object) -> int:
    """The value, if it is a positive whole number; else raise `ValueError`."""
    if type(value) is not int or not 1 <= value <= LARGEST_SIZE:
        raise ValueError(f"{name} is {value!r}, no positive whole number up to {LARGEST_SIZE:,}")
    return value


def _key(name: str, table: Mapping[str, Any]) -> tuple[str, str]:
    """The longest beginning of a name that a table has, and the number of the block."""
    found = re.search(r"blocks\.(\d+)\.", name)
    layer = found[1] if found else ""
    pattern = name.replace(f"blocks.{layer}.", "blocks.{}.", 1) if found else name
    keys = [key for key in table if pattern.startswith(key)]
    if not keys:
        raise KeyError(name)
    return max(keys, key=len), layer
