from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import pytest

import keras_trainops as kt
from keras_trainops.adapt import Adapter
from keras_trainops.adapt.layout import ReshapeFrom
from keras_trainops.adapt.serialization import as_config, from_config

pytestmark = pytest.mark.once

Shape = tuple[int, ...]
ADAPTERS = [
    (kt.adapt.Transpose(), [(3, 4)], (4, 3)),
    (kt.adapt.Transpose([1, 0, 2]), [(3, 4, 2)], (4, 3, 2)),
    (kt.adapt.Reshape(), [(3, 4)], (12,)),
    (kt.adapt.Reshape([2, -1]), [(3, 4)], (2, 6)),
    (ReshapeFrom([6], [2, 3, -1]), [(6, 4)], (2, 3, 4)),
    (kt.adapt.Flip([0]), [(3, 4)], (3, 4)),
    (kt.adapt.Gates([1, 0, 2], axis=0), [(3, 4)], (3, 4)),
    (kt.adapt.Concat(axis=1), [(3, 4), (3, 1)], (3, 5)),
    (kt.adapt.Stack(), [(3, 4), (3, 4)], (2, 3, 4)),
    (kt.adapt.Sum(), [(3,), (3,)], (3,)),
    (kt.adapt.Split(1, 3), [(9, 2)], (3, 2)),
    (kt.adapt.Split(1, [2, 7]), [(9, 2)], (7, 2)),
    (kt.adapt.Pad(axis=0, indices=[2, 0], default=[[1.0], [2.0]]), [(2, 1)], (4, 1)),
    (kt.adapt.Pad(axis=0, default="mean"), [(2, 1)], (4, 1)),
    (kt.adapt.Pad(axis=0, default="ones"), [(2, 1)], (4, 1)),
    (kt.adapt.Pad(axis=0), [(2, 1)], (4, 1)),
    (kt.adapt.Crop(axis=0, indices=[1]), [(2, 1)], (1, 1)),
    (kt.adapt.Rows(["a", "b"], ["c", "b", "a"], oov=1, default=0.5), [(2, 3)], (4, 3)),
    (kt.adapt.InputChannels(), [(3, 3, 2)], (3, 1, 2)),
    (kt.adapt.ResizePositions(new_grid=8), [(4, 2)], (8, 2)),
    (kt.adapt.Add(1), [(2,)], (2,)),
    (kt.adapt.Repeat(2, axis=1), [(2, 3)], (2, 6)),
    (kt.adapt.Chain(kt.adapt.Transpose(), kt.adapt.Crop(axis=1)), [(4, 3)], (3, 2)),
]


@pytest.mark.parametrize(("adapter", "shapes", "target"), ADAPTERS, ids=repr)
def test_adapters_survive_json(adapter: Adapter, shapes: list[Shape], target: Shape) -> None:
    again = from_config(json.loads(json.dumps(as_config(adapter))))
    assert type(again) is type(adapter)
    assert repr(again) == repr(adapter)
    arrays = [np.random.default_rng(i).normal(size=shape) for i, shape in enumerate(shapes)]
    np.testing.assert_array_equal(again(arrays, target), adapter(arrays, target))


def test_every_adapter_is_tested() -> None:
    tested = {type(adapter) for adapter, *_ in ADAPTERS}
    public = [getattr(kt.adapt, name) for name in kt.adapt.__all__]
    classes = {kind for kind in public if isinstance(kind, type)} - {Adapter}
    assert classes <= tested


class Plus(Adapter):
    def __init__(self, offset: float) -> None:
        self.offset = offset

    def shape(self, shapes: Sequence[Shape], target: Shape) -> Shape:
        return shapes[0]

    def __call__(self, arrays: Sequence[np.ndarray], target: Shape) -> np.ndarray:
        return arrays[0] + self.offset


def test_an_adapter_of_ones_own_must_be_registered() -> None:
    with pytest.raises(ValueError, match="its class must be registered"):
        as_config(Plus(2.0))
    with keras.saving.custom_object_scope({}):
        keras.saving.register_keras_serializable("tests")(Plus)
        config = as_config(kt.adapt.Chain(Plus(2.0)))
        assert config["adapters"] == [{"adapter": "tests>Plus", "offset": 2.0}]
        assert from_config(config)([np.zeros(1)], (1,)).tolist() == [2.0]


def refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_config(config)


def test_what_cannot_be_stored_says_why() -> None:
    class Hidden(Plus):
        def __init__(self, amount: float) -> None:
            super().__init__(amount)

    keras.saving.register_keras_serializable("tests")(Hidden)
    with pytest.raises(ValueError, match="Hidden cannot be stored: it has no attribute 'amount'"):
        as_config(Hidden(1.0))
    with pytest.raises(ValueError, match="a callable cannot be stored"):
        as_config(kt.adapt.Chain(np.transpose))

    class Mine(keras.initializers.Initializer):
        pass

    with pytest.raises(ValueError, match="the initializer Mine cannot be stored"):
        as_config(kt.adapt.Pad(0, default=Mine()))


def test_nothing_but_adapters_comes_out_of_a_file() -> None:
    refused({"adapter": "Popen"}, "there is no adapter 'Popen'")
    refused({"adapter": "Adapter"}, "there is no adapter 'Adapter'")
    refused({"adapter": "from_torch"}, "there is no adapter 'from_torch'")
    refused({"adapter": "keras>Dense"}, "there is no adapter 'keras>Dense'")
    refused({}, "there is no adapter None")
    refused({"adapter": "Crop", "axes": 1}, "the arguments of Crop are not valid")
    refused({"adapter": "Chain"}, "the arguments of Chain are not valid")
    pad = {"adapter": "Pad", "axis": 0, "indices": None}
    refused({**pad, "default": {"initializer": "get", "config": {}}}, "no initializer 'get'")
    refused({**pad, "default": {"initializer": "Zeros"}}, "the arguments of Pad are not valid")
