from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
from keras import ops

import keras_trainops as kt
from tests.helpers import assert_same, differ, numpy, two_layers, value, weights
from tests.training import small_models
from tests.training.optimizers.kinds import X, Y, fit, multi, net
from tests.training.small_models import fit_small, train

T = kt.transforms
O = keras.optimizers  # noqa: E741


class Momenta(T.GradientTransform):
    def build(self, variables: Any) -> None:
        self.sums = [self.add_variable(f"m{i}", v.shape) for i, v in enumerate(variables)]

    def __call__(self, gradients: Any, variables: Any) -> Any:
        for total, gradient in zip(self.sums, gradients, strict=True):
            total.assign_add(gradient)
        return gradients


def test_state_survives_changes_of_variables_to_train() -> None:
    """Head first, then all, then the trunk: slots, averages, iterations and rate are kept."""
    optimizer = O.AdamW(0.01, weight_decay=0.1, use_ema=True)
    noise = T.Noise(0.01, seed=1)
    model = small_models.net()
    train(model, optimizer, variables_to_train="head", gradient_transforms=noise)
    model.optimizer.learning_rate = 0.02
    inner = model.optimizer.inner_optimizer
    slots = {v.path: value(v) for v in inner.variables if "head_kernel" in v.path}
    drawn = [value(v) for v in noise.variables]
    model.compile(model.optimizer, "mse")
    inner = model.optimizer.inner_optimizer
    carried = {v.path: value(v) for v in inner.variables if "head_kernel" in v.path}
    assert carried.keys() == slots.keys()
    assert len(slots) == 3
    assert_same(list(carried.values()), list(slots.values()))
    assert inner is not optimizer
    assert [value(v).tolist() for v in noise.variables] == [v.tolist() for v in drawn]
    assert value(model.optimizer.iterations) == 8
    assert float(numpy(ops.convert_to_tensor(model.optimizer.learning_rate))) == pytest.approx(0.02)
    trunk = value(model.get_layer("trunk").kernel)
    fit_small(model)
    assert differ([value(model.get_layer("trunk").kernel)], [trunk]) > 1e-3
    model.compile(model.optimizer, "mse", variables_to_train="trunk")
    head = value(model.get_layer("head").kernel)
    fit_small(model)
    np.testing.assert_array_equal(value(model.get_layer("head").kernel), head)
    assert value(model.optimizer.iterations) == 16


def test_the_same_variables_keep_the_optimizer_itself() -> None:
    optimizer, model = O.Adam(0.01), small_models.net()
    train(model, optimizer, variables_to_train="head")
    train(model, optimizer, variables_to_train="head")
    assert model.optimizer is optimizer
    assert optimizer.iterations == 16


def test_keeps_attributes_that_the_configuration_leaves_out() -> None:
    class Damped(O.Optimizer):
        """Leaves `rho` out of its configuration; has a variable and state of its own."""

        def __init__(self, learning_rate: float = 0.1, rho: float = 0.5) -> None:
            super().__init__(learning_rate)
            self.rho = rho
            self.steps = self.add_variable((), name="steps")

        def build(self, variables: Any) -> None:
            super().build(variables)
            self.sums = self.add_optimizer_variables(variables, "sum")
            self.total = self.add_variable((), name="total")

        def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
            total = self.sums[self._get_variable_index(variable)]
            self.assign(total, self.rho * total + gradient)
            self.assign_add(self.steps, 1.0)
            self.assign_add(self.total, 1.0)
            self.assign_sub(variable, keras.ops.cast(learning_rate, variable.dtype) * total)

    model, optimizer = net(), Damped(rho=0.9)
    model.compile(optimizer, "mse", variables_to_train=["head"], gradient_transforms=T.Scale(1.0))
    fit(model)
    named = [v.path for v in model.optimizer.variables]
    sums = [value(v) for v in optimizer.sums]
    before = [value(v) for v in optimizer.variables]
    model.compile(model.optimizer, "mse")
    inner = model.optimizer.inner_optimizer
    assert inner.rho == 0.9
    assert [v.name for v in inner.variables][:3] == ["iteration", "learning_rate", "steps"]
    assert set(named) <= {v.path for v in model.optimizer.variables}
    assert value(inner.steps) == value(inner.total) == 2 * 3
    assert inner.steps is not optimizer.steps
    assert_same([value(v) for v in inner.sums][2:], sums)
    fit(model)
    assert value(inner.steps) == value(inner.total) == 2 * 3 + 4 * 3
    assert value(inner.iterations) == 6
    assert_same([value(v) for v in optimizer.variables], before)  # the old one is unchanged


def test_a_multi_optimizer_survives_a_change_of_variables() -> None:
    model, optimizer = net(), multi()
    model.compile(optimizer, "mse", variables_to_train=["head"], gradient_transforms=T.Scale(1.0))
    fit(model)
    adam = next(part for part in optimizer.optimizers if isinstance(part, O.Adam))
    moments = [value(v) for v in adam.variables]
    model.compile(model.optimizer, "mse")
    new = model.optimizer.inner_optimizer
    carried = next(part for part in new.optimizers if isinstance(part, O.Adam))
    assert carried is not adam
    assert_same([value(v) for v in carried.variables], moments)
    before = weights(model)
    fit(model)
    assert min(differ([a], [b]) for a, b in zip(weights(model), before, strict=True)) > 1e-5
    assert value(carried.iterations) == value(new.iterations) == 6
    assert [type(part).__name__ for part in new.optimizers] == ["Adam", "SGD"]
    model.save("multi.keras")
    loaded = keras.saving.load_model("multi.keras")
    assert_same(
        [value(v) for v in loaded.optimizer.variables],
        [value(v) for v in model.optimizer.variables],
    )


def test_a_refused_change_leaves_the_transforms_state() -> None:
    momenta, model = Momenta(), net()
    model.compile("sgd", "mse", gradient_transforms=momenta, variables_to_train=["head"])
    fit(model)
    kept = list(momenta.variables)
    with pytest.raises(ValueError, match="keeps state that depends on which variables are"):
        model.compile(model.optimizer, "mse")
    assert [id(v) for v in momenta.variables] == [id(v) for v in kept]
    before = [value(v) for v in kept]
    fit(model)
    assert differ([value(v) for v in kept], before) > 1e-4


def test_one_transform_and_one_optimizer_serve_one_model() -> None:
    clip, scale, optimizer = T.ClipByNorm(9.0), T.Scale(0.5), keras.optimizers.SGD(0.1)
    model, other = kt.with_train_ops(two_layers()), kt.with_train_ops(two_layers())
    model.compile(optimizer, "mse", gradient_transforms=[clip, scale])
    model.fit(X, Y, verbose=0)
    other.compile("sgd", "mse", gradient_transforms=clip)  # it keeps no state
    other.fit(X, Y, verbose=0)
    other.compile("sgd", "mse", gradient_transforms=scale)
    with pytest.raises(ValueError, match="This Scale already belongs to another model"):
        other.fit(X, Y, verbose=0)
    with pytest.raises(ValueError, match="'sgd' has trained another model: it was built for 'tr"):
        other.compile(optimizer, "mse")


def test_refuses_to_carry_state_per_variable() -> None:
    model = kt.with_train_ops(two_layers())
    model.compile("sgd", "mse", gradient_transforms=Momenta(), variables_to_train=["head"])
    model.fit(X, Y, verbose=0)
    with pytest.raises(ValueError, match="keeps state that depends on which variables are"):
        model.compile(model.optimizer, "mse")
