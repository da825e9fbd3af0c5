from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from lmloop.corpus.dedupe import NUM_HASHES, build_shingles
from lmloop.corpus.engine import Engine
from lmloop.corpus.read import SourcedRecord
from lmloop.corpus.splits import SPLITS, read_split
from lmloop.records import Conversation, Document, Record, Turn
from lmloop.sections import PrepareConfig

CONFIG = PrepareConfig(sources=("x",), validation_share=0.2, heldout_share=0.3)


def run_engine(
    work: Path, records: Sequence[SourcedRecord], config: PrepareConfig = CONFIG, seed: int = 0
) -> tuple[Engine, int]:
    work.mkdir()
    engine = Engine(work, config=config, seed=seed)
    engine.spool(records, advance=lambda count: None)
    engine.clean()
    return engine, engine.judge()


def make_records() -> list[SourcedRecord]:
    """Forty different records, a copy, a near copy, and one that each of three rules drops."""
    source = random.Random(5)
    texts = [" ".join(f"w{source.randrange(900)}" for _ in range(90)) for _ in range(40)]
    records: list[Record] = [Document("", text, len(text)) for text in texts]
    records += [
        Document("", texts[0] + " ", len(texts[0]) + 1),
        Document("", texts[1] + " tail", len(texts[1]) + 5),
        Document("", "short", 5),
        Conversation("", (Turn("user", "nobody answers me in this room"),), 30),
        Document("", "again and again\n" * 9, 144),
        Conversation("", (Turn("user", "mail a@b.com please"), Turn("assistant", "done!")), 24),
    ]
    return [SourcedRecord(f"file{number % 3}", record) for number, record in enumerate(records)]


def write_all(engine: Engine, folder: Path) -> list[bytes]:
    for split in SPLITS:
        engine.write(split, folder / f"{split}.parquet")
    return [(folder / f"{split}.parquet").read_bytes() for split in SPLITS]


def test_every_record_gets_one_verdict(tmp_path: Path) -> None:
    engine, pairs = run_engine(tmp_path / "work", make_records())
    summary = engine.summarise()
    assert pairs == 1
    dropped = {name: row["records"] for name, row in summary.items() if name not in SPLITS}
    assert dropped == {
        "exact_duplicate": 1,
        "near_duplicate": 1,
        "min_characters": 1,
        "min_turns": 1,
        "max_repetition": 1,
    }
    assert sum(row["records"] for row in summary.values()) == 46
    kept = [summary[split] for split in SPLITS]
    assert sum(row["records"] for row in kept) == len(engine.survivors()) == 41
    assert sum(row["emails"] for row in kept) == 1
    assert sum(row["conversations"] for row in kept) == 1
    assert sum(row["turns"] for row in kept) == 2
    assert summary["max_repetition"]["raw_bytes"] == 144


def test_order_does_not_change_a_byte(tmp_path: Path) -> None:
    records = make_records()
    outputs = []
    for seed in range(4):
        engine, _ = run_engine(tmp_path / str(seed), records)
        outputs.append((write_all(engine, tmp_path), engine.summarise(), engine.sample()))
        random.Random(seed).shuffle(records)
    assert all(output == outputs[0] for output in outputs)


def test_splits_are_sorted_share_nothing_and_are_stable(tmp_path: Path) -> None:
    records = make_records()
    engine, _ = run_engine(tmp_path / "all", records)
    write_all(engine, tmp_path)
    place = {}
    for split in SPLITS:
        ids = [record.id for record in read_split(tmp_path, split)]
        assert ids == sorted(ids)
        place.update(dict.fromkeys(ids, split))
    assert len(place) == 41
    engine, _ = run_engine(tmp_path / "less", records[2:30])
    write_all(engine, tmp_path)
    for split in SPLITS:
        assert all(place[record.id] == split for record in read_split(tmp_path, split))


def test_of_copies_the_least_file_and_raw_size_stays(tmp_path: Path) -> None:
    text = "the very same text in two files"
    records = [
        SourcedRecord("b", Document("", text, 31)),
        SourcedRecord("a", Document("", f"{text}\r\n\r\n", 35)),
        SourcedRecord("a", Document("", f"{text}\n", 32)),
    ]
    engine, _ = run_engine(tmp_path / "work", records)
    write_all(engine, tmp_path)
    [record] = [record for split in SPLITS for record in read_split(tmp_path, split)]
    assert record.raw_bytes == 32


def test_near_duplicates_stay_where_the_recipe_says_so(tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"near_duplicate_similarity": None})
    engine, pairs = run_engine(tmp_path / "work", make_records(), config)
    assert pairs == 0
    assert len(engine.survivors()) == 42


def test_samples_are_few_different_and_carry_roles(tmp_path: Path) -> None:
    records = [SourcedRecord("f", Document("", f"n{n % 9}", 2)) for n in range(30)]
    records.append(SourcedRecord("f", Conversation("", (Turn("user", "hello, anyone?"),), 14)))
    engine, _ = run_engine(tmp_path / "work", records)
    samples = engine.sample()
    assert samples["min_turns"] == ["user: hello, anyone?"]
    assert len(set(samples["min_characters"])) == len(samples["min_characters"]) == 5


def test_nothing_left_is_no_crash(tmp_path: Path) -> None:
    engine, pairs = run_engine(tmp_path / "work", [SourcedRecord("f", Document("", "x", 1))])
    assert (pairs, engine.survivors()) == (0, [])
    assert list(engine.summarise()) == ["min_characters"]


def test_daft_signatures_estimate_the_jaccard_similarity() -> None:
    daft = pytest.importorskip("daft")
    words = [f"w{number}" for number in range(200)]
    texts = [" ".join(words), " ".join([*words[:-20], *(f"x{number}" for number in range(20))])]
    ngrams = [{tuple(text.split()[start : start + 5]) for start in range(196)} for text in texts]
    exact = len(ngrams[0] & ngrams[1]) / len(ngrams[0] | ngrams[1])
    frame = daft.from_pydict({"text": [build_shingles(text) for text in texts]})
    signature = daft.col("text").minhash(num_hashes=NUM_HASHES, ngram_size=5, seed=7)
    one, other = frame.select(signature).to_pydict()["text"]
    estimate = sum(left == right for left, right in zip(one, other, strict=True)) / NUM_HASHES
    # Four standard errors of 112 draws.
    assert abs(estimate - exact) < 4 * (exact * (1 - exact) / NUM_HASHES) ** 0.5


def test_the_engine_imports_no_torch_and_nothing_at_import(tmp_path: Path) -> None:
    program = f"""
import sys
from pathlib import Path
from lmloop.corpus.engine import Engine
from lmloop.corpus.read import SourcedRecord
from lmloop.corpus.splits import SPLITS
from lmloop.records import Document
from lmloop.sections import PrepareConfig
assert "daft" not in sys.modules
engine = Engine(Path({str(tmp_path)!r}), config=PrepareConfig(sources=("x",)), seed=0)
engine.spool([SourcedRecord("f", Document("", "some words to keep", 18))], advance=print)
engine.clean(); engine.judge(); engine.summarise(); engine.sample()
for split in SPLITS:
    engine.write(split, Path({str(tmp_path)!r}) / split)
assert "daft" in sys.modules and "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
