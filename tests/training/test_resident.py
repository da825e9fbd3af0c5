"""What a process holds beside tensors: the rule, and real processes that train."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import lmloop
from lmloop.learning import FinetuneConfig, PretrainConfig
from lmloop.sections import ModelSection
from lmloop.tokens.tokenizer import Tokenizer
from lmloop.training import memory
from lmloop.training.memory import plan_memory
from lmloop.training.resident import (
    COMPILER,
    GAPS,
    LEAST_UNEVEN_GAPS,
    LIBRARIES,
    MORE_GAPS,
    ROUNDING,
    UNEVEN_GAPS,
    VALIDATION,
    process_bytes,
)
from lmloop.training.shape import model_config

from ..conftest import make_conversations, tiny_shape, write_jsonl, write_recipe

PLAIN: dict[str, Any] = {"steps": 4, "optimizer": "adamw", "precision": "float32"}
TRAIN = """
import json
import sys
from pathlib import Path

import lmloop

lmloop.pretrain(sys.argv[1], home=sys.argv[2], **json.loads(sys.argv[3]))
lines = Path("/proc/self/status").read_text().splitlines()
print(next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM")))
"""


@pytest.mark.parametrize(
    ("section", "is_native", "beside"),
    [
        (PLAIN, True, GAPS["none"] * 10**9),
        (PLAIN, False, (GAPS["none"] + MORE_GAPS) * 10**9),
        (PLAIN | {"precision": "bfloat16"}, True, ROUNDING + GAPS["none"] * 10**9),
        (PLAIN | {"checkpointing": "full"}, True, COMPILER + GAPS["full"] * 10**9),
    ],
    ids=["plain", "not compiled", "bfloat16", "computed again"],
)
def test_each_part_is_added_where_it_is_due(
    section: dict[str, Any], is_native: bool, beside: float
) -> None:
    held = process_bytes(PretrainConfig(**section), passing=10**9, is_native=is_native)
    assert held == pytest.approx(LIBRARIES + beside, abs=2)


def test_fine_tuning_leaves_more_gaps() -> None:
    held = process_bytes(FinetuneConfig(**PLAIN), passing=10**9, is_native=True)
    assert held == pytest.approx(LIBRARIES + LEAST_UNEVEN_GAPS + UNEVEN_GAPS * 10**9, abs=2)


def test_validation_takes_its_part_of_a_small_model_as_well() -> None:
    held = process_bytes(PretrainConfig(**PLAIN), passing=1000, is_native=True)
    assert held == LIBRARIES + VALIDATION - 1000


def test_a_process_holds_more_than_its_tensors_and_a_gpu_nothing_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    section = PretrainConfig(**PLAIN, batch_tokens=64, row_tokens=32)
    here = plan_memory(tiny_shape(), section)
    passing = here.peak - here.kept
    assert here.process == process_bytes(section, passing=passing, is_native=False)
    assert here.resident == here.peak + here.process
    monkeypatch.setattr(memory, "best_device", lambda: torch.device("cuda", 0))
    there = plan_memory(tiny_shape(), section)
    assert (there.process, there.resident) == (0, there.peak)


SMALL = {"num_layers": 2, "hidden_size": 128, "num_heads": 4, "num_kv_heads": 2, "head_dim": 32}
WIDER = {"num_layers": 3, "hidden_size": 320, "num_heads": 5, "num_kv_heads": 5, "head_dim": 64}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the rule is of Linux with glibc")
@pytest.mark.parametrize(
    ("shape", "section"),
    [
        (SMALL, {"batch_tokens": 2048}),
        (SMALL, {"batch_tokens": 8192, "optimizer": "adamw", "precision": "float32"}),
        (WIDER, {"batch_tokens": 4096, "checkpointing": "full", "optimizer": "adamw"}),
    ],
    ids=["small", "many tokens", "computed again"],
)
def test_a_real_process_holds_what_was_foretold(
    tmp_path: Path, shape: dict[str, int], section: dict[str, Any]
) -> None:
    shape = shape | {"intermediate_size": 3 * shape["hidden_size"], "context_length": 256}
    section = section | {"steps": 8, "row_tokens": 256, "validate_every": 4, "save_every": 100}
    recipe, home = write_recipe(tmp_path), tmp_path / "home"
    # Enough to validate on for passes of as many tokens as real text has them.
    write_jsonl(tmp_path / "talks.jsonl", make_conversations(3000, seed=9))
    changes: dict[str, Any] = {f"model.{key}": value for key, value in shape.items()}
    changes |= {f"pretrain.{key}": value for key, value in section.items()}
    # A vocabulary as large as that of the runs that the rule was fitted to.
    changes["tokenize.extra_tokens"] = [f"<|extra_{number}|>" for number in range(3756)]
    changes["tokenize.vocab_size"] = 4096
    made = lmloop.tokenize(recipe, home=home, **changes)
    done = subprocess.run(
        [sys.executable, "-c", TRAIN, str(recipe), str(home), json.dumps(changes)],
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    config = model_config(ModelSection(**shape), vocab_size=Tokenizer.open(made.path).vocab_size)
    foretold = plan_memory(config, PretrainConfig(**section)).resident
    assert foretold == pytest.approx(int(done.stdout.split()[-1]), rel=0.1)
