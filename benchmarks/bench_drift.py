"""How often unchanged traffic alarms, and how soon a changed third of it does.

Traffic is drawn from signals of whole conversations, many of them at once. Without a model
they are made up: heavy tails, ties, signals that hang together, people who write several times.
With `--home`, a live chat model measures real prompts: its held-out and training conversations as
the usual traffic, sentences of Python's documentation as another topic, the Chinese pages of this
repository as another language; answers are then left out.
"""

from __future__ import annotations

import itertools
import pydoc
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from harness import ROOT, make_parser, make_row, median, report
from lmloop.monitoring.drift import compare
from lmloop.monitoring.sample import EMBEDDING_SIZE, FLAGS, LABELS, NUMBERS, Sample
from lmloop.records import Conversation, Turn
from lmloop.upkeep import MonitorConfig

WINDOWS = 5000
WINDOWS_A_REFERENCE = 25
TRIALS = 200
SHARE = 1 / 3
SOON = 500.0
"""Requests within which a change should be found."""
LONGEST_SEARCH = 1500
"""Requests after which a change counts as missed."""
AT_ONCE = 30
"""Conversations under way."""
POOL = 12_000
PEOPLE_AGREE = 0.5
"""Correlation of the made-up signals of one person."""
TOPIC = 2.1
"""As far from the usual as Python's documentation is from small talk for the model of the demo: the
best direction parts their embeddings by 4.9 standard deviations."""
REAL_PROMPTS = 4000
REAL_CONVERSATIONS = 800
DOCUMENTED = ("argparse", "asyncio", "collections", "csv", "datetime", "email.message", "json")
DOCUMENTED += ("logging", "os", "pathlib", "random", "re", "sqlite3", "string", "subprocess")

Draw = Callable[[int], Sample]


def make_people(count: int, generator: np.random.Generator) -> np.ndarray:
    """Who sends each of `count` requests: one and a half a person on average."""
    times = generator.geometric(2 / 3, size=count)
    return np.repeat(np.arange(count), times)[:count]


def make_traffic(
    generator: np.random.Generator, *, topic: float = 0.0, language: str = "en"
) -> Sample:
    """A pool of made-up requests; `topic` moves the prompts' embeddings and their surprise."""
    people = make_people(POOL, generator)

    def noise() -> np.ndarray:
        shared = generator.standard_normal(POOL)[people]
        own = generator.standard_normal(POOL)
        return np.sqrt(PEOPLE_AGREE) * shared + np.sqrt(1 - PEOPLE_AGREE) * own

    length, surprise = noise(), noise() + topic
    rated = generator.random(POOL) < 0.2
    repeats = np.where(noise() < 1, 0.0, np.minimum(1.0, np.abs(noise())))
    numbers = {
        "prompt_characters": np.round(np.exp(3.5 + 0.9 * length)),
        "prompt_nats": np.maximum(0.1, 4 + surprise),
        "answer_characters": np.round(np.exp(3.4 + 0.3 * length + 0.6 * noise())),
        "log_probability": -2 - 0.2 * surprise + 0.4 * generator.standard_t(4, POOL),
        "entropy": 2 + 0.2 * surprise + 0.4 * noise(),
        "repetition": np.round(repeats, 4),
        "refusal": (noise() > 2.2).astype(float),
        "length_stop": (noise() > 1.3).astype(float),
        "thumbs_down": np.where(rated, noise() > 0.4, np.nan),
    }
    spread = np.exp(-np.arange(EMBEDDING_SIZE) / 10)
    means = generator.standard_t(4, (POOL, EMBEDDING_SIZE))[people]
    own = generator.standard_t(4, (POOL, EMBEDDING_SIZE))
    place = np.zeros(EMBEDDING_SIZE)
    place[3:19] = 1.2 * topic
    written = np.where(noise() > 2.5, "de", language).astype(str)
    return Sample(
        numbers=numbers,
        labels={"language": written, "answer_language": written},
        embeddings=((means + own + place) * spread).astype(np.float32),
        weights=np.full(POOL, "made-up"),
        groups=people,
    )


class Traffic:
    """Endless requests drawn from pools, many whole conversations at once."""

    def __init__(self, pools: list[Sample], generator: np.random.Generator) -> None:
        self._whole = join(pools)
        ends = np.cumsum([0, *map(len, pools)])
        self._talks = [
            [start + rows for rows in conversations(pool)]
            for start, pool in zip(ends[:-1], pools, strict=True)
        ]
        self._generator = generator
        self._names = itertools.count()

    def draw(self, share: float) -> Iterator[tuple[int, int]]:
        """Rows of the joined pools with a conversation's number; `share` from the second pool."""
        under_way = [self._begin(share) for _ in range(AT_ONCE)]
        while True:
            place = int(self._generator.integers(AT_ONCE))
            found = next(under_way[place], None)
            if found is None:
                under_way[place] = self._begin(share)
            else:
                yield found

    def _begin(self, share: float) -> Iterator[tuple[int, int]]:
        """A conversation; those of the pools differ in length, so requests are what is shared."""
        talks = self._talks[0]
        if share:
            lengths = [np.mean([len(rows) for rows in pool]) for pool in self._talks]
            odds = share / lengths[1], (1 - share) / lengths[0]
            talks = self._talks[int(self._generator.random() < odds[0] / sum(odds))]
        name = next(self._names)
        return iter([(int(row), name) for row in talks[self._generator.integers(len(talks))]])

    def take(self, rows: list[tuple[int, int]]) -> Sample:
        """These requests as a sample."""
        picked = np.array([row for row, _ in rows])
        names = np.array([name for _, name in rows], dtype=np.int64)
        return replace(self._whole.select(picked), groups=names)


def conversations(pool: Sample) -> list[np.ndarray]:
    """Rows of each group."""
    order = np.argsort(pool.groups, kind="stable")
    cuts = np.flatnonzero(np.diff(pool.groups[order])) + 1
    return np.split(order, cuts)


def join(pools: list[Sample]) -> Sample:
    """Several samples as one."""
    return Sample(
        numbers={
            name: np.concatenate([pool.numbers[name] for pool in pools])
            for name in (*NUMBERS, *FLAGS)
        },
        labels={name: np.concatenate([pool.labels[name] for pool in pools]) for name in LABELS},
        embeddings=np.concatenate([pool.embeddings for pool in pools]),
        weights=np.concatenate([pool.weights for pool in pools]),
        groups=np.concatenate([pool.groups for pool in pools]),
    )


def count_false(
    usual: Sample, config: MonitorConfig, generator: np.random.Generator
) -> tuple[float, float]:
    """Changed windows and alarms in a thousand windows of unchanged traffic."""
    traffic = Traffic([usual], generator)
    changed = alarms = row = 0
    for number in range(WINDOWS):
        if number % WINDOWS_A_REFERENCE == 0:
            stream, row = traffic.draw(0.0), 0
            reference = traffic.take(list(itertools.islice(stream, config.reference_requests)))
        window = traffic.take(list(itertools.islice(stream, config.window_requests)))
        found = compare(reference, window, config=config, seed=number)
        row = row + 1 if any(each.changed for each in found) else 0
        changed += row > 0
        alarms += row == config.windows_in_a_row
    return 1000 * changed / WINDOWS, 1000 * alarms / WINDOWS


def count_until_alarm(
    pools: list[Sample], config: MonitorConfig, generator: np.random.Generator
) -> int:
    """Requests from the change to the alarm; the change comes anywhere in a window."""
    traffic = Traffic(pools, generator)
    usual = traffic.draw(0.0)
    reference = traffic.take(list(itertools.islice(usual, config.reference_requests)))
    before = int(generator.integers(config.window_requests))
    stream = itertools.chain(itertools.islice(usual, before), traffic.draw(SHARE))
    row = 0
    for number in itertools.count(1):
        seen = number * config.window_requests - before
        window = traffic.take(list(itertools.islice(stream, config.window_requests)))
        found = compare(reference, window, config=config, seed=number)
        row = row + 1 if any(each.changed for each in found) else 0
        if row == config.windows_in_a_row or seen > LONGEST_SEARCH:
            return seen
    raise AssertionError


def measure(
    pools: dict[str, Sample], config: MonitorConfig, generator: np.random.Generator
) -> list[dict[str, object]]:
    """The rows of the report."""
    usual = pools.pop("usual")
    changed, alarms = count_false(usual, config, generator)
    rows = [
        make_row("drift.changed_windows", "of 1,000", changed, smaller_is_better=True),
        make_row("drift.false_alarms", "of 1,000", alarms, limit=1.0, smaller_is_better=True),
    ]
    for name, pool in pools.items():
        found = [count_until_alarm([usual, pool], config, generator) for _ in range(TRIALS)]
        for what, value in (("median", median(found)), ("worst", max(found))):
            label = f"drift.{name}_{what}"
            rows.append(make_row(label, "requests", value, limit=SOON, smaller_is_better=True))
        soon = sum(each <= SOON for each in found)
        rows.append(make_row(f"drift.{name}_found_soon", f"of {TRIALS}", soon, limit=TRIALS))
    return rows


def measure_prompts(home: Path) -> dict[str, Sample]:
    """Signals of real prompts under the live model of a home."""
    from lmloop.config import database_setting
    from lmloop.corpus.splits import read_split
    from lmloop.inference.load import load
    from lmloop.monitoring.reference import text_reference
    from lmloop.store.artifact import open_artifact
    from lmloop.store.database import database_url, open_database
    from lmloop.store.registry import find_live

    database = open_database(database_setting() or database_url(home))
    live = find_live(database, None)
    database.dispose()
    model = load(live.path)
    corpus = next(
        found.path
        for found in map(open_artifact, sorted((home / "artifacts").glob("prepare-*")))
        if found.name == live.name
    )
    talks = [*read_split(corpus, "heldout"), *read_split(corpus, "train")][:REAL_CONVERSATIONS]
    texts = {"usual": talks, "topic": as_talks(document_python()), "language": as_talks(chinese())}
    return {
        name: text_reference(model, records, limit=REAL_PROMPTS, seed=0)
        for name, records in texts.items()
    }


def document_python() -> Iterator[str]:
    """Sentences about Python's own library."""
    for name in DOCUMENTED:
        text = pydoc.plain(pydoc.render_doc(name))
        yield from re.findall(r"^[ |]+([A-Z][\w ,'()-]{25,}\.)$", text, re.MULTILINE)


def chinese() -> Iterator[str]:
    """Sentences of the Chinese pages of this repository."""
    for path in sorted([*ROOT.glob("docs/*.zh-CN.md"), ROOT / "README.zh-CN.md"]):
        yield from re.findall(r"[^。！？|`\n]{8,}[。！？]", path.read_text(encoding="utf-8"))


def as_talks(sentences: Iterator[str]) -> list[Conversation]:
    """Each sentence as a conversation that it opens."""
    return [
        Conversation(str(number), (Turn("user", text),), len(text.encode()))
        for number, text in enumerate(dict.fromkeys(sentences))
    ]


def main() -> None:
    """Measure made-up traffic, or real prompts where a home is given."""
    parser = make_parser(__doc__)
    parser.add_argument("--home", type=Path, help="measure prompts with this home's live model")
    arguments = parser.parse_args()
    generator = np.random.default_rng(0)
    if arguments.home is None:
        pools = {
            "usual": make_traffic(generator),
            "topic": make_traffic(generator, topic=TOPIC),
            "language": make_traffic(generator, topic=0.5, language="zh"),
        }
    else:
        pools = measure_prompts(arguments.home)
        sizes = ", ".join(f"{len(pool)} {name}" for name, pool in pools.items())
        print(f"prompts: {sizes}", file=sys.stderr)
    report("bench_drift", measure(pools, MonitorConfig(), generator), arguments)


if __name__ == "__main__":
    main()
