"""Round a checkpoint's matrices to 8 bits, and refuse where that costs too much.

Takes: a checkpoint folder and held-out shards. Gives: a checkpoint folder of the same kind with
`compression.json`: size, speed, bits per byte and predictions before and after. Axes: T tokens,
V vocabulary.
"""

from __future__ import annotations

import copy
import json
import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lmloop.errors import CompressionError
from lmloop.evaluation.perplexity import bits_per_byte_of
from lmloop.inference.load import LoadedModel, load
from lmloop.inference.speed import compare_speed
from lmloop.model.cost import count_parameters
from lmloop.model.quantized import Int8Linear, quantize_int8
from lmloop.progress import Progress
from lmloop.sections import CompressConfig
from lmloop.tokens.shards import Shards
from lmloop.weights.checkpoint import load_model, save_model
from lmloop.weights.stored import WEIGHTS

MEASURED_TOKENS = 32_768
"""Held-out tokens on which bits per byte are compared."""
COMPARED_TOKENS = 512
"""Held-out tokens on which predictions are compared one by one, at most a context."""
REPORT = "compression.json"


def compress(
    config: CompressConfig,
    *,
    model_folder: Path,
    shards: Shards,
    folder: Path,
    progress: Progress,
) -> dict[str, Any]:
    """Write the rounded checkpoint and `compression.json` into `folder`; give what the latter says.

    Raises `CompressionError`, before anything is written, where the model is compressed already or
    where bits per byte rise by more than `config.max_loss`, relatively.
    """
    model = load(model_folder, device=torch.device("cpu"))
    if model.config.int8:
        raise CompressionError(
            f"{model_folder} is compressed already: give the checkpoint before compression"
        )
    small = _round(model)
    quality = measure_loss(model, small, shards, progress=progress)
    refuse_loss(quality, max_loss=config.max_loss)
    tokens = _sample(model, shards)
    prompt = tokens[0].tolist()
    report = {
        "bits": config.bits,
        "parameters": count_parameters(model.config),
        "parameters_rounded": _count_rounded(small),
        **quality,
        "predictions": compare_predictions(model(tokens)[0], small(tokens)[0]),
        "decode_tokens_per_second": compare_speed(
            model, small, prompt, clock=time.perf_counter, progress=progress
        ),
    }
    _save(small, folder)
    _check_saved(folder, small, tokens)
    report["weight_bytes"] = {
        "before": (model_folder / WEIGHTS).stat().st_size,
        "after": (folder / WEIGHTS).stat().st_size,
    }
    (folder / REPORT).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return report


def _round(model: LoadedModel) -> LoadedModel:
    """A copy with 8 bits a weight in the blocks."""
    transformer = copy.deepcopy(model.transformer)
    quantize_int8(transformer)
    transformer.config = replace(transformer.config, int8=True)
    return replace(model, transformer=transformer)


def measure_loss(
    before: LoadedModel, after: LoadedModel, shards: Shards, *, progress: Progress
) -> dict[str, Any]:
    """Bits per byte of both on the first `MEASURED_TOKENS`, and the relative rise."""
    values = []
    with progress.task("bits per byte", total=2, unit="models") as task:
        for model in (before, after):
            value = bits_per_byte_of(
                model.transformer,
                shards,
                document_id=model.require_tokenizer().document_id,
                context_length=model.config.context_length,
                max_tokens=MEASURED_TOKENS,
            )
            values.append(value)
            task.update(len(values))
    return {
        "bits_per_byte": {"before": values[0], "after": values[1]},
        "relative_loss": values[1] / values[0] - 1,
    }


def refuse_loss(quality: dict[str, Any], *, max_loss: float) -> None:
    """Raise `CompressionError` where the loss is larger than allowed, or no number."""
    loss = quality["relative_loss"]
    before, after = quality["bits_per_byte"].values()
    if not math.isfinite(loss):
        raise CompressionError(
            f"bits per byte are {before} before and {after} after rounding to 8 bits, not finite: "
            "the checkpoint is damaged; train again"
        )
    if loss > max_loss:
        raise CompressionError(
            f"rounding to 8 bits raises bits per byte from {before:.4f} to {after:.4f} "
            f"({loss:+.2%}), allowed is {max_loss:+.2%}: raise compress.max_loss or serve the "
            "uncompressed checkpoint"
        )


def _sample(model: LoadedModel, shards: Shards) -> Tensor:
    """The beginning of the held-out split as one row of ids [1, T]."""
    length = min(COMPARED_TOKENS, model.config.context_length, shards.num_tokens)
    return torch.from_numpy(shards.read(0, length))[None]


def compare_predictions(before: Tensor, after: Tensor) -> dict[str, float]:
    """How far two models' logits [T, V] lie apart, over all tokens."""
    old, new = before.float().log_softmax(-1), after.float().log_softmax(-1)
    divergence = (old.exp() * (old - new)).sum(-1).mean()
    same = (old.argmax(-1) == new.argmax(-1)).float().mean()
    return {
        "largest_logit_difference": round(float((before - after).abs().max()), 4),
        "mean_divergence_nats": round(float(divergence), 6),
        "same_first_choice": round(float(same), 4),
    }


def _count_rounded(model: LoadedModel) -> int:
    """Weights that now take 8 bits."""
    modules = model.transformer.modules()
    return sum(each.weight.numel() for each in modules if isinstance(each, Int8Linear))


def _save(model: LoadedModel, folder: Path) -> None:
    tokenizer = model.require_tokenizer()
    save_model(
        model.transformer,
        folder,
        stop_id=tokenizer.stop_ids[0],
        document_id=tokenizer.document_id,
    )
    tokenizer.save(folder)


def _check_saved(folder: Path, measured: LoadedModel, tokens: Tensor) -> None:
    """Open what was written and compare: what is served must be what was measured."""
    dtype = measured.transformer.embedding.weight.dtype
    opened = replace(measured, transformer=load_model(folder, dtype=dtype))
    if not torch.equal(opened(tokens), measured(tokens)):
        raise CompressionError(
            f"the checkpoint written to {folder} predicts otherwise than the one measured: "
            "its files were damaged on the way; run the stage again"
        )
