"""Signals of training text: the first reference, before there is traffic.

Takes: a model and conversations. Gives: the signals that their user turns alone can give, measured
by the engine as it measures live requests.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, zip_longest

import numpy as np

from lmloop.corpus.signals import identify_asked
from lmloop.inference.engine import Engine
from lmloop.inference.load import LoadedModel
from lmloop.inference.sampling import Sampling
from lmloop.inference.signals import Signals
from lmloop.monitoring.sample import Request, Sample, build_sample
from lmloop.records import Conversation, Record, Turn
from lmloop.store.registry import name_weights

BATCH = 16


@dataclass(frozen=True, slots=True)
class _Prompt:
    """A conversation up to one of its user turns."""

    conversation: str
    turns: tuple[Turn, ...]
    tokens: Sequence[int]


def text_reference(
    model: LoadedModel, records: Iterable[Record], *, limit: int, seed: int
) -> Sample:
    """Signals of at most `limit` prompts: conversations cut behind one of their user turns.

    One prompt of each conversation, then a second one, and so on; those of one conversation form a
    group. Give held-out text: what a model has learnt surprises it less than what users say.
    Prompts that do not fit the context are left out; the sample is empty where there are none.
    """
    draw = random.Random(seed)
    conversations = [each for each in records if isinstance(each, Conversation)]
    draw.shuffle(conversations)
    cuts = [_cut(conversation, draw) for conversation in conversations]
    rounds = (turns for each in zip_longest(*cuts) for turns in each if turns is not None)
    fitting = _encode(rounds, model)
    return build_sample(_measure(model, list(islice(fitting, limit))))


def _cut(conversation: Conversation, draw: random.Random) -> list[tuple[str, tuple[Turn, ...]]]:
    """The conversation's name and its turns up to each user's, in random order."""
    turns = conversation.turns
    ends = [number for number, turn in enumerate(turns, start=1) if turn.role == "user"]
    draw.shuffle(ends)
    return [(conversation.id, turns[:end]) for end in ends]


def _encode(
    prompts: Iterable[tuple[str, tuple[Turn, ...]]], model: LoadedModel
) -> Iterator[_Prompt]:
    for conversation, turns in prompts:
        tokens = model.template.encode(turns)
        if len(tokens) < model.config.context_length:
            yield _Prompt(conversation, turns, tokens)


def _measure(model: LoadedModel, prompts: Sequence[_Prompt]) -> Iterator[Request]:
    """Let the engine read each prompt, for one token of an answer."""
    engine = Engine(model, max_running=BATCH, signals=True)
    found: dict[str, Signals | None] = {}
    for number, prompt in enumerate(prompts):
        engine.add(str(number), prompt.tokens, Sampling(max_tokens=1, temperature=0.0))
    while engine.has_work():
        found |= {each.request_id: each.signals for each in engine.step() if each.finish_reason}
    for number, prompt in enumerate(prompts):
        yield _describe(prompt, found[str(number)], weights=name_weights(model.fingerprint))


def _describe(prompt: _Prompt, signals: Signals | None, *, weights: str) -> Request:
    known = {
        "prompt_characters": sum(len(turn.content) for turn in prompt.turns),
        "language": identify_asked(prompt.turns),
        "prompt_nats": None if signals is None else signals.prompt_nats,
    }
    embedding = None if signals is None else np.array(signals.embedding, dtype="<f2").tobytes()
    return Request(signals=known, embedding=embedding, weights=weights, group=prompt.conversation)
