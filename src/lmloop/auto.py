"""`model = "auto"`: shape, vocabulary, batch and rates that follow from text, budget and machine.

Takes: a recipe that leaves them open. Gives: the same recipe with all of them said, so that
everything after it is as if someone had written them down. What the recipe says itself stays. The
rules are powers of round numbers, held by `benchmarks/bench_quality.py` at the short end and by
published laws at the long one; nothing is timed, so the same inputs always choose the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from lmloop.config import check_recipe
from lmloop.corpus.sources import find_sources
from lmloop.errors import RecipeError
from lmloop.learning import TrainConfig
from lmloop.recipe import Recipe
from lmloop.sections import Section, parse_duration

HEAD = 64
"""Width of a head, and of hidden size a layer: both are the field's habit."""
BLOCK = 11.5
"""Parameters of a block over its width squared: attention 4, SwiGLU of 2.5 times the width."""
SMALL_RUN, SMALL_MODEL, SLOPE = 2.8e13, 2.6e6, 0.32
"""Operations of ninety seconds on two cores, parameters for them, and the exponent that leads from
there to Hoffmann et al. 2022: 20 tokens a parameter at 1e18 operations."""
LEAST_MODEL = 3e6
"""What shorter runs have as well: bigrams say more in a wider model, before anything is learnt. Of
the widths that were tried this was the best at ninety seconds, and at five minutes."""
LARGEST_A_BYTE = 4.0
"""Parameters a byte of text at most: more would learn it by heart."""
BATCH, BATCH_RUN = 2048, 1.15e6
"""Tokens a step where so many are learnt in all; it grows with the square root of that number."""
VOCABULARY_A_ROOT = 1.5
"""Entries of the vocabulary over the square root of the bytes of text."""
BYTES_AN_ENTRY, OPERATIONS_A_BYTE = 500, 1e6
"""Text that an entry of the vocabulary is learnt from, at least; and operations of the run for each
byte more, so that learning the vocabulary takes a twentieth of the time at most."""
HEAD_SHARE = 0.25
"""Parameters of the head over those of the blocks, at most."""


def complete(
    recipe: Recipe,
    *,
    rate: float | None = None,
    tell: Callable[[str], None] | None = None,
) -> Recipe:
    """The recipe with nothing left open, or itself where it asks for nothing.

    `rate` is what the machine sustains in training, operations a second; absent: what is expected
    of its kind. `tell` is told in a line what was chosen. Raises `RecipeError` where neither
    `pretrain.budget` nor `pretrain.steps` says how long, or what is given does not go together, and
    `SourceError` where text is missing.
    """
    if not recipe.model.auto:
        return recipe
    sources = find_sources(recipe.prepare.sources)
    size = sum(file.path.stat().st_size for source in sources for file in source.files)
    chosen = choose(recipe, text_bytes=size, rate=_expected_rate() if rate is None else rate)
    sections = {
        name: _fill(getattr(recipe, name), chosen.get(name, {})) for name in Recipe.model_fields
    }
    whole = check_recipe(sections, origin="model = 'auto'")
    if tell is not None:
        tell(f"model = 'auto': {describe(whole)}")
    return whole


def describe(recipe: Recipe) -> str:
    """What was chosen, in a line."""
    model, section = recipe.model, recipe.pretrain
    return (
        f"{model.num_layers} layers of {model.hidden_size}, a vocabulary of "
        f"{recipe.tokenize.vocab_size:,}, {section.batch_tokens:,} tokens a step in rows of "
        f"{section.first_row_tokens or section.row_tokens} to {section.row_tokens}"
    )


def choose(recipe: Recipe, *, text_bytes: int, rate: float) -> dict[str, dict[str, Any]]:
    """Values by section and key for what a recipe leaves open; those that it gives count as given.

    `rate` is in operations a second.
    """
    operations = _operations(recipe, rate)
    wanted = max(LEAST_MODEL, SMALL_MODEL * (operations / SMALL_RUN) ** SLOPE)
    wanted = min(wanted, LARGEST_A_BYTE * text_bytes)
    model = _choose_shape(recipe, wanted)
    width, layers = model["hidden_size"], model["num_layers"]
    blocks = BLOCK * layers * width**2
    entries = min(VOCABULARY_A_ROOT * math.sqrt(text_bytes), HEAD_SHARE * blocks / width)
    vocabulary = recipe.tokenize.vocab_size
    if "vocab_size" not in recipe.tokenize.model_fields_set:
        vocabulary = _clamp(_round(entries, 64), 512, 65_536)
    tokens = operations / (6 * (blocks + vocabulary * width))
    sizes = _choose_rows(recipe, tokens, context=model.get("context_length"))
    row = sizes["pretrain"]["row_tokens"]
    model.setdefault("context_length", max(each["row_tokens"] for each in sizes.values()))
    calm = math.sqrt(256 / width)
    return {
        "tokenize": {
            "vocab_size": vocabulary,
            "train_bytes": max(BYTES_AN_ENTRY * vocabulary, int(operations / OPERATIONS_A_BYTE)),
        },
        "model": {"tie_embeddings": False} | model,
        "pretrain": {
            **sizes["pretrain"],
            "start": "bigrams" if _takes_bigrams(model) else "random",
            "first_row_tokens": next(
                row // times for times in (4, 2, 1) if row % times == 0 and row // times >= 8
            ),
            "learning_rate": 0.006 * calm,
            "weight_decay": 0.1,
            "decay_share": 0.8,
        },
        "finetune": {
            **sizes["finetune"],
            "learning_rate": 0.001 * calm,
            "matrix_learning_rate": 0.005,
        },
        "update": sizes["update"],
    }


def _choose_rows(
    recipe: Recipe, tokens: float, *, context: int | None
) -> dict[str, dict[str, int]]:
    """Rows and batches by stage; a batch is whole rows, or whole pieces where they are given.

    An update keeps its own: it reads little text once, and larger batches would be too few steps.
    """
    row = _clamp(_power(512 * (tokens / 1e7) ** 0.25), 512, 4096)
    if context is not None:
        row = min(row, 1 << (context.bit_length() - 1))
    batch, sizes = _choose_batch(BATCH * math.sqrt(tokens / BATCH_RUN)), {}
    batches = {"pretrain": batch, "finetune": 2 * batch, "update": recipe.update.batch_tokens}
    for stage, wanted in batches.items():
        section: TrainConfig = getattr(recipe, stage)
        is_given = stage == "update" or "row_tokens" in section.model_fields_set
        own = section.row_tokens if is_given else row
        at_once = section.micro_batch_tokens
        unit = at_once if isinstance(at_once, int) else own
        sizes[stage] = {"row_tokens": own, "batch_tokens": _round(wanted, unit)}
    return sizes


def _choose_batch(tokens: float) -> int:
    return _clamp(_power(tokens), BATCH, 1 << 19)


def _takes_bigrams(model: Mapping[str, Any]) -> bool:
    """Whether what is given of a model leaves room for them, see `pretrain.start`."""
    is_free = not model.get("tie_embeddings") and model.get("vectors") is None
    return is_free and model.get("positions") != "sinusoidal"


def _choose_shape(recipe: Recipe, parameters: float) -> dict[str, Any]:
    """A decoder of about so many parameters in its blocks, around what the recipe says of it."""
    given = {name: getattr(recipe.model, name) for name in recipe.model.model_fields_set}
    width = HEAD * max(1, round((parameters * HEAD / BLOCK) ** (1 / 3) / HEAD))
    if "num_layers" in given:
        width = HEAD * max(1, round(math.sqrt(parameters / BLOCK / given["num_layers"]) / HEAD))
    width = given.get("hidden_size", width)
    heads = max(1, width // given.get("head_dim", HEAD))
    shape = {
        "hidden_size": width,
        "num_layers": max(2, round(width / HEAD)),
        "num_heads": heads,
        "num_kv_heads": given.get("num_heads", heads),
        "head_dim": HEAD,
        "intermediate_size": _round(2.5 * width, HEAD),
    }
    return shape | {name: value for name, value in given.items() if name != "auto"}


def _operations(recipe: Recipe, rate: float) -> float:
    """Operations that pre-training may take."""
    section = recipe.pretrain
    if section.budget is not None:
        return rate * parse_duration(section.budget)
    if section.steps is None:
        raise RecipeError(
            "model = 'auto' follows from how long may be learnt, and pretrain.replay repeats what "
            "was chosen before: give pretrain.budget or pretrain.steps"
        )
    batch = section.batch_tokens
    if "batch_tokens" not in section.model_fields_set:
        # B = BATCH * (S B / BATCH_RUN) ** 0.5, solved for B.
        batch = _choose_batch(BATCH**2 * section.steps / BATCH_RUN)
    # 6 N T with N = S (6 N T / R) ** e, solved for N.
    tokens = section.steps * batch
    scale = SMALL_MODEL * (6 * tokens / SMALL_RUN) ** SLOPE
    return float(6 * tokens * scale ** (1 / (1 - SLOPE)))


def _expected_rate() -> float:
    from lmloop.model.hardware import expected_rate

    return expected_rate()


def _fill(section: Any, chosen: Mapping[str, Any]) -> Any:
    """Keys of a section, with these where it says nothing itself; what is no section stays."""
    if not isinstance(section, Section):
        return section
    given = {name: getattr(section, name) for name in section.model_fields_set}
    given.pop("auto", None)
    return {**chosen, **given}


def _round(number: float, unit: int) -> int:
    return unit * max(1, round(number / unit))


def _power(number: float) -> int:
    """The nearest power of two."""
    return int(2 ** round(math.log2(max(1.0, number))))


def _clamp(number: int, least: int, most: int) -> int:
    return max(least, min(most, number))
