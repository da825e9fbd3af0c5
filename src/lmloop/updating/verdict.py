"""The verdict: what was asked, what was found, why; for machines, for a reader, for eyes.

Takes: checks in the order in which their reasons count, and answers in pairs. Gives:
`verdict.json`, `verdict.md` and `verdict.html`, whose first lines say passed or refused, and why.
"""

from __future__ import annotations

import html
import json
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2

from lmloop.updating.checks import Check, Measure
from lmloop.updating.conduct import Pair

SHOWN = 20
"""Pairs of answers in the readable verdicts; `verdict.json` has all."""
_TEMPLATE = Path(__file__).with_name("verdict.html")
_MARKUP = re.compile(r"([\\`*_\[\]|~])")
_RESULTS = {True: "passed", False: "refused", None: "not run"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a gate says of a candidate."""

    candidate: str
    """Fingerprint; so are `live` and `pledge`."""
    live: str
    pledge: str
    sealed: float
    """When the thresholds were written, in seconds since the epoch."""
    seed: int
    checks: tuple[Check, ...]
    """In the order in which their reasons count."""
    pairs: tuple[Pair, ...] = field(default=(), repr=False)

    @property
    def passed(self) -> bool:
        """Whether every check was asked and passed."""
        return all(check.passed is True for check in self.checks)

    @property
    def reasons(self) -> list[str]:
        """Why it was refused, the first reason first; empty where it passed."""
        return [check.reason for check in self.checks if check.passed is False]

    @property
    def headline(self) -> str:
        """The verdict in a line."""
        if not self.passed:
            return f"refused because {self.reasons[0]}"
        return f"passed: {self.checks[-1].reason}"

    def counts(self) -> dict[str, Any]:
        """For the manifest."""
        return {
            "passed": self.passed,
            "reasons": self.reasons,
            "failed_checks": [check.name for check in self.checks if check.passed is False],
        }

    def to_json(self) -> dict[str, Any]:
        """The content of `verdict.json`."""
        return {
            **self.counts(),
            "headline": self.headline,
            "candidate": self.candidate,
            "live": self.live,
            "pledge": self.pledge,
            "sealed": self.sealed,
            "seed": self.seed,
            "checks": [check.to_json() for check in self.checks],
            "answers": [pair.to_json() for pair in self.pairs],
        }


def write_verdict(verdict: Verdict, folder: Path) -> None:
    """Write the three files."""
    text = json.dumps(verdict.to_json(), indent=1, ensure_ascii=False)
    (folder / "verdict.json").write_text(text + "\n", encoding="utf-8")
    (folder / "verdict.md").write_text(render_markdown(verdict), encoding="utf-8")
    (folder / "verdict.html").write_text(render_html(verdict), encoding="utf-8")


def render_markdown(verdict: Verdict) -> str:
    """The verdict as Markdown; what people and models said is shown as it is, never as markup."""
    lines = [
        f"# Gate: {_plain(verdict.headline)}",
        "",
        *(f"- {_plain(fact)}" for fact in _facts(verdict)),
        "",
        "| check | result | figure | value | interval | limit | of | needed |",
        "|---|---|---|---:|---|---:|---:|---:|",
    ]
    for check, rows in _table(verdict.checks):
        for place, cells in enumerate(rows):
            head = (check.name, _RESULTS[check.passed]) if place == 0 else ("", "")
            lines.append(f"| {' | '.join(map(_plain, (*head, *cells)))} |")
    lines += ["", "## In words", ""]
    lines += [
        f"- **{_plain(check.name)}** ({_RESULTS[check.passed]}): {_plain(check.reason)}"
        for check in verdict.checks
    ]
    lines += ["", f"## Answers, side by side: {_shown(verdict)}", ""]
    if verdict.pairs:
        lines += ["| asked | live | candidate |", "|---|---|---|"]
    for pair in verdict.pairs[:SHOWN]:
        said = (pair.live.opener, pair.live.answer, pair.candidate.answer)
        lines.append(f"| {' | '.join(_plain(each) or '(nothing)' for each in said)} |")
    return "\n".join(lines) + "\n"


def render_html(verdict: Verdict) -> str:
    """The verdict as one page; everything that came from text or model is escaped."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    template = environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
    return template.render(
        headline=verdict.headline,
        passed=verdict.passed,
        facts=_facts(verdict),
        table=[(check, _RESULTS[check.passed], rows) for check, rows in _table(verdict.checks)],
        results=_RESULTS,
        pairs=verdict.pairs[:SHOWN],
        shown=_shown(verdict),
    )


def _facts(verdict: Verdict) -> list[str]:
    others = verdict.reasons[1:]
    return [
        f"candidate {verdict.candidate[:12]}, live {verdict.live[:12]}, "
        f"pledge {verdict.pledge[:12]}",
        f"thresholds sealed {_date(verdict.sealed)}, seed {verdict.seed}",
        *(f"refused also because {reason}" for reason in others),
    ]


def _date(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))


def _shown(verdict: Verdict) -> str:
    return f"{len(verdict.pairs[:SHOWN])} of {len(verdict.pairs)}"


Cells = tuple[str, str, str, str, str, str]


def _table(checks: Sequence[Check]) -> list[tuple[Check, list[Cells]]]:
    """Each check with its figures, a row each; one without figures says its reason."""
    return [
        (check, [_cells(each) for each in check.measures] or [(check.reason, "", "", "", "", "")])
        for check in checks
    ]


def _cells(measure: Measure) -> Cells:
    """Figure, value, interval, limit, what it rests on, what would be needed."""
    interval = ""
    if measure.low is not None and measure.high is not None:
        interval = f"{_number(measure.low, measure.unit)} to {_number(measure.high, measure.unit)}"
    return (
        measure.what,
        _number(measure.value, measure.unit),
        interval,
        "" if measure.limit is None else _number(measure.limit, measure.unit),
        "" if measure.count is None else str(measure.count),
        "" if measure.needed is None else str(measure.needed),
    )


def _number(value: float, unit: str) -> str:
    if unit == "change":
        return f"{value:+.2%}"
    if unit == "share":
        return f"{value:.1%}"
    return f"{value:g}" if unit == "count" else f"{value:.4f}"


def _plain(text: str) -> str:
    """Text on one line in which Markdown and HTML find nothing to interpret."""
    return _MARKUP.sub(r"\\\1", html.escape(" / ".join(text.strip().splitlines()), quote=False))
