"""Heads of tasks beside transformers: classifiers, taggers, spans, both ways."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lmloop.weights.head_files import load_task, save_task

pytestmark = pytest.mark.slow

SIZES = {
    "vocab_size": 50,
    "num_hidden_layers": 2,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "bos_token_id": 2,
    "eos_token_id": 3,
}
GROUPED = {**SIZES, "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0}
MODERN = {**SIZES, "pad_token_id": 0, "local_attention": 8, "cls_token_id": 2, "sep_token_id": 3}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("Bert", {**SIZES, "pad_token_id": 0}),
    "roberta": ("Roberta", {**SIZES, "pad_token_id": 1}),
    "modernbert": ("ModernBert", {**MODERN, "classifier_pooling": "cls"}),
    "modernbert, mean": ("ModernBert", {**MODERN, "classifier_pooling": "mean"}),
    "llama": ("Llama", GROUPED),
    "mistral": ("Mistral", {**GROUPED, "sliding_window": None}),
    "qwen2": ("Qwen2", GROUPED),
    "qwen3": ("Qwen3", GROUPED),
}
LABELS = {
    "ForSequenceClassification": ["bad", "so-so", "good"],
    "ForTokenClassification": ["O", "B-PER", "I-PER", "B-LOC"],
    "ForQuestionAnswering": ["first", "last"],
}
LENGTHS = torch.tensor([20, 13, 4])
INSIDE = torch.arange(20) < LENGTHS[:, None]


def draw(transformers: Any, family: str, head: str) -> Any:
    """A random model in which every norm and bias matters."""
    name, entries = FAMILIES[family]
    labels = dict(enumerate(LABELS[head]))
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(
        **entries, id2label=labels, label2id={label: at for at, label in labels.items()}
    )
    model = getattr(transformers, f"{name}{head}")(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            is_norm = parameter.dim() == 1 and name.endswith("weight")
            parameter.normal_(1.0 if is_norm else 0.0, 0.2)
    return model


def scores_of(model: Any, tokens: Tensor, **given: Tensor) -> Tensor:
    found = model(tokens, attention_mask=INSIDE.long(), **given)
    if "logits" in found:
        return found.logits
    return torch.stack([found.start_logits, found.end_logits], dim=-1)


def inputs_of(model: Any) -> Tensor:
    tokens = torch.randint(4, 50, (3, 20), generator=torch.Generator().manual_seed(0))
    return tokens.masked_fill(~INSIDE, model.config.pad_token_id)


def require_close(found: Tensor, expected: Tensor, *, tolerance: float = 1e-5) -> None:
    if found.dim() == 3:
        found, expected = found[INSIDE], expected[INSIDE]
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("head", LABELS)
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_heads_go_both_ways(transformers: Any, tmp_path: Path, family: str, head: str) -> None:
    first = draw(transformers, family, head)
    first.save_pretrained(tmp_path / "theirs")
    ours = load_task(tmp_path / "theirs")
    tokens = inputs_of(first)
    require_close(ours(tokens, lengths=LENGTHS), scores_of(first, tokens))
    (tmp_path / "ours").mkdir()
    save_task(ours, tmp_path / "ours", stop_id=3, pad_id=first.config.pad_token_id)
    again, told = type(first).from_pretrained(
        tmp_path / "ours", dtype=torch.float32, output_loading_info=True
    )
    assert not any(told.values())
    require_close(scores_of(again, tokens), scores_of(first, tokens), tolerance=0.0)
    entries = json.loads((tmp_path / "ours" / "config.json").read_text())
    if head != "ForQuestionAnswering":
        assert ours.config.labels == tuple(LABELS[head])
        assert entries["label2id"] == {label: at for at, label in enumerate(LABELS[head])}
        assert again.config.id2label == first.config.id2label
    assert load_task(tmp_path / "ours").config == ours.config


@pytest.mark.parametrize("family", ["bert", "qwen3"])
def test_losses_and_gradients_are_the_same(transformers: Any, tmp_path: Path, family: str) -> None:
    tokens = torch.randint(4, 50, (3, 20), generator=torch.Generator().manual_seed(0))
    targets = {
        "ForSequenceClassification": [torch.tensor([2, 0, 1]), torch.rand(3, 3).round()],
        "ForTokenClassification": [torch.randint(0, 4, (3, 20)).masked_fill(~INSIDE, -100)],
        "ForQuestionAnswering": [torch.tensor([[1, 4], [0, 25], [19, 19]])],
    }
    for head, several in targets.items():
        theirs = draw(transformers, family, head)
        theirs.save_pretrained(tmp_path / head)
        ours = load_task(tmp_path / head)
        for wanted in several:
            told = {"labels": wanted}
            if head == "ForQuestionAnswering":
                told = {"start_positions": wanted[:, 0], "end_positions": wanted[:, 1]}
            theirs.config.problem_type = None
            expected = theirs(tokens.clone(), **told).loss
            torch.testing.assert_close(ours.loss(ours(tokens), wanted), expected)


def test_one_label_is_a_number_learnt_by_regression(transformers: Any, tmp_path: Path) -> None:
    config = transformers.BertConfig(**FAMILIES["bert"][1], num_labels=1)
    theirs = transformers.BertForSequenceClassification(config).eval()
    theirs.save_pretrained(tmp_path)
    ours = load_task(tmp_path)
    assert ours.config.num_labels == 1
    tokens, wanted = inputs_of(theirs), torch.tensor([0.3, -1.0, 2.0])
    expected = theirs(tokens, attention_mask=INSIDE.long(), labels=wanted).loss
    torch.testing.assert_close(ours.loss(ours(tokens, lengths=LENGTHS), wanted), expected)
