"""The compiled passes of this machine: built once, found again, called by name.

Takes: C++ beside this file and the user's compiler. Gives: calls with tensors and numbers; or the
answer that there is nothing to call. A compiler is a gain, not a need.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lmloop.config import cache_directory, compiler_setting, instruction_setting

if TYPE_CHECKING:
    from jaxtyping import Shaped

logger = logging.getLogger(__name__)

NATIVE = Path(__file__).parent / "native"
AMX = 2
"""What `tiles` calls it."""
_FLAGS = (
    *("-O3", "-march=native", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math"),
    *("-fopenmp", "-fPIC"),
)
_WIDE = "-mprefer-vector-width=512"
"""Of two instruction sets that an x86 processor has, the one that takes more numbers at once."""
_MOST_SECONDS = 120
"""A compiler that is still busy by then is given up; three seconds are usual."""


def are_native() -> bool:
    """Whether the passes are compiled for this machine; makes them ready where they can be."""
    return library() is not None


def describe() -> str:
    """What computes here, as it makes a difference in the last bits."""
    return f"native{('', ', AVX-512', ', AMX')[tiles()]}" if are_native() else "torch"


def call(name: str, *given: Shaped[Tensor, "*any"] | float | None) -> None:
    """A function of the library: tensors by address, sizes as int64, the number of threads last."""
    passes = library()
    assert passes is not None, "fits() was not asked"
    getattr(passes, name)(*map(_pass, given), ctypes.c_int(torch.get_num_threads()))


def _pass(given: Tensor | float | None) -> ctypes.c_void_p | ctypes.c_int64 | ctypes.c_float:
    if given is None or isinstance(given, Tensor):
        return ctypes.c_void_p(None if given is None else given.data_ptr())
    return ctypes.c_int64(given) if isinstance(given, int) else ctypes.c_float(given)


@cache
def tiles() -> int:
    """What products of tiles take: 0 nothing that is here, 1 AVX-512 with bfloat16, 2 AMX."""
    passes, most = library(), instruction_setting()
    if passes is None or not (most is None or "AMX" in most or "BF16" in most):
        return 0
    return int(passes.make_tiles_ready(ctypes.c_int64(most is None or "AMX" in most)))


@cache
def library() -> ctypes.CDLL | None:
    """The compiled passes; None where they are switched off or there is no compiler that can."""
    setting, team = compiler_setting(), _thread_team()
    if setting is None:
        return None
    compiler = shutil.which(setting)
    if compiler is None or team is None:
        logger.warning(
            "training in bfloat16 takes PyTorch's passes, two fifths slower: %s is not here",
            "GCC's OpenMP" if team is None else f"the C++ compiler {setting}",
        )
        return None
    flags = (*_FLAGS, _WIDE) if platform.machine() == "x86_64" else _FLAGS
    status = Path(compiler).resolve().stat()
    known = (compiler, status.st_size, status.st_mtime_ns, flags, str(team), _processor())
    sources, shared = sorted(NATIVE.glob("*.cpp")), sorted(NATIVE.glob("*.h"))
    code = b"".join(each.read_bytes() for each in (*sources, *shared))
    digest = hashlib.sha256(code + repr(known).encode()).hexdigest()[:16]
    try:
        built = _private_folder() / f"kernels-{digest}.so"
        if not built.is_file():
            _compile([compiler, *flags], sources, built, team=team)
        return ctypes.CDLL(str(built))
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        logger.warning("training passes could not be compiled, PyTorch's are taken: %s", error)
        return None


def _compile(command: list[str], sources: Sequence[Path], built: Path, *, team: Path) -> None:
    """Compile beside, all sources at once, and rename: two processes end with one whole file."""
    with tempfile.TemporaryDirectory(dir=built.parent) as folder:
        made, parts = Path(folder, built.name), [Path(folder, f"{s.stem}.o") for s in sources]
        run = partial(subprocess.run, check=True, capture_output=True, timeout=_MOST_SECONDS)
        pairs = zip(sources, parts, strict=True)
        with ThreadPoolExecutor() as pool:
            list(pool.map(run, ([*command, "-c", str(s), "-o", str(part)] for s, part in pairs)))
        run([*command, "-shared", *map(str, parts), str(team), "-o", str(made)])
        made.replace(built)


def _private_folder() -> Path:
    """Where compiled passes stay; code is run from there, so it must be this user's alone.

    Raises `PermissionError` where it is not.
    """
    folder = cache_directory()
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    status = folder.stat()
    if status.st_uid != os.geteuid() or status.st_mode & 0o022:
        raise PermissionError(f"{folder} can be written to by others")
    return folder


def _thread_team() -> Path | None:
    """The library whose threads PyTorch's operators use: another team would wait beside it."""
    maps = Path("/proc/self/maps")
    found = re.search(r"\S*/libgomp\S*$", maps.read_text(), re.MULTILINE) if maps.exists() else None
    return Path(found[0]) if found else None


def _processor() -> str:
    """What the machine can, so that a home on a shared disk serves unlike ones."""
    path = Path("/proc/cpuinfo")
    found = re.search(
        r"^(?:flags|Features)\s*:.*$", path.read_text() if path.exists() else "", re.M
    )
    return found[0] if found else platform.processor()
