"""Encoder-decoders beside transformers: what it saves we compute alike, and the other way round."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lmloop.inference.seq2seq import generate
from lmloop.model.cache import Chunk, SlotCache
from lmloop.model.transformer import Transformer
from lmloop.weights.checkpoint import load_model

from .conftest import save_again

pytestmark = pytest.mark.slow

T5 = {
    "vocab_size": 16,
    "d_model": 32,
    "d_kv": 6,
    "d_ff": 48,
    "num_layers": 2,
    "num_decoder_layers": 3,
    "num_heads": 4,
    "relative_attention_num_buckets": 16,
    "relative_attention_max_distance": 20,
}
BART = {
    "vocab_size": 16,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 40,
    "init_std": 0.2,
}
WHISPER = {
    **BART,
    "num_mel_bins": 7,
    "max_source_positions": 20,
    "max_target_positions": 64,
    "begin_suppress_tokens": None,
}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "t5": ("T5", T5),
    "t5 v1.1, tied": (
        "T5",
        {**T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    ),
    "t5 v1.1": ("T5", {**T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}),
    "t5, gated by silu": ("T5", {**T5, "feed_forward_proj": "gated-silu"}),
    "bart": ("Bart", {**BART, "max_position_embeddings": 64}),
    "bart, scaled": ("Bart", {**BART, "max_position_embeddings": 64, "scale_embedding": True}),
    "whisper": ("Whisper", WHISPER),
}
SPECIAL = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2, "decoder_start_token_id": 3}
STEPS = 24
LENGTHS = torch.tensor([30, 17, 5, 22, 30, 11])
ROWS = len(LENGTHS)
TARGETS = torch.randint(4, 16, (ROWS, 25), generator=torch.Generator().manual_seed(1))


def draw(transformers: Any, case: str) -> Any:
    """Their random model of a case: every tensor that a real one learns is drawn."""
    name, options = CASES[case]
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**options, **SPECIAL, forced_eos_token_id=None)
    model = getattr(transformers, f"{name}ForConditionalGeneration")(config).eval()
    with torch.no_grad():
        if case == "t5 v1.1":
            model.lm_head.weight = torch.nn.Parameter(torch.randn(16, 32))
        for key, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if tensor.dim() == 1 or "final_logits_bias" in key:
                tensor.add_(0.3 * torch.randn_like(tensor))
            elif "relative" in key or "embed_positions" in key:
                tensor.normal_()
    return model


def make_source(case: str) -> tuple[Tensor, Tensor | None, dict[str, Tensor]]:
    """A batch of sources: as we take it, its lengths, and as transformers takes it."""
    generator = torch.Generator().manual_seed(2)
    if case == "whisper":
        features = torch.randn(ROWS, 7, 40, generator=generator)
        return features, None, {"input_features": features}
    tokens = torch.randint(4, 16, (ROWS, 30), generator=generator)
    seen = (torch.arange(30) < LENGTHS[:, None]).long()
    return tokens, LENGTHS, {"input_ids": tokens * seen, "attention_mask": seen}


def make_sources(case: str) -> list[Tensor]:
    """Each source of that batch by itself."""
    tokens, lengths, _ = make_source(case)
    ends = [tokens.shape[-1]] * ROWS if lengths is None else lengths.tolist()
    return [row[..., :end] for row, end in zip(tokens, ends, strict=True)]


@torch.no_grad()
def decode_cached(model: Transformer, case: str) -> Tensor:
    """Logits [B, T, V] of all targets in one cache: a half at once, then a token of each."""
    cache = SlotCache(model.config, slots=ROWS, length=25, dtype=torch.float32, source_length=40)
    slots = list(reversed(range(ROWS)))
    read = [model.read(source[None]).states for source in make_sources(case)]
    steps = []
    for start, stop in [(0, 12), *((at, at + 1) for at in range(12, 25))]:
        chunks = [Chunk(slot, start, stop - start) for slot in slots]
        begun = None if start else dict(zip(slots, read, strict=True))
        view = cache.view(chunks, sources=begun)
        states = model.encode(TARGETS[:, start:stop].flatten(), view.positions, view)
        steps.append(model.project(states).view(ROWS, stop - start, -1))
    return torch.cat(steps, dim=1)


def require_close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_what_transformers_saves_we_compute_alike(
    transformers: Any, tmp_path: Path, case: str
) -> None:
    theirs = draw(transformers, case)
    theirs.save_pretrained(tmp_path)
    ours = load_model(tmp_path)
    tokens, lengths, given = make_source(case)
    expected = theirs(**given, decoder_input_ids=TARGETS, output_hidden_states=True)
    source = ours.read(tokens, lengths=lengths)
    states = source.states.view(*source.segments.shape, -1)
    for row in range(ROWS):
        end = states.shape[1] if lengths is None else int(lengths[row])
        require_close(states[row, :end], expected.encoder_last_hidden_state[row, :end])
    require_close(ours.states(TARGETS, source=source), expected.decoder_hidden_states[-1])
    require_close(ours(TARGETS, source=source), expected.logits)
    require_close(decode_cached(ours, case), expected.logits)


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_what_we_save_transformers_opens_and_continues_alike(
    transformers: Any, tmp_path: Path, case: str
) -> None:
    first = draw(transformers, case)
    ours = save_again(first, tmp_path, stop_id=1, document_id=0, start_id=3)
    again, report = type(first).from_pretrained(
        tmp_path / "ours", dtype=torch.float32, output_loading_info=True
    )
    assert not any(report.values())
    _, _, given = make_source(case)
    expected = first(**given, decoder_input_ids=TARGETS).logits
    assert torch.equal(again(**given, decoder_input_ids=TARGETS).logits, expected)
    assert load_model(tmp_path / "ours").config == ours.config


SEARCHES = [(1, 1.0), (4, 1.0), (4, 0.0), (4, 2.5), (3, -1.0)]


@pytest.mark.parametrize(("beams", "penalty"), SEARCHES)
@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_answers_are_those_of_transformers(
    transformers: Any, tmp_path: Path, case: str, beams: int, penalty: float
) -> None:
    theirs = draw(transformers, case)
    # A tied head says the token before again, and never stops.
    head = theirs.get_output_embeddings()
    head.weight = torch.nn.Parameter(0.4 * torch.randn(16, 32))
    theirs.save_pretrained(tmp_path)
    ours = load_model(tmp_path)
    _, _, given = make_source(case)
    settings = transformers.GenerationConfig(
        **SPECIAL,
        max_new_tokens=STEPS,
        num_beams=beams,
        length_penalty=penalty if beams > 1 else None,
        use_cache=False,  # T5's has as many layers as its encoder
    )
    # Whisper's own cuts sound into windows first.
    search = transformers.generation.GenerationMixin.generate
    rows = search(theirs, **given, generation_config=settings)
    expected = [row[: [*row, 1].index(1)] for row in rows[:, 1:].tolist()]
    found = generate(
        ours,
        make_sources(case),
        start_id=3,
        stop_id=1,
        max_tokens=STEPS,
        beams=beams,
        length_penalty=penalty,
    )
    assert found == expected
