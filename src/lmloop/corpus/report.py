"""What happened to a corpus, told to programs (JSON) and to people (Markdown).

Takes: what was read, and the engine's sums and samples. Gives: a report without times, paths of the
machine or personal data, so that equal work gives equal bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lmloop.corpus.privacy import mask_personal_data
from lmloop.corpus.rules import RULES
from lmloop.corpus.splits import SPLITS

DROPS = (*RULES, "exact_duplicate", "near_duplicate")
SAMPLE_CHARACTERS = 200
MARKDOWN_FILES = 20
"""Most files that the Markdown page lists; the JSON has all."""


def build_report(
    *,
    inputs: Sequence[Mapping[str, Any]],
    ignored_files: int,
    skipped: Mapping[str, Mapping[str, int]],
    summary: Mapping[str, Mapping[str, int]],
    samples: Mapping[str, Sequence[str]],
    near_duplicate_pairs: int,
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    """The report as it is written to report.json; bytes are UTF-8 bytes of text as read."""
    kept = [summary[split] for split in SPLITS if split in summary]
    return {
        "read": {
            "files": len(inputs),
            "file_bytes": sum(file["bytes"] for file in inputs),
            "ignored_files": ignored_files,
            "records": _total(summary.values(), "records"),
            "raw_bytes": _total(summary.values(), "raw_bytes"),
            "skipped": {file: dict(reasons) for file, reasons in sorted(skipped.items())},
        },
        "normalised": _total(summary.values(), "changed"),
        "dropped": {
            name: {
                "records": summary.get(name, {}).get("records", 0),
                "raw_bytes": summary.get(name, {}).get("raw_bytes", 0),
                "samples": [shorten(text) for text in samples.get(name, ()) if text],
            }
            for name in DROPS
        },
        "near_duplicate_pairs": near_duplicate_pairs,
        "masked": {"emails": _total(kept, "emails"), "phones": _total(kept, "phones")},
        "splits": {
            split: {name: summary.get(split, {}).get(name, 0) for name in _SPLIT_COUNTS}
            for split in SPLITS
        },
        "settings": dict(settings),
        "inputs": list(inputs),
    }


_SPLIT_COUNTS = ("records", "conversations", "turns", "raw_bytes")


def _total(rows: Any, name: str) -> int:
    return sum(row[name] for row in rows)


def shorten(text: str) -> str:
    """One line of at most `SAMPLE_CHARACTERS`, personal data masked."""
    text = mask_personal_data(text).text.replace("\n", " / ")
    return text if len(text) <= SAMPLE_CHARACTERS else text[: SAMPLE_CHARACTERS - 1] + "…"


def describe_drops(dropped: Mapping[str, Mapping[str, int]]) -> str:
    """How many records each rule dropped, in half a line."""
    told = [f"{name} {each['records']:,}" for name, each in dropped.items() if each["records"]]
    return ", ".join(told) or "nothing dropped"


def render_markdown(report: Mapping[str, Any]) -> str:
    """The report as a page to read."""
    read = report["read"]
    blocks = [
        "# Corpus report",
        f"Read {_plural(read['records'], 'record')} ({_megabytes(read['raw_bytes'])} of text) from "
        f"{_plural(read['files'], 'file')}; {_plural(read['ignored_files'], 'other file')} left "
        f"alone. Normalisation changed {_plural(report['normalised'], 'record')}.",
        "## What is left",
        _table(
            ["split", "records", "conversations", "turns", "text as read"],
            [
                [split, *(f"{each[name]:,}" for name in _SPLIT_COUNTS[:-1]), _megabytes(raw)]
                for split, each in report["splits"].items()
                for raw in [each["raw_bytes"]]
            ],
        ),
        f"Masked in these: {_plural(report['masked']['emails'], 'e-mail address', 'es')} and "
        f"{_plural(report['masked']['phones'], 'telephone number')}.",
        "## What each rule dropped",
        _table(
            ["rule", "records", "text as read"],
            [
                [name, f"{each['records']:,}", _megabytes(each["raw_bytes"])]
                for name, each in report["dropped"].items()
            ],
        ),
        f"Near duplicates: {_plural(report['near_duplicate_pairs'], 'pair')}.",
        *_render_samples(report["dropped"]),
        *_render_skipped(read["skipped"]),
        "## Files",
        _table(
            ["file", "bytes", "SHA-256"],
            [
                [_code(_name(file)), f"{file['bytes']:,}", _code(file["sha256"][:16])]
                for file in report["inputs"][:MARKDOWN_FILES]
            ],
        ),
    ]
    if len(report["inputs"]) > MARKDOWN_FILES:
        blocks.append(f"… and {len(report['inputs']) - MARKDOWN_FILES:,} more, see report.json.")
    return "\n\n".join(blocks) + "\n"


def _render_samples(dropped: Mapping[str, Mapping[str, Any]]) -> list[str]:
    blocks = []
    for name, each in dropped.items():
        if each["samples"]:
            lines = "\n".join(f"- {_code(text)}" for text in each["samples"])
            blocks.append(f"### Dropped by {name}, for example\n\n{lines}")
    return blocks


def _render_skipped(skipped: Mapping[str, Mapping[str, int]]) -> list[str]:
    if not skipped:
        return []
    rows = [
        [_code(file), reason, f"{count:,}"]
        for file, reasons in skipped.items()
        for reason, count in reasons.items()
    ]
    more = len(rows) - MARKDOWN_FILES
    blocks = ["## Not readable", _table(["file", "reason", "times"], rows[:MARKDOWN_FILES])]
    return [*blocks, f"… and {more:,} more, see report.json."] if more > 0 else blocks


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(
        f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines
    )


def _name(file: Mapping[str, Any]) -> str:
    inner = file["path_in_source"]
    return f"{file['source']} → {inner}" if inner else str(file["source"])


def _code(text: str) -> str:
    """Text between back-ticks that no back-tick in it can end."""
    return f"`` {text} ``" if "`" in text else f"`{text}`"


def _plural(count: int, noun: str, ending: str = "s") -> str:
    return f"{count:,} {noun}{'' if count == 1 else ending}"


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.2f} MB" if count >= 10_000 else f"{count:,} B"
