"""ggml's encoder of Q4_K, weight by weight: `quantize_row_q4_K_ref` as the C code reads."""

from __future__ import annotations

import struct

import numpy as np

f32 = np.float32


def encode_block(x: np.ndarray) -> bytes:
    """144 bytes of 256 weights in fp32."""
    found = [_search(x[32 * group : 32 * group + 32]) for group in range(8)]
    max_scale = max(f32(0), *(scale for scale, _ in found))
    max_min = max(f32(0), *(minimum for _, minimum in found))
    inv_scale = f32(63) / max_scale if max_scale > 0 else f32(0)
    inv_min = f32(63) / max_min if max_min > 0 else f32(0)
    packed = bytearray(12)
    for j, (scale, minimum) in enumerate(found):
        ls, lm = min(63, round(inv_scale * scale)), min(63, round(inv_min * minimum))
        if j < 4:
            packed[j], packed[j + 4] = ls, lm
        else:
            packed[j + 4] = (ls & 15) | ((lm & 15) << 4)
            packed[j - 4] |= (ls >> 4) << 6
            packed[j] |= (lm >> 4) << 6
    halves = struct.pack("<2e", max_scale / f32(63), max_min / f32(63))
    d, dmin = (f32(half) for half in struct.unpack("<2e", halves))
    numbers = []
    for j in range(8):
        if j < 4:
            sc, m = packed[j] & 63, packed[j + 4] & 63
        else:
            sc = (packed[j + 4] & 15) | ((packed[j - 4] >> 6) << 4)
            m = (packed[j + 4] >> 4) | ((packed[j] >> 6) << 4)
        scale, minimum = d * f32(sc), dmin * f32(m)
        for value in x[32 * j : 32 * j + 32]:
            numbers.append(_nearest((value + minimum) / scale) if scale else 0)
    body = bytes(
        numbers[64 * run + i] | numbers[64 * run + 32 + i] << 4
        for run in range(4)
        for i in range(32)
    )
    return halves + bytes(packed) + body


def _nearest(value: np.float32) -> int:
    return max(0, min(15, round(float(value))))


def _search(x: np.ndarray) -> tuple[np.float32, np.float32]:
    """`make_qkx2_quants(32, 15, x, weights, -1, 0.1, 20, false)`: scale and minus the minimum."""
    weights = np.sqrt((x * x).sum(dtype=f32) / f32(32)) + np.abs(x)
    low, high = min(x.min(), f32(0)), x.max()
    if high == low:
        return f32(0), -low
    sum_w, sum_x = weights.sum(dtype=f32), (weights * x).sum(dtype=f32)
    scale, minimum = (high - low) / f32(15), low
    best = f32(0)
    for value, weight in zip(x, weights, strict=True):
        number = _nearest(f32(15) / (high - low) * (value - low))
        best += weight * (scale * f32(number) + minimum - value) ** 2
    for step in range(21):
        inverse = (f32(-1) + f32(0.1) * f32(step) + f32(15)) / (high - low)
        numbers = np.array([_nearest(inverse * (value - low)) for value in x], dtype=f32)
        sum_l, sum_l2 = (weights * numbers).sum(), (weights * numbers * numbers).sum()
        sum_xl = (weights * numbers * x).sum()
        determinant = sum_w * sum_l2 - sum_l * sum_l
        if determinant <= 0:
            continue
        this_scale = (sum_w * sum_xl - sum_x * sum_l) / determinant
        this_min = (sum_l2 * sum_x - sum_l * sum_xl) / determinant
        if this_min > 0:
            this_min, this_scale = f32(0), sum_xl / sum_l2
        error = (weights * (this_scale * numbers + this_min - x) ** 2).sum()
        if error < best:
            best, scale, minimum = error, this_scale, this_min
    return scale, -minimum
