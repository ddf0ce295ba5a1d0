from __future__ import annotations

from typing import Any

import keras
import pytest

import keras_trainops as kt
from keras_trainops.training.all_or_nothing import all_or_nothing
from tests.helpers import assert_same, two_layers, value, weights
from tests.training.optimizers.kinds import KINDS, attributes, fit, net, scaled

T = kt.transforms
O = keras.optimizers  # noqa: E741


def test_gives_attributes_and_contents_back_after_errors() -> None:
    class Thing:
        pass

    thing, other, kept = Thing(), Thing(), [1, 2]
    thing.list, thing.dict, thing.number = kept, {"a": 1}, 3
    with pytest.raises(KeyError, match="stop"), all_or_nothing(thing, other):
        thing.list.append(3)
        thing.dict["b"] = 2
        thing.number, other.new = 4, 5
        raise KeyError("stop")
    assert vars(thing) == {"list": [1, 2], "dict": {"a": 1}, "number": 3}
    assert vars(thing)["list"] is kept
    assert not vars(other)
    with all_or_nothing(other):
        other.new = 5
    assert vars(other) == {"new": 5}


REFUSED: dict[str, dict[str, Any]] = {
    "an update": {"updates": ["typo"]},
    "a transform": {"gradient_transforms": "typo"},
    "a pattern": {"variables_to_train": ["typo"]},
    "not a pattern": {"variables_to_train": [3]},
    "what Keras refuses": {"metrics": 3},
    "an argument": {"typo": True},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("wrong", REFUSED)
def test_a_refused_compile_changes_neither_optimizer_nor_model(wrong: str, kind: str) -> None:
    optimizer, model = KINDS[kind](), net()
    before, unbuilt = attributes(optimizer), attributes(model)
    arguments = {"gradient_transforms": T.ClipByNorm(1e-3), "check_numerics": True}
    with pytest.raises(Exception, match=r"typo|A pattern must be|Received: metrics|int|iterable"):
        model.compile(optimizer, "mse", **{**arguments, **REFUSED[wrong]})
    assert attributes(optimizer) == before
    assert attributes(model)["own"].keys() - {"_train_ops"} == unbuilt["own"].keys()
    assert not model.compiled
    model.compile("sgd", "mse", gradient_transforms=T.Scale(1.0), updates=[])
    used = model.optimizer
    with pytest.raises(Exception, match=r"typo|A pattern must be|Received: metrics|int|iterable"):
        model.compile(optimizer, "mse", **{**arguments, **REFUSED[wrong]})
    assert model.optimizer is used
    assert model.train_ops.arguments["updates"] == []
    assert model.train_ops.numerics is None
    assert attributes(optimizer) == before
    fit(model)  # with the earlier `compile`
    assert value(used.iterations) == 3


def test_a_refused_compile_leaves_no_clip_behind() -> None:
    optimizer, plain, stock = scaled(), two_layers(), two_layers()
    with pytest.raises(ValueError, match="Received: 'typo'"):
        net().compile(optimizer, "mse", gradient_transforms=T.ClipByNorm(1e-3), updates=["typo"])
    for model, each in ((plain, optimizer), (stock, scaled())):
        model.compile(each, "mse")
        fit(model)
    assert_same(weights(plain), weights(stock))


def test_does_not_register_a_refused_update() -> None:
    parts = O.MultiOptimizer(O.OptimizerMap(O.SGD(0.1, gradient_accumulation_steps=2)))
    model = net()
    model.compile(parts, "mse")
    with pytest.raises(ValueError, match="inside a MultiOptimizer has gradient_accumulation"):
        model.add_update(lambda model, loss: None)
    assert model.optimizer is parts
    assert not model.train_ops.registered
    assert not model.train_ops.policy.after_weights
