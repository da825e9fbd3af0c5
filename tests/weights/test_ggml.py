"""ggml's blocks: bytes worked out by hand, and every type held against the package `gguf`."""

from __future__ import annotations

import struct
import warnings

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, quants
from gguf.constants import GGML_QUANT_SIZES
from torch import Tensor

from lmloop.weights import ggml
from lmloop.weights.ggml import WEIGHT_TYPES, WRITABLE, decode_weights, encode_weights

from ..reference.q4_k import encode_block

BLOCKS = 12
ROUNDED = [name for name in WEIGHT_TYPES if name not in ("F32", "F16", "BF16")]


def peer(name: str) -> GGMLQuantizationType:
    return GGMLQuantizationType[name]


def random_blocks(name: str, *, seed: int = 0, count: int = BLOCKS) -> np.ndarray:
    """Any bytes: every number, scale and sign, and not-a-numbers among the scales."""
    size = WEIGHT_TYPES[name].bytes * count
    return np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)


def their_weights(name: str, data: np.ndarray) -> np.ndarray:
    blocks = data.reshape(-1, WEIGHT_TYPES[name].bytes)
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        if name == "F16":  # the package hands these two through as they lie
            return blocks.view(np.float16).astype(np.float32).reshape(-1)
        if name == "F32":
            return blocks.view(np.float32).reshape(-1)
        return np.asarray(quants.dequantize(blocks, peer(name))).reshape(-1)


def their_bytes(name: str, weights: Tensor) -> np.ndarray:
    return np.asarray(quants.quantize(weights.numpy(), peer(name))).view(np.uint8).reshape(-1)


def weights_like(seed: int, *, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(3, 512, generator=generator) * scale


def test_the_table_says_ggmls_numbers_and_sizes() -> None:
    for name, kind in WEIGHT_TYPES.items():
        assert kind.id == peer(name).value
        assert (kind.elements, kind.bytes) == GGML_QUANT_SIZES[peer(name)]
    assert WRITABLE == ("F32", "F16", "Q4_0", "Q8_0", "Q4_K", "BF16")


def test_a_block_of_q8_0_is_what_the_hand_computes() -> None:
    # The largest is 127, so the scale is 1 (half: 0x3c00); halves are rounded away from zero.
    weights = torch.tensor([127.0, -127, 0.5, -0.5, 1.4, -2.5, *[0.0] * 26])
    expected = bytes([0x00, 0x3C, 127, 129, 1, 255, 1, 253, *[0] * 26])
    assert bytes(encode_weights(weights, WEIGHT_TYPES["Q8_0"]).numpy()) == expected
    back = decode_weights(torch.tensor(list(expected), dtype=torch.uint8), WEIGHT_TYPES["Q8_0"])
    assert back[:6].tolist() == [127, -127, 1, -1, 1, -3]


def test_a_block_of_q4_0_is_what_the_hand_computes() -> None:
    # Furthest from zero is -16: it becomes number 0, so the scale is 2 (half: 0x4000).
    weights = torch.zeros(32)
    weights[0], weights[1], weights[16], weights[31] = -16, 14, 2, 15.9
    # Number = weight / 2 + 8: 0 and 9 share the first byte, 15 and 8 the second, then 8 and 8;
    # 15.9 would be 16 and is held to 15.
    expected = bytes([0x00, 0x40, 0x90, 0x8F, *[0x88] * 13, 0xF8])
    assert bytes(encode_weights(weights, WEIGHT_TYPES["Q4_0"]).numpy()) == expected
    back = decode_weights(torch.tensor(list(expected), dtype=torch.uint8), WEIGHT_TYPES["Q4_0"])
    assert back[[0, 1, 2, 16, 31]].tolist() == [-16, 14, 0, 2, 14]


def test_a_block_of_q4_1_is_what_the_hand_computes() -> None:
    data = torch.tensor([*struct.pack("<2e", 0.5, -1.0), 0xF0, *[0x21] * 15], dtype=torch.uint8)
    back = decode_weights(data, WEIGHT_TYPES["Q4_1"])
    assert back[[0, 16, 1, 17]].tolist() == [-1.0, 6.5, -0.5, 0.0]


@pytest.mark.parametrize("name", WEIGHT_TYPES)
@pytest.mark.parametrize("seed", range(4))
def test_any_bytes_decode_to_what_the_peer_says(name: str, seed: int) -> None:
    data = random_blocks(name, seed=seed, count=300)
    ours = decode_weights(torch.from_numpy(data), WEIGHT_TYPES[name]).numpy()
    np.testing.assert_array_equal(ours, their_weights(name, data))


@pytest.mark.parametrize("name", WEIGHT_TYPES)
@pytest.mark.parametrize("fill", [0x00, 0xFF, 0x80, 0x7B])
def test_blocks_of_one_byte_decode_to_what_the_peer_says(name: str, fill: int) -> None:
    data = np.full(WEIGHT_TYPES[name].bytes * 2, fill, dtype=np.uint8)
    ours = decode_weights(torch.from_numpy(data), WEIGHT_TYPES[name]).numpy()
    np.testing.assert_array_equal(ours, their_weights(name, data))


@pytest.mark.parametrize("name", ["F32", "F16", "BF16", "Q8_0", "Q4_0"])
@pytest.mark.parametrize("scale", [1e-30, 1e-7, 0.02, 1.0, 1000.0])
def test_we_encode_the_bytes_that_the_peer_encodes(name: str, scale: float) -> None:
    weights = weights_like(1, scale=scale)
    ours = encode_weights(weights, WEIGHT_TYPES[name]).numpy()
    np.testing.assert_array_equal(ours, their_bytes(name, weights))


@pytest.mark.parametrize("name", ["Q8_0", "Q4_0"])
def test_ties_and_bounds_encode_as_the_peer_encodes_them(name: str) -> None:
    rows = torch.zeros(6, 32)
    rows[1] = 1
    rows[2] = -1
    rows[3] = torch.arange(32) / 2 - 8
    rows[4, ::2], rows[4, 1::2] = 1, -1
    rows[5] = torch.linspace(-65504, 65504, 32)
    ours = encode_weights(rows, WEIGHT_TYPES[name]).numpy()
    np.testing.assert_array_equal(ours, their_bytes(name, rows))


@pytest.mark.parametrize("scale", [1e-4, 0.02, 1.0, 3000.0])
def test_q4_k_encodes_the_bytes_of_ggmls_search_but_for_sums_in_another_order(
    scale: float,
) -> None:
    weights = weights_like(2, scale=scale).view(-1, 256)
    kind = WEIGHT_TYPES["Q4_K"]
    ours = encode_weights(weights, kind)
    theirs = torch.frombuffer(
        bytearray(b"".join(encode_block(block) for block in weights.numpy())), dtype=torch.uint8
    )
    assert (ours == theirs).float().mean() > 0.995
    errors = [
        (decode_weights(data, kind) - weights.flatten()).square().mean() for data in (ours, theirs)
    ]
    torch.testing.assert_close(errors[0], errors[1], rtol=1e-3, atol=0)


def test_q4_k_keeps_its_promise_on_flat_one_sided_and_tiny_groups() -> None:
    rows = torch.zeros(5, 256)
    rows[1] = 3.0
    rows[2] = -3.0
    rows[3] = torch.linspace(2, 4, 256)
    rows[4] = 1e-12
    back = decode_weights(encode_weights(rows, WEIGHT_TYPES["Q4_K"]), WEIGHT_TYPES["Q4_K"]).view_as(
        rows
    )
    assert torch.equal(back[0], rows[0])
    torch.testing.assert_close(back[1:3], rows[1:3], rtol=2e-3, atol=0)
    assert (back[3] - rows[3]).abs().max() < 4 / 15
    assert back[4].abs().max() < 1e-6


@pytest.mark.parametrize(("name", "bound"), [("Q8_0", 0.008), ("Q4_0", 0.14), ("Q4_K", 0.09)])
def test_what_is_encoded_comes_back_within_the_types_step(name: str, bound: float) -> None:
    weights = weights_like(3)
    back = decode_weights(encode_weights(weights, WEIGHT_TYPES[name]), WEIGHT_TYPES[name])
    error = (back.view_as(weights) - weights).square().mean().sqrt()
    assert 0 < error < bound


@pytest.mark.parametrize("name", WRITABLE)
def test_a_tensor_worked_on_in_chunks_is_the_same(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = WEIGHT_TYPES[name]
    weights = torch.randn(2560, generator=torch.Generator().manual_seed(4))
    data = encode_weights(weights, kind)
    whole = decode_weights(data, kind)
    monkeypatch.setattr(ggml, "CHUNK", 1024)
    assert torch.equal(encode_weights(weights, kind), data)
    assert torch.equal(decode_weights(data, kind), whole)
    assert torch.equal(decode_weights(data, kind, dtype=torch.bfloat16), whole.bfloat16())


def test_decoded_weights_are_not_the_bytes_own_memory() -> None:
    data = torch.zeros(4, dtype=torch.uint8)
    decode_weights(data, WEIGHT_TYPES["F32"]).fill_(1)
    assert not data.any()


@pytest.mark.parametrize("name", ["F16", "Q8_0", "Q4_0", "Q4_K"])
@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -float("inf"), 3e38])
def test_a_weight_that_the_type_cannot_hold_is_refused(name: str, wrong: float) -> None:
    weights = torch.ones(256)
    weights[77] = wrong
    with pytest.raises(ValueError, match="not a finite number, or too large"):
        encode_weights(weights, WEIGHT_TYPES[name])


def test_a_type_that_is_only_read_says_which_are_written() -> None:
    with pytest.raises(ValueError, match="Q6_K is only read; written are F32, F16, Q4_0"):
        encode_weights(torch.ones(256), WEIGHT_TYPES["Q6_K"])


def test_rows_that_are_no_whole_blocks_are_refused() -> None:
    with pytest.raises(ValueError, match="rows of 16 weights are no whole blocks of 32"):
        encode_weights(torch.ones(2, 16), WEIGHT_TYPES["Q8_0"])
