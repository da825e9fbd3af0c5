"""The figures beside the progress bar, by hand."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from lmloop.learning import FinetuneConfig, PretrainConfig
from lmloop.model.cost import training_flops_per_token
from lmloop.model.transformer import Transformer
from lmloop.tokens.shards import Shards
from lmloop.training import gauge as module
from lmloop.training.gauge import Gauge, describe_step, make_gauge
from lmloop.training.ranks import ALONE, Ranks

from ..conftest import VOCAB_SIZE, tiny_shape


def make_entry(step: int, seconds: float, loss: float = math.log(2)) -> dict[str, float]:
    share = step / 10
    return {
        "step": step,
        "share": share,
        "seconds": seconds,
        "tokens": 100.0 * step,
        "loss": loss,
    }


def test_a_step_is_told_in_bits_per_byte_tokens_a_second_and_share_of_the_peak() -> None:
    gauge = Gauge(bytes_per_token=4.0, flops_per_token=lambda share: 10.0, peak=4000.0)
    assert gauge.read(make_entry(1, 0.5)) == {"bpb": pytest.approx(0.25)}
    entry = make_entry(2, 1.0)
    figures = gauge.read(entry)
    assert figures == {
        "bpb": pytest.approx(0.25),
        "tokens_per_second": pytest.approx(200.0),
        "peak_share": pytest.approx(0.5),
    }
    line = describe_step({**entry, **figures})
    assert line == "step 2  loss 0.693  0.250 bits/byte  200 tok/s  50% of peak"


def test_a_pause_for_a_validation_does_not_lower_the_speed() -> None:
    gauge = Gauge()
    seconds = 0.0
    for step in range(1, 8):
        seconds += 60.0 if step == 5 else 0.5
        figures = gauge.read(make_entry(step, seconds))
    assert figures == {"tokens_per_second": pytest.approx(200.0)}


def test_a_return_to_an_earlier_step_is_no_speed() -> None:
    gauge = Gauge()
    for step, seconds in ((1, 1.0), (2, 2.0), (1, 9.0), (2, 10.0)):
        figures = gauge.read(make_entry(step, seconds))
    assert figures["tokens_per_second"] == pytest.approx(100.0)


def test_a_step_that_is_left_out_has_no_loss() -> None:
    entry = {"step": 1, "seconds": 1.0, "tokens": 100, "skipped": "the loss is nan"}
    assert Gauge(bytes_per_token=4.0).read(entry) == {}
    assert describe_step(entry) == "step 1  left out"


class Second(Ranks):
    rank = 1
    size = 2


@pytest.fixture
def train_splits(shards_folder: Path) -> list[Shards]:
    return [Shards.open(shards_folder, "train")]


def test_the_text_tells_its_bytes_a_token_and_the_machine_its_peak(
    train_splits: list[Shards], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "measure_peak", lambda dtype, device: 1e9)
    model = Transformer(tiny_shape(vocab_size=VOCAB_SIZE, num_layers=1))
    config = PretrainConfig(steps=1, row_tokens=16, batch_tokens=32)
    gauge = make_gauge(
        model, config, splits=train_splits, is_of_text=True, source_tokens=0, ranks=ALONE
    )
    gauge.read(make_entry(1, 1.0))
    figures = gauge.read(make_entry(2, 2.0))
    bytes_per_token = train_splits[0].raw_bytes / train_splits[0].num_tokens
    assert figures["bpb"] == pytest.approx(1 / bytes_per_token)
    flops = training_flops_per_token(model.config, row_tokens=16)
    assert figures["peak_share"] == pytest.approx(100 * flops / 1e9)


def test_the_share_of_the_peak_counts_rows_as_short_as_they_are_cut(
    train_splits: list[Shards], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "measure_peak", lambda dtype, device: 1e9)
    model = Transformer(tiny_shape(vocab_size=VOCAB_SIZE, num_layers=1))
    config = PretrainConfig(steps=10, row_tokens=32, batch_tokens=32, first_row_tokens=8)
    gauge = make_gauge(
        model, config, splits=train_splits, is_of_text=True, source_tokens=0, ranks=ALONE
    )
    gauge.read(make_entry(1, 1.0))
    for step, length in ((2, 8), (5, 16), (9, 32)):
        gauge.read(make_entry(step - 1, step - 1.0))
        share = gauge.read(make_entry(step, float(step)))["peak_share"]
        flops = training_flops_per_token(model.config, row_tokens=length)
        assert share == pytest.approx(100 * flops / 1e9)


def test_what_is_not_known_for_sure_is_not_told(
    train_splits: list[Shards], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "measure_peak", lambda dtype, device: 1e9)
    model = Transformer(tiny_shape(vocab_size=VOCAB_SIZE, num_layers=1))

    def keys(config: PretrainConfig | FinetuneConfig, *, is_of_text: bool) -> set[str]:
        gauge = make_gauge(
            model, config, splits=train_splits, is_of_text=is_of_text, source_tokens=0, ranks=ALONE
        )
        gauge.read(make_entry(1, 1.0))
        return set(gauge.read(make_entry(2, 2.0)))

    speed = {"tokens_per_second"}
    assert keys(FinetuneConfig(steps=1), is_of_text=False) == speed | {"peak_share"}
    smoothed = PretrainConfig(steps=1, label_smoothing=0.1, frozen=("embedding.*",))
    assert keys(smoothed, is_of_text=True) == speed


def test_a_rank_that_tells_nothing_measures_nothing(
    train_splits: list[Shards], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "measure_peak", lambda *given, **more: pytest.fail("measured"))
    model = Transformer(tiny_shape(vocab_size=VOCAB_SIZE, num_layers=1))
    config = PretrainConfig(steps=1)
    make_gauge(model, config, splits=train_splits, is_of_text=True, source_tokens=0, ranks=Second())
