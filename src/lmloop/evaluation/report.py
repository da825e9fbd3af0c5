"""The report: what was measured, for machines (JSON), for a reader (Markdown), for eyes (HTML).

Takes: metrics, curves and exchanges. Gives: `report.json`, `report.md`, `report.html` with
`plotly.min.js` beside it (nothing is fetched from elsewhere), `exchanges.jsonl`.
"""

from __future__ import annotations

import html
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from plotly.offline import get_plotlyjs

from lmloop.evaluation.answers import Exchange
from lmloop.evaluation.metrics import Metric

SHOWN = 20
"""Exchanges in the readable reports; `exchanges.jsonl` has all."""
_TEMPLATE = Path(__file__).with_name("report.html")
_MARKUP = re.compile(r"([\\`*_\[\]|~])")


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """All that an evaluation found."""

    facts: dict[str, Any]
    """What was measured how: model, held-out text, precision, settings, seed."""
    metrics: list[Metric]
    curves: list[dict[str, Any]]
    """See `lmloop.evaluation.curves.read_curves`."""
    exchanges: list[Exchange]

    def to_json(self) -> dict[str, Any]:
        """The content of `report.json`."""
        metrics = {metric.name: metric.to_json() for metric in self.metrics}
        return {**self.facts, "metrics": metrics, "curves": self.curves}


def write_report(report: Report, folder: Path) -> None:
    """Write the four files, and plotly's where there are curves to draw."""
    text = json.dumps(report.to_json(), indent=1, ensure_ascii=False)
    (folder / "report.json").write_text(text + "\n", encoding="utf-8")
    lines = [json.dumps(each.to_json(), ensure_ascii=False) + "\n" for each in report.exchanges]
    (folder / "exchanges.jsonl").write_text("".join(lines), encoding="utf-8")
    (folder / "report.md").write_text(render_markdown(report), encoding="utf-8")
    (folder / "report.html").write_text(render_html(report), encoding="utf-8")
    if report.curves:
        (folder / "plotly.min.js").write_text(get_plotlyjs(), encoding="utf-8")


def render_markdown(report: Report) -> str:
    """The report as Markdown; what people and the model said is shown as it is, never as markup."""
    lines = [
        "# Evaluation",
        "",
        *(f"- {_plain(fact)}" for fact in _facts(report)),
        "",
        "| figure | value | base | compare | what it says |",
        "|---|---|---|---|---|",
    ]
    for metric in report.metrics:
        value, base, compare = _cells(metric)
        lines.append(f"| {metric.name} | {value} | {base} | {compare} | {metric.explanation} |")
    lines += ["", f"## The first {len(report.exchanges[:SHOWN])} answers", ""]
    for exchange in report.exchanges[:SHOWN]:
        said = _plain(exchange.answer) or "(nothing)"
        lines += [f"- **{_plain(exchange.opener)}**", f"  → {said}"]
    return "\n".join(lines) + "\n"


def render_html(report: Report) -> str:
    """The report as one page; everything that came from text or model is escaped."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    template = environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
    return template.render(
        facts=_facts(report),
        rows=[(metric, *_cells(metric)) for metric in report.metrics],
        exchanges=report.exchanges[:SHOWN],
        total=len(report.exchanges),
        curves=report.curves,
    )


def _facts(report: Report) -> list[str]:
    """How it was measured, a line each."""
    facts, curves = report.facts, report.curves
    model, heldout, arithmetic = facts["model"], facts["heldout"], facts["arithmetic"]
    return [
        f"model {model['fingerprint'][:12]}: {model['parameters'] / 1e6:.2f} million parameters, "
        f"context {model['context_length']} tokens",
        f"held-out text: {heldout['documents']} documents, {heldout['tokens']} tokens, "
        f"{heldout['raw_bytes']} bytes",
        f"arithmetic: {arithmetic['dtype']}; on the first {arithmetic['documents_checked']} "
        f"documents float32 differs by {abs(arithmetic['bits_per_byte_minus_float32']):.6f} bits "
        "per byte",
        f"seed {facts['seed']}",
        *_other_scorings(facts["ranking"]),
        *map(_summarise, curves),
    ]


def _other_scorings(ranking: dict[str, Any]) -> list[str]:
    """hits@1 as the other ways to score would have it: the choice of one is no secret."""
    if not ranking["questions"]:
        return []
    others = [
        f"{name} log-probability {_number(ranking['hits_at_1'][name], 'share')}"
        for name in ("mean", "total")
    ]
    return [f"hits@1 of {ranking['questions']} questions by other scores: " + ", ".join(others)]


def _summarise(curve: dict[str, Any]) -> str:
    """A stage of training in a line."""
    loss = curve["loss"]
    if not loss["steps"]:
        return f"{curve['stage']}: no loss logged"
    return (
        f"{curve['stage']}: until step {loss['steps'][-1]}, second {loss['seconds'][-1]:.0f}, "
        f"loss {loss['values'][-1]}"
    )


def _cells(metric: Metric) -> tuple[str, str, str]:
    """Value with its interval, the base model's value, and what to compare with."""
    value = _number(metric.value, metric.unit)
    if metric.interval is not None:
        low, high = (_number(bound, metric.unit) for bound in metric.interval)
        value += f" ({low} to {high})"
    compare = ""
    if metric.reference is not None:
        compare = f"{metric.reference_name}: {_number(metric.reference, metric.unit)}"
    return value, "" if metric.base is None else _number(metric.base, metric.unit), compare


def _number(value: float | None, unit: str) -> str:
    if value is None:
        return "nothing to measure"
    if unit == "share":
        return f"{100 * value:.1f} %"
    return f"{round(value, 1):g}" if unit == "words" else f"{value:.4f}"


def _plain(text: str) -> str:
    """Text on one line in which Markdown and HTML find nothing to interpret."""
    return _MARKUP.sub(r"\\\1", html.escape(" / ".join(text.strip().splitlines()), quote=False))
