"""The journal of a run: one JSON line a step, cut back to the snapshot that a run resumes from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class Journal:
    """Appends lines; a line torn by a crash is dropped on the next opening."""

    def __init__(self, path: Path, *, steps: int) -> None:
        """Open the journal with the first `steps` lines kept."""
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        kept = "".join(line + "\n" for line in lines[:steps])
        path.write_text(kept, encoding="utf-8")
        self._stream = path.open("a", encoding="utf-8")

    def append(self, entry: Mapping[str, Any]) -> None:
        """Write one step's line and hand it to the operating system."""
        self._stream.write(json.dumps(entry) + "\n")
        self._stream.flush()

    def close(self) -> None:
        """Close the file."""
        self._stream.close()
