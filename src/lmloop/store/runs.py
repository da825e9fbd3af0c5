"""Runs of training in the database: what each journaled, thinned, while it goes on.

Takes: lines of a run's journal. Gives: rows that others read meanwhile. The journal's file is the
truth: a database that is away costs rows, never the run.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import sqlalchemy as sa

from lmloop.errors import DatabaseError, PrunedError, StoppedError
from lmloop.store.database import run_steps_table, runs_table, transaction

POINTS = 500
"""Lines of a run that become rows, those with a validation aside: enough to see a curve."""
SECONDS_BETWEEN_WRITES = 1.0
SILENT_SECONDS = 60.0
"""After so long a run that nobody holds counts as lost."""
MEASURED = ("validation_bpb", "validation_loss")
COLUMNS = ("loss", "norm", "bpb", "tokens_per_second", "peak_share", *MEASURED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A run as it stands."""

    id: str
    """Name of the folder of its artifact."""
    name: str
    """The recipe's name, and behind a stroke which trial of a search it is, if it is one."""
    stage: str
    state: str
    """`running`, `finished`, `stopped`, `pruned` or `failed`."""
    note: str | None
    """Why it failed."""
    started: float
    heard: float
    """Seconds since the epoch: when it began, and when it last wrote."""
    steps: tuple[Mapping[str, Any], ...]
    """Thinned lines of its journal, in order; `samples` is a list, mostly empty."""

    def last(self, key: str) -> float | None:
        """The newest value of a figure; None where there is none."""
        return next((step[key] for step in reversed(self.steps) if step[key] is not None), None)

    @property
    def tokens_a_second(self) -> float | None:
        """Over all of the run, validation and snapshots included."""
        seconds = self.last("seconds")
        return (self.last("tokens") or 0) / seconds if seconds else None


class RunLog:
    """Writes one run's rows, from its first line on; a stage that journals nothing has none."""

    def __init__(
        self,
        open_engine: Callable[[], sa.Engine],
        *,
        run: str,
        name: str,
        stage: str,
        tell: Callable[[str], None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`tell` is told once if the database cannot be written."""
        self._open, self._tell, self._clock = open_engine, tell, clock
        self._id = run
        self._row = {"id": run, "name": name, "stage": stage}
        self._engine: sa.Engine | None = None
        self._waiting: list[dict[str, Any]] = []
        self._kept, self._step, self._written = -1.0, 0, 0.0
        self._is_away = False

    def __enter__(self) -> RunLog:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._engine is None:
            return
        state = "finished"
        if error is not None:
            stopped = isinstance(error, StoppedError | KeyboardInterrupt)
            pruned = isinstance(error, PrunedError)
            state = "stopped" if stopped else "pruned" if pruned else "failed"
        self._flush(state, None if error is None else str(error))
        self._engine.dispose()

    def write(self, entry: Mapping[str, Any]) -> None:
        """Take in a line of the journal; rows are written at most once a second."""
        measured = any(entry.get(key) is not None for key in MEASURED)
        is_back = entry["step"] <= self._step
        if self._engine is None or is_back:
            self._begin(entry["step"])
        self._step = entry["step"]
        if measured or is_back or entry["share"] >= self._kept + 1 / POINTS:
            self._kept = entry["share"]
            row = {key: entry[key] for key in ("step", "share", "seconds", "tokens")}
            figures = {key: entry.get(key) for key in COLUMNS}
            said = json.dumps(entry["samples"]) if entry.get("samples") else None
            self._waiting.append({"run": self._id, **row, **figures, "samples": said})
        if self._clock() - self._written >= SECONDS_BETWEEN_WRITES:
            self._flush("running", None)

    def _begin(self, step: int) -> None:
        """Make the run's row, and forget steps that are done again, after a kill or a rollback."""
        if self._is_away:
            return
        self._waiting = [row for row in self._waiting if row["step"] < step]
        now = self._clock()
        try:
            if self._engine is None:
                self._engine = self._open()
            with transaction(self._engine) as connection:
                here = runs_table.c.id == self._id
                fresh = {"state": "running", "note": None, "heard": now}
                if not connection.execute(runs_table.update().where(here).values(fresh)).rowcount:
                    row = {**self._row, **fresh, "started": now}
                    connection.execute(runs_table.insert().values(row))
                gone = sa.and_(run_steps_table.c.run == self._id, run_steps_table.c.step >= step)
                connection.execute(run_steps_table.delete().where(gone))
        except (sa.exc.SQLAlchemyError, DatabaseError) as error:
            self._give_up(error)

    def _flush(self, state: str, note: str | None) -> None:
        if self._is_away or self._engine is None:
            return
        self._written = self._clock()
        values = {"state": state, "note": note, "heard": self._written}
        try:
            with transaction(self._engine) as connection:
                here = runs_table.c.id == self._id
                connection.execute(runs_table.update().where(here).values(values))
                if self._waiting:
                    connection.execute(run_steps_table.insert(), self._waiting)
        except sa.exc.SQLAlchemyError as error:
            self._give_up(error)
        self._waiting = []

    def _give_up(self, error: Exception) -> None:
        self._is_away = True
        reason = " ".join(str(getattr(error, "orig", error)).split())
        self._tell(f"the database does not take the log of this run ({reason}); the journal does")


def read_runs(engine: sa.Engine, *, name: str | None = None, most: int = 20) -> list[Run]:
    """The runs begun last, the newest first; only those of one recipe where its name is given."""
    table = runs_table
    wanted = sa.select(table).order_by(table.c.started.desc(), table.c.id).limit(most)
    if name is not None:
        trials = table.c.name.startswith(f"{name}/", autoescape=True)
        wanted = wanted.where((table.c.name == name) | trials)
    steps = run_steps_table
    with engine.connect() as connection:
        rows = connection.execute(wanted).mappings().all()
        lines: dict[str, list[Mapping[str, Any]]] = {row["id"]: [] for row in rows}
        of_these = sa.select(steps).where(steps.c.run.in_(lines)).order_by(steps.c.step)
        for line in connection.execute(of_these).mappings():
            said = json.loads(line["samples"] or "[]")
            lines[line["run"]].append({**line, "samples": said})
    return [Run(**row, steps=tuple(lines[row["id"]])) for row in rows]


def is_alive(run: Run, *, is_held: bool, now: float) -> bool:
    """Whether somebody is at it: its lock is held here, or it was heard of a moment ago."""
    return run.state == "running" and (is_held or now - run.heard < SILENT_SECONDS)
