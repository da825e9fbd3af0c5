"""What is added to the vectors of tokens, and how sound and pictures become vectors."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from lmloop.model.config import Picture
from lmloop.model.embedding import AudioStem, HeadTransform, InputLayer, PatchStem, make_embedding
from lmloop.model.init import initialise

from ..conftest import tiny_shape


def test_position_and_type_are_added_to_the_scaled_vector() -> None:
    config = tiny_shape(
        hidden_size=2, positions="learned", token_types=2, embedding_scale=3.0, context_length=3
    )
    layer = InputLayer(config)
    with torch.no_grad():
        layer.positions.copy_(torch.tensor([[10.0, 0.0], [20.0, 0.0], [30.0, 0.0]]))
        layer.types.copy_(torch.tensor([[0.0, 1.0], [0.0, 5.0]]))
    x, places = torch.tensor([[1.0, 1.0], [1.0, 2.0]]), torch.tensor([2, 0])
    assert layer(x, places).tolist() == [[33.0, 4.0], [13.0, 7.0]]
    assert layer(x, places, torch.tensor([1, 0])).tolist() == [[33.0, 8.0], [13.0, 7.0]]


def test_dropout_acts_in_training_alone() -> None:
    layer = InputLayer(tiny_shape(dropout=0.5))
    x, places = torch.ones(200, 24), torch.zeros(200, dtype=torch.int64)
    torch.manual_seed(0)
    dropped = layer.train()(x, places)
    assert set(dropped.unique().tolist()) == {0.0, 2.0}
    assert 0.45 < (dropped == 0).float().mean() < 0.55
    assert torch.equal(layer.eval()(x, places), x)


def test_a_stem_makes_half_as_many_vectors_as_frames() -> None:
    stem = AudioStem(tiny_shape(hidden_size=4), 3)
    sound = torch.randn(2, 3, 10, generator=torch.Generator().manual_seed(0))
    vectors = stem(sound)
    assert vectors.shape == (2, 5, 4)
    # The third vector reads frames 2 to 6 of the first layer's frames 3 to 5, and no others.
    changed = sound.clone()
    changed[:, :, [0, 1, 7, 8, 9]] = 5.0
    torch.testing.assert_close(stem(changed)[:, 2], vectors[:, 2])
    assert not torch.allclose(stem(changed)[:, 0], vectors[:, 0])


@pytest.mark.parametrize("leading", [0, 1, 2])
@torch.no_grad()
def test_each_patch_is_mapped_by_itself_row_by_row(leading: int) -> None:
    picture = Picture(size=6, patch=2, channels=3, leading=leading)
    config = tiny_shape(hidden_size=4, head="none", picture=picture)
    stem = make_embedding(config)
    assert isinstance(stem, PatchStem)
    initialise(stem, seed=0)
    pictures = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    vectors = stem(pictures)
    assert vectors.shape == (2, leading + 9, 4)
    for row in range(3):
        for column in range(3):
            patch = pictures[1, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
            expected = stem.weight.flatten(1) @ patch.flatten() + stem.projection.bias
            torch.testing.assert_close(vectors[1, leading + 3 * row + column], expected)
    if stem.leading is not None:
        assert torch.equal(vectors[0, :leading], stem.leading)


def test_a_picture_of_another_size_is_refused() -> None:
    config = tiny_shape(head="none", picture=Picture(size=6, patch=2, channels=1))
    with pytest.raises(ValueError, match=r"\[1, 6, 8\]: \[1, 6, 6\] is seen"):
        make_embedding(config)(torch.zeros(2, 1, 6, 8))


def test_a_transform_is_a_layer_with_its_norm() -> None:
    config = tiny_shape(norm="layer", activation="gelu", feed_forward_bias=True)
    transform = HeadTransform(config)
    x = torch.randn(3, 24, generator=torch.Generator().manual_seed(0))
    inner = F.gelu(x @ transform.dense.weight.T + transform.dense.bias)
    torch.testing.assert_close(transform(x), F.layer_norm(inner, (24,), eps=1e-6))
