"""Other programs' logs of a run, by one line of the recipe: TensorBoard's event files.

Takes: lines of a run's journal. Gives: the same figures as files that `tensorboard --logdir` shows.
Nothing leaves the machine.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from lmloop.errors import MissingExtraError
from lmloop.progress import Watch

FIGURES = {
    "loss": "train/loss",
    "norm": "train/gradient_norm",
    "factor": "train/rate_factor",
    "validation_bpb": "validation/bits_per_byte",
    "validation_loss": "validation/loss",
}
"""What of a journal's line is shown, and under which name."""


@contextmanager
def open_trackers(names: Sequence[str], *, home: Path, run: str) -> Iterator[Watch]:
    """A watch that tells every tracker named; raises `MissingExtraError` before any step."""
    with ExitStack() as stack:
        watches = [
            stack.enter_context(_open_tensorboard(home / "tensorboard" / run))
            for name in names
            if name == "tensorboard"
        ]

        def watch(entry: Mapping[str, Any]) -> None:
            for each in watches:
                each(entry)

        yield watch


@contextmanager
def _open_tensorboard(folder: Path) -> Iterator[Watch]:
    try:
        import tensorboard  # noqa: F401
    except ImportError as error:
        raise MissingExtraError(package="tensorboard", extra="track") from error
    from torch.utils.tensorboard import SummaryWriter

    writers: list[SummaryWriter] = []

    def watch(entry: Mapping[str, Any]) -> None:
        step = entry["step"]
        if not writers:
            # What an earlier process wrote of this step and those behind it is done again.
            writers.append(SummaryWriter(str(folder), purge_step=step))
        for key, name in FIGURES.items():
            if entry.get(key) is not None:
                writers[0].add_scalar(name, entry[key], step)

    try:
        yield watch
    finally:
        for writer in writers:
            writer.close()
