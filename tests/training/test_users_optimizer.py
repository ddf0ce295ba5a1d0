"""What a user's optimizer is before `compile`, after it, where it is refused, and when repeated."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest

import keras_trainops as kt
from tests.helpers import assert_same, differ, two_layers, value, weights

T = kt.transforms
O = keras.optimizers  # noqa: E741
RNG = np.random.default_rng(0)
X = RNG.normal(size=(24, 4)).astype("float32")
Y = RNG.normal(size=(24, 2)).astype("float32")


def net() -> Any:
    return kt.with_train_ops(two_layers())


def fit(model: Any, epochs: int = 1) -> None:
    model.fit(X, Y, batch_size=8, epochs=epochs, shuffle=False, verbose=0)


def scaled() -> Any:
    return O.LossScaleOptimizer(O.SGD(0.1, momentum=0.9), initial_scale=8.0)


def multi() -> Any:
    return O.MultiOptimizer(
        O.OptimizerMap(O.SGD(0.1, momentum=0.9), {"head/.*": O.Adam(0.01, loss_scale_factor=2.0)})
    )


KINDS: dict[str, Callable[[], Any]] = {
    "plain": lambda: O.SGD(0.1, momentum=0.9, loss_scale_factor=4.0),
    "loss scale": scaled,
    "multi": multi,
    "transformed": lambda: kt.TransformedOptimizer(O.SGD(0.1), T.ClipByNorm(1.0)),
    "both": lambda: O.LossScaleOptimizer(kt.TransformedOptimizer(O.SGD(0.1), T.ClipByNorm(1.0))),
}
REFUSED: dict[str, dict[str, Any]] = {
    "an update": {"updates": ["typo"]},
    "a transform": {"gradient_transforms": "typo"},
    "a pattern": {"variables_to_train": ["typo"]},
    "no pattern": {"variables_to_train": [3]},
    "what Keras refuses": {"metrics": 3},
    "an argument": {"typo": True},
}


def attributes(thing: Any) -> dict[str, Any]:
    """What an object and those inside it are: their attributes, by identity."""
    found = {name: id(each) for name, each in vars(thing).items()}
    inner = [vars(thing).get("inner_optimizer"), *getattr(thing, "_inner_optimizers", ())]
    tracked = {
        name: str(each) for name, each in vars(thing).items() if name.startswith("_self_uncond")
    }
    return {"own": found, "tracked": tracked, "inside": [attributes(i) for i in inner if i]}


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
    fit(model)  # as it was compiled before
    assert value(used.iterations) == 3


def test_nobody_else_is_clipped_after_a_refused_compile() -> None:
    optimizer, plain, stock = scaled(), two_layers(), two_layers()
    with pytest.raises(ValueError, match="Received: 'typo'"):
        net().compile(optimizer, "mse", gradient_transforms=T.ClipByNorm(1e-3), updates=["typo"])
    for model, each in ((plain, optimizer), (stock, scaled())):
        model.compile(each, "mse")
        fit(model)
    assert_same(weights(plain), weights(stock))


def test_a_loss_scale_optimizer_keeps_what_is_inside_and_its_state_moves_as_in_keras() -> None:
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
    ours.compile(optimizer, "mse", gradient_transforms=T.Scale(0.5))  # goes on where it was
    fit(ours)
    assert value(optimizer.iterations) == 6
    assert value(optimizer.step_counter) == 6


def test_a_loss_scale_optimizer_of_a_class_of_the_users_is_used_as_that_class_says() -> None:
    class Patient(O.LossScaleOptimizer):
        """Its own idea of what is finite, and a variable and a list of its own."""

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


@pytest.mark.parametrize("kind", ["plain", "loss scale", "multi"])
def test_nothing_stays_on_an_optimizer_after_training(kind: str) -> None:
    optimizer, stock = KINDS[kind](), KINDS[kind]()
    model, plain = net(), two_layers()
    model.compile(optimizer, "mse", gradient_transforms=T.ClipByGlobalNorm(1e9))
    plain.compile(stock, "mse")
    for each in (model, plain):
        fit(each)
    ours, theirs = attributes(optimizer), attributes(stock)
    assert set(ours["own"]) == set(theirs["own"])
    assert [set(i["own"]) for i in ours["inside"]] == [set(i["own"]) for i in theirs["inside"]]


def test_an_update_that_is_refused_is_not_registered() -> None:
    parts = O.MultiOptimizer(O.OptimizerMap(O.SGD(0.1, gradient_accumulation_steps=2)))
    model = net()
    model.compile(parts, "mse")
    with pytest.raises(ValueError, match="inside a MultiOptimizer has gradient_accumulation"):
        model.add_update(lambda model, loss: None)
    assert model.optimizer is parts
    assert not model.train_ops.registered
    assert not model.train_ops.policy.after_weights


def test_an_update_added_later_leaves_a_loss_scale_optimizer_alone() -> None:
    optimizer, model = scaled(), net()
    inner = optimizer.inner_optimizer
    model.compile(optimizer, "mse")
    model.add_update(lambda model, loss: None)
    assert optimizer.inner_optimizer is inner
    assert isinstance(model.optimizer.inner_optimizer, kt.TransformedOptimizer)


def decay_alone(y_true: Any, y_pred: Any) -> Any:
    return keras.ops.sum(y_pred, axis=-1) * 0.0


@pytest.mark.parametrize("kind", ["plain", "loss scale", "multi", "transformed"])
def test_what_is_excluded_from_weight_decay_stays_so_for_other_variables(kind: str) -> None:
    optimizer: Any = O.SGD(0.1, weight_decay=0.1)
    model = net()
    head, trunk = model.get_layer("head"), model.get_layer("trunk")
    optimizer.exclude_from_weight_decay(var_list=[trunk.kernel], var_names=["bias"])
    if kind == "multi":
        optimizer = O.MultiOptimizer(O.OptimizerMap(optimizer))
    if kind == "loss scale":
        optimizer = O.LossScaleOptimizer(optimizer, initial_scale=8.0)
    transforms = T.Scale(1.0) if kind == "transformed" else None
    model.compile(
        optimizer, decay_alone, variables_to_train=["head"], gradient_transforms=transforms
    )
    fit(model)
    model.compile(model.optimizer, decay_alone)
    before = {v.path: value(v) for v in model.weights}
    fit(model, 5)
    after = {v.path: value(v) for v in model.weights}
    for variable in (trunk.kernel, head.bias, trunk.bias):
        assert_same([after[variable.path]], [before[variable.path]])
    kernel = before[head.kernel.path]
    np.testing.assert_allclose(after[head.kernel.path], kernel * 0.99**15, rtol=1e-5)


def test_all_that_is_set_on_an_optimizer_stays_for_other_variables() -> None:
    class Damped(O.Optimizer):
        """`get_config` leaves `rho` out; has a variable of its own, and state in `build`."""

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
    assert_same([value(v) for v in optimizer.variables], before)  # the one before stays as it was


def test_a_multi_optimizer_goes_on_for_other_variables() -> None:
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


def test_a_refused_change_of_variables_leaves_the_state_of_transforms() -> None:
    class Momenta(T.GradientTransform):
        def build(self, variables: Any) -> None:
            self.sums = [self.add_variable(f"m{i}", v.shape) for i, v in enumerate(variables)]

        def __call__(self, gradients: Any, variables: Any) -> Any:
            for total, gradient in zip(self.sums, gradients, strict=True):
                total.assign_add(gradient)
            return gradients

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


@pytest.mark.parametrize("kind", ["plain", "loss scale", "multi", "transformed", "a plain model"])
def test_what_is_excluded_from_weight_decay_is_so_after_loading(kind: str) -> None:
    optimizer: Any = O.SGD(0.1, weight_decay=0.1)
    model = two_layers() if kind == "a plain model" else kt.TrainOpsModel(*ends(two_layers()))
    kernel = model.get_layer("head").kernel
    optimizer.exclude_from_weight_decay(var_list=[kernel], var_names=["bias"])
    if kind == "multi":
        optimizer = O.MultiOptimizer(O.OptimizerMap(optimizer))
    if kind == "loss scale":
        optimizer = O.LossScaleOptimizer(optimizer, initial_scale=8.0)
    if kind in ("transformed", "a plain model"):
        optimizer = kt.TransformedOptimizer(optimizer, T.Scale(1.0))
    model.compile(optimizer, "mse")
    fit(model)
    for i in range(2):  # saved again without training, too
        model.save(f"{i}.keras")
        model = keras.saving.load_model(f"{i}.keras")
    model.compile(model.optimizer, decay_alone)
    before = {v.path: value(v) for v in model.weights}
    fit(model)
    for variable in model.weights:
        moves = variable is model.get_layer("trunk").kernel
        factor = 0.99**3 if moves else 1.0
        np.testing.assert_allclose(value(variable), before[variable.path] * factor, rtol=1e-6)


def ends(model: Any) -> tuple[Any, Any]:
    return model.inputs, model.outputs


def test_what_a_file_cannot_keep_of_weight_decay_is_said() -> None:
    model, optimizer = kt.TrainOpsModel(*ends(two_layers())), O.SGD(0.1, weight_decay=0.1)
    optimizer.exclude_from_weight_decay(var_list=[model.get_layer("head").kernel])
    model.compile(optimizer, "mse")
    with pytest.warns(UserWarning, match="as it is not built: the file does not keep those"):
        model.save("unbuilt.keras")


REPLICAS = """
import tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
import keras, numpy as np, keras_trainops as kt
asked = []
with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope():
    model = kt.with_train_ops(keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)]))
    optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1), initial_scale=8.0)
    def check(gradients):
        asked.append(1)
        return keras.optimizers.LossScaleOptimizer.check_finite(optimizer, gradients)
    optimizer.check_finite = check
    model.compile(optimizer, "mse")
x, y = np.ones((8, 4), "float32"), np.ones((8, 2), "float32")
y[7] = np.inf  # on the second replica
before = model.get_weights()
model.fit(x, y, batch_size=8, verbose=0)
same = all(np.array_equal(a, b) for a, b in zip(before, model.get_weights()))
print(bool(asked), optimizer.check_finite is check, same)
"""


@pytest.mark.backends("tensorflow")
def test_replicas_vote_with_the_users_own_check_which_is_back_after_each_step() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", REPLICAS],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["True"] * 3
