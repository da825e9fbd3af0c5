"""What the benchmarks share: peers in environments of their own, rounds in turn, rows as JSON.

A row is `{"what", "unit", "ours", "peer_name", "peer", "ratio", "limit", "share"}`; a ratio above 1
means that ours is better.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
TORCH = "torch>=2.10,<2.14"


def make_parser(description: str | None) -> argparse.ArgumentParser:
    """The arguments of every benchmark."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--json", action="store_true", help="one JSON object a line, nothing else")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/")
    return parser


def parse_arguments(description: str) -> argparse.Namespace:
    """The arguments of a benchmark that repeats what it does."""
    parser = make_parser(description)
    parser.add_argument("--rounds", type=int, default=3, help="repetitions; medians are shown")
    return parser.parse_args()


def peer_python(name: str, packages: Sequence[str], beside: Sequence[str] = (TORCH,)) -> Path:
    """The Python of a peer's own environment `.venv-peers/<name>`, made on first use."""
    folder = ROOT / ".venv-peers" / name
    python = folder / "bin" / "python"
    if not (folder / "ready").exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        command = [str(python), "-m", "pip", "install", "--quiet", *beside, *packages]
        subprocess.run(command, check=True, stdout=sys.stderr)
        (folder / "ready").touch()
    return python


def run_script(python: Path | str, script: Path, *arguments: str) -> dict[str, Any]:
    """The JSON object that a script prints as its last line."""
    command = [str(python), str(script), *arguments]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def median(values: Sequence[float]) -> float:
    """The middle value."""
    return statistics.median(values)


def make_row(
    what: str,
    unit: str,
    ours: float,
    *,
    peer_name: str | None = None,
    peer: float | None = None,
    limit: float | None = None,
    smaller_is_better: bool = False,
) -> dict[str, Any]:
    """One row; ratio and share are above 1 where ours is better than peer or limit."""

    def compare(other: float | None) -> float | None:
        if other is None or not ours:
            return None
        return round(other / ours if smaller_is_better else ours / other, 3)

    return {
        "what": what,
        "unit": unit,
        "ours": round(ours, 4),
        "peer_name": peer_name,
        "peer": None if peer is None else round(peer, 4),
        "ratio": compare(peer),
        "limit": None if limit is None else round(limit, 4),
        "share": compare(limit),
    }


def report(
    name: str,
    rows: Sequence[dict[str, Any]],
    arguments: argparse.Namespace,
    *,
    of: str | None = None,
) -> None:
    """Print the rows, and with --save keep them with machine, versions and command.

    `of` tells this way of running a benchmark from its usual one.
    """
    for row in rows:
        print(json.dumps(row) if arguments.json else _describe(row))
    if arguments.save:
        machine = _machine()
        slug = "".join(c if c.isalnum() else "-" for c in machine["processor"].lower())
        path = ROOT / "benchmarks" / "results" / f"{time.strftime('%Y-%m-%d')}-{slug}.json"
        path.parent.mkdir(exist_ok=True)
        data = json.loads(path.read_text()) if path.exists() else {"machine": machine, "runs": {}}
        command = " ".join(["python", f"benchmarks/{name}.py", *sys.argv[1:]])
        run = name if of is None else f"{name} {of}"
        data["runs"][run] = {"command": command, "rows": list(rows)}
        path.write_text(json.dumps(data, indent=1) + "\n")


def _describe(row: dict[str, Any]) -> str:
    text = f"{row['what']:<24} {_number(row['ours'])} {row['unit']}"
    if row["peer"] is not None:
        text += f"   {row['peer_name']} {_number(row['peer'])}, ratio {row['ratio']:.2f}"
    if row["limit"] is not None:
        text += f"   limit {_number(row['limit'])}"
        text += "" if row["share"] is None else f", share {row['share']:.2f}"
    return text


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _machine() -> dict[str, Any]:
    from importlib.metadata import version

    names = [
        line.split(":", 1)[1].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    return {
        "processor": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch": version("torch"),
        "lmloop": version("lmloop"),
    }
