from __future__ import annotations

from typing import Any

import keras
import pytest

import keras_trainops as kt
from tests.helpers import assert_same, differ, two_layers, value, weights
from tests.training.optimizers.kinds import KINDS, X, Y, attributes, fit, net, scaled
from tests.training.small_models import train, with_batch_norm

T = kt.transforms
O = keras.optimizers  # noqa: E741


def test_transforms_need_an_optimizer() -> None:
    model = net()
    with pytest.raises(ValueError, match="`gradient_transforms` need an optimizer"):
        model.compile(None, "mse", gradient_transforms=T.ClipByNorm(1.0))


def test_leaves_a_loss_scale_optimizer_as_keras_does() -> None:
    ours, stock = net(), two_layers()
    optimizer, theirs = scaled(), scaled()
    inner = optimizer.inner_optimizer
    ours.compile(optimizer, "mse", gradient_transforms=T.Scale(1.0))
    stock.compile(theirs, "mse")
    assert ours.optimizer is not optimizer
    for model in (ours, stock):
        fit(model)
    assert optimizer.inner_optimizer is inner
    assert type(inner) is type(theirs.inner_optimizer)
    assert set(vars(optimizer)) == set(vars(theirs))
    assert set(vars(inner)) == set(vars(theirs.inner_optimizer))
    assert optimizer.dynamic_scale is ours.optimizer.dynamic_scale
    assert_same([value(v) for v in optimizer.variables], [value(v) for v in theirs.variables])
    ours.optimizer.learning_rate = 0.25
    assert float(value(optimizer.learning_rate)) == 0.25
    ours.compile(optimizer, "mse", gradient_transforms=T.Scale(0.5))  # it continues
    fit(ours)
    assert value(optimizer.iterations) == 6
    assert value(optimizer.step_counter) == 6


def test_respects_the_users_class_of_loss_scale_optimizer() -> None:
    class Patient(O.LossScaleOptimizer):
        """Has its own check of what is finite, and a variable and a list of its own."""

        def __init__(self, inner: Any) -> None:
            super().__init__(inner, initial_scale=8.0)
            self.checks: list[str] = []

        def build(self, var_list: Any) -> None:
            super().build(var_list)
            self.mine = self.add_variable((), name="mine")

        def check_finite(self, gradients: Any) -> Any:
            self.checks.append("asked")
            return super().check_finite(gradients)

    optimizer, model = Patient(O.SGD(0.1)), net()
    model.compile(optimizer, "mse", gradient_transforms=T.Scale(1.0))
    fit(model)
    assert optimizer.checks
    assert type(model.optimizer) is Patient
    assert model.optimizer.mine is optimizer.mine
    assert "check_finite" not in vars(optimizer)
    assert "check_finite" not in vars(model.optimizer)


def test_transforms_go_inside_a_loss_scale_optimizer() -> None:
    optimizer = O.LossScaleOptimizer(O.SGD(0.01), initial_scale=8.0)
    model = with_batch_norm(policy="mixed_float16")
    train(model, optimizer, gradient_transforms=T.ClipByNorm(1.0))
    assert type(model.optimizer) is type(optimizer)
    assert isinstance(model.optimizer.inner_optimizer, kt.TransformedOptimizer)
    assert isinstance(optimizer.inner_optimizer, O.SGD)
    assert optimizer.dynamic_scale is model.optimizer.dynamic_scale


class CountRuns(T.GradientTransform):
    def build(self, variables: Any) -> None:
        self.runs = self.add_variable("runs", dtype="int32")

    def __call__(self, gradients: Any, variables: Any) -> Any:
        self.runs.assign_add(1)
        return gradients


def test_compiling_again_replaces_the_transforms() -> None:
    first, second, optimizer, model = CountRuns(), CountRuns(), O.SGD(0.01), net()
    model.compile(optimizer, "mse", gradient_transforms=first)
    fit(model)
    model.compile(optimizer, "mse", gradient_transforms=second)
    fit(model)
    model.compile(model.optimizer, "mse", gradient_transforms=second)
    fit(model)
    assert value(first.runs) == 3
    assert model.optimizer.inner_optimizer is optimizer
    runs = value(second.runs)
    fit(model)
    assert value(second.runs) == runs + 3


@pytest.mark.parametrize("kind", ["plain", "loss scale", "multi"])
def test_training_leaves_no_attributes_on_an_optimizer(kind: str) -> None:
    optimizer, stock = KINDS[kind](), KINDS[kind]()
    model, plain = net(), two_layers()
    model.compile(optimizer, "mse", gradient_transforms=T.ClipByGlobalNorm(1e9))
    plain.compile(stock, "mse")
    for each in (model, plain):
        fit(each)
    ours, theirs = attributes(optimizer), attributes(stock)
    assert set(ours["own"]) == set(theirs["own"])
    assert [set(i["own"]) for i in ours["inside"]] == [set(i["own"]) for i in theirs["inside"]]


def test_adding_updates_leaves_loss_scale_optimizers_alone() -> None:
    optimizer, model = scaled(), net()
    inner = optimizer.inner_optimizer
    model.compile(optimizer, "mse")
    model.add_update(lambda model, loss: None)
    assert optimizer.inner_optimizer is inner
    assert isinstance(model.optimizer.inner_optimizer, kt.TransformedOptimizer)


def test_compiling_without_transforms_leaves_the_optimizer_free() -> None:
    optimizer = keras.optimizers.SGD(0.1)
    model, plain = kt.with_train_ops(two_layers()), two_layers()
    model.compile(optimizer, "mse", gradient_transforms=T.Scale(0.0))
    model.fit(X, Y, batch_size=8, verbose=0)
    assert_same(weights(model), weights(plain))
    model.compile(optimizer, "mse")
    plain.compile(keras.optimizers.SGD(0.1), "mse")
    for each in (model, plain):
        each.fit(X, Y, batch_size=8, shuffle=False, verbose=0)
    assert_same(weights(model), weights(plain))
    other = keras.optimizers.SGD(0.1)
    with pytest.raises(ValueError, match="`updates` must be None"):
        kt.with_train_ops(two_layers()).compile(
            other, "mse", gradient_transforms=T.Scale(0.0), updates="bad"
        )
    plain.compile(other, "mse")
    plain.fit(X, Y, verbose=0)
    assert differ(weights(plain), weights(model)) > 1e-4
