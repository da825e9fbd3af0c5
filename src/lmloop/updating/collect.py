"""Collect: ratings and corrections to a corpus that an update learns from.

Takes: the database; later a folder and the sets that the gate will ask. Gives: a `Selection` of
exchanges, and from it `train.parquet` and `heldout.parquet`, `pairs.jsonl` (for preference
learning), `members.jsonl` (whose exchanges these are), `report.json` and `report.md`. The same
selection gives the same bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import sqlalchemy as sa

from lmloop.corpus.decontaminate import Decontaminator
from lmloop.corpus.splits import SCHEMA, build_row, locate, write_split
from lmloop.errors import UpdateError
from lmloop.records import Record
from lmloop.store.artifact import write_json
from lmloop.updating.candidates import find_candidates
from lmloop.updating.caps import MAX_USER_SHARE, find_excess
from lmloop.updating.collected import Collected, build_report, count_report, render_markdown
from lmloop.updating.screening import Candidate
from lmloop.upkeep import CollectConfig

IN_GATE_SET = "in_gate_set"
MEMBERS = "members.jsonl"
PAIRS = "pairs.jsonl"
SOURCE = "feedback"
"""What stands in the column `source` of the two splits."""


@dataclass(frozen=True, slots=True)
class Member:
    """Whose exchange became part of a corpus."""

    request_id: str
    user_hash: str | None
    split: str
    """train or heldout."""
    content: str
    """Stands for the exchange with this correction (SHA-256); another correction has another."""


@dataclass(frozen=True, kw_only=True)
class Selection:
    """What could be learnt now."""

    name: str
    """Of the model."""
    config: CollectConfig
    seed: int
    ready: tuple[Candidate, ...]
    """Passed all rules and the review; caps and the gate's sets have not been asked yet."""
    waiting: int
    """Passed all rules, and wait for a review."""
    dropped: tuple[tuple[Candidate, str], ...]
    """What cannot be learnt now, and why: a reason of `collected.REASONS`."""
    left_out: Mapping[str, int]
    """Ratings that teach nothing, by reason."""
    learnt: frozenset[str]
    """`Member.content` of what an earlier update has learnt."""

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over what is ready, whatever the order in which it came."""
        return hashlib.sha256(
            "\n".join(sorted(each.id for each in self.ready)).encode()
        ).hexdigest()

    @cached_property
    def taken(self) -> tuple[Candidate, ...]:
        """What is left of `ready` under the caps."""
        excess = find_excess(self.ready, config=self.config, seed=self.seed)
        return tuple(each for each in self.ready if each.id not in excess)

    @property
    def count(self) -> int:
        """Exchanges that would be taken and that no earlier update has learnt."""
        return _count_new(self.taken, self.learnt)

    def describe(self) -> str:
        """What this is, in half a line."""
        return f"{len(self.ready):,} rated exchanges of {self.name}"


def select(
    config: CollectConfig,
    *,
    engine: sa.Engine,
    name: str,
    seed: int,
    learnt: Collection[str] = (),
) -> Selection:
    """Find what could be learnt from the ratings of the model `name`; few or none is no error.

    `seed` is that of the lots where a user has more than the caps allow. `learnt` holds
    `Member.content` of earlier corpora: that text is taken again, but opens no update.
    """
    found = find_candidates(engine, name=name, config=config)
    waiting = [each for each in found.passed if config.review and not _is_accepted(each)]
    ready = [each for each in found.passed if not config.review or _is_accepted(each)]
    dropped = [(each, each.dropped) for each in found.all if each.dropped is not None]
    return Selection(
        name=name,
        config=config,
        seed=seed,
        ready=tuple(ready),
        waiting=len(waiting),
        dropped=(*dropped, *((each, "waiting") for each in waiting)),
        left_out=found.left_out,
        learnt=frozenset(learnt),
    )


def check_enough(selection: Selection) -> None:
    """Raise `UpdateError` where there are fewer new exchanges than an update needs."""
    _check_enough(selection, selection.taken, contaminated=0)


def write(
    selection: Selection,
    folder: Path,
    *,
    against: Mapping[str, Sequence[Record]],
    hold_out: bool = True,
) -> dict[str, Any]:
    """Write a selection into `folder` without what shares text with the sets of `against`; counts.

    With `hold_out`, `collect.heldout_share` of the questions go to the held-out split: the gate's
    target where it has no file of its own. No answer that is held out stands in training. Raises
    `UpdateError`, and writes nothing, where too few new exchanges are left.
    """
    decontaminator = Decontaminator(against)
    refused = _refuse(selection, decontaminator)
    taken = [each for each in selection.ready if each.id not in refused]
    _check_enough(selection, taken, contaminated=list(refused.values()).count(IN_GATE_SET))
    share = selection.config.heldout_share if hold_out else 0.0
    splits, moved = split(taken, heldout_share=share)
    _check_train(splits)
    pairs = _write_files(splits, folder)
    over = [(each, refused[each.id]) for each in selection.ready if each.id in refused]
    report = build_report(
        Collected(
            name=selection.name,
            settings={**selection.config.model_dump(mode="json"), "seed": selection.seed},
            left_out=selection.left_out,
            dropped=[*selection.dropped, *over],
            splits=splits,
            moved=moved,
            new=_count_new(taken, selection.learnt),
            pairs=pairs,
            overlaps=decontaminator.measure(each.record for each in selection.ready),
        )
    )
    write_json(folder / "report.json", report)
    (folder / "report.md").write_text(render_markdown(report), encoding="utf-8")
    return count_report(report)


def read_members(folder: Path) -> list[Member]:
    """The members of a collected corpus, none where the folder is of another kind."""
    path = folder / MEMBERS
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").splitlines()
    return [Member(**json.loads(line)) for line in lines]


def split(
    candidates: Iterable[Candidate], *, heldout_share: float
) -> tuple[dict[str, list[Candidate]], int]:
    """`train` and `heldout`, each ordered by content; how many moved from the second to the first.

    The words of the question decide by their hash, so that equal questions stay together and more
    data moves nobody out of training. What is held out and shares text with training moves there.
    """
    ordered = sorted(candidates, key=lambda each: each.record.id)
    heldout = [each for each in ordered if _locate(each) < heldout_share]
    moved: set[str] = set()
    while True:
        left = [each for each in heldout if each.id not in moved]
        train = [each for each in ordered if _locate(each) >= heldout_share or each.id in moved]
        asked = Decontaminator({"heldout": [each.record for each in left]})
        shared = {
            n for each in train for hit in asked.hits(each.record).values() for n in hit.members
        }
        if not shared:
            return {"train": train, "heldout": left}, len(moved)
        moved |= {left[number].id for number in shared}


def _refuse(selection: Selection, decontaminator: Decontaminator) -> dict[str, str]:
    """Id of each ready exchange that is not taken → why: the gate's sets first, then the caps."""
    ready = selection.ready
    refused = {each.id: IN_GATE_SET for each in ready if decontaminator.hits(each.record)}
    clean = [each for each in ready if each.id not in refused]
    return refused | find_excess(clean, config=selection.config, seed=selection.seed)


def _check_train(splits: Mapping[str, Sequence[Candidate]]) -> None:
    if not splits["train"]:
        raise UpdateError(
            f"all {len(splits['heldout']):,} exchanges are held out for the gate, none is left to "
            "learn from: lower collect.heldout_share, or give the gate a file (gate.target)"
        )


def _locate(candidate: Candidate) -> float:
    question = " ".join(candidate.words[0]) or candidate.question
    return locate(hashlib.sha256(question.encode()).hexdigest())


def _is_accepted(candidate: Candidate) -> bool:
    return candidate.exchange.state == "accepted"


def _count_new(candidates: Iterable[Candidate], learnt: Collection[str]) -> int:
    return sum(each.id not in learnt for each in candidates)


def _check_enough(selection: Selection, taken: Sequence[Candidate], *, contaminated: int) -> None:
    config = selection.config
    new = _count_new(taken, selection.learnt)
    if new >= config.min_exchanges and taken:
        return
    told = [f"{new:,} new rated exchanges of {selection.name} can be learnt"]
    if len(taken) > new:
        told.append(f"{len(taken) - new:,} more were learnt before")
    if contaminated:
        told.append(f"{contaminated:,} stand in the gate's own sets")
    over = len(selection.ready) - contaminated - len(taken)
    if over:
        users = len({each.exchange.user for each in selection.ready})
        told.append(
            f"{over:,} are above the caps (max_per_user = {config.max_per_user}, "
            f"{MAX_USER_SHARE} = {config.max_user_share:g}, {users:,} users)"
        )
    if selection.waiting:
        told.append(f"{selection.waiting:,} wait for a review")
    raise UpdateError(
        f"{'; '.join(told)}; an update needs {max(1, config.min_exchanges):,} "
        f"(collect.min_exchanges): {_advise(selection, over=over)}"
    )


def _advise(selection: Selection, *, over: int) -> str:
    """What to do where there is too little, the likeliest first."""
    needed = selection.config.min_exchanges - selection.count
    if selection.waiting >= needed:
        return "decide upon those that wait with lmloop review"
    if over >= needed:
        return "ask more people, or raise the caps under [collect]"
    if not selection.ready and selection.left_out.get("no_consent"):
        return (
            f"{selection.left_out['no_consent']:,} of the ratings came without consent; send the "
            "header X-Lmloop-Consent: yes with requests that may be learnt from"
        )
    return "collect more ratings and corrections with consent"


def _write_files(splits: Mapping[str, Sequence[Candidate]], folder: Path) -> int:
    """Write the splits, pairs and members; give the number of pairs."""
    for name, candidates in splits.items():
        rows = [{**build_row(each.record), "source": SOURCE} for each in candidates]
        write_split(pa.Table.from_pylist(rows, schema=SCHEMA), folder / f"{name}.parquet")
    pairs = [_build_pair(each) for each in splits["train"] if each.rejected]
    _write_lines(folder / PAIRS, pairs)
    members = [
        Member(each.exchange.request_id, each.exchange.user, name, each.id)
        for name, candidates in splits.items()
        for each in candidates
    ]
    members.sort(key=lambda member: member.request_id)
    _write_lines(folder / MEMBERS, map(asdict, members))
    return len(pairs)


def _build_pair(candidate: Candidate) -> dict[str, Any]:
    """A preference: after these messages, rather the correction than what the model said."""
    turns = candidate.record.turns[:-1]
    return {
        "prompt": [{"role": turn.role, "content": turn.content} for turn in turns],
        "chosen": candidate.taught,
        "rejected": candidate.rejected,
    }


def _write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text("".join(lines), encoding="utf-8")
