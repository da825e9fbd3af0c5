"""The processes of a run, as one of them sees itself."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from lmloop.errors import TrainingError
from lmloop.training.ranks import ALONE, Ranks, join_ranks


class Third(Ranks):
    """The last of three."""

    rank, size = 2, 3


def test_one_process_alone_agrees_with_itself() -> None:
    tensor = torch.tensor([1.0, 2.0])
    ALONE.add_up(tensor)
    ALONE.share(tensor)
    assert tensor.tolist() == [1.0, 2.0]
    assert (ALONE.agree(0.5), ALONE.total(3.0), ALONE.collect("a")) == (0.5, 3.0, ["a"])
    assert ALONE.is_first
    assert not Third().is_first
    with join_ranks(None) as ranks:
        assert ranks is ALONE


def test_every_rank_takes_its_part_of_a_batch_in_their_order() -> None:
    assert ALONE.part(12, 6) == (12, 6)
    assert Third().part(12, 6) == (16, 2)


def test_ranks_that_compute_together_take_the_same_part() -> None:
    parts = []
    for rank in range(4):
        each = Ranks()
        each.rank, each.size = rank, 4
        parts.append(each.part(8, 6, copies=2))
    assert parts == [(8, 3), (8, 3), (11, 3), (11, 3)]


@pytest.mark.parametrize("rows", [1, 2, 4])
def test_rows_that_cannot_be_dealt_out_evenly_are_refused_in_one_line(rows: int) -> None:
    with pytest.raises(TrainingError, match=rf"^a batch of {rows} rows .* to 3 ranks: .*fewer$"):
        Third().part(0, rows)


def test_a_text_of_fewer_rows_than_ranks_is_refused_in_one_line() -> None:
    Third().require_rows(3, row_tokens=16)
    Third().require_rows(1, row_tokens=16, copies=3)
    ALONE.require_rows(1, row_tokens=16)
    with pytest.raises(TrainingError, match=r"^the text has 2 rows of 16 .* 3 ranks: .*fewer$"):
        Third().require_rows(2, row_tokens=16)


def test_a_process_alone_imports_no_torch() -> None:
    code = "import sys, lmloop.training.ranks; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("False\n", "")
