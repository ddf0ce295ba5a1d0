from __future__ import annotations

import random

import numpy as np
import pytest

from keras_trainops.checkpoints.formats.arrays import VariablesCheckpoint
from keras_trainops.weight_names import named_weights, unique
from tests.restoring.nested_models import made, places, random_spec

pytestmark = pytest.mark.once


def test_every_weight_has_a_unique_path() -> None:
    rng = random.Random(12)
    for _ in range(30):
        model = made(random_spec(rng, 2))
        named = named_weights(model)
        for names in ([w.path for w in named], [w.short for w in named]):
            assert len(set(names)) == len(model.weights)
        owners = ["/".join(place) for place in places(model)]
        assert sorted(w.owners[0] for w in named) == sorted(owners)


def test_two_variables_with_one_name_are_refused() -> None:
    variables = [("a", np.zeros(2)), ("a", np.ones(2))]
    with pytest.raises(ValueError, match="have the name 'a'"):
        VariablesCheckpoint(variables, "somewhere", np.copy)
    with pytest.raises(ValueError, match="have the name 'a'"):
        unique(variables)
