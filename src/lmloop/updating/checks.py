"""The checks that look at a candidate's files and numbers: whole, of the same tongue, sound, exact.

Takes: the candidate's folder and models. Gives: a `Check` each, with its reason in one line. Axes:
N tokens, V vocabulary.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lmloop.errors import LmloopError
from lmloop.inference.engine import Engine
from lmloop.inference.load import LoadedModel, load
from lmloop.inference.sampling import Sampling
from lmloop.store.artifact import Artifact

GREEDY_TOKENS = 32
"""Tokens of each greedy answer that are compared with the full forward."""
NEAR_TIE = 4
"""Two logits are as good as equal within so many units in the last place of the largest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """One figure behind a check."""

    what: str
    value: float
    unit: str
    """change (relative), share, bits, tokens, bytes or count."""
    low: float | None = None
    high: float | None = None
    """Interval at the gate's confidence."""
    limit: float | None = None
    count: int | None = None
    """Documents, answers or rounds that it rests on."""
    needed: int | None = None
    """Documents with which a difference as large as the limit shows in 80 % of all cases."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One question that a candidate was asked."""

    name: str
    passed: bool | None
    """None: it could not be asked, because of what an earlier check found."""
    reason: str
    """One line, in numbers."""
    measures: tuple[Measure, ...] = ()
    numbers: Mapping[str, Any] = field(default_factory=dict)
    """What else was found, as plain data."""

    def to_json(self) -> dict[str, Any]:
        """As written into a verdict."""
        return asdict(self)


def skip(name: str, because: str) -> Check:
    """A check that could not be asked."""
    return Check(name=name, passed=None, reason=f"not run: {because}")


def check_files(candidate: Artifact) -> tuple[Check, LoadedModel | None]:
    """Whether every file is as its manifest says and the folder opens as a model; the model."""
    try:
        candidate.verify()
        model = load(candidate.path, verify=False)
        model.require_tokenizer()
    except LmloopError as error:
        return Check(name="files", passed=False, reason=f"the files do not hold: {error}"), None
    reason = f"{len(candidate.files)} files are as the manifest says"
    return Check(name="files", passed=True, reason=reason), model


def check_tokenizer(candidate: Path, live: Path, models: tuple[LoadedModel, LoadedModel]) -> Check:
    """Whether text means the same ids to both: tokenizer, template, vocabulary, context.

    `models` are the candidate's and the live one's.
    """
    own, other = models[0].config, models[1].config
    compared = {
        "tokenizer.json": (_read(candidate, "tokenizer.json"), _read(live, "tokenizer.json")),
        **{
            f"tokenizer_config.json: {key}": (
                _read(candidate, "tokenizer_config.json").get(key),
                _read(live, "tokenizer_config.json").get(key),
            )
            for key in ("chat_template", "bos_token", "eos_token")
        },
        "vocabulary size": (own.vocab_size, other.vocab_size),
    }
    differing = [name for name, (mine, theirs) in compared.items() if mine != theirs]
    if own.context_length < other.context_length:
        differing.append(f"context ({own.context_length} tokens, live {other.context_length})")
    numbers = {
        "vocab_size": {"candidate": own.vocab_size, "live": other.vocab_size},
        "context_length": {"candidate": own.context_length, "live": other.context_length},
    }
    reason = f"same tokenizer and chat template; {own.vocab_size} entries"
    if differing:
        reason = f"another tokenizer than the live model's: {', '.join(differing)}"
    return Check(name="tokenizer", passed=not differing, reason=reason, numbers=numbers)


def _read(folder: Path, name: str) -> dict[str, Any]:
    data: dict[str, Any] = json.loads((folder / name).read_text(encoding="utf-8"))
    return data


@torch.inference_mode()
def check_finite(model: LoadedModel, tokens: Sequence[int]) -> Check:
    """Whether every weight is a number, and every logit of a text of ids [N]; names the layer."""
    for name, tensor in model.transformer.state_dict().items():
        broken = int((~torch.isfinite(tensor)).sum()) if tensor.is_floating_point() else 0
        if broken:
            reason = f"not finite: {_name_layer(name)} has {broken} weights that are no numbers"
            return Check(name="finite", passed=False, reason=reason, numbers={"weights": broken})
    place = _first_unsound(model, torch.tensor([list(tokens)[: model.config.context_length]]))
    if place is not None:
        reason = f"not finite: on a held-out text {place} gives what is no number"
        return Check(name="finite", passed=False, reason=reason)
    return Check(name="finite", passed=True, reason="all weights and logits are numbers")


def _first_unsound(model: LoadedModel, tokens: Tensor) -> str | None:
    """The first part of the model whose output on ids [1, N] is not finite."""
    found: list[str] = []

    def watch(name: str) -> Any:
        def look(_: object, __: object, output: Tensor) -> None:
            if not torch.isfinite(output).all():
                found.append(name)

        return look

    parts = [(f"layer {i}", block) for i, block in enumerate(model.transformer.blocks)]
    parts = [("the embedding", model.transformer.embedding), *parts]
    hooks = [part.register_forward_hook(watch(name)) for name, part in parts]
    try:
        logits = model(tokens)
    finally:
        for hook in hooks:
            hook.remove()
    if not torch.isfinite(logits).all():
        found.append("the head")
    return found[0] if found else None


def _name_layer(name: str) -> str:
    if not name.startswith("blocks."):
        return name
    _, layer, rest = name.split(".", 2)
    return f"layer {layer}, {rest},"


@torch.inference_mode()
def compare_decoding(model: LoadedModel, prompts: Sequence[Sequence[int]]) -> tuple[int, int]:
    """Greedy tokens that the engine chose, and those that the full forward would not have.

    Each of the engine's tokens is compared where it was chosen: the full forward reads the engine's
    own answer. A token whose logit is within `NEAR_TIE` units in the last place of the best counts
    as chosen.
    """
    sampling = Sampling(max_tokens=GREEDY_TOKENS, temperature=0)
    stops = set(model.require_tokenizer().stop_ids)
    compared = wrong = 0
    for prompt, answer in zip(prompts, Engine(model).generate(prompts, sampling), strict=True):
        chosen = list(answer.tokens)
        logits = model(torch.tensor([[*prompt, *chosen]]))[0, len(prompt) - 1 :].float()
        best = logits.amax(dim=-1)
        tie = NEAR_TIE * torch.finfo(model.transformer.embedding.weight.dtype).eps
        near = logits >= (best - tie * logits.abs().amax(dim=-1))[:, None]
        for place, token in enumerate(chosen):
            wrong += not near[place, token]
        compared += len(chosen)
        if answer.finish_reason == "stop":
            compared += 1
            wrong += not any(bool(near[len(chosen), stop]) for stop in stops)
    return compared, wrong


def check_parity(
    served: float, exact: float, decoding: tuple[int, int], *, allowed: float
) -> Check:
    """Whether the model as served is the model as trained.

    `served` and `exact` are bits per byte in the arithmetic of serving and in fp32 of the weights
    at rest; `decoding` is what `compare_decoding` gives.
    """
    difference = served / exact - 1
    compared, wrong = decoding
    reason = (
        f"bits per byte {served:.4f} as served, {exact:.4f} in float32 ({difference:+.3%}, allowed "
        f"±{allowed:.3%}); {wrong} of {compared} cached greedy tokens differ from the full forward"
    )
    sound = abs(difference) <= allowed
    if not sound:
        reason = f"served arithmetic differs: {reason}"
    elif wrong:
        reason = f"cached decoding differs: {reason}"
    return Check(
        name="parity",
        passed=sound and not wrong,
        reason=reason,
        measures=(
            Measure(
                what="bits per byte, served against float32",
                value=difference,
                unit="change",
                limit=allowed,
            ),
            Measure(
                what="cached greedy tokens that differ",
                value=wrong,
                unit="count",
                limit=0,
                count=compared,
            ),
        ),
        numbers={"served": served, "float32": exact},
    )
