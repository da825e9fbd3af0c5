"""Real engines under load: two swaps and a rollback, as the benchmark does them, made short."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).resolve().parents[2] / "benchmarks" / "bench_swap.py"


@pytest.mark.slow
def test_no_request_fails_and_no_answer_mixes_weights(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(BENCHMARK), "--seconds", "6", "--json"],
        check=True,
        capture_output=True,
        text=True,
        timeout=400,
        cwd=tmp_path,
    )
    rows = {row["what"]: row["ours"] for row in map(json.loads, done.stdout.splitlines())}
    assert (rows["swap.failed"], rows["swap.mixed"]) == (0, 0)
    assert rows["swap.answers"] > 16
    # Times are the benchmark's to judge, on a machine that does nothing else.
    assert rows["swap.rollback"] < 30
