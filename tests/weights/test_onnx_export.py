"""ONNX graphs: onnxruntime computes what the model does, in rows of any number and length."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor

from lmloop.errors import ArtifactError, MissingExtraError
from lmloop.model.config import ModelConfig
from lmloop.model.quantized import quantize_int8
from lmloop.model.transformer import Transformer
from lmloop.weights import onnx_export
from lmloop.weights.onnx_export import write_onnx

from ..conftest import random_model, tiny_shape
from ..model.kinds import DECODERS, decoder, draw_pictures, encoder, pair, seeing

QUICK = ("cosine, bare", "convolution, then recurrent")
PAIRS = ("qwen3", "gpt2", "relative, local", "gru", "convolution", "experts")
SIZES = ((1, 1, 1), (1, 8, 3), (3, 9, 4), (4, 17, 12))
"""Rows, tokens of each, tokens of each source: none is what the graph was traced with."""


def open_graph(path: Path) -> Callable[..., Tensor]:
    """The file as a function of its inputs by name."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def compute(**inputs: Tensor) -> Tensor:
        (output,) = session.run(None, {name: each.numpy() for name, each in inputs.items()})
        return torch.from_numpy(output)

    return compute


@torch.no_grad()
def check(config: ModelConfig, folder: Path) -> None:
    """Hold the graph against the model, within 1e-4 of the largest output or of one."""
    model = random_model(config).eval()
    write_onnx(model, folder / "model.onnx")
    assert [each.name for each in folder.iterdir()] == ["model.onnx"]
    compute = open_graph(folder / "model.onnx")
    draw = torch.Generator().manual_seed(0)
    for rows, length, source_length in SIZES:
        inputs = {"tokens": torch.randint(0, config.vocab_size, (rows, length), generator=draw)}
        source = None
        if config.encoder is not None:
            size = rows, source_length
            inputs["source"] = torch.randint(0, config.vocab_size, size, generator=draw)
            source = model.read(inputs["source"])
        forward = model.states if config.head == "none" else model
        expected = forward(inputs["tokens"], source=source)
        given = compute(**inputs)
        assert given.shape == expected.shape
        largest = max(1.0, float(expected.abs().max()))
        assert float((given - expected).abs().max()) < 1e-4 * largest


@pytest.mark.parametrize("kind", QUICK)
def test_a_decoder_without_a_family_is_the_same(kind: str, tmp_path: Path) -> None:
    check(decoder(kind), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [kind for kind in DECODERS if kind not in QUICK])
def test_a_decoder_of_every_kind_is_the_same(kind: str, tmp_path: Path) -> None:
    check(decoder(kind), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("kind", DECODERS)
def test_an_encoder_of_every_kind_is_the_same(kind: str, tmp_path: Path) -> None:
    check(encoder(kind), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{"head": "none", "token_types": 2}, {"head": "transformed"}])
def test_the_states_or_the_masked_head_of_an_encoder_are_the_same(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    check(encoder("gpt2", **changes), tmp_path)
    name = "states" if changes["head"] == "none" else "logits"
    assert [each.name for each in onnx.load(tmp_path / "model.onnx").graph.output] == [name]


@pytest.mark.slow
@pytest.mark.parametrize("kind", PAIRS)
def test_an_encoder_decoder_is_the_same(kind: str, tmp_path: Path) -> None:
    check(pair(kind), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("rows", [1, 3])
@torch.no_grad()
def test_a_model_that_sees_is_the_same(rows: int, tmp_path: Path) -> None:
    model = random_model(decoder("gpt2", encoder=seeing())).eval()
    write_onnx(model, tmp_path / "model.onnx")
    pictures, tokens = draw_pictures(rows), torch.full((rows, 4), 7)
    given = open_graph(tmp_path / "model.onnx")(tokens=tokens, source=pictures)
    expected = model(tokens, source=model.read(pictures))
    torch.testing.assert_close(given, expected, atol=1e-4, rtol=1e-4)
    write_onnx(model.encoder, tmp_path / "eye.onnx")
    given = open_graph(tmp_path / "eye.onnx")(pictures=pictures)
    torch.testing.assert_close(given, model.encoder.states(pictures), atol=1e-4, rtol=1e-4)


def test_weights_leave_in_fp32_and_the_model_stays_as_it_is(tmp_path: Path) -> None:
    model = random_model(decoder("cosine, bare")).to(torch.bfloat16).eval()
    write_onnx(model, tmp_path / "model.onnx")
    assert model.embedding.weight.dtype == torch.bfloat16
    graph = onnx.load(tmp_path / "model.onnx").graph
    axes = [[axis.dim_param for axis in each.type.tensor_type.shape.dim] for each in graph.input]
    assert axes == [["B", "T"]]
    floats = {each.data_type for each in graph.initializer} - {onnx.TensorProto.INT64}
    assert floats == {onnx.TensorProto.FLOAT}
    given = open_graph(tmp_path / "model.onnx")(tokens=torch.tensor([[1, 2, 3]]))
    with torch.no_grad():
        expected = model.float()(torch.tensor([[1, 2, 3]]))
    torch.testing.assert_close(given, expected, atol=1e-4, rtol=1e-4)


def hearing() -> Transformer:
    listener = tiny_shape(causal=False, head="none", audio_bins=8, num_layers=1)
    return Transformer(tiny_shape(encoder=listener))


def small() -> Transformer:
    model = random_model(tiny_shape())
    quantize_int8(model)
    model.config = replace(model.config, int8=True)
    return model


@pytest.mark.parametrize(("make", "told"), [(hearing, "that hears"), (small, "8 bits")])
def test_what_no_graph_can_express_is_refused(
    make: Callable[[], Transformer], told: str, tmp_path: Path
) -> None:
    with pytest.raises(ArtifactError, match=told):
        write_onnx(make(), tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(onnx_export, "find_spec", lambda package: None)
    with pytest.raises(MissingExtraError, match=r"lmloop\[onnx\]"):
        write_onnx(random_model(tiny_shape()), tmp_path / "model.onnx")
