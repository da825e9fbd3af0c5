"""Signals of some requests, as columns.

Takes: what is known of each request. Gives: a `Sample` that drift is computed from, and its form
as JSON.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmloop.monitoring.statistics import Groups, Numbers

NUMBERS = (
    "prompt_characters",
    "prompt_nats",
    "answer_characters",
    "log_probability",
    "entropy",
    "repetition",
)
"""Signals that are numbers."""
FLAGS = ("refusal", "length_stop", "thumbs_down")
"""Signals that are so or not; `thumbs_down` is known of rated answers alone."""
LABELS = ("language", "answer_language")
"""Signals that are one of a few words."""
EMBEDDING = "embedding"
OF_THE_PROMPT = frozenset({"prompt_characters", "language"})
"""Signals that do not depend on the weights: they compare across versions."""
EMBEDDING_SIZE = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What is known of one request; what is not is absent."""

    signals: Mapping[str, Any]
    """By the names above."""
    embedding: bytes | None = None
    """Little-endian float16 [64]."""
    weights: str = ""
    """Version of the weights that answered."""
    group: str | None = None
    """Who asked; requests of one group are alike. None: nobody else's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """Signals of n requests in their order."""

    numbers: Mapping[str, Numbers]
    """By signal [n]; flags are 0 or 1. NaN where absent."""
    labels: Mapping[str, NDArray[np.str_]]
    """By signal [n]; empty where absent."""
    embeddings: NDArray[np.float32]
    """[n, 64]; a row of NaN where absent."""
    weights: NDArray[np.str_]
    """Version of the weights that each was answered by [n]."""
    groups: Groups
    """Equal numbers: the same sender [n]."""

    def __len__(self) -> int:
        return len(self.groups)

    def select(self, rows: NDArray[np.bool_]) -> Sample:
        """The requests for which `rows` [n] says so."""
        return Sample(
            numbers={name: values[rows] for name, values in self.numbers.items()},
            labels={name: values[rows] for name, values in self.labels.items()},
            embeddings=self.embeddings[rows],
            weights=self.weights[rows],
            groups=self.groups[rows],
        )

    def main_weights(self) -> str:
        """The version that answered most of them; empty for no requests."""
        names, counts = np.unique(self.weights, return_counts=True)
        return str(names[counts.argmax()]) if len(names) else ""

    def to_json(self) -> dict[str, Any]:
        """Plain data that `from_json` reads back."""
        return {
            "numbers": {
                name: [None if np.isnan(value) else float(value) for value in values]
                for name, values in self.numbers.items()
            },
            "labels": {name: values.tolist() for name, values in self.labels.items()},
            "embeddings": base64.b64encode(self.embeddings.astype("<f2").tobytes()).decode(),
            "weights": self.weights.tolist(),
            "groups": self.groups.tolist(),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Sample:
        """The sample that `to_json` wrote; raises ValueError or KeyError for anything else."""
        raw = np.frombuffer(base64.b64decode(data["embeddings"]), dtype="<f2")
        sample = cls(
            numbers={name: _numbers(values) for name, values in data["numbers"].items()},
            labels={name: np.array(values, dtype=str) for name, values in data["labels"].items()},
            embeddings=raw.astype(np.float32).reshape(-1, EMBEDDING_SIZE),
            weights=np.array(data["weights"], dtype=str),
            groups=np.array(data["groups"], dtype=np.int64),
        )
        columns = [*sample.numbers.values(), *sample.labels.values()]
        columns += [sample.embeddings, sample.weights]
        if any(len(column) != len(sample) for column in columns):
            raise ValueError("the columns of a sample differ in length")
        return sample


def build_sample(requests: Iterable[Request]) -> Sample:
    """Requests as columns; a signal of a wrong type counts as absent."""
    rows = list(requests)
    groups = [f"={number}" if row.group is None else row.group for number, row in enumerate(rows)]
    return Sample(
        numbers={
            name: _numbers([_number(row.signals.get(name)) for row in rows])
            for name in (*NUMBERS, *FLAGS)
        },
        labels={
            name: np.array([_label(row.signals.get(name)) for row in rows], dtype=str)
            for name in LABELS
        },
        embeddings=_embeddings([row.embedding for row in rows]),
        weights=np.array([row.weights for row in rows], dtype=str),
        groups=np.unique(np.array(groups, dtype=str), return_inverse=True)[1].astype(np.int64),
    )


def _numbers(values: Sequence[float | None]) -> Numbers:
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)


def _number(value: Any) -> float | None:
    known = isinstance(value, bool | int | float) and np.isfinite(value)
    return float(value) if known else None


def _label(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _embeddings(raw: Sequence[bytes | None]) -> NDArray[np.float32]:
    found = np.full((len(raw), EMBEDDING_SIZE), np.nan, dtype=np.float32)
    for row, data in zip(found, raw, strict=True):
        if data is not None and len(data) == 2 * EMBEDDING_SIZE:
            row[:] = np.frombuffer(data, dtype="<f2")
    return found
