"""Several tasks that share the weights: their rows, and what each of them costs.

Takes: a recipe's section, shards, an arrangement a task. Gives: a loader of all of them; the loss
of each in a step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from lmloop.errors import CorpusError
from lmloop.learning import PretrainConfig
from lmloop.tokens.arrangement import Arrangement
from lmloop.tokens.loader import PackedLoader
from lmloop.tokens.mixture import Loader, Task, TaskLoader
from lmloop.tokens.shards import Shards
from lmloop.training.ranks import Ranks

REHEARSAL = "rehearsal"
"""Folder within the shards, of the shards of other text that is not to be forgotten."""
_APART = 1_000_003
"""Between the seeds of two tasks: the same text comes in another order in each."""

OpenLoader = Callable[[Shards, Arrangement | None, int], PackedLoader]
"""Rows of a split, laid out by an objective, in the order of a seed."""


def open_tasks(
    config: PretrainConfig,
    shards: Path,
    arrangements: Mapping[str, Arrangement | None],
    *,
    seed: int,
    open_loader: OpenLoader,
) -> TaskLoader:
    """The rows of all tasks; raises `CorpusError` for a task whose text was not prepared."""
    own, tasks = Shards.open(shards, "train"), {}
    for number, (name, task) in enumerate(config.tasks.items()):
        is_own = task.text == "sources"
        if not is_own and not (shards / REHEARSAL).is_dir():
            raise CorpusError(
                f"pretrain.tasks.{name} reads text to rehearse and there is none: name its files "
                "in prepare.rehearsal"
            )
        split = own if is_own else Shards.open(shards / REHEARSAL, "train")
        tasks[name] = Task(
            loader=open_loader(split, arrangements[name], seed + _APART * number),
            share=task.share,
            weight=task.weight,
            first_document=0 if is_own else own.num_documents,
        )
    return TaskLoader(tasks)


class TaskLosses:
    """What the tasks of a loader cost in one step; nothing is kept where it has none."""

    def __init__(self, loader: Loader) -> None:
        names = loader.tasks if isinstance(loader, TaskLoader) else ()
        self._sums = {name: (0.0, 0) for name in names}

    def add(self, task: str, loss: float, targets: int) -> None:
        """Count a piece's mean loss over so many targets."""
        if task in self._sums:
            nats, count = self._sums[task]
            self._sums[task] = nats + loss * targets, count + targets

    def means(self, ranks: Ranks) -> dict[str, float]:
        """Nats a target by `loss.NAME`, over all ranks; a task without a target is left out."""
        totals = {
            name: (ranks.total(nats), ranks.total(count))
            for name, (nats, count) in self._sums.items()
        }
        return {f"loss.{name}": nats / count for name, (nats, count) in totals.items() if count}
