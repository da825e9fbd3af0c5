"""Bits per byte of an exported folder: the same figure when transformers scores it."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from lmloop.compression.quantize import compress
from lmloop.evaluation.perplexity import bits_per_byte_of
from lmloop.inference.load import load
from lmloop.progress import Silent
from lmloop.records import Conversation, Record
from lmloop.sections import CompressConfig
from lmloop.tokens.shards import Shards

pytestmark = pytest.mark.slow


@torch.no_grad()
def score_with_transformers(folder: Path, records: list[Record]) -> float:
    """Bits per byte with nothing of ours: transformers' model, tokenizer and chat template.

    A token is predicted from the first window that holds it; windows overlap by half.
    """
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    size = model.config.max_position_embeddings
    nats, raw_bytes = 0.0, 0
    for record in records:
        assert isinstance(record, Conversation)
        messages = [{"role": turn.role, "content": turn.content} for turn in record.turns]
        ids = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True)["input_ids"]
        ids = [*ids, tokenizer.bos_token_id]
        counted = 1
        for start in range(0, len(ids), size // 2):
            window = torch.tensor(ids[start : start + size + 1])
            logs = model(window[None, :-1]).logits[0].double().log_softmax(-1)
            found = logs.gather(1, window[1:, None])[:, 0]
            nats -= float(found[counted - start - 1 :].sum())
            counted = start + len(window)
            if counted == len(ids):
                break
        raw_bytes += sum(len(turn.content.encode()) for turn in record.turns)
    return nats / math.log(2) / raw_bytes


def score_with_lmloop(folder: Path, shards_folder: Path) -> float:
    model = load(folder, dtype=torch.float32)
    return bits_per_byte_of(
        model.transformer,
        Shards.open(shards_folder, "heldout"),
        document_id=model.require_tokenizer().document_id,
        context_length=model.config.context_length,
    )


def test_transformers_finds_the_same_bits_per_byte(
    model_folder: Path, shards_folder: Path, splits: dict[str, list[Record]]
) -> None:
    shards = Shards.open(shards_folder, "heldout")
    longest = max(len(shards.document(i)) for i in range(shards.num_documents))
    assert longest > load(model_folder).config.context_length
    theirs = score_with_transformers(model_folder, splits["heldout"])
    assert score_with_lmloop(model_folder, shards_folder) == pytest.approx(theirs, rel=1e-5)


def test_transformers_finds_the_same_of_the_compressed_folder(
    tmp_path: Path, model_folder: Path, shards_folder: Path, splits: dict[str, list[Record]]
) -> None:
    compress(
        CompressConfig(max_loss=1.0),
        model_folder=model_folder,
        shards=Shards.open(shards_folder, "heldout"),
        folder=tmp_path,
        progress=Silent(),
    )
    theirs = score_with_transformers(tmp_path, splits["heldout"])
    assert score_with_lmloop(tmp_path, shards_folder) == pytest.approx(theirs, rel=1e-5)
    untouched = score_with_transformers(model_folder, splits["heldout"])
    assert abs(theirs / untouched - 1) > 1e-5
