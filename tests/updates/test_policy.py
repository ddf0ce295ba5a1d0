"""The updates that run in a step: which, in which order, and how often."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest

import keras_trainops as kt
from tests.helpers import assert_same, refused, two_layers, value, weights
from tests.updates import batch_norm
from tests.updates.run_log import Log, X, Y, fit, mixed, net, ran

LayerUpdates = kt.updates.LayerUpdates

JIT = pytest.param({"jit_compile": True}, id="xla", marks=pytest.mark.backends("tensorflow", "jax"))
STEPS = pytest.param(
    {"steps_per_execution": 4}, id="steps", marks=pytest.mark.backends("tensorflow", "jax")
)


@pytest.mark.parametrize(
    "options", [{}, pytest.param({"run_eagerly": True}, id="eager"), JIT, STEPS]
)
def test_each_update_has_its_own_schedule(options: dict[str, Any]) -> None:
    logs = [Log(), Log(every=3), Log(every=5), Log(on="batch"), Log(every=7, on="batch")]
    fit(net(updates=[*logs], **options))
    assert [ran(log) for log in logs] == [(12, 12), (4, 12), (2, 10), (12, 12), (1, 7)]


def test_accumulation_makes_fewer_weight_updates_than_batches() -> None:
    logs = [Log(), Log(every=2), Log(on="batch"), Log(every=4, on="batch")]
    accumulating = keras.optimizers.SGD(0.01, gradient_accumulation_steps=3)
    fit(net(optimizer=accumulating, updates=[*logs]))
    assert [ran(log)[0] for log in logs] == [4, 2, 12, 3]


@pytest.mark.parametrize("policy", ["float32", "mixed_float16"])
def test_skipped_weight_updates_do_not_count(policy: str) -> None:
    y = Y.copy()
    y[4] = np.inf  # the third batch of twelve
    logs = [Log(), Log(on="batch")]
    keras.config.set_dtype_policy(policy)
    try:
        model = kt.with_train_ops(two_layers())
    finally:
        keras.config.set_dtype_policy("float32")
    skip = None if policy == "mixed_float16" else kt.transforms.SkipNonFinite()
    model.compile(keras.optimizers.SGD(1e-3), "mse", gradient_transforms=skip, updates=[*logs])
    if policy == "mixed_float16":
        assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
        model.optimizer.build(model.trainable_variables)
        model.optimizer.dynamic_scale.assign(1.0)  # that the other steps do not overflow
    fit(model, y=y)
    assert [ran(log)[0] for log in logs] == [11, 12]


@pytest.mark.filterwarnings("ignore:Your input ran out of data")  # stock says so too
def test_data_of_unknown_length_adds_no_run() -> None:
    def batches() -> Any:
        for i in range(0, 24, 4):
            yield X[i : i + 4], Y[i : i + 4]

    logs = [Log(), Log(on="batch"), Log(every=4, on="batch")]
    fit(net(updates=[*logs]), x=batches(), y=None, batch_size=None)
    assert [ran(log)[0] for log in logs] == [6, 6, 1]


def test_updates_run_in_the_order_of_the_list() -> None:
    digits = keras.Variable(0, trainable=False, dtype="int32")

    def append(digit: int) -> Any:
        return lambda model, loss: digits.assign(digits * 10 + digit)

    model = net()
    model.add_update(append(1), variables=[digits])
    model.add_update(append(2), variables=[digits], every=2)

    @model.add_update(variables=[digits], on="batch")
    def third(model: Any, loss: Any) -> None:
        append(3)(model, loss)

    fit(model, x=X[:8], y=Y[:8])
    assert value(digits) == 13_123_13_123


def test_count_of_batches_survives_another_compile() -> None:
    log = Log(every=7, on="batch")
    model = net(updates=[log])
    fit(model, x=X[:8], y=Y[:8])
    model.compile(model.optimizer, "mse", updates=[log])
    fit(model, x=X[:8], y=Y[:8])
    assert ran(log)[0] == 1


def test_update_can_follow_a_mixed_precision_fit() -> None:
    model = mixed()
    fit(model)
    log = model.add_update(Log())
    fit(model)
    assert ran(log)[0] in range(1, 13)  # less what overflowed


def test_list_warns_once_about_omitted_updates() -> None:
    model = batch_norm.net()

    @model.add_update
    def registered(model: Any, loss: Any) -> None:
        pass

    model.compile("sgd", "mse", updates=[LayerUpdates(include=["first"])])
    expected = "leaves out .*: second/moving_mean, second/moving_variance, registered"
    with pytest.warns(UserWarning, match=expected) as caught:
        model.fit(batch_norm.X, batch_norm.Y, epochs=2, verbose=0)
        model.fit(batch_norm.X, batch_norm.Y[:, ::-1], verbose=0)
    assert len([w for w in caught if "leaves out" in str(w.message)]) == 1


@pytest.mark.parametrize("updates", [None, [LayerUpdates()]])
def test_complete_policy_does_not_warn(updates: Any) -> None:
    model = batch_norm.net()
    model.compile("sgd", "mse", updates=updates)
    model.fit(batch_norm.X, batch_norm.Y, verbose=0)  # a warning would be an error here
    assert (batch_norm.statistics(model, "first")[0] != 0).all()


def test_single_update_is_a_list_of_one() -> None:
    with pytest.warns(UserWarning, match="leaves out updates of layers"):
        _train_with_norm(kt.updates.MovingAverage(0.9))
    model = net(updates=kt.updates.MovingAverage(0.9))
    model.fit(X, Y, verbose=0)
    model.save("one.keras")
    (average,) = keras.saving.load_model("one.keras").train_ops.policy.after_weights
    assert average.averages()[0][1].shape == (4, 3)
    counts: list[int] = []
    model = net(updates=lambda model, loss: counts.append(1))
    model.fit(X, Y, verbose=0)
    assert counts


def _train_with_norm(update: Any) -> None:
    inputs = keras.Input((4,))
    model = kt.TrainOpsModel(inputs, keras.layers.BatchNormalization()(inputs))
    model.compile("sgd", "mse", updates=update)
    model.fit(X, X, verbose=0)


@pytest.mark.parametrize("eager", [False, True], ids=["graph", "eager"])
def test_rejects_assignments_to_undeclared_variables(eager: bool) -> None:
    stranger = keras.Variable(0.0, trainable=False, name="stranger")
    model = net(run_eagerly=eager)
    model.add_update(lambda model, loss: stranger.assign(loss))
    model.optimizer.build(model.trainable_variables)
    with refused(model, r"'<lambda>' assigns variables .*: stranger\. On JAX they would be lost"):
        fit(model)
    assert value(stranger) == 0


@pytest.mark.parametrize("eager", [False, True], ids=["graph", "eager"])
def test_rejects_a_changed_shape_before_training(eager: bool) -> None:
    model = net(run_eagerly=eager)

    @model.add_update
    def shrink(model: Any, loss: Any) -> None:
        kernel = model.get_layer("head").kernel
        kernel.assign(kernel[:1])

    model.optimizer.build(model.trainable_variables)
    with refused(model, r"The update 'shrink' fails: The shape of the target variable"):
        fit(model)


def test_updates_may_read_undeclared_variables() -> None:
    factor = keras.Variable(3.0, trainable=False)
    total = keras.Variable(0.0, trainable=False)
    model = net()
    model.add_update(lambda model, loss: total.assign(total + factor), variables=[total])
    fit(model)
    assert value(total) == 36


def test_undeclared_variables_are_read_after_another_preparation() -> None:
    factor = keras.Variable(1.0, trainable=False)
    last = keras.Variable(0.0, trainable=False)
    model = net()
    model.add_update(lambda model, loss: last.assign(factor * 1.0), variables=[last])
    model.compile("sgd", "mse")
    fit(model)
    model.make_train_function(force=True)
    fit(model)
    factor.assign(5.0)  # the compiled step must see it
    fit(model)
    assert value(last) == 5


def test_rejects_weight_update_schedule_without_trained_weights() -> None:
    log = Log(on="batch")
    model = kt.with_train_ops(two_layers())
    for layer in model.layers:
        layer.trainable = False
    model.compile("sgd", "mse", updates=[log])
    fit(model)
    assert ran(log)[0] == 12
    model.compile("sgd", "mse", updates=[Log()])
    with refused(model, r"Log would never run: there are no weights to train.*on=\"batch\""):
        fit(model)


@pytest.mark.parametrize(
    ("updates", "message"),
    [
        ([LayerUpdates(include=["frist"])], "'frist' matches no variable. Closest paths: 'first/"),
        ([3], r"An update must be an `Update` .* Received: 3"),
        ([LayerUpdates], "An update must be an `Update`"),
        (3, "`updates` must be None .* or a list of updates"),
    ],
)
def test_rejects_invalid_updates(updates: Any, message: str) -> None:
    model = batch_norm.net()
    before = weights(model)
    with pytest.raises(ValueError, match=message):
        model.compile("sgd", "mse", updates=updates)
        model.fit(batch_norm.X, batch_norm.Y, verbose=0)
    assert_same(weights(model), before)
    with pytest.raises(ValueError, match="An update must be an `Update`"):
        model.add_update("moving")


def test_rejects_an_update_given_twice() -> None:
    log = Log()
    with pytest.raises(ValueError, match=r"may be in the list only once\. Received twice: Log"):
        net(updates=[log, log])
