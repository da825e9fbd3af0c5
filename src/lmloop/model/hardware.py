"""What this machine computes fastest, and how a process is made ready for it."""

from __future__ import annotations

import ctypes
import os
import platform
import re
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from lmloop.errors import TrainingError
from lmloop.model import compiled
from lmloop.model.fp8 import multiply_in_float8

if TYPE_CHECKING:
    from lmloop.model.transformer import Transformer

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
"""Numbers of glibc's `mallopt` options."""
_MEMINFO, _CONTROL_GROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup")
_STATUS = Path("/proc/self/status")


def best_device() -> torch.device:
    """The GPU of this process, else the processor: where models learn and answer."""
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def settle_model(model: Transformer, precision: str) -> None:
    """Bring a model to this machine's device and into the arithmetic of a recipe's `precision`.

    Raises `TrainingError` as `settle_dtype` does.
    """
    model.to(device=best_device(), dtype=settle_dtype(precision))
    if precision == "fp8":
        multiply_in_float8(model)


def settle_dtype(precision: str) -> torch.dtype:
    """What a model's weights are on this machine under a recipe's `precision`.

    Raises `TrainingError` where its GPU has no such arithmetic. A processor computes in bfloat16
    even where it has to round every result by itself; float8 would be slower there.
    """
    if precision == "auto":
        return fast_dtype()
    if precision == "fp8":
        if not _gpu_has_float8():
            raise TrainingError(
                "precision = 'fp8' needs an NVIDIA GPU of compute capability 8.9 or more, which "
                "this machine lacks: give 'bfloat16', or 'auto' for the fastest that a device has"
            )
        return torch.bfloat16
    if precision == "bfloat16" and torch.cuda.is_available() and not _gpu_has_bfloat16():
        raise TrainingError(
            f"precision = 'bfloat16' is more than {torch.cuda.get_device_name()} can: give "
            "'float32', or 'auto' for the fastest that a device has"
        )
    dtype: torch.dtype = getattr(torch, precision)
    return dtype


def wait_for(device: torch.device) -> None:
    """Let a GPU end what it was given, so that a clock can be read; a processor has ended it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _gpu_has_float8() -> bool:
    # AMD's capabilities count otherwise, and its first float8 numbers are others.
    is_nvidia = torch.version.hip is None and torch.cuda.is_available()
    return is_nvidia and torch.cuda.get_device_capability() >= (8, 9)


def _gpu_has_bfloat16() -> bool:
    return bool(torch.cuda.is_bf16_supported(including_emulation=False))


def fast_dtype() -> torch.dtype:
    """bfloat16 where GPU or processor multiplies it natively, else float32."""
    if torch.cuda.is_available():
        return torch.bfloat16 if _gpu_has_bfloat16() else torch.float32
    native = torch.cpu._is_avx512_bf16_supported()
    allowed = torch.backends.cpu.get_cpu_capability() == "AVX512"
    return torch.bfloat16 if native and allowed else torch.float32


def expected_rate() -> float:
    """Operations a second that this kind of machine sustains while it trains, to a factor of two.

    Nothing is timed: what follows from it must be the same each time. Measured with small models:
    two cores with AMX 3.1e11, the same held to AVX-512 with bfloat16 1.2e11. Of a GPU, two fifths
    of the bfloat16 rate of one with tensor cores are expected, which is 2.9e12 a multiprocessor.
    """
    if torch.cuda.is_available():
        return 2.9e12 * float(torch.cuda.get_device_properties(0).multi_processor_count)
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity is not None else os.cpu_count() or 1
    if fast_dtype() == torch.bfloat16:
        return cores * (1.5e11 if torch.cpu._is_amx_tile_supported() else 6e10)
    return cores * (5e10 if torch.backends.cpu.get_cpu_capability() == "AVX512" else 2.5e10)


def tune_process() -> None:
    """Make ready for long numeric work; call once in a process of its own, before large tensors.

    Denormal numbers count as zero: a softmax makes them by the million, each a hundred times as
    slow as a normal number. Freed memory stays in the process: handing it back and asking again
    costs a page fault for every 4 KiB of every intermediate result, a third of a training step.
    """
    torch.set_flush_denormal(True)
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def release_memory() -> None:
    """Hand back to the system what a tuned process has freed: call between pieces of long work."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def free_memory() -> int:
    """Bytes that a new program may take: of the GPU, else of the machine and its control group."""
    if torch.cuda.is_available():
        return int(torch.cuda.mem_get_info()[0])
    free = [os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    known = _MEMINFO.read_text(encoding="ascii") if _MEMINFO.is_file() else ""
    found = re.search(r"^MemAvailable:\s+(\d+) kB", known, re.MULTILINE)
    if found is not None:  # pages that hold files can be had as well
        free = [1024 * int(found[1])]
    limit, used = (_CONTROL_GROUP / name for name in ("memory.max", "memory.current"))
    if limit.is_file() and used.is_file() and (most := limit.read_text().strip()) != "max":
        free.append(int(most) - int(used.read_text()))
    return max(0, min(free))


def resident_bytes() -> int:
    """Bytes that this process holds of the machine's memory; 0 where its models are on a GPU."""
    if torch.cuda.is_available() or not _STATUS.is_file():
        return 0
    held = re.search(r"^VmRSS:\s+(\d+) kB", _STATUS.read_text(encoding="ascii"), re.MULTILINE)
    return 0 if held is None else 1024 * int(held[1])


def describe_hardware() -> dict[str, str | int]:
    """What the results of this process depend on bit for bit."""
    known: dict[str, str | int] = {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "instruction_set": torch.backends.cpu.get_cpu_capability(),
        "dtype": str(fast_dtype()).removeprefix("torch."),
        "kernels": compiled.describe(),
    }
    return known | ({"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {})
