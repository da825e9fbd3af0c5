"""A model as an ONNX graph, for programs that know neither PyTorch nor its family.

Takes: a model. Gives: one file: `tokens` int64 [B, T] to `logits` [B, T, V], or to `states`
[B, T, D] where it has no head; of an encoder-decoder with `source` int64 [B, S] beside the tokens.
Of a stack that sees, `source`, or `pictures` where it is alone, is float [B, C, H, W]. B, T and S
are free. The graph keeps no cache: each call reads its rows from their beginning.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from lmloop.errors import ArtifactError, MissingExtraError
from lmloop.model.config import ModelConfig
from lmloop.model.feed_forward import MixtureOfExperts, activate
from lmloop.model.transformer import Transformer

if TYPE_CHECKING:
    from jaxtyping import Float, Int

LARGEST_FILE = 2_000_000_000
"""Bytes of weights beyond which ONNX keeps them in a second file, named `FILE.data`."""


class _Rows(nn.Module):
    """What the graph computes."""

    def __init__(self, model: Transformer) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        rows: Int[Tensor, "B T"] | Float[Tensor, "B C H W"],
        source: Int[Tensor, "B S"] | Float[Tensor, "B C H W"] | None = None,
    ) -> Float[Tensor, "B T X"]:
        read = None if source is None else self.model.read(source)
        compute = self.model.states if self.model.head is None else self.model
        computed: Tensor = compute(rows, source=read)
        return computed


class _AllExperts(nn.Module):
    """The same mixture with each token through every expert: a graph has no lists of its tokens."""

    def __init__(self, mixture: MixtureOfExperts) -> None:
        super().__init__()
        self.mixture = mixture

    def forward(self, x: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
        mixture = self.mixture
        chances = mixture.router(x).softmax(-1)
        shares, chosen = mixture.choose(chances)
        weights = torch.zeros_like(chances).scatter(1, chosen, shares)
        inner = torch.einsum("nd,eid->nei", x, mixture.up)
        inner = activate(inner, activation=mixture.activation, gated=mixture.gated)
        output = torch.einsum("nei,edi,ne->nd", inner, mixture.down, weights)
        return output if mixture.shared is None else output + mixture.shared(x)


def write_onnx(model: Transformer, path: Path) -> None:
    """Write a model into `path`, its weights in fp32.

    Raises `ArtifactError` for a kind of model that no graph here can express, `MissingExtraError`
    where the extra `onnx` is not installed.
    """
    for package in ("onnx", "onnxscript", "onnxruntime"):
        if find_spec(package) is None:
            raise MissingExtraError(package=package, extra="onnx")
    if model.config.int8:
        raise ArtifactError("weights of 8 bits do not leave as ONNX: export what they were made of")
    if model.config.encoder is not None and model.config.encoder.audio_bins:
        raise ArtifactError("a model that hears does not leave as ONNX: those that read or see do")
    # Of different sizes, none of them one, so that none is taken for a constant or for another.
    read = {"rows": _draw_rows(model.config, length=5, axis="T")}
    if model.config.encoder is not None:
        read["source"] = _draw_rows(model.config.encoder, length=7, axis="S")
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            _Rows(_spell_out(model)).eval(),
            kwargs={name: rows for name, (rows, _) in read.items()},
            input_names=["tokens" if model.config.picture is None else "pictures", *[*read][1:]],
            output_names=["states" if model.head is None else "logits"],
            dynamic_shapes={name: axes for name, (_, axes) in read.items()},
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    for node in program.model.graph:  # inner sizes that tracing has seen are no promise
        for value in node.outputs:
            value.shape = value.shape if value.is_graph_output() else None
    program.save(path, external_data=count_bytes(model) > LARGEST_FILE)


def run_onnx(
    path: Path,
    rows: Int[Tensor, "B T"] | Float[Tensor, "B C H W"],
    source: Int[Tensor, "B S"] | Float[Tensor, "B C H W"],
) -> Float[Tensor, "B T X"]:
    """What a file makes of rows, by onnxruntime; only an encoder-decoder reads the source."""
    from onnxruntime import InferenceSession

    session = InferenceSession(path, providers=["CPUExecutionProvider"])
    given = {
        each.name: (source if each.name == "source" else rows).numpy()
        for each in session.get_inputs()
    }
    return torch.from_numpy(session.run(None, given)[0])


def count_bytes(model: Transformer) -> int:
    """Of its weights in fp32."""
    return sum(4 * parameter.numel() for parameter in model.parameters())


def _draw_rows(
    config: ModelConfig, *, length: int, axis: str
) -> tuple[Int[Tensor, "B T"] | Float[Tensor, "B C H W"], dict[int, str]]:
    """Two rows of what a stack reads, and which of their axes are free."""
    if config.picture is None:
        return torch.zeros(2, length, dtype=torch.int64), {0: "B", 1: axis}
    side = config.picture.size
    return torch.zeros(2, config.picture.channels, side, side), {0: "B"}


def _spell_out(model: Transformer) -> Transformer:
    """A copy in fp32 without what depends on the values of tensors."""
    copy = deepcopy(model).float()
    for module in list(copy.modules()):
        for name, child in module.named_children():
            if isinstance(child, MixtureOfExperts):
                setattr(module, name, _AllExperts(child))
    return copy


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporter says of itself: it concerns its authors."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
