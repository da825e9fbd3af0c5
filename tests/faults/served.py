"""A server of its own process that follows the registry of a test's home, with fake engines.

Usage: python -m tests.faults.served FOLDER SWAP. Its address is written when it is ready.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from pathlib import Path
from typing import Any

from lmloop.sections import ServeConfig
from lmloop.serving.server import listen, run_server

from ..serving.home import NAME, Home


def main(folder: str, swap: Any) -> None:
    home = Home(Path(folder))
    live = home.registry.read()["live"]
    with contextlib.closing(listen("127.0.0.1", 0)) as listener:
        asyncio.run(
            run_server(
                listener,
                spec=home.make_spec(live),
                config=ServeConfig(port=0, max_running=4, max_waiting=60, swap=swap),
                model_name=NAME,
                model_created=1,
                database=home.database,
                on_ready=lambda url: print(url, flush=True),
                registry=home.registry,
                make_spec=home.make_spec,
            )
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
