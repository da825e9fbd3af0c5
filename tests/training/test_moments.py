"""Codes of a byte: their levels, what rounding costs, and that nothing positive becomes zero."""

from __future__ import annotations

import pytest
import torch

from lmloop.training.moments import BLOCK, Moment, make_levels

CPU = torch.device("cpu")


def test_levels_are_those_of_the_paper() -> None:
    signed, unsigned = make_levels(signed=True), make_levels(signed=False)
    for levels in (signed, unsigned):
        assert len(set(levels)) == 256
        assert levels[-1] == 1.0
        assert 0.0 in levels
    # The smallest power of ten has one level with a sign: the middle of a tenth and one.
    assert min(each for each in signed if each > 0) == pytest.approx(0.55e-6)
    assert min(each for each in unsigned if each > 0) == pytest.approx(0.325e-6)
    assert sorted(-each for each in signed if 0 < each < 1) == [each for each in signed if each < 0]
    # The largest has 64, so neighbours are 0.9 / 64 apart, and without a sign 128.
    assert signed[-2] - signed[-3] == pytest.approx(0.9 / 64)
    assert unsigned[-2] - unsigned[-3] == pytest.approx(0.9 / 128)


def test_a_number_is_rounded_to_the_nearest_level_of_its_block() -> None:
    moment = Moment(BLOCK + 3, signed=True, device=CPU)
    values = torch.zeros(BLOCK + 3)
    values[:3] = torch.tensor([2.0, -1.0, 1e-3])
    values[BLOCK:] = torch.tensor([1e-5, -1e-5, 0.0])
    whole = slice(0, BLOCK + 3)
    moment.write(whole, values)
    levels = torch.tensor(make_levels(signed=True))
    for index, scale in ((0, 2.0), (1, 2.0), (2, 2.0), (BLOCK, 1e-5), (BLOCK + 1, 1e-5)):
        nearest = levels[(levels - values[index] / scale).abs().argmin()] * scale
        assert moment.read(whole)[index] == pytest.approx(float(nearest), rel=1e-6)
    assert moment.read(whole)[0] == 2.0
    assert moment.read(whole)[-1] == 0.0


@pytest.mark.parametrize("signed", [True, False])
def test_rounding_moves_a_number_little(signed: bool) -> None:
    values = torch.randn(10_000, generator=torch.Generator().manual_seed(0))
    values = values if signed else values.square()
    moment = Moment(len(values), signed=signed, device=CPU)
    moment.write(slice(0, len(values)), values)
    error = (moment.read(slice(0, len(values))) - values).norm() / values.norm()
    assert error < 0.02
    assert moment.codes.nbytes + moment.scales.nbytes == 10_000 + 4 * 40


def test_what_a_step_is_divided_by_never_vanishes() -> None:
    values = torch.tensor([1.0, 1e-12, 0.0])
    unsigned = Moment(3, signed=False, device=CPU)
    unsigned.write(slice(0, 3), values)
    assert bool((unsigned.read(slice(0, 3)) > 0).all())
    unsigned.write(slice(0, 3), torch.zeros(3))
    assert unsigned.read(slice(0, 3)).tolist() == [0.0, 0.0, 0.0]


def test_what_was_written_is_read_and_written_again_unchanged() -> None:
    values = torch.randn(1000, generator=torch.Generator().manual_seed(1))
    values[::BLOCK] = 5.0  # one is a level, minus one is none
    moment = Moment(1000, signed=True, device=CPU)
    whole = slice(0, 1000)
    moment.write(whole, values)
    codes, once = moment.codes.clone(), moment.read(whole)
    moment.write(whole, once)
    assert torch.equal(moment.codes, codes)
    assert torch.equal(moment.read(whole), once)
