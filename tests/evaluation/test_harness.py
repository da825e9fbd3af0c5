"""The whole evaluation of a tiny model: every figure in the report and in the manifest's counts."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lmloop.errors import ArtifactError
from lmloop.evaluation.harness import evaluate
from lmloop.inference.load import LoadedModel
from lmloop.progress import Silent
from lmloop.records import Document, Record
from lmloop.sections import EvaluateConfig
from lmloop.tokens.shards import Shards

from ..conftest import random_model

CONFIG = EvaluateConfig(candidates=4, ranking_questions=8, openers=6, max_tokens=12)


def run(
    folder: Path,
    model: LoadedModel,
    shards_folder: Path,
    splits: dict[str, list[Record]],
    **changes: Any,
) -> dict[str, Any]:
    folder.mkdir()
    arguments: dict[str, Any] = {
        "model": model,
        "base": None,
        "shards": Shards.open(shards_folder, "heldout"),
        "others": {},
        "records": splits["heldout"],
        "train_records": lambda: iter(splits["train"]),
        "training_logs": {},
        "folder": folder,
        "seed": 0,
        "progress": Silent(),
    }
    return evaluate(CONFIG, **(arguments | changes))


def test_counts_report_and_exchanges_agree(
    tmp_path: Path, loaded: LoadedModel, shards_folder: Path, splits: dict[str, list[Record]]
) -> None:
    journal = tmp_path / "journal.jsonl"
    journal.write_text('{"step": 1, "seconds": 0.5, "loss": 5.0}\n')
    base = replace(loaded, transformer=random_model(loaded.config, seed=1), fingerprint="b" * 64)
    counts = run(
        tmp_path / "report",
        loaded,
        shards_folder,
        splits,
        base=base,
        training_logs={"pretrain": journal},
    )
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    for name, metric in report["metrics"].items():
        assert counts[name] == metric["value"]
    assert counts["base_bits_per_byte"] == report["metrics"]["bits_per_byte"]["base"]
    assert counts["ranking_questions"] == report["ranking"]["questions"] == 8
    assert counts["answers"] == 6
    assert report["base"]["fingerprint"] == "b" * 64
    assert report["curves"][0]["loss"]["values"] == [5.0]
    assert report["settings"] == CONFIG.model_dump()
    lines = (tmp_path / "report" / "exchanges.jsonl").read_text().splitlines()
    longest = max(json.loads(line)["copied_words"] for line in lines)
    assert (len(lines), longest) == (6, counts["longest_copy"])
    json.dumps(counts, allow_nan=False)


def test_text_of_other_kinds_stands_beside_the_base_in_the_report_and_in_a_line(
    tmp_path: Path, loaded: LoadedModel, shards_folder: Path, splits: dict[str, list[Record]]
) -> None:
    lines: list[str] = []
    progress = Silent()
    progress.say = lines.append  # type: ignore[method-assign]
    base = replace(loaded, transformer=random_model(loaded.config, seed=1))
    others = {"outside": Shards.open(shards_folder, "validation")}
    counts = run(
        tmp_path / "report",
        loaded,
        shards_folder,
        splits,
        base=base,
        others=others,
        progress=progress,
    )
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    metric = report["metrics"]["outside_bits_per_byte"]
    assert (counts["outside_bits_per_byte"], counts["base_outside_bits_per_byte"]) == (
        metric["value"],
        metric["base"],
    )
    change = metric["value"] / metric["base"] - 1
    assert lines[-1] == (
        f"outside bits per byte: {metric['value']:.4f}, of the base {metric['base']:.4f} "
        f"({change:+.1%})"
    )
    assert lines[-2].startswith("bits per byte: ")


def test_the_same_seed_gives_the_same_files(
    tmp_path: Path, loaded: LoadedModel, shards_folder: Path, splits: dict[str, list[Record]]
) -> None:
    for name in ("one", "two"):
        run(tmp_path / name, loaded, shards_folder, splits)
    for file in (tmp_path / "one").iterdir():
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes(), file.name


def test_documents_alone_are_evaluated_without_ranking(
    tmp_path: Path, loaded: LoadedModel, shards_folder: Path, splits: dict[str, list[Record]]
) -> None:
    records = [Document(str(n), f"the sea is {n} miles far away", 30) for n in range(3)]
    counts = run(tmp_path / "report", loaded, shards_folder, splits, records=records)
    assert "hits_at_1" not in counts
    assert (counts["ranking_questions"], counts["answers"]) == (0, 3)


def test_a_context_too_short_to_talk_gives_bits_per_byte_alone(
    tmp_path: Path, loaded: LoadedModel, shards_folder: Path, splits: dict[str, list[Record]]
) -> None:
    model = replace(loaded, transformer=random_model(replace(loaded.config, context_length=8)))
    counts = run(tmp_path / "report", model, shards_folder, splits)
    assert counts["bits_per_byte"] > 0
    assert (counts["ranking_questions"], counts["answers"]) == (0, 0)
    assert counts["stop_share"] is None and "hits_at_1" not in counts
    assert "nothing to measure" in (tmp_path / "report" / "report.md").read_text()


def test_a_broken_model_leaves_no_report(
    tmp_path: Path, loaded: LoadedModel, shards_folder: Path, splits: dict[str, list[Record]]
) -> None:
    broken = random_model(loaded.config)
    with torch.no_grad():
        broken.embedding.weight.fill_(float("nan"))
    model = replace(loaded, transformer=broken)
    with pytest.raises(ArtifactError, match="nothing finite"):
        run(tmp_path / "report", model, shards_folder, splits)
    assert not list((tmp_path / "report").iterdir())
