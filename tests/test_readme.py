"""What the pages say is run: verbs exist, examples work, the reference is what help says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.main import get_command

from lmloop.cli import app

ROOT = Path(__file__).parent.parent
READMES = ("README.md", "README.zh-CN.md")


def verbs_named_in(text: str) -> set[str]:
    """Every word that follows `lmloop` in code."""
    code = re.findall(r"^```\w*\n(.*?)^```|`([^`\n]+)`", text, re.DOTALL | re.MULTILINE)
    return set(re.findall(r"^lmloop ([a-z]+)", "\n".join(map("\n".join, code)), re.MULTILINE))


@pytest.mark.parametrize("page", READMES)
def test_the_readme_names_every_verb_and_no_other(page: str) -> None:
    named = verbs_named_in((ROOT / page).read_text(encoding="utf-8"))
    assert named == set(get_command(app).commands)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "page", [path.relative_to(ROOT).as_posix() for path in sorted(ROOT.glob("docs/*.md"))]
)
def test_a_page_names_no_verb_that_is_not_there(page: str) -> None:
    named = verbs_named_in((ROOT / page).read_text(encoding="utf-8"))
    assert named <= set(get_command(app).commands)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "page",
    [
        path.relative_to(ROOT).as_posix()
        for path in sorted(
            [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/*.md")]
        )
    ],
)
def test_the_links_of_a_page_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    targets = re.findall(r"\]\(((?!https?:|#)[^)#\s]+)", text)
    assert [each for each in targets if not ((ROOT / page).parent / each).exists()] == []


def test_the_command_reference_is_what_help_says() -> None:
    done = subprocess.run(
        [sys.executable, "docs/write_cli.py"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    written = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    assert written == done.stdout, "run: python docs/write_cli.py > docs/cli.md"


@pytest.mark.slow
def test_the_python_example_of_the_readme_runs(tmp_path: Path) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    example = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    assert example is not None
    done = subprocess.run(
        [sys.executable, "-c", example[1]],
        cwd=ROOT,
        env={**os.environ, "LMLOOP_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=540,
    )
    assert done.returncode == 0, done.stderr
    # After so few steps an answer may be empty.
    assert re.search(r"\((\d+(, \d+)*,?)?\)\n", done.stdout)
