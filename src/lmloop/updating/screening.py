"""One rated exchange to a conversation that may be learnt from, or the rule that drops it.

Takes: an `Exchange`. Gives: a `Candidate`: normalised, personal data masked, judged by itself. What
can only be seen beside others (copies, shares, other people's text) is judged elsewhere.
"""

from __future__ import annotations

import hashlib
import html
import re
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from lmloop.corpus.clean import clean_record
from lmloop.corpus.decontaminate import Words, read_words
from lmloop.corpus.privacy import EMAIL_MASK, PHONE_MASK, mask_personal_data
from lmloop.corpus.rules import measure_repetition, normalise_text
from lmloop.records import Conversation, Turn
from lmloop.sections import PrepareConfig
from lmloop.updating.exchanges import Exchange
from lmloop.upkeep import CollectConfig

# Not tab and line breaks: control characters, direction overrides, characters that show nothing
# (Unicode's tags), and what stands where a character was lost.
_CONTROL = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\u202a-\u202e\u2066-\u2069"
    "\ufff9-\ufffd\U000e0000-\U000e007f]"
)
_ACTIVE_TAGS = (
    *("applet", "audio", "base", "body", "embed", "form", "frame", "frameset", "head", "html"),
    *("iframe", "img", "link", "math", "meta", "object", "script", "style", "svg", "template"),
    "video",
)
_MARKUP = re.compile(
    rf"<\s*/?\s*(?:{'|'.join(_ACTIVE_TAGS)})\b"
    r"|<[a-z][^<>]{0,500}\bon[a-z]{3,20}\s*="
    r"|\b(?:java|vb)\s*script\s*:"
    r"|\bdata\s*:\s*text/html"
    r"|<\|[^|<>\s]{1,64}\|>",
    re.IGNORECASE,
)
_MASKS = re.compile(f"{EMAIL_MASK}|{PHONE_MASK}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """An exchange that could be learnt from, and what speaks against it."""

    exchange: Exchange
    record: Conversation
    """The prompt's turns and the taught answer, clean; its id is the SHA-256 of its content."""
    rejected: str | None
    """The model's own answer, clean, where a correction stands in its place."""
    emails: int
    phones: int
    """How many were masked in the record."""
    dropped: str | None
    """The rule that drops it; None where it may be learnt."""

    @property
    def question(self) -> str:
        """The last thing that was said to the model."""
        return self.record.turns[-2].content if len(self.record.turns) > 1 else ""

    @property
    def taught(self) -> str:
        """What the model would learn to say."""
        return self.record.turns[-1].content if self.record.turns else ""

    @property
    def id(self) -> str:
        """Names this content of this exchange: another correction has another id (SHA-256)."""
        text = f"{self.exchange.request_id} {self.exchange.content_sha}"
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def words(self) -> tuple[Words, Words]:
        """Question and answer as they are compared; an answer of signs stands for itself."""
        question, taught = read_words(self.question), read_words(self.taught)
        return question, taught or (self.taught,)


def screen(exchange: Exchange, *, config: CollectConfig) -> Candidate:
    """Clean an exchange and judge it by the rules; see `RULES`."""
    taught = Turn("assistant", exchange.taught)
    turns = (*exchange.turns, taught)
    raw = Conversation(exchange.request_id, turns, sum(len(t.content.encode()) for t in turns))
    if exchange.fault is not None:
        return _describe(exchange, Conversation(raw.id, (), raw.raw_bytes), exchange.fault)
    cleaned = clean_record(raw, config=_rules_of_text(config))
    record = cleaned.record
    assert isinstance(record, Conversation)
    broken = next((name for name, breaks in RULES.items() if breaks(exchange, record)), None)
    return _describe(
        exchange,
        record,
        broken or cleaned.dropped,
        emails=cleaned.emails,
        phones=cleaned.phones,
    )


def _describe(
    exchange: Exchange,
    record: Conversation,
    dropped: str | None,
    *,
    emails: int = 0,
    phones: int = 0,
) -> Candidate:
    rejected = None
    if exchange.correction is not None and dropped is None:
        rejected = _clean(exchange.answer)
    return Candidate(
        exchange=exchange,
        record=record,
        rejected=rejected,
        emails=emails,
        phones=phones,
        dropped=dropped,
    )


def strip_control(text: str) -> str:
    """Text without the characters that `has_control_characters` drops an answer for."""
    return _CONTROL.sub("", text)


def _clean(text: str) -> str:
    return mask_personal_data(normalise_text(text)).text


def has_control_characters(exchange: Exchange, _record: Conversation) -> bool:
    """The taught answer has control characters, reversed writing or characters that got lost."""
    return _CONTROL.search(exchange.taught) is not None


def has_markup(exchange: Exchange, _record: Conversation) -> bool:
    """The taught answer has what a browser would run, or a chat template's own signs."""
    # Entities and full-width letters are read back as what they say.
    text = unicodedata.normalize("NFKC", html.unescape(exchange.taught))
    return _MARKUP.search(text) is not None


def is_empty(exchange: Exchange, _record: Conversation) -> bool:
    """Nothing is left to teach but masks."""
    return not _MASKS.sub("", _clean(exchange.taught)).strip()


def has_no_question(exchange: Exchange, _record: Conversation) -> bool:
    """The last thing that the model was shown was not said by a user."""
    said = (turn.role for turn in reversed(exchange.turns) if normalise_text(turn.content))
    return next(said, None) != "user"


def corrects_nothing(exchange: Exchange, record: Conversation) -> bool:
    """The correction says what the model said."""
    if exchange.correction is None:
        return False
    return _clean(exchange.answer) == record.turns[-1].content


def repeats_itself(_exchange: Exchange, record: Conversation) -> bool:
    """More than half of the taught answer says again what it said before."""
    limit: float = PrepareConfig.model_fields["max_repetition"].default
    return measure_repetition(record.turns[-1].content) > limit


RULES: Mapping[str, Callable[[Exchange, Conversation], bool]] = {
    "control_characters": has_control_characters,
    "markup": has_markup,
    "empty": is_empty,
    "no_question": has_no_question,
    "same_as_answer": corrects_nothing,
    "max_repetition": repeats_itself,
}
"""What the clean exchange must not be, by name, in order; the rules of any text come after it."""


def _rules_of_text(config: CollectConfig) -> PrepareConfig:
    return PrepareConfig(
        sources=("requests",), min_characters=1, max_characters=config.max_characters
    )
