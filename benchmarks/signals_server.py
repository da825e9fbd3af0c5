"""A server on a free port, with signals and events or with neither: a child that prints its URL."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from lmloop.pipeline import open_home
from lmloop.sections import ServeConfig
from lmloop.serving.events import EventWriter
from lmloop.serving.server import serve


def record_nothing(self: EventWriter, *arguments: Any, **options: Any) -> None:
    """Stand in for `EventWriter.record`."""


def main(folder: Path, home: Path, mode: str) -> None:
    """Serve until a signal; `mode` is on or off."""
    if mode == "off":
        EventWriter.record = record_nothing  # type: ignore[method-assign]
    serve(
        folder,
        ServeConfig(port=0, signals=mode == "on"),
        model_name="model",
        database=open_home(home),
        on_ready=lambda url: print(url, flush=True),
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
