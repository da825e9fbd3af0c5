"""Span corruption: nothing is lost, lengths are known before, and T5's draws come out."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmloop.errors import TrainingError
from lmloop.tokens.objectives import prefix
from lmloop.tokens.spans import (
    SpanCorruption,
    count_spans,
    draw_noise,
    longest_text,
    predict_lengths,
    span_corruption,
    split_spans,
)

from ..reference import spans as reference

SENTINELS = tuple(range(999, 899, -1))
START, END = 0, 1

densities = st.floats(0, 0.99)
span_lengths = st.floats(1, 10)
seeds = st.integers(0, 2**32)


def make_options(**changes: Any) -> SpanCorruption:
    settings: dict[str, Any] = {"sentinels": SENTINELS, "start_id": START, "end_id": END}
    return SpanCorruption(**settings | changes)


def test_a_text_is_split_as_in_the_papers_figure() -> None:
    # "Thank you for inviting me to your party last week", "for inviting" and "last" leave.
    noise = np.array([0, 0, 1, 1, 0, 0, 0, 0, 1, 0], dtype=np.bool_)
    source, targets = split_spans(list(range(10, 20)), noise, make_options())
    assert source.tolist() == [10, 11, 999, 14, 15, 16, 17, 998, 19, END]
    assert targets.tolist() == [999, 12, 13, 998, 18, END]


def test_the_decoder_reads_its_targets_one_place_later() -> None:
    generator = np.random.default_rng(0)
    example = span_corruption(list(range(10, 40)), make_options(), generator=generator)
    assert example.tokens.tolist() == [START, *example.targets[:-1].tolist()]
    assert example.learnt.all()
    assert example.is_causal
    assert example.source is not None
    assert example.source[-1] == example.targets[-1] == END


def test_a_decoder_alone_learns_the_spans_behind_the_source_as_its_prefix() -> None:
    noise = np.array([False, True, True, False])
    source, targets = split_spans([10, 11, 12, 13], noise, make_options())
    example = prefix(np.append(source, targets), prefix_length=len(source))
    assert example.tokens.tolist() == [10, 999, 13, END, 999, 11, 12, END]
    assert example.targets[example.learnt].tolist() == targets.tolist()
    assert example.order.tolist() == [0, 0, 0, 0, 1, 2, 3, 4]


@given(length=st.integers(0, 200), density=densities, mean=span_lengths, seed=seeds)
def test_source_and_targets_reassemble_the_text(
    length: int, density: float, mean: float, seed: int
) -> None:
    text = np.random.default_rng(seed).integers(2, 899, size=length).tolist()
    options = make_options(noise_density=density, mean_span_length=mean, end_id=None)
    example = span_corruption(text, options, generator=np.random.default_rng(seed))
    assert example.source is not None
    source, targets = example.source.tolist(), example.targets.tolist()
    assert reference.restore(source, targets, SENTINELS) == text


@given(marks=st.lists(st.booleans(), max_size=40))
def test_any_noise_is_split_as_one_token_at_a_time(marks: list[bool]) -> None:
    text = list(range(10, 10 + len(marks)))
    noise = np.array(marks, dtype=np.bool_)
    source, targets = split_spans(text, noise, make_options(end_id=None))
    assert (source.tolist(), targets.tolist()) == reference.split(text, marks, SENTINELS)
    assert source.dtype == targets.dtype == np.int64


@given(length=st.integers(2, 600), density=st.floats(0.01, 0.5), mean=span_lengths, seed=seeds)
def test_the_noise_is_what_the_published_code_draws(
    length: int, density: float, mean: float, seed: int
) -> None:
    options = make_options(noise_density=density, mean_span_length=mean)
    drawn = draw_noise(length, options, generator=np.random.default_rng(seed))
    assert drawn.tolist() == reference.draw_noise(
        length,
        density=density,
        mean_span_length=mean,
        generator=np.random.default_rng(seed),
    )


@given(length=st.integers(0, 300), density=densities, mean=span_lengths, seed=seeds)
def test_lengths_are_known_before_anything_is_drawn(
    length: int, density: float, mean: float, seed: int
) -> None:
    options = make_options(
        noise_density=density, mean_span_length=mean, sentinels=tuple(range(1000, 1200))
    )
    text = np.full(length, 7)
    example = span_corruption(text, options, generator=np.random.default_rng(seed))
    assert example.source is not None
    assert predict_lengths(length, options) == (len(example.source), len(example.targets))


@given(length=st.integers(2, 300), density=densities, mean=span_lengths, seed=seeds)
def test_as_many_tokens_leave_in_as_many_spans_as_counted(
    length: int, density: float, mean: float, seed: int
) -> None:
    options = make_options(noise_density=density, mean_span_length=mean)
    noise = draw_noise(length, options, generator=np.random.default_rng(seed)).astype(int)
    begins = np.diff(noise, prepend=0) == 1
    assert (noise.sum(), begins.sum()) == count_spans(length, options)
    assert noise[0] == 0


def test_t5s_lengths_come_out() -> None:
    # The paper's setting: 512 inputs; its code gives 568 tokens of text and 114 targets.
    options = make_options()
    assert longest_text(512, options) == 568
    assert predict_lengths(568, options) == (512, 114)


@pytest.mark.parametrize("source_length", [16, 64, 100, 511, 1024])
def test_the_longest_text_is_that_of_the_published_helper(source_length: int) -> None:
    text, targets = reference.lengths_for(source_length, density=0.15, mean_span_length=3.0)
    options = make_options()
    assert longest_text(source_length, options) == text
    assert predict_lengths(text, options)[1] == targets


@given(source_length=st.integers(2, 80), density=st.floats(0, 0.9), mean=span_lengths)
def test_a_longer_text_than_the_longest_does_not_fit(
    source_length: int, density: float, mean: float
) -> None:
    options = make_options(noise_density=density, mean_span_length=mean)
    longest = longest_text(source_length, options)
    assert predict_lengths(longest, options)[0] <= source_length
    assert predict_lengths(longest + 1, options)[0] > source_length


def test_no_text_fits_where_there_is_room_for_the_end_only() -> None:
    assert longest_text(1, make_options()) == 0


def test_each_way_to_cut_is_equally_likely() -> None:
    # 12 tokens, half of them noise in 3 spans: 10 ways to cut 6 into 3, for both kinds of run.
    options = make_options(noise_density=0.5, mean_span_length=2.0)
    generator = np.random.default_rng(0)
    drawn = Counter(str(draw_noise(12, options, generator=generator)) for _ in range(5000))
    assert len(drawn) == 100
    expected = 5000 / 100
    chi_square = sum((count - expected) ** 2 / expected for count in drawn.values())
    assert chi_square < 148.2  # 99.9 % of 99 degrees of freedom


def test_the_share_and_the_mean_span_length_are_those_asked_for() -> None:
    options = make_options(noise_density=0.15, mean_span_length=3.0)
    assert count_spans(1000, options) == (150, 50)
    assert count_spans(100, make_options(noise_density=0.5, mean_span_length=8)) == (50, 6)


def test_the_same_generator_gives_the_same_row() -> None:
    def make(seed: int) -> list[int]:
        generator = np.random.default_rng([seed, 5])
        return span_corruption(range(2, 200), make_options(), generator=generator).targets.tolist()

    assert make(0) == make(0)
    assert make(0) != make(1)


def test_an_empty_text_has_only_ends() -> None:
    example = span_corruption([], make_options(), generator=np.random.default_rng(0))
    assert example.source is not None
    assert (example.source.tolist(), example.targets.tolist()) == ([END], [END])
    bare = span_corruption([], make_options(end_id=None), generator=np.random.default_rng(0))
    assert bare.source is not None
    assert (len(bare.source), len(bare.targets), len(bare.tokens)) == (0, 0, 0)


def test_one_token_stays_whole() -> None:
    example = span_corruption([7], make_options(), generator=np.random.default_rng(0))
    assert example.source is not None
    assert (example.source.tolist(), example.targets.tolist()) == ([7, END], [END])


def test_a_text_shorter_than_a_span_loses_one_token() -> None:
    example = span_corruption([7, 8], make_options(), generator=np.random.default_rng(0))
    assert example.source is not None
    assert example.source.tolist() == [7, 999, END]
    assert example.targets.tolist() == [999, 8, END]


def test_a_density_of_nothing_leaves_the_text() -> None:
    options = make_options(noise_density=0.0)
    example = span_corruption([7, 8, 9], options, generator=np.random.default_rng(0))
    assert example.source is not None
    assert example.source.tolist() == [7, 8, 9, END]


def test_sentinels_that_run_out_are_told_with_what_to_do() -> None:
    options = make_options(sentinels=(999, 998))
    with pytest.raises(TrainingError, match="100 tokens has 5 spans but there are 2 sentinels"):
        span_corruption(range(2, 102), options, generator=np.random.default_rng(0))


def test_a_text_that_contains_a_sentinel_is_refused() -> None:
    with pytest.raises(TrainingError, match="the text contains a sentinel"):
        span_corruption([2, 999, 3], make_options(), generator=np.random.default_rng(0))


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"noise_density": 1.0}, "noise_density is 1.0: give a share from 0 to below 1"),
        ({"noise_density": -0.1}, "noise_density is -0.1"),
        ({"noise_density": float("nan")}, "noise_density is nan"),
        ({"mean_span_length": 0.5}, "mean_span_length is 0.5"),
        ({"sentinels": (9, 9)}, "two sentinels have the same id"),
    ],
)
def test_options_that_cannot_be_are_refused(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(TrainingError, match=complaint):
        make_options(**changes)
