"""What a process knows of its machine, and how it is made ready."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lmloop.errors import TrainingError
from lmloop.model import hardware
from lmloop.model.hardware import best_device, describe_hardware, fast_dtype, settle_dtype


@pytest.mark.parametrize(
    ("native", "capability", "expected"),
    [
        (True, "AVX512", torch.bfloat16),
        (True, "AVX2", torch.float32),
        (False, "AVX512", torch.float32),
    ],
)
def test_bfloat16_is_taken_where_the_processor_multiplies_it(
    monkeypatch: pytest.MonkeyPatch, native: bool, capability: str, expected: torch.dtype
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: native)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert fast_dtype() == expected


def lend_gpu(monkeypatch: pytest.MonkeyPatch, *, has_bfloat16: bool) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Old GPU")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has_bfloat16)


def test_the_gpu_of_this_process_is_taken_where_there_is_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert best_device() == torch.device("cpu")
    lend_gpu(monkeypatch, has_bfloat16=True)
    assert best_device() == torch.device("cuda", 1)
    assert (fast_dtype(), settle_dtype("auto")) == (torch.bfloat16, torch.bfloat16)


def test_a_precision_that_the_device_lacks_is_refused_in_one_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lend_gpu(monkeypatch, has_bfloat16=False)
    with pytest.raises(TrainingError, match="'bfloat16' is more than Old GPU can") as told:
        settle_dtype("bfloat16")
    assert "\n" not in str(told.value)
    assert told.value.exit_code == 2
    assert settle_dtype("auto") == settle_dtype("float32") == torch.float32


def test_a_processor_rounds_to_bfloat16_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    assert settle_dtype("bfloat16") == torch.bfloat16
    assert settle_dtype("auto") == torch.float32


def test_what_exact_depends_on_is_told() -> None:
    told = describe_hardware()
    assert told["torch"] == torch.__version__
    assert told["threads"] == torch.get_num_threads()
    assert told["dtype"] in ("bfloat16", "float32")
    assert told["kernels"] in ("native", "native, AVX-512", "native, AMX", "torch")
    assert told["instruction_set"] == torch.backends.cpu.get_cpu_capability()


def test_a_tuned_process_counts_denormal_numbers_as_zero_and_computes_as_before() -> None:
    # In a process of its own: what it changes cannot be taken back.
    code = """
import torch
from lmloop.model.hardware import tune_process
def tiny():
    return (torch.tensor([1e-38]) / 100).item()
assert tiny() != 0
x = torch.randn(300, 300, generator=torch.Generator().manual_seed(0))
before = x @ x
tune_process()
assert tiny() == 0
for _ in range(50):
    big = torch.ones(1 << 20)
assert torch.allclose(before, x @ x, atol=1e-4)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_freed_memory_stays_with_a_tuned_process_until_it_is_released() -> None:
    code = """
from pathlib import Path
import torch
from lmloop.model.hardware import release_memory, tune_process

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

tune_process()
before = resident()
pieces = [torch.ones(1 << 18) for _ in range(64)]  # 64 MiB in pieces of 1 MiB
pieces.clear()
kept = resident() - before
release_memory()
print(kept, resident() - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    kept, left = map(int, done.stdout.split())
    assert kept > 50 << 20
    assert left < 20 << 20


def test_free_memory_is_what_the_machine_and_its_control_group_leave(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 9000 kB\nMemAvailable:    4000 kB\n")
    monkeypatch.setattr(hardware, "_MEMINFO", meminfo)
    monkeypatch.setattr(hardware, "_CONTROL_GROUP", tmp_path)
    assert hardware.free_memory() == 4000 * 1024
    (tmp_path / "memory.current").write_text("1000\n")
    for limit, free in (("max", 4000 * 1024), ("3500", 2500), ("900", 0)):
        (tmp_path / "memory.max").write_text(f"{limit}\n")
        assert hardware.free_memory() == free
