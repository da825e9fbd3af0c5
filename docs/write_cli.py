"""Print `docs/cli.md`, the reference of all verbs, from what `--help` says."""

from __future__ import annotations

from typer.main import get_command
from typer.testing import CliRunner

from lmloop.cli import app


def render() -> str:
    """The whole page."""
    runner = CliRunner(env={"TERMINAL_WIDTH": "88", "COLUMNS": "88"})
    verbs = list(get_command(app).commands)  # type: ignore[attr-defined]
    parts = [
        "# The command line\n",
        "Made by `python docs/write_cli.py > docs/cli.md`. Recipe keys are given to the verbs that "
        "take a recipe as `--section.key=value`.\n",
    ]
    for arguments in ([], *([verb] for verb in verbs)):
        title = " ".join(["lmloop", *arguments])
        text = runner.invoke(app, [*arguments, "--help"], prog_name="lmloop").output
        parts.append(f"## {title}\n\n```text\n{text.strip()}\n```\n")
    return "\n".join(parts)


if __name__ == "__main__":
    print(render(), end="")
