"""What must hold for any shape, over shapes that nobody chose."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lmloop.model.config import Experts, ModelConfig
from lmloop.model.cost import count_parameters
from lmloop.model.rows import PackedRows

from ..reference.core import states_of
from .kinds import LENGTH, decode, draw_model, draw_tokens, require_close


@st.composite
def shapes(draw: st.DrawFn) -> ModelConfig:
    """A small shape of any kind."""

    def pick(*values: Any) -> Any:
        return draw(st.sampled_from(values))

    keys, groups, half = pick(1, 2), pick(1, 2, 3), pick(2, 3, 4)
    layers = pick(1, 2)
    mixers = tuple(pick("attention", "local", "lstm", "gru", "convolution") for _ in range(layers))
    beta = pick(None, None, 3.0)
    place = pick("pre", "post", "both")
    experts = Experts(count=3, active=pick(1, 2), size=6, shared_size=pick(0, 4))
    return ModelConfig(
        vocab_size=50,
        num_layers=layers,
        hidden_size=pick(8, 12, 20),
        num_heads=keys * groups,
        num_kv_heads=keys,
        head_dim=2 * half,
        intermediate_size=pick(0, 10, 16),
        context_length=LENGTH,
        causal=pick(True, True, False),
        mixers=mixers,
        window=pick(1, 2, 5, 40),
        kernel_size=pick(1, 2, 3, 5),
        pooling=pick(1, 2, 3),
        qk_norm=pick(True, False),
        qkv_bias=pick(True, False),
        output_bias=pick(True, False),
        attention_scale=pick(None, 0.7),
        attention_cap=pick(None, 4.0),
        beta=beta,
        learn_beta=pick(True, False),
        positions=pick("rotary", "learned", "sinusoidal", "relative", "none"),
        local_rope_theta=pick(None, 50.0),
        rotary_share=pick(1.0, 0.5) if half % 2 == 0 else 1.0,
        relative_buckets=pick(4, 8),
        relative_distance=pick(9, 20),
        norm=pick("rms", "layer", "batch"),
        norm_place=place,
        norm_bias=pick(True, False),
        embedding_norm=pick(True, False),
        first_norm=pick(True, False),
        final_norm=pick(True, False),
        parallel=place == "pre" and pick(True, False),
        activation=pick("silu", "gelu", "gelu_tanh", "relu", "relu2"),
        gated=pick(True, False),
        feed_forward_bias=pick(True, False),
        experts=pick(None, experts),
        embedding_scale=pick(1.0, 2.5),
        tie_embeddings=pick(True, False),
    )


@settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
@given(config=shapes(), seed=st.integers(0, 5))
@torch.no_grad()
def test_any_shape_equals_the_reference_packs_and_decodes(config: ModelConfig, seed: int) -> None:
    model = draw_model(config)
    assert count_parameters(config) == sum(each.numel() for each in model.parameters())
    text = draw_tokens(1, LENGTH, seed=seed)
    alone = model.states(text)[0]
    require_close(alone.double(), states_of(model.state_dict(), config, text[0].tolist()))

    other = draw_tokens(1, 3, seed=seed + 1)
    view = PackedRows(
        rows=1,
        length=LENGTH + 3,
        segments=torch.tensor([[0] * LENGTH + [1] * 3]),
        causal=config.causal,
    )
    positions = torch.cat([torch.arange(LENGTH), torch.arange(3)])
    packed = model.encode(torch.cat([text, other], dim=1)[0], positions, view)
    require_close(packed, torch.cat([alone, model.states(other)[0]]))
    if config.causal:
        (cached,) = decode(model, [text[0]], cuts=[4, 1, 3, 1, 2], sources=[None])
        require_close(cached, alone)
