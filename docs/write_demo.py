"""Print `docs/demo.md` from a home's newest report: figures, and twenty answers as they came."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from lmloop.store.artifact import ArtifactStore

SHOWN = 20


def render(home: Path) -> str:
    """The whole page; exits with a message where the home has no report."""
    reports = [artifact for artifact in ArtifactStore(home).all() if artifact.kind == "report"]
    if not reports:
        raise SystemExit(f"{home} has no report: run `lmloop run recipes/chat.toml` first")
    folder = reports[-1].path
    metrics = json.loads((folder / "report.json").read_text("utf-8"))["metrics"]
    lines = (folder / "exchanges.jsonl").read_text("utf-8").splitlines()
    parts = [
        "# What the demo's model says",
        "",
        "Made by `python docs/write_demo.py .lmloop > docs/demo.md` after `make demo`. The openers "
        f"are the first {SHOWN} of {len(lines)} held-out conversations in the order of their "
        "hashes; the answers stand as they came, each sampled once with the seed of the recipe. "
        "The model has learnt for five minutes on two cores: it chats, it knows nothing.",
        "",
        "| figure | value |",
        "| --- | --- |",
        *(f"| {name} | {_value(entry)} |" for name, entry in metrics.items()),
        "",
    ]
    for number, line in enumerate(lines[:SHOWN], start=1):
        exchange = json.loads(line)
        parts += [f"**{number}.** {_quote(exchange['opener'])}", ""]
        parts += ["> " + _quote(exchange["answer"]), ""]
    return "\n".join(parts)


def _value(entry: object) -> str:
    value = entry["value"] if isinstance(entry, dict) else entry
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def _quote(text: str) -> str:
    """Text as Markdown shows it literally, a line break as a slash."""
    text = " / ".join(text.split("\n")).strip()
    return "".join("\\" + c if c in "\\`*_{}[]<>#|~&" else c for c in text)


if __name__ == "__main__":
    print(render(Path(sys.argv[1] if len(sys.argv) > 1 else ".lmloop")), end="")
