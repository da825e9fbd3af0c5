"""What a gate will ask, sealed before training: thresholds and frozen sets of text.

Takes: the recipe's [gate] section and records. Gives: `thresholds.json` and `sets/<name>.parquet`
in an artifact; and back, refusing thresholds that are no longer the recipe's. The sets: `target`,
which must become better; `general` and the guards, which must not become worse. A twin is text of
the same kind that nothing is decided by, so that a gain on the set alone betrays learning by heart:
`twin` is that of `general`; `target_twin`, which may be absent, is the feedback to be trained on.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

import pyarrow as pa

from lmloop.corpus.splits import SCHEMA, build_row, read_split, write_split
from lmloop.errors import ArtifactError, UpdateError
from lmloop.records import Record
from lmloop.store.artifact import Artifact, write_json
from lmloop.upkeep import OWN_SETS, GateConfig

KIND = "pledge"
THRESHOLDS = "thresholds.json"
SETS = "sets"
TARGET, GENERAL, TWIN, TARGET_TWIN = OWN_SETS
TWINS = {GENERAL: TWIN, TARGET: TARGET_TWIN}
ENOUGH = 40
"""Documents of a set that are kept however long they are: fewer would show little."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pledge:
    """A pledge that was found as it was sealed."""

    artifact: Artifact
    config: GateConfig
    sealed: float
    """When the thresholds were written, in seconds since the epoch."""
    sets: Mapping[str, Sequence[Record]] = field(repr=False)

    @property
    def guards(self) -> list[str]:
        """The sets that must not become worse."""
        return [name for name in self.sets if name not in (TARGET, *TWINS.values())]

    @property
    def unseen(self) -> dict[str, Sequence[Record]]:
        """The sets that no candidate may have been trained on."""
        return {name: records for name, records in self.sets.items() if name != TARGET_TWIN}


def split_heldout(
    heldout: Iterable[Record], validation: Iterable[Record], *, max_documents: int
) -> tuple[list[Record], list[Record]]:
    """Divide held-out and validation text into `general` and `twin`; the content alone decides.

    `general` is held-out text; the rest of it and the validation text are its twin, which gets at
    least half as many documents, since a leak shows only as clearly as the smaller set allows.
    """
    heldout, validation = _draw(heldout), _draw(validation)
    share = 2 * (len(heldout) + len(validation)) // 3
    count = min(max_documents, len(heldout), share)
    general = heldout[:count]
    known = {record.id for record in general}
    others = [each for each in [*validation, *heldout[count:]] if each.id not in known]
    return general, others[:max_documents]


def freeze(
    config: GateConfig, *, sets: Mapping[str, Iterable[Record]], folder: Path, sealed: float
) -> dict[str, Any]:
    """Write the thresholds and as much of each set as they allow into `folder`; give the counts.

    `sealed` is the time, in seconds since the epoch. Raises `UpdateError` where a set is missing,
    unknown or too small to decide anything: better now than after training.
    """
    _refuse_names(config, sets)
    drawn = {name: _limit(_draw(records), config) for name, records in sets.items()}
    for name, records in drawn.items():
        if len(records) < config.min_documents and name not in TWINS.values():
            raise UpdateError(
                f"the gate's set {name!r} has {len(records)} documents and needs "
                f"gate.min_documents = {config.min_documents}: collect more, or give a larger file"
            )
    (folder / SETS).mkdir()
    for name, records in drawn.items():
        rows = [{**build_row(record), "source": name} for record in records]
        write_split(pa.Table.from_pylist(rows, schema=SCHEMA), folder / SETS / f"{name}.parquet")
    thresholds = {"sealed": sealed, "gate": config.model_dump(mode="json"), "sets": list(drawn)}
    write_json(folder / THRESHOLDS, thresholds)
    return {
        "sealed": sealed,
        "documents": {name: len(records) for name, records in drawn.items()},
        "raw_bytes": {
            name: sum(record.raw_bytes for record in records) for name, records in drawn.items()
        },
    }


def open_pledge(artifact: Artifact, config: GateConfig) -> Pledge:
    """Read a pledge back, every file compared with its hash.

    Raises `ArtifactError` where the artifact is none or was changed, `UpdateError` naming each
    threshold that is not what `config`, the recipe's section of today, says.
    """
    if artifact.kind != KIND:
        raise ArtifactError(f"{artifact.path} is a {artifact.kind}, no pledge: give a pledge")
    artifact.verify()
    try:
        found = json.loads((artifact.path / THRESHOLDS).read_text(encoding="utf-8"))
        gate, sealed, names = dict(found["gate"]), float(found["sealed"]), list(found["sets"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ArtifactError(f"{artifact.path / THRESHOLDS} is damaged: {error!r}") from error
    _refuse_changes(gate, config.model_dump(mode="json"))
    folder = artifact.path / SETS
    sets = {name: tuple(read_split(folder, name)) for name in names}
    return Pledge(artifact=artifact, config=config, sealed=sealed, sets=sets)


def _refuse_changes(sealed: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    missing = "absent"
    changed = [
        f"{name} was {_show(sealed.get(name, missing))}, is {_show(now.get(name, missing))}"
        for name in sorted(sealed.keys() | now.keys())
        if sealed.get(name, missing) != now.get(name, missing)
    ]
    if changed:
        raise UpdateError(
            f"thresholds changed after training began: {'; '.join(changed)}: write them back into "
            "the recipe's [gate], or begin a new update"
        )


def _show(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _refuse_names(config: GateConfig, sets: Mapping[str, object]) -> None:
    wanted = {TARGET, GENERAL, TWIN, *config.guards}
    if sets.keys() - {TARGET_TWIN} != wanted:
        raise UpdateError(
            f"the gate's sets are {', '.join(sorted(sets)) or 'none'} and must be "
            f"{', '.join(sorted(wanted))}: give a file for each of gate.guards"
        )


def _limit(records: list[Record], config: GateConfig) -> list[Record]:
    """The first records, of at most so many bytes unless that would be too few to tell anything."""
    ends = accumulate(record.raw_bytes for record in records)
    count = sum(end <= config.max_bytes for end in ends)
    return records[: min(config.max_documents, max(count, ENOUGH))]


def _draw(records: Iterable[Record]) -> list[Record]:
    """The records in the order of a hash of their ids, each id once: a fair draw, always equal."""
    unique = {record.id: record for record in records}
    return sorted(unique.values(), key=lambda each: hashlib.sha256(each.id.encode()).digest())
