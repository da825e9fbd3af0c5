"""What can go wrong, as one tree: a user's mistake is told in one line and ends with exit code 2.

LmloopError
├── UsageError               what was given, what is allowed, what to do (exit code 2)
│   ├── RecipeError          unknown key, wrong type, unreadable TOML
│   ├── SourceError          a source is missing, empty or wholly unreadable
│   ├── CorpusError          the corpus does not carry what the recipe asks of it
│   ├── TokenizerError       the tokenizer or its chat template cannot be used
│   ├── ArtifactError        an artifact is missing, unfinished or changed on disk
│   ├── DatabaseError        the database cannot be opened or used
│   ├── RegistryError        a registry row is missing or was changed by other hands
│   ├── DiskFullError        the disk has no room for what a stage writes
│   ├── BusyError            another process works on the same thing
│   ├── TrainingError        a run cannot start or go on
│   │   └── DivergedError    its loss or gradient is no number any more, or jumps
│   ├── CompressionError     compression would cost more quality than was allowed
│   ├── UpdateError          an update cannot start: too little feedback, or changed thresholds
│   ├── ServingError         the server cannot start
│   └── MissingExtraError    a library of an optional extra is not installed
├── StoppedError             work was asked to end, is saved, and can go on (exit code 0)
├── LostRankError            a process of a run of many is gone (exit code 1)
├── PrunedError              a run is given up by whoever watches it; nothing of it stays
└── RequestError             one request cannot be served (carries an HTTP status)
    └── ContextLengthError   the prompt does not fit the model's context (400)
"""

from __future__ import annotations


class LmloopError(Exception):
    """Root of all errors that lmloop raises on purpose."""

    exit_code = 1


class UsageError(LmloopError):
    """Something that a user can cause and mend."""

    exit_code = 2


class RecipeError(UsageError):
    """A recipe or an override cannot be read."""


class SourceError(UsageError):
    """A source of text is missing, empty or unreadable."""


class CorpusError(UsageError):
    """A corpus is too small or lacks what a stage needs."""


class TokenizerError(UsageError):
    """A tokenizer or a chat template cannot be used."""


class ArtifactError(UsageError):
    """An artifact is missing, unfinished or changed on disk."""


class DatabaseError(UsageError):
    """The database cannot be opened, or is of a newer lmloop."""


class RegistryError(UsageError):
    """A registry row is missing, or was changed by other hands."""


class DiskFullError(UsageError):
    """The disk has no room for what a stage writes."""


class BusyError(UsageError):
    """Another process works on the same thing."""


class TrainingError(UsageError):
    """A training run cannot start or go on."""


class DivergedError(TrainingError):
    """A run's loss or gradient is no number any more, or jumps, and the recipe says to stop."""


class CompressionError(UsageError):
    """Compression would cost more quality than the recipe allows."""


class UpdateError(UsageError):
    """An update cannot start or go on."""


class ServingError(UsageError):
    """The server cannot start."""


class MissingExtraError(UsageError):
    """A library of an optional extra is not installed."""

    def __init__(self, *, package: str, extra: str) -> None:
        super().__init__(
            f"{package} is not installed, and this step needs it: pip install 'lmloop[{extra}]'"
        )


class StoppedError(LmloopError):
    """Work was asked to end in the middle: it is saved, and the same command goes on."""

    exit_code = 0


class LostRankError(LmloopError):
    """A process of a run of many is gone; the last snapshot stays, and the same command goes on."""


class PrunedError(LmloopError):
    """A run is given up by whoever watches it: nothing of it stays."""


class RequestError(LmloopError):
    """One request cannot be served; told to the client in OpenAI's error shape."""

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        code: str | None = None,
        param: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param


class ContextLengthError(RequestError):
    """A prompt is longer than the model's context."""

    def __init__(self, *, prompt_tokens: int, context_length: int, param: str = "messages") -> None:
        super().__init__(
            f"The prompt has {prompt_tokens} tokens and this model's context holds "
            f"{context_length}, one of them kept for the answer: shorten the {param}.",
            code="context_length_exceeded",
            param=param,
        )
