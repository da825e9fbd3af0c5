"""Small runs that tell of a large one: the recipe's text, rates and depth, but less width.

Takes: a recipe's shape and section, tokenized text, some seconds. Gives: runs for `fit_scaling`.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from lmloop.errors import TrainingError
from lmloop.learning import PretrainConfig
from lmloop.model.config import ModelConfig
from lmloop.model.cost import count_parameters
from lmloop.model.hardware import settle_model
from lmloop.model.transformer import Transformer
from lmloop.progress import Progress, Silent
from lmloop.sections import ModelSection
from lmloop.tokens.loader import PackedLoader
from lmloop.training.calibrate import measure_speed
from lmloop.training.loop import train
from lmloop.training.scaling import Measured, count_repeated
from lmloop.training.shape import model_config

WIDTHS = (0.25, 0.375, 0.5)
LENGTHS = (0.25, 1.0)
"""Of the longest run of each width. The nearer that is to the run itself, the less is guessed."""
FEWEST_STEPS = 20
"""Of the shortest run, even where that takes longer than was given."""
PROBE_SECONDS = 0.3


def run_pilots(
    section: PretrainConfig,
    shape: ModelSection,
    *,
    vocab_size: int,
    loader: PackedLoader,
    unique_tokens: int,
    seconds: float,
    begin: Callable[[Transformer], None],
    validate: Callable[[Transformer], float],
    progress: Progress,
) -> list[Measured]:
    """Train a model for each width and length, `seconds` in all; `validate` gives the loss.

    `begin` fills a new model as the recipe's own would be.

    Every run ends its own schedule: the loss in the middle of another is not that of a finished
    run (Hoffmann et al. 2022, appendix B). Each width gets the same time.
    """
    measured = []
    with progress.task("fit", total=float(len(WIDTHS) * len(LENGTHS)), unit="runs") as task:
        for config in small_shapes(shape, vocab_size=vocab_size):
            speed = measure_speed(config, section, seconds=PROBE_SECONDS)
            a_step = speed.step_seconds(section)
            most = seconds / len(WIDTHS) / sum(LENGTHS) / a_step
            most = max(most, FEWEST_STEPS / min(LENGTHS))
            for steps in (int(most * length) for length in LENGTHS):
                short = section.model_copy(
                    update={"steps": steps, "budget": None, "replay": None, "patience": None}
                )
                loss = _train(config, short, loader, begin=begin, validate=validate)
                tokens = count_repeated(steps * section.batch_tokens, unique=unique_tokens)
                parameters = count_parameters(config)
                measured.append(Measured(parameters=parameters, tokens=tokens, loss=loss))
                note = f"{parameters / 1e6:.2f} M parameters, {tokens / 1e6:.2f} M tokens"
                task.update(len(measured), note=f"{note}: {loss:.3f}")
    return measured


def small_shapes(shape: ModelSection, *, vocab_size: int) -> list[ModelConfig]:
    """The recipe's model at `WIDTHS` of its width: the same layers, heads and vocabulary.

    Raises `TrainingError` where the model is so narrow that these are not all different.
    """
    made = []
    for share in WIDTHS:
        head_dim = max(4, 2 * round(shape.head_dim * share / 2))
        hidden = shape.hidden_size * head_dim // shape.head_dim
        narrow = {
            "head_dim": head_dim,
            "hidden_size": hidden,
            "intermediate_size": max(1, round(shape.intermediate_size * share)),
            "vectors": None,
        }
        if shape.experts is not None:
            narrow["expert_size"] = max(1, round(shape.expert_size * share))
        made.append(model_config(shape.model_copy(update=narrow), vocab_size=vocab_size))
    if len({config.head_dim for config in made}) < len(WIDTHS):
        raise TrainingError(
            f"model.head_dim = {shape.head_dim} is too narrow for smaller runs: --fit needs 16 "
            "and more"
        )
    return made


def _train(
    config: ModelConfig,
    section: PretrainConfig,
    loader: PackedLoader,
    *,
    begin: Callable[[Transformer], None],
    validate: Callable[[Transformer], float],
) -> float:
    model = Transformer(config)
    begin(model)
    settle_model(model, section.precision)
    # One measurement, at the end, and the one snapshot that a run ends with.
    assert section.steps is not None
    quiet = section.model_copy(
        update={"save_every": section.steps, "validate_every": section.steps + 1}
    )
    with tempfile.TemporaryDirectory(prefix="lmloop-fit-") as folder:
        result = train(
            model,
            loader,
            quiet,
            folder=Path(folder),
            validate=validate,
            clock=time.monotonic,
            progress=Silent(),
            name="fit",
        )
    assert result.validation_bits_per_byte is not None
    return result.validation_bits_per_byte
