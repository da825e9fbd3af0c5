"""Round a checkpoint's matrices to 8 bits, and refuse where that costs too much.

Takes: a checkpoint folder and held-out shards. Gives: a checkpoint folder of the same kind with
`compression.json`: size, speed, bits per byte and predictions before and after.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lmloop.compression.speed import measure_speed
from lmloop.errors import CompressionError
from lmloop.evaluation.perplexity import bits_per_byte_of
from lmloop.inference.load import LoadedModel, load
from lmloop.model.checkpoint import WEIGHTS, load_model, save_model
from lmloop.model.cost import count_parameters
from lmloop.model.quantized import quantize_int8
from lmloop.progress import Progress
from lmloop.sections import CompressConfig
from lmloop.tokens.shards import Shards

MEASURED_TOKENS = 65_536
"""Held-out tokens on which bits per byte are compared."""
COMPARED_TOKENS = 1024
"""Held-out tokens whose predictions are compared one by one."""
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
    bits per byte rise by more than `config.max_loss`, relatively.
    """
    model = load(model_folder)
    if model.config.int8:
        raise CompressionError(
            f"{model_folder} is compressed already: give the checkpoint before compression"
        )
    small = _round(model)
    quality = _measure_quality(model, small, shards, progress)
    _refuse_loss(quality["bits_per_byte"], max_loss=config.max_loss)
    tokenizer = small.require_tokenizer()
    save_model(
        small.transformer,
        folder,
        stop_id=tokenizer.stop_ids[0],
        document_id=tokenizer.document_id,
    )
    tokenizer.save(folder)
    tokens = _compared_tokens(model, shards)
    _check_saved(folder, small, tokens)
    parameters = count_parameters(model.config)
    report: dict[str, Any] = {
        "bits": config.bits,
        "parameters": parameters,
        "parameters_rounded": _count_rounded(small),
        "weight_bytes": _before_after(model_folder / WEIGHTS, folder / WEIGHTS, _size),
        **quality,
        "predictions": compare_predictions(model, small, tokens),
        "decode_tokens_per_second": measure_speed(model, small, progress=progress),
    }
    (folder / REPORT).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return report
