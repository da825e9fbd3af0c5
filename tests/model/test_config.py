"""What follows from a decoder's shape."""

from __future__ import annotations

from ..conftest import tiny_shape


def test_queries_keys_and_values_have_the_rows_of_their_heads() -> None:
    assert tiny_shape(num_heads=6, num_kv_heads=3, head_dim=4).qkv_rows == (24, 12, 12)
