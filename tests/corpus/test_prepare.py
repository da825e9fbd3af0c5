from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from lmloop.corpus.prepare import PrepareResult, fingerprint_sources, prepare
from lmloop.corpus.report import DROPS
from lmloop.corpus.splits import SPLITS, read_split
from lmloop.errors import CorpusError, SourceError
from lmloop.progress import Progress, Silent, Task
from lmloop.records import Conversation
from lmloop.sections import PrepareConfig
from lmloop.store.artifact import hash_file

FILES = ["heldout.parquet", "report.json", "report.md", "train.parquet", "validation.parquet"]
Run = Callable[..., tuple[Path, PrepareResult]]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Prepare one source into a new folder."""

    def run_prepare(
        *sources: Path, progress: Progress | None = None, **keys: Any
    ) -> tuple[Path, PrepareResult]:
        folder = tmp_path / f"out{len(list(tmp_path.glob('out*')))}"
        folder.mkdir()
        keys = {"validation_share": 0.2, "heldout_share": 0.2, **keys}
        config = PrepareConfig(sources=tuple(map(str, sources)), **keys)
        return folder, prepare(config, folder, seed=0, progress=progress or Silent())

    return run_prepare


class Told(Silent):
    """Progress that remembers."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.tasks: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)

    @contextmanager
    def task(self, name: str, *, total: float | None, unit: str) -> Iterator[Task]:
        self.tasks.append(name)
        with super().task(name, total=total, unit=unit) as task:
            yield task


def test_raw_chats_become_three_splits_and_a_report(
    run: Run, write_rows: Any, chats: list[Any]
) -> None:
    progress = Told()
    path = write_rows([*chats, chats[0], {"text": "short"}, "broken"])
    folder, result = run(path, progress=progress)
    assert sorted(each.name for each in folder.iterdir()) == FILES
    records = {split: list(read_split(folder, split)) for split in SPLITS}
    assert sum(map(len, records.values())) == 60
    assert all(isinstance(each, Conversation) for group in records.values() for each in group)
    report = json.loads((folder / "report.json").read_text())
    for split, group in records.items():
        assert report["splits"][split]["records"] == len(group) > 0
        assert report["splits"][split]["raw_bytes"] == sum(each.raw_bytes for each in group)
    assert report["dropped"]["exact_duplicate"]["records"] == 1
    assert report["dropped"]["min_characters"]["samples"] == ["short"]
    assert report["read"]["skipped"] == {"rows.jsonl": {"no valid JSON": 1}}
    assert result.counts["splits"] == report["splits"]
    assert result.counts["read"]["skipped"] == 1
    assert progress.lines == [
        "skipped 1 lines, rows or files in 1 files (no valid JSON 1); the report lists them"
    ]
    assert progress.tasks == ["read", "clean", "deduplicate", "write splits"]


def test_lineage_names_the_raw_source_and_its_hash(
    run: Run, write_rows: Any, chats: list[Any]
) -> None:
    path = write_rows(chats)
    folder, result = run(path)
    expected = [{"kind": "raw", "source": "rows.jsonl", "fingerprint": hash_file(path)}]
    assert result.sources == expected
    assert fingerprint_sources((str(path),)) == expected
    for name in ("report.json", "report.md"):
        assert str(path.parent) not in (folder / name).read_text()


def test_the_same_rows_in_another_order_give_the_same_bytes(
    run: Run, write_rows: Any, chats: list[Any]
) -> None:
    rows = [*chats, chats[3], {"text": "word " * 40}]
    first, _ = run(write_rows(rows))
    random.Random(1).shuffle(rows)
    second, _ = run(write_rows(rows))
    for split in SPLITS:
        name = f"{split}.parquet"
        assert (first / name).read_bytes() == (second / name).read_bytes()


def test_running_twice_gives_the_same_report(run: Run, write_rows: Any, chats: list[Any]) -> None:
    path = write_rows(chats)
    (first, _), (second, _) = run(path), run(path)
    for name in FILES:
        assert (first / name).read_bytes() == (second / name).read_bytes()


def test_a_changed_file_changes_the_fingerprint(write_rows: Any) -> None:
    config = PrepareConfig(sources=(str(write_rows([{"text": "a"}])),))
    before = fingerprint_sources(config.sources)
    write_rows([{"text": "b"}])
    assert fingerprint_sources(config.sources) != before


def test_nothing_left_says_which_rules_dropped_it(run: Run, write_rows: Any) -> None:
    rows = [{"text": "short"}, {"text": "tiny"}, {"messages": [{"role": "user", "content": "x"}]}]
    with pytest.raises(CorpusError) as caught:
        run(write_rows(rows))
    assert str(caught.value) == (
        "0 of 3 records are left after cleaning (min_turns 1, min_characters 2): "
        "relax the rules under [prepare] or add text"
    )


def test_an_empty_split_says_which_share_would_fill_it(
    run: Run, write_rows: Any, chats: list[Any], tmp_path: Path
) -> None:
    path = write_rows([*chats, {"text": "short"}])
    with pytest.raises(CorpusError) as caught:
        run(path, validation_share=0.0001)
    message = str(caught.value)
    assert message.startswith("the validation split is empty: 60 of 61 records are left")
    assert "(min_characters 1)" in message
    assert list((tmp_path / "out0").iterdir()) == []
    share = float(message.split("prepare.validation_share = ")[1].split()[0])
    run(path, validation_share=share)


def test_one_record_is_too_few_for_any_share(run: Run, write_rows: Any) -> None:
    with pytest.raises(CorpusError, match="split is empty: 1 of 1 records are left"):
        run(write_rows([{"text": "a single text of some length"}]))


def test_a_bad_source_leaves_nothing_behind(run: Run, write_rows: Any, tmp_path: Path) -> None:
    with pytest.raises(SourceError):
        run(write_rows(["bad"]))
    assert list((tmp_path / "out0").iterdir()) == []


@pytest.mark.slow
def test_the_demo_corpus_is_prepared_as_the_documentation_says(run: Run) -> None:
    source: Any = "package:chitchat_dataset/dataset.json"
    folder, result = run(source, validation_share=0.01, heldout_share=0.04)
    assert result.counts["read"]["records"] == 7168
    assert result.counts["read"]["raw_bytes"] == 12_486_783
    assert result.counts["dropped"] == {
        "empty": 0,
        "min_turns": 3151,
        "min_characters": 58,
        "max_characters": 0,
        "max_repetition": 2,
        "exact_duplicate": 0,
        "near_duplicate": 2,
    }
    assert result.counts["masked"] == {"emails": 2, "phones": 2}
    sizes = {name: each["records"] for name, each in result.counts["splits"].items()}
    assert sizes == {"train": 3752, "validation": 29, "heldout": 174}
    assert sum(1 for _ in read_split(folder, "heldout")) == 174


@pytest.mark.parametrize("page", ["prepare.md", "prepare.zh-CN.md"])
def test_the_documentation_tells_every_key_with_its_default_and_every_rule(page: str) -> None:
    text = (Path(__file__).parents[2] / "docs" / page).read_text(encoding="utf-8")
    for name, field in PrepareConfig.model_fields.items():
        default = "–" if field.is_required() else json.dumps(field.default)
        assert f"| `{name}` | {default} |" in text
    assert all(f"`{name}`" in text for name in DROPS)
