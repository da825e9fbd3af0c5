"""What the model says to people it has never met: answers to held-out first turns.

Takes: held-out records and a model. Gives: exchanges, each with the reply that was really given.
Where the corpus has no conversations, the model continues the beginnings of documents.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeVar

from lmloop.evaluation.copying import longest_copies
from lmloop.evaluation.metrics import COPY_FIGURES, TEXT_FIGURES, Figure, Metric, share
from lmloop.evaluation.ranking import fit_context
from lmloop.inference.engine import Engine
from lmloop.inference.load import LoadedModel
from lmloop.inference.sampling import Sampling
from lmloop.progress import Progress
from lmloop.records import Conversation, Record
from lmloop.sections import EvaluateConfig

OPENING_WORDS = 16
"""Words of a document that the model is given to continue."""
RUNNING = 32
"""Answers that grow together."""
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Opener:
    """What the model is asked."""

    text: str
    tokens: list[int]
    reference: str | None
    """What was really said next."""


@dataclass(frozen=True, slots=True)
class Exchange:
    """One question and its answer, as it came."""

    opener: str
    answer: str
    finish_reason: str
    """"stop" where the model ended the answer itself, "length" where it was cut."""
    num_tokens: int
    reference: str | None
    """What was really answered, if anything."""
    copied_words: int | None = None
    """Longest run of the answer's words that the training text contains."""
    reference_copied_words: int | None = None
    """The same of the reference: what chance and custom alone bring about."""

    def to_json(self) -> dict[str, Any]:
        """As written into `exchanges.jsonl`."""
        return asdict(self)


def choose_openers(
    records: Sequence[Record], model: LoadedModel, *, limit: int, max_tokens: int
) -> list[Opener]:
    """The first `limit` openers that leave room for `max_tokens` of answer or half a context."""
    context_length = model.config.context_length
    room = context_length - min(max_tokens, context_length // 2)
    conversations = [each for each in records if isinstance(each, Conversation)]
    found: list[Opener] = []
    for record in conversations or records:
        opener = _opener(record, model, room=room)
        if opener is not None:
            found.append(opener)
        if len(found) == limit:
            break
    return found


def _opener(record: Record, model: LoadedModel, *, room: int) -> Opener | None:
    """The first user turn with what stands before it, or a document's first words; None if long."""
    if isinstance(record, Conversation):
        users = [place for place, turn in enumerate(record.turns) if turn.role == "user"]
        if not users:
            return None
        place = users[0]
        text = record.turns[place].content
        following = record.turns[place + 1 : place + 2]
        reference = following[0].content if following else None
        tokens = fit_context(model.template, record.turns[: place + 1], max_tokens=room)
    else:
        pieces = record.text.split(" ")
        text = " ".join(pieces[:OPENING_WORDS])
        reference = " ".join(pieces[OPENING_WORDS:]) or None
        tokens = model.require_tokenizer().encode_document(text)
    return None if tokens is None or len(tokens) > room else Opener(text, tokens, reference)


def answer_openers(
    model: LoadedModel,
    openers: Sequence[Opener],
    *,
    sampling: Sampling,
    seed: int,
    progress: Progress,
) -> list[Exchange]:
    """Answer all openers in batches, each with a seed of its own drawn from `seed`."""
    longest = max((len(opener.tokens) for opener in openers), default=0)
    needed = longest + sampling.max_tokens + 1
    engine = Engine(model, max_running=RUNNING, context_length=needed)
    for index, opener in enumerate(openers):
        engine.add(str(index), opener.tokens, replace(sampling, seed=seed + index))
    texts = [""] * len(openers)
    exchanges: dict[int, Exchange] = {}
    with progress.task("answers", total=len(openers), unit="answers") as task:
        while engine.has_work():
            for piece in engine.step():
                index = int(piece.request_id)
                texts[index] += piece.text
                if piece.finish_reason is not None:
                    opener = openers[index]
                    exchanges[index] = Exchange(
                        opener.text,
                        texts[index],
                        piece.finish_reason,
                        piece.num_tokens,
                        opener.reference,
                    )
            task.update(len(exchanges))
    return [exchanges[index] for index in range(len(openers))]


def hold_exchanges(
    config: EvaluateConfig,
    model: LoadedModel,
    records: Sequence[Record],
    train_records: Callable[[], Iterable[Record]],
    *,
    seed: int,
    progress: Progress,
) -> list[Exchange]:
    """Answers to held-out openers, each with its longest run of words from training."""
    openers = choose_openers(records, model, limit=config.openers, max_tokens=config.max_tokens)
    sampling = Sampling(
        max_tokens=config.max_tokens, temperature=config.temperature, top_p=config.top_p
    )
    exchanges = answer_openers(model, openers, sampling=sampling, seed=seed, progress=progress)
    with progress.task("copies from training", total=None, unit=""):
        said = [each.answer for each in exchanges] + [each.reference or "" for each in exchanges]
        copies = longest_copies(said, train_records())
    return [
        replace(exchange, copied_words=own, reference_copied_words=human)
        for exchange, own, human in zip(
            exchanges, copies[: len(exchanges)], copies[len(exchanges) :], strict=True
        )
    ]


def measure_answers(exchanges: Sequence[Exchange]) -> list[Metric]:
    """Figures over all answers; those of the true replies to the same openers beside them."""
    stops = Metric(
        name="stop_share",
        value=share([each.finish_reason == "stop" for each in exchanges]),
        unit="share",
        explanation="answers that the model ended itself, not the length limit; higher is better",
    )
    answered = [each for each in exchanges if each.reference is not None]
    figures = [
        *_compare(
            TEXT_FIGURES,
            [each.answer for each in exchanges],
            [each.reference or "" for each in answered],
        ),
        *_compare(
            COPY_FIGURES,
            [each.copied_words or 0 for each in exchanges],
            [each.reference_copied_words or 0 for each in answered],
        ),
    ]
    return [stops, *figures]


def _compare(
    figures: Sequence[Figure[T]], answers: Sequence[T], references: Sequence[T]
) -> Iterator[Metric]:
    for name, unit, measure, explanation in figures:
        yield Metric(
            name=name,
            value=measure(answers),
            unit=unit,
            reference=measure(references),
            reference_name="true replies",
            explanation=explanation,
        )
