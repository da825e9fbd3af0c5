"""Building the compiled passes once, and going without them."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lmloop.model import compiled, kernels
from lmloop.model.compiled import are_native, library, tiles

built = pytest.mark.skipif(not are_native(), reason="no C++ compiler is here")


def draw(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to(torch.bfloat16)


OFF = """
import torch
from lmloop.model.compiled import are_native
from lmloop.model.functions import rms_norm
x = torch.ones(2, 4, dtype=torch.bfloat16).requires_grad_()
y = rms_norm(x, torch.ones(4).bfloat16(), epsilon=0.0)
print(are_native(), float(y.sum().detach()))
"""


@pytest.mark.parametrize("unset", [{"LMLOOP_KERNELS": "off"}, {"CXX": "no-such-compiler"}])
def test_without_them_the_formulas_in_pytorch_serve(
    unset: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in unset.items():
        monkeypatch.setenv(name, value)
    told = subprocess.run(
        [sys.executable, "-c", OFF], capture_output=True, text=True, check=True
    ).stdout
    assert told.split() == ["False", "8.0"]


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder for compiled passes, and nothing that was found before."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    library.cache_clear()
    tiles.cache_clear()
    yield tmp_path / "lmloop"
    library.cache_clear()
    tiles.cache_clear()


@built
def test_they_are_compiled_once(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert are_native()
    (built,) = fresh.iterdir()
    library.cache_clear()
    tiles.cache_clear()
    monkeypatch.setattr(compiled, "_compile", None)
    assert are_native()
    assert list(fresh.iterdir()) == [built]


@built
def test_a_compiler_that_fails_is_said_and_leaves_nothing(
    fresh: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(compiled, "_FLAGS", ("--no-such-flag",))
    with caplog.at_level(logging.WARNING):
        assert not are_native()
    assert "could not be compiled" in caplog.text
    assert list(fresh.iterdir()) == []


@built
def test_code_from_a_folder_that_others_write_to_is_not_run(
    fresh: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fresh.mkdir()
    fresh.chmod(0o777)
    assert not are_native()
    assert "can be written to by others" in caplog.text


@built
def test_products_are_held_to_what_onednn_is_held_to(monkeypatch: pytest.MonkeyPatch) -> None:
    tiles.cache_clear()
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16")
    try:
        assert tiles() < 2
        assert not kernels.can_sum_tokens(draw(64, 64), rows=64)
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
        tiles.cache_clear()
        assert not kernels.has_tiles()
    finally:
        monkeypatch.undo()
        tiles.cache_clear()


@built
def test_an_older_processor_computes_the_same(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounding by whole numbers instead of the instruction, vectors in more pieces."""
    inputs = draw(33, 60), draw(33, 30, seed=1)
    native = kernels.swiglu_backward(inputs[1], inputs[0])
    baseline = [flag for flag in compiled._FLAGS if flag != "-march=native"]
    monkeypatch.setattr(compiled, "_FLAGS", (*baseline, "-ffp-contract=off"))
    library.cache_clear()
    tiles.cache_clear()
    again = kernels.swiglu_backward(inputs[1], inputs[0])
    assert (again - native).abs().max() <= native.abs().max() * 2**-9
