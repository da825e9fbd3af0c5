"""What became of every rating, told to programs (JSON) and to people (Markdown).

Takes: what was taken, dropped and left out. Gives: a report without times, names or personal data,
so that equal work gives equal bytes. Every rating is counted once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lmloop.corpus.decontaminate import Overlap
from lmloop.corpus.privacy import mask_personal_data
from lmloop.corpus.report import SAMPLE_CHARACTERS
from lmloop.corpus.rules import normalise_text
from lmloop.updating.copies import draw
from lmloop.updating.exchanges import LEFT_OUT
from lmloop.updating.review import escape
from lmloop.updating.screening import Candidate, strip_control

SAMPLES = 3
USERS = 5
"""Users that the report lists: those who sent most."""
CUT_CHARACTERS = 600
"""Text that was cut may end amid an address, longer than which none is: so much is not shown."""

REASONS: Mapping[str, str] = {
    "unreadable": "the stored prompt is no list of messages, or no valid Unicode",
    "control_characters": "control characters, reversed writing or lost characters in the answer",
    "markup": "scripts, active HTML or a chat template's signs in the answer",
    "empty": "no answer is left, or only masks",
    "no_question": "the last message before the answer is not a user's",
    "same_as_answer": "the correction says what the model said",
    "min_turns": "fewer than two turns are left",
    "min_characters": "nothing is left after cleaning",
    "max_characters": "longer than collect.max_characters",
    "max_repetition": "more than half of it repeats itself",
    "foreign_text": "13 words in a row that another user said or was told before",
    "rejected": "rejected in a review, or the same words as one that was",
    "exact_duplicate": "the same words as another exchange",
    "near_duplicate": "nearly the same words as another exchange",
    "max_per_answer": "the same answer as collect.max_per_answer others",
    "waiting": "waits for a review (lmloop review)",
    "in_gate_set": "shares text with a set that the gate asks",
    "max_per_user": "above collect.max_per_user",
    "max_user_share": "above collect.max_user_share",
}
"""Why an exchange is not taken, in the order in which it is asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Collected:
    """What a report is made from."""

    name: str
    settings: Mapping[str, Any]
    left_out: Mapping[str, int]
    """Ratings by the reasons of `exchanges.LEFT_OUT`."""
    dropped: Sequence[tuple[Candidate, str]]
    """Every exchange that is not taken, with one of `REASONS`."""
    splits: Mapping[str, Sequence[Candidate]]
    moved: int
    """Exchanges that left the held-out split because they share text with training."""
    new: int
    """Exchanges that no earlier update has learnt."""
    pairs: int
    overlaps: Mapping[str, Overlap]
    """What the exchanges that passed all rules share with each of the gate's sets."""


def build_report(collected: Collected) -> dict[str, Any]:
    """The report as it is written to report.json."""
    taken = [each for split in collected.splits.values() for each in split]
    offered = [*taken, *(candidate for candidate, _ in collected.dropped)]
    return {
        "model": collected.name,
        "ratings": len(offered) + sum(collected.left_out.values()),
        "left_out": {reason: collected.left_out.get(reason, 0) for reason in LEFT_OUT},
        "exchanges": len(offered),
        "dropped": _list_drops(collected.dropped),
        "gate_sets": {
            name: {
                "documents": overlap.size,
                "exchanges": overlap.records,
                "examples": [_show(text) for text in overlap.examples],
            }
            for name, overlap in collected.overlaps.items()
        },
        "taken": {
            "exchanges": len(taken),
            "new": collected.new,
            "corrections": sum(each.exchange.correction is not None for each in taken),
            "thumbs": sum(each.exchange.correction is None for each in taken),
            "pairs": collected.pairs,
            "users": len({each.exchange.user for each in taken}),
            "without_user": sum(each.exchange.user is None for each in taken),
        },
        "users": _list_users(offered, taken),
        "masked": {
            "emails": sum(each.emails for each in taken),
            "phones": sum(each.phones for each in taken),
        },
        "splits": {
            name: {
                "exchanges": len(split),
                "raw_bytes": sum(each.record.raw_bytes for each in split),
            }
            for name, split in collected.splits.items()
        },
        "moved_to_train": collected.moved,
        "settings": dict(collected.settings),
    }


def count_report(report: Mapping[str, Any]) -> dict[str, Any]:
    """The report's figures without its samples, for a manifest."""
    kept = ("ratings", "left_out", "exchanges", "taken", "masked", "splits", "moved_to_train")
    return {
        **{name: report[name] for name in kept},
        "dropped": {name: each["exchanges"] for name, each in report["dropped"].items()},
        "gate_sets": {name: each["exchanges"] for name, each in report["gate_sets"].items()},
    }


def _list_drops(dropped: Sequence[tuple[Candidate, str]]) -> dict[str, Any]:
    groups: dict[str, list[Candidate]] = {reason: [] for reason in REASONS}
    for candidate, reason in sorted(dropped, key=lambda each: draw(each[0])):
        groups[reason].append(candidate)
    return {
        reason: {"exchanges": len(group), "samples": _draw_samples(group)}
        for reason, group in groups.items()
    }


def _draw_samples(group: Iterable[Candidate]) -> list[dict[str, str | None]]:
    """The first few that teach different answers."""
    chosen: dict[str, Candidate] = {}
    for candidate in group:
        if len(chosen) < SAMPLES:
            chosen.setdefault(candidate.exchange.taught, candidate)
    return [_sample(each) for each in chosen.values()]


def _sample(candidate: Candidate) -> dict[str, str | None]:
    exchange = candidate.exchange
    is_cut = exchange.fault == "max_characters"
    return {
        "user": _shorten_user(exchange.user),
        "question": _show(exchange.turns[-1].content) if exchange.turns else None,
        "answer": _show(exchange.taught, is_cut=is_cut),
    }


def _list_users(offered: Iterable[Candidate], taken: Iterable[Candidate]) -> list[dict[str, Any]]:
    sent = Counter(each.exchange.user for each in offered)
    kept = Counter(each.exchange.user for each in taken)
    order = sorted(sent, key=lambda user: (-sent[user], user or ""))
    return [
        {"user": _shorten_user(user), "sent": sent[user], "taken": kept[user]}
        for user in order[:USERS]
    ]


def _shorten_user(user: str | None) -> str | None:
    return user and escape(user[:8])


def _show(text: str, *, is_cut: bool = False) -> str:
    """The beginning of a text on one line: personal data masked, control characters left out."""
    masked = mask_personal_data(normalise_text(strip_control(text))).text
    if is_cut:
        masked = masked[:-CUT_CHARACTERS]
    line = escape(masked.replace("\n", " / "))
    is_whole = len(line) <= SAMPLE_CHARACTERS and not is_cut
    return line if is_whole else line[: SAMPLE_CHARACTERS - 1] + "…"


def render_markdown(report: Mapping[str, Any]) -> str:
    """The report as a page to read."""
    taken, splits = report["taken"], report["splits"]
    blocks = [
        f"# What {report['model']} can learn from its users",
        _summarise(report),
        _table(
            ["", "exchanges", "text as read"],
            [
                [name, f"{each['exchanges']:,}", f"{each['raw_bytes']:,} B"]
                for name, each in splits.items()
            ],
        ),
        f"{_plural(taken['corrections'], 'correction')} and "
        f"{_plural(taken['thumbs'], 'answer')} rated up, of {_plural(taken['users'], 'user')}; "
        f"{_plural(taken['pairs'], 'pair')} of a better and a worse answer in `pairs.jsonl`. "
        f"Masked: {_plural(report['masked']['emails'], 'e-mail address', 'es')}, "
        f"{_plural(report['masked']['phones'], 'telephone number')}.",
        *_render_left_out(report["left_out"]),
        *_render_drops(report["dropped"]),
        "## What the gate will ask",
        "An exchange that shares text with one of these sets is never learnt.",
        _table(
            ["set", "its documents", "exchanges that share text with it"],
            [
                [_code(name), f"{each['documents']:,}", f"{each['exchanges']:,}"]
                for name, each in report["gate_sets"].items()
            ],
        ),
        *_render_users(report["users"]),
    ]
    return "\n\n".join(blocks) + "\n"


def _summarise(report: Mapping[str, Any]) -> str:
    taken, splits = report["taken"], report["splits"]
    lines = [
        f"Of {_plural(report['ratings'], 'rating')}, "
        f"{_plural(report['exchanges'], 'exchange')} could teach something and "
        f"{taken['exchanges']:,} were taken: {splits['train']['exchanges']:,} to learn from and "
        f"{splits['heldout']['exchanges']:,} held out for the gate to ask."
    ]
    if taken["new"] != taken["exchanges"]:
        lines.append(f"{taken['new']:,} of them are new since the last update.")
    if waiting := report["dropped"]["waiting"]["exchanges"]:
        lines.append(f"{waiting:,} more wait for a review: `lmloop review` shows them.")
    if moved := report["moved_to_train"]:
        lines.append(
            f"{_plural(moved, 'exchange')} drawn to be held out had to be learnt instead: the "
            "answers stand in others that are learnt."
        )
    return " ".join(lines)


def _render_left_out(left_out: Mapping[str, int]) -> list[str]:
    rows = [[LEFT_OUT[name], f"{count:,}"] for name, count in left_out.items() if count]
    if not rows:
        return []
    return ["## Ratings that teach nothing", _table(["ratings", "how many"], rows)]


def _render_drops(dropped: Mapping[str, Mapping[str, Any]]) -> list[str]:
    found = {name: each for name, each in dropped.items() if each["exchanges"]}
    blocks = ["## Exchanges that are not taken"]
    if not found:
        return [*blocks, "None."]
    rows = [[_code(n), REASONS[n], f"{each['exchanges']:,}"] for n, each in found.items()]
    blocks.append(_table(["reason", "what it means", "exchanges"], rows))
    for name, each in found.items():
        lines = [
            f"- {_code(sample['user'] or 'somebody')} asked {_tell(sample['question'])}, "
            f"the answer {_tell(sample['answer'])}"
            for sample in each["samples"]
        ]
        blocks.append("\n".join([f"### {name}, for example", "", *lines]))
    return blocks


def _render_users(users: Sequence[Mapping[str, Any]]) -> list[str]:
    rows = [
        [_code(each["user"] or "without a user"), f"{each['sent']:,}", f"{each['taken']:,}"]
        for each in users
    ]
    return ["## Who sent most", _table(["user", "exchanges", "taken"], rows)]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '∣') for cell in line)} |" for line in lines)


def _tell(text: str | None) -> str:
    if text is None:
        return "what cannot be shown"
    return _code(text) if text else "nothing"


def _code(text: str) -> str:
    """Text between back-ticks that no back-tick in it can end."""
    return f"`{text}`" if "`" not in text else f"`` {text.replace('``', '` `')} ``"


def _plural(count: int, noun: str, ending: str = "s") -> str:
    return f"{count:,} {noun}{'' if count == 1 else ending}"
