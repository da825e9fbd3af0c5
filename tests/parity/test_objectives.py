"""Objectives beside transformers: the same draws hide the same tokens, the same masks blind."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from lmloop.tokens.objectives import Masking, Permutation, masked, permuted, visible

pytestmark = pytest.mark.slow

MASK, VOCABULARY = 1, 60
IGNORED = -100
REPLACED = -7


class Answers:
    """Stands in for the collator's generator: answers from draws that were made before."""

    def __init__(self, uniforms: Sequence[np.ndarray]) -> None:
        self.uniforms = list(uniforms)

    def binomial(self, trials: int, chance: Any, *, size: tuple[int, ...]) -> np.ndarray:
        return (self.uniforms.pop(0).reshape(size) < chance).astype(int)

    def integers(self, *, low: int, high: int, size: int, dtype: Any) -> np.ndarray:
        assert (low, high) == (0, VOCABULARY)
        return np.full(size, REPLACED)


def make_collator(**settings: Any) -> Any:
    import tokenizers
    import transformers

    backend = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({str(number): number for number in range(VOCABULARY)})
    )
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, mask_token=str(MASK))
    return transformers.DataCollatorForLanguageModeling(tokenizer, return_tensors="np", **settings)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("rate", [0.15, 0.5])
def test_the_collators_draws_hide_the_same_tokens(seed: int, rate: float) -> None:
    ids = np.random.default_rng(seed).integers(0, VOCABULARY, size=200)
    special = ids < 3
    options = Masking(mask_id=MASK, vocab_size=VOCABULARY, special_ids=(0, 1, 2), rate=rate)
    example = masked(ids, options, generator=np.random.default_rng(seed))

    draws = np.random.default_rng(seed)
    chosen = np.ones(200)
    chosen[~special] = draws.random((~special).sum())
    fate = draws.random(200)
    collator = make_collator(mlm_probability=rate)
    # The collator decides in two draws what ours does in one: the second is among the last 20 %.
    collator.generator = Answers([chosen, fate, (fate - 0.8) / 0.2])
    inputs, labels = collator.numpy_mask_tokens(ids[None].copy(), special[None].copy())

    assert np.array_equal(labels[0] != IGNORED, example.learnt)
    assert np.array_equal(labels[0][example.learnt], example.targets[example.learnt])
    replaced = inputs[0] == REPLACED
    assert np.array_equal(inputs[0][~replaced], example.tokens[~replaced])
    assert (example.tokens[replaced] > 2).all()
    assert replaced.any()


@pytest.mark.filterwarnings("ignore:Random token replacement is not supported:UserWarning")
@pytest.mark.parametrize("seed", range(20))
def test_the_collators_draws_hide_the_same_words(seed: int) -> None:
    draw = np.random.default_rng(seed)
    ids = draw.integers(3, VOCABULARY, size=200)
    ids[draw.random(200) < 0.1] = 0
    special, starts = ids == 0, draw.random(200) < 0.6
    options = Masking(
        mask_id=MASK,
        vocab_size=VOCABULARY,
        special_ids=(0,),
        rate=0.3,
        mask_share=1.0,
        random_share=0.0,
    )
    example = masked(ids, options, generator=np.random.default_rng(seed), word_starts=starts)

    # A gap between two tokens' characters is what parts words for the collator.
    begins = np.cumsum(1 + starts)
    offsets = np.stack([begins, begins + 1], axis=1)
    words = ~special & (starts | np.append(True, special[:-1]))
    draws = np.random.default_rng(seed)
    chosen = np.ones(200)
    chosen[words] = draws.random(words.sum())
    collator = make_collator(mlm_probability=0.3, whole_word_mask=True)
    collator.generator = Answers([chosen, np.zeros(200)])
    inputs, labels = collator.numpy_mask_tokens(
        ids[None].copy(), special[None].astype(int), offsets[None]
    )
    assert np.array_equal(labels[0] != IGNORED, example.learnt)
    assert np.array_equal(inputs[0], example.tokens)


@torch.no_grad()
def test_xlnet_predicts_from_nothing_but_what_the_order_has_revealed() -> None:
    import transformers

    torch.manual_seed(0)
    config = transformers.XLNetConfig(
        vocab_size=VOCABULARY, d_model=16, n_layer=2, n_head=2, d_inner=32, dropout=0.0
    )
    model = transformers.XLNetLMHeadModel(config).eval()
    ids = list(range(10, 18))
    example = permuted(ids, Permutation(share=0.5), generator=np.random.default_rng(0))
    revealed = visible(example.order, itself=False)
    places = np.flatnonzero(example.learnt)
    mask = torch.from_numpy(~revealed).float()[None]
    mapping = torch.nn.functional.one_hot(torch.from_numpy(places), len(ids)).float()[None]

    def predict(tokens: list[int]) -> torch.Tensor:
        logits: torch.Tensor = model(
            torch.tensor([tokens]), perm_mask=mask, target_mapping=mapping
        ).logits[0]
        return logits

    before = predict(ids)
    for place in range(len(ids)):
        changed = predict([*ids[:place], 50, *ids[place + 1 :]])
        moved = (changed - before).abs().amax(dim=1) > 1e-7
        assert moved.tolist() == revealed[places, place].tolist()
