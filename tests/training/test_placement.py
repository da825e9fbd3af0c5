"""Where a model lies: whole in one process, whatever the recipe says."""

from __future__ import annotations

import pytest

from lmloop.errors import TrainingError
from lmloop.training.placement import Whole, place
from lmloop.training.ranks import ALONE, Ranks

from ..conftest import random_model, tiny_shape
from .conftest import make_config


class Two(Ranks):
    """The first of two."""

    size = 2


def test_one_process_has_the_whole_model_whatever_is_asked_for() -> None:
    model = random_model(tiny_shape(num_layers=1))
    for config in (make_config(), make_config(sharding="full"), make_config(tensor_parallel=2)):
        placement = place(model, config, ALONE)
        assert type(placement) is Whole
        assert placement.model is model
        assert placement.gather({}) is model
    assert type(place(model, make_config(), Two())) is Whole


def test_an_adapter_is_not_cut_into_pieces() -> None:
    config = make_config(sharding="full", lora_rank=2)
    with pytest.raises(TrainingError, match="^sharding and tensor_parallel .* take one out$"):
        place(random_model(tiny_shape(num_layers=1)), config, Two())


def test_tasks_that_give_ranks_other_numbers_of_pieces_are_refused_with_pieces_of_a_model() -> None:
    config = make_config(sharding="full", tasks={"next": {}, "again": {}})
    with pytest.raises(TrainingError, match="^sharding and tensor_parallel .* take one out$"):
        place(random_model(tiny_shape(num_layers=1)), config, Two())


def test_how_a_model_lies_is_no_part_of_what_a_checkpoint_is_made_from() -> None:
    asked = make_config(sharding="full", tensor_parallel=2)
    assert asked.model_dump() == make_config().model_dump()
