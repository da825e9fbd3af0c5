"""The prepare stage: raw files to a clean corpus in three splits, with a report.

Takes: a `PrepareConfig` and a folder. Gives: `train.parquet`, `validation.parquet`,
`heldout.parquet`, `report.json` and `report.md` in it, or a `UsageError` and no files.
"""

from __future__ import annotations

import math
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmloop.corpus.engine import Engine
from lmloop.corpus.read import Reading, read_sources
from lmloop.corpus.report import build_report, describe_drops, render_markdown
from lmloop.corpus.sources import Source, describe_files, find_sources, fingerprint_source
from lmloop.corpus.splits import SPLITS, locate
from lmloop.errors import CorpusError
from lmloop.progress import Progress
from lmloop.sections import PrepareConfig
from lmloop.store.artifact import write_json


@dataclass(frozen=True, slots=True)
class PrepareResult:
    """What the stage tells the manifest."""

    counts: dict[str, Any]
    """The report without samples, settings and files."""
    sources: list[dict[str, str]]
    """One entry a source: kind "raw", source, fingerprint (SHA-256)."""


def prepare(config: PrepareConfig, folder: Path, *, seed: int, progress: Progress) -> PrepareResult:
    """Read, clean, deduplicate and split the sources of `config` into `folder`.

    `seed` is that of the MinHash permutations; the splits depend on the content alone. Raises
    `SourceError` where a source cannot be read, `CorpusError` where a split would be empty.
    """
    reading = read_sources(config.sources)
    files = [describe_files(source) for source in reading.sources]
    with tempfile.TemporaryDirectory(dir=folder, prefix=".work-") as work:
        engine = Engine(Path(work), config=config, seed=seed)
        report = _run(engine, reading, files, config=config, progress=progress)
        with progress.task("write splits", total=len(SPLITS), unit="files") as task:
            for number, split in enumerate(SPLITS, start=1):
                engine.write(split, folder / f"{split}.parquet")
                task.update(number)
    write_json(folder / "report.json", report)
    (folder / "report.md").write_text(render_markdown(report), encoding="utf-8")
    return PrepareResult(
        counts=_count(report),
        sources=[_trace(*each) for each in zip(reading.sources, files, strict=True)],
    )


def fingerprint_sources(sources: Sequence[str]) -> list[dict[str, str]]:
    """What `PrepareResult.sources` will be, by hashing the files without parsing them.

    Raises `SourceError` where a source is missing.
    """
    return [_trace(source, describe_files(source)) for source in find_sources(sources)]


def _run(
    engine: Engine,
    reading: Reading,
    files: Sequence[Sequence[dict[str, Any]]],
    *,
    config: PrepareConfig,
    progress: Progress,
) -> dict[str, Any]:
    """Take every record to its verdict; give the report. `CorpusError` where a split is empty."""
    with progress.task("read", total=None, unit="records") as task:
        engine.spool(reading, advance=task.update)
    _tell_skipped(reading, progress)
    with progress.task("clean", total=reading.records, unit="records") as task:
        engine.clean()
        task.update(reading.records)
    with progress.task("deduplicate", total=reading.records, unit="records") as task:
        pairs = engine.judge()
        task.update(reading.records)
    report = build_report(
        inputs=[file for each in files for file in each],
        ignored_files=reading.ignored_files,
        skipped=reading.skipped,
        summary=engine.summarise(),
        samples=engine.sample(),
        near_duplicate_pairs=pairs,
        settings=config.model_dump(mode="json", exclude={"sources"}),
    )
    _check_splits(report, engine.survivors())
    return report


def _tell_skipped(reading: Reading, progress: Progress) -> None:
    if not reading.skipped:
        return
    total = sum((Counter(reasons) for reasons in reading.skipped.values()), Counter())
    told = ", ".join(f"{reason} {count:,}" for reason, count in total.most_common(3))
    progress.say(
        f"skipped {total.total():,} lines, rows or files in {len(reading.skipped):,} files "
        f"({told}); the report lists them"
    )


def _check_splits(report: Mapping[str, Any], survivors: Sequence[str]) -> None:
    empty = [split for split in SPLITS if not report["splits"][split]["records"]]
    if not empty:
        return
    read = report["read"]["records"]
    left = (
        f"{len(survivors):,} of {read:,} records are left after cleaning "
        f"({describe_drops(report['dropped'])})"
    )
    if not survivors:
        raise CorpusError(f"{left}: relax the rules under [prepare] or add text")
    places = [locate(each) for each in survivors]
    needed = {"validation": 1 - max(places), "heldout": min(places)}.get(empty[0], 1.0)
    share = math.floor(needed * 100 + 1) / 100
    advice = f"prepare.{empty[0]}_share = {share} would fill it" if share < 0.5 else "add text"
    raise CorpusError(f"the {empty[0]} split is empty: {left}; {advice}")


def _count(report: Mapping[str, Any]) -> dict[str, Any]:
    dropped = {name: each["records"] for name, each in report["dropped"].items()}
    names = ("near_duplicate_pairs", "masked", "splits")
    read = {**report["read"], "skipped": sum(map(_sum_values, report["read"]["skipped"].values()))}
    return {"read": read, "dropped": dropped, **{name: report[name] for name in names}}


def _sum_values(counts: Mapping[str, int]) -> int:
    return sum(counts.values())


def _trace(source: Source, files: Sequence[dict[str, Any]]) -> dict[str, str]:
    return {"kind": "raw", "source": source.name, "fingerprint": fingerprint_source(files)}
