"""The report in its four forms: the same figures, and no text taken for markup."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, Literal

import pytest
from playwright.sync_api import expect, sync_playwright

from lmloop.evaluation.answers import Exchange
from lmloop.evaluation.metrics import Metric
from lmloop.evaluation.report import (
    SHOWN,
    Report,
    render_html,
    render_markdown,
    write_report,
)

CHROMIUM = Path("/usr/bin/chromium")
EVIL = "<script>alert('x')</script> & </script><img src=x onerror=alert(1)> {{ 7*7 }}"
FACTS: dict[str, Any] = {
    "model": {"fingerprint": "f" * 64, "parameters": 4_200_000, "context_length": 512},
    "base": None,
    "heldout": {"documents": 3, "tokens": 500, "raw_bytes": 1700},
    "arithmetic": {
        "dtype": "bfloat16",
        "documents_checked": 2,
        "bits_per_byte_minus_float32": -0.000075,
    },
    "ranking": {"questions": 9, "hits_at_1": {"gain": 0.5, "mean": 0.25, "total": 0.125}},
    "settings": {"openers": 2},
    "seed": 7,
}
CURVE = {"steps": [1, 2], "seconds": [0.5, 1.0], "values": [5.0, None]}
CURVES = [{"stage": EVIL, "loss": CURVE, "validation_bpb": CURVE}]


def make_report(*, exchanges: int = 2, curves: bool = True, **facts: Any) -> Report:
    return Report(
        facts={**FACTS, **facts},
        metrics=[
            Metric(
                name="bits_per_byte",
                value=1.75,
                unit="bits",
                interval=(1.7, 1.8),
                base=1.9,
                explanation="bits a byte",
            ),
            Metric(
                name="hits_at_1",
                value=0.155,
                unit="share",
                reference=0.05,
                reference_name="chance",
                explanation="true reply first",
            ),
            Metric(name="longest_copy", value=7, unit="words", explanation="words in a row"),
            Metric(name="empty_share", value=None, unit="share", explanation="nothing said"),
        ],
        curves=CURVES if curves else [],
        exchanges=[
            Exchange(f"{EVIL} {number}", f"*bold* `{EVIL}`\n# no heading", "stop", 5, EVIL, 3, 2)
            for number in range(exchanges)
        ],
    )


class Page(HTMLParser):
    """Elements and text of a page, as a browser reads them."""

    VOID = {"meta", "link", "img", "br"}

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open:
            self.texts.setdefault(self.open[-1], []).append(data.strip())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def test_all_four_files_are_written(tmp_path: Path) -> None:
    report = make_report()
    write_report(report, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "exchanges.jsonl",
        "plotly.min.js",
        "report.html",
        "report.json",
        "report.md",
    ]
    data = json.loads((tmp_path / "report.json").read_text())
    assert data["metrics"]["bits_per_byte"]["value"] == 1.75
    assert data["metrics"]["bits_per_byte"]["interval"] == [1.7, 1.8]
    assert (data["seed"], data["curves"]) == (7, CURVES)
    lines = (tmp_path / "exchanges.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [each.to_json() for each in report.exchanges]
    assert (tmp_path / "report.md").read_text() == render_markdown(report)
    assert (tmp_path / "report.html").read_text() == render_html(report)


def test_the_page_draws_with_the_script_that_lies_beside_it(tmp_path: Path) -> None:
    write_report(make_report(), tmp_path)
    assert "plotly.js v" in (tmp_path / "plotly.min.js").read_text()[:400]
    page = Page(render_html(make_report()))
    assert [each["src"] for each in page.all("script") if "src" in each] == ["plotly.min.js"]
    places = [value for _, each in page.elements for value in each.values() if value]
    assert not [value for value in places if re.match(r"(https?:)?//", value)]
    assert "fetch(" not in render_html(make_report())


def test_without_curves_nothing_is_drawn(tmp_path: Path) -> None:
    write_report(make_report(curves=False), tmp_path)
    assert not (tmp_path / "plotly.min.js").exists()
    assert not Page((tmp_path / "report.html").read_text()).all("script")


def test_what_people_and_models_say_is_never_markup_on_the_page() -> None:
    page = Page(render_html(make_report(curves=True)))
    assert not page.all("img")
    assert len(page.all("script")) == 3
    assert f"{EVIL} 0" in page.texts["p"]
    assert f"*bold* `{EVIL}`\n# no heading" in page.texts["p"]
    curves = next(text for text in page.texts["script"] if text.startswith("[{"))
    assert json.loads(curves) == CURVES


def test_what_people_and_models_say_is_never_markup_in_markdown() -> None:
    text = render_markdown(make_report())
    assert "<" not in text
    assert "\n# no" not in text
    assert r"\*bold\* \`&lt;script&gt;" in text
    assert " / # no heading" in text


def test_figures_are_told_with_interval_base_and_what_to_compare_with() -> None:
    text = render_markdown(make_report())
    row = "| bits_per_byte | 1.7500 (1.7000 to 1.8000) | 1.9000 |  | bits a byte |"
    assert row in text
    assert "| hits_at_1 | 15.5 % |  | chance: 5.0 % | true reply first |" in text
    assert "| longest_copy | 7 |  |  | words in a row |" in text
    assert "| empty_share | nothing to measure |  |  | nothing said |" in text
    cells = Page(render_html(make_report())).texts["td"]
    assert {"1.7500 (1.7000 to 1.8000)", "15.5 %", "chance: 5.0 %", "1.9000"} <= set(cells)


def test_the_facts_are_told_in_both_forms() -> None:
    report = make_report()
    for told in (
        "model ffffffffffff: 4.20 million parameters, context 512 tokens",
        "held-out text: 3 documents, 500 tokens, 1700 bytes",
        "bfloat16; on the first 2 documents float32 differs by 0.000075 bits per byte",
        "seed 7",
        "mean log-probability 25.0 %, total log-probability 12.5 %",
    ):
        assert told in render_markdown(report)
        assert told in render_html(report)


def test_text_without_questions_or_answers_is_reported_all_the_same() -> None:
    report = make_report(exchanges=0, curves=False, ranking={"questions": 0})
    assert "hits@1 of" not in render_markdown(report)
    assert "0 of 0 answers" in render_html(report)


@pytest.mark.parametrize("count", [1, SHOWN, SHOWN + 5])
def test_the_readable_forms_show_the_first_exchanges(count: int) -> None:
    report = make_report(exchanges=count)
    shown = min(count, SHOWN)
    assert f"{shown} of {count} answers" in render_html(report)
    assert render_markdown(report).count("→") == shown
    assert len(Page(render_html(report)).all("article")) == shown


def test_a_stage_is_summarised_in_a_line() -> None:
    curves = [
        {"stage": "pretrain", "loss": {"steps": [9], "seconds": [61.4], "values": [3.5]}},
        {"stage": "finetune", "loss": {"steps": [], "seconds": [], "values": []}},
    ]
    told = render_markdown(Report(facts=FACTS, metrics=[], exchanges=[], curves=curves))
    assert "- pretrain: until step 9, second 61, loss 3.5" in told
    assert "- finetune: no loss logged" in told


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_browser_draws_both_curves_and_fetches_nothing_else(
    tmp_path: Path, scheme: Literal["light", "dark"]
) -> None:
    if not CHROMIUM.exists():
        pytest.skip(f"{CHROMIUM} is not installed: the page is tested with Debian's Chromium")
    write_report(make_report(), tmp_path)
    asked: list[str] = []
    complaints: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(color_scheme=scheme)
        page.on("request", lambda request: asked.append(Path(request.url).name))
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto((tmp_path / "report.html").as_uri())
        for plot in ("loss", "validation_bpb"):
            expect(page.locator(f"#{plot} .scatterlayer .trace")).to_have_count(1)
        page.get_by_role("button", name="Seconds").click()
        expect(page.locator("#loss .xtitle")).to_have_text("seconds")
        paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
        browser.close()
    assert asked == ["report.html", "plotly.min.js"]
    assert complaints == []
    assert paper == {"light": "rgb(251, 251, 249)", "dark": "rgb(19, 22, 21)"}[scheme]
