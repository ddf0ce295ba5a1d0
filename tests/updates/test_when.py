"""When updates run: every how many, of weight updates or batches, and what then counts."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest

import keras_trainops as kt
from tests.helpers import assert_same, refused, two_layers, value, values

RNG = np.random.default_rng(0)
X = RNG.normal(size=(24, 4)).astype("float32")
Y = RNG.normal(size=(24, 2)).astype("float32")


@keras.saving.register_keras_serializable(package="tests")
class Log(kt.updates.Update):
    """Keeps the last iteration at which it ran, how often it did, and in which order."""

    def __init__(self, digit: int = 1, **when: Any) -> None:
        super().__init__(**when)
        self.digit = digit

    def build(self, model: keras.Model) -> None:
        if not self.variables:
            self.runs = self.add_variable("runs", dtype="int32")
            self.last = self.add_variable("last", dtype="int32")

    def __call__(self, model: keras.Model, loss: Any) -> None:
        self.runs.assign(self.runs + 1)
        self.last.assign(model.optimizer.iterations)

    def get_config(self) -> dict[str, Any]:
        return {"digit": self.digit, **super().get_config()}


def net(**options: Any) -> Any:
    model = kt.with_train_ops(two_layers())
    compiled = {"optimizer": keras.optimizers.SGD(0.01), "loss": "mse", **options}
    model.compile(**compiled)
    return model


def fit(model: Any, **options: Any) -> Any:
    given = {"x": X, "y": Y, "batch_size": 2, "shuffle": False, "verbose": 0, **options}
    return model.fit(**given)


def ran(log: Log) -> tuple[int, int]:
    return int(value(log.runs)), int(value(log.last))


JIT = pytest.param({"jit_compile": True}, id="xla", marks=pytest.mark.backends("tensorflow", "jax"))
STEPS = pytest.param(
    {"steps_per_execution": 4}, id="steps", marks=pytest.mark.backends("tensorflow", "jax")
)


@pytest.mark.parametrize(
    "options", [{}, pytest.param({"run_eagerly": True}, id="eager"), JIT, STEPS]
)
def test_each_update_has_its_own_rhythm(options: dict[str, Any]) -> None:
    logs = [Log(), Log(every=3), Log(every=5), Log(on="batch"), Log(every=7, on="batch")]
    fit(net(updates=[*logs], **options))
    assert [ran(log) for log in logs] == [(12, 12), (4, 12), (2, 10), (12, 12), (1, 7)]


def test_under_accumulation_there_is_one_weight_update_in_several_batches() -> None:
    logs = [Log(), Log(every=2), Log(on="batch"), Log(every=4, on="batch")]
    accumulating = keras.optimizers.SGD(0.01, gradient_accumulation_steps=3)
    fit(net(optimizer=accumulating, updates=[*logs]))
    assert [ran(log)[0] for log in logs] == [4, 2, 12, 3]


@pytest.mark.parametrize("policy", ["float32", "mixed_float16"])
def test_a_skipped_weight_update_is_none(policy: str) -> None:
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
def test_data_of_unknown_length_give_no_run_more() -> None:
    def batches() -> Any:
        for i in range(0, 24, 4):
            yield X[i : i + 4], Y[i : i + 4]

    logs = [Log(), Log(on="batch"), Log(every=4, on="batch")]
    fit(net(updates=[*logs]), x=batches(), y=None, batch_size=None)
    assert [ran(log)[0] for log in logs] == [6, 6, 1]


def test_the_order_is_that_of_the_list_whatever_the_rhythms() -> None:
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


def test_state_goes_on_where_it_was_saved_with_the_optimizer() -> None:
    """The batch counter and an update's own variables, in a new object from a file."""

    def updates() -> list[Any]:
        return [kt.updates.LayerUpdates(), Log(every=5), Log(every=7, on="batch")]

    whole, half = net(updates=updates()), net(updates=updates())
    fit(whole)
    fit(whole)
    fit(half)
    half.save("half.keras")
    loaded = keras.saving.load_model("half.keras")
    fit(loaded)
    logs = loaded.train_ops.policy.after_weights
    assert [ran(log) for log in logs] == [(4, 20), (3, 21)]
    assert_same(values(loaded), values(whole))


def test_state_in_a_file_waits_for_updates_that_are_registered_later() -> None:
    model = net()
    model.add_update(Log(every=5))
    fit(model)
    model.save("model.keras")
    loaded = keras.saving.load_model("model.keras")
    log = loaded.add_update(Log(every=5))
    fit(loaded)
    assert ran(log) == (4, 20)


def test_state_of_other_updates_in_a_file_is_told() -> None:
    model = net()
    model.add_update(Log())
    fit(model)
    model.save("model.keras")
    loaded = keras.saving.load_model("model.keras")
    log = loaded.add_update(Log(every=5, on="batch"))
    with pytest.warns(UserWarning, match=r"state of other updates \(2 variables\) .* has \(3\)"):
        fit(loaded)
    assert ran(log)[0] == 2


def test_state_that_waits_is_saved_again() -> None:
    model = net()
    model.add_update(Log(every=5))
    fit(model)
    model.save("1.keras")
    keras.saving.load_model("1.keras").save("2.keras")
    loaded = keras.saving.load_model("2.keras")
    log = loaded.add_update(Log(every=5))
    fit(loaded)
    assert ran(log) == (4, 20)


def test_the_count_of_batches_goes_on_when_compiled_again() -> None:
    log = Log(every=7, on="batch")
    model = net(updates=[log])
    fit(model, x=X[:8], y=Y[:8])
    model.compile(model.optimizer, "mse", updates=[log])
    fit(model, x=X[:8], y=Y[:8])
    assert ran(log)[0] == 1


def mixed() -> Any:
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = kt.with_train_ops(two_layers())
    finally:
        keras.config.set_dtype_policy("float32")
    model.compile(keras.optimizers.SGD(1e-3), "mse")
    return model


def test_an_update_that_is_added_after_a_fit_in_mixed_precision() -> None:
    model = mixed()
    fit(model)
    log = model.add_update(Log())
    fit(model)
    assert ran(log)[0] in range(1, 13)  # less what overflowed


def test_the_loss_scale_is_resumed_whatever_updates_there_are() -> None:
    model = mixed()
    model.add_update(Log())
    fit(model)
    model.optimizer.dynamic_scale.assign(8.0)
    model.save("model.keras")
    loaded = keras.saving.load_model("model.keras")
    assert value(loaded.optimizer.dynamic_scale) == 8
    fit(loaded)
    log = loaded.add_update(Log())
    fit(loaded)
    assert ran(log) == (value(model.optimizer.iterations) + 12, value(loaded.optimizer.iterations))


def test_weights_files_know_nothing_of_updates() -> None:
    model = net(updates=[kt.updates.LayerUpdates(), kt.updates.MovingAverage(0.9)])
    fit(model)
    model.save_weights("with.weights.h5")
    plain = two_layers(5)
    plain.load_weights("with.weights.h5")
    assert_same([value(v) for v in plain.weights], [value(v) for v in model.weights])


@pytest.mark.parametrize("eager", [False, True], ids=["graph", "eager"])
def test_a_variable_that_is_nobody_s_is_refused_before_training(eager: bool) -> None:
    stranger = keras.Variable(0.0, trainable=False, name="stranger")
    model = net(run_eagerly=eager)
    model.add_update(lambda model, loss: stranger.assign(loss))
    model.optimizer.build(model.trainable_variables)
    with refused(model, r"'<lambda>' assigns variables .*: stranger\. On JAX they would be lost"):
        fit(model)
    assert value(stranger) == 0


@pytest.mark.parametrize("eager", [False, True], ids=["graph", "eager"])
def test_a_changed_shape_is_refused_before_training(eager: bool) -> None:
    model = net(run_eagerly=eager)

    @model.add_update
    def shrink(model: Any, loss: Any) -> None:
        kernel = model.get_layer("head").kernel
        kernel.assign(kernel[:1])

    model.optimizer.build(model.trainable_variables)
    with refused(model, r"The update 'shrink' fails: The shape of the target variable"):
        fit(model)


def test_a_variable_that_is_only_read_may_be_anybody_s() -> None:
    factor = keras.Variable(3.0, trainable=False)
    total = keras.Variable(0.0, trainable=False)
    model = net()
    model.add_update(lambda model, loss: total.assign(total + factor), variables=[total])
    fit(model)
    assert value(total) == 36


def test_nothing_to_train() -> None:
    log = Log(on="batch")
    model = kt.with_train_ops(two_layers())
    for layer in model.layers:
        layer.trainable = False
    model.compile("sgd", "mse", updates=[log])
    fit(model)
    assert ran(log)[0] == 12
    model.compile("sgd", "mse", updates=[Log()])
    with refused(model, r"Log would never run: there is no weight to train.*on=\"batch\""):
        fit(model)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Log(every=0), r"`every` must be an integer >= 1\. Received: every=0"),
        (lambda: Log(every=1.5), r"`every` must be an integer >= 1\. Received: every=1\.5"),
        (lambda: Log(on="epoch"), r'`on` must be "update" or "batch"\. Received: on=\'epoch\''),
        (lambda: kt.updates.Function(print, ["a"]), r"`variables` must be `keras\.Variable`s"),
        (lambda: net(updates=[log := Log(), log]), "must be in the list once. Received twice: Log"),
        (lambda: kt.updates.Function(3), "`function` must be callable"),
        (lambda: net().add_update(Log(), every=2), "every are for functions: give them to Log"),
    ],
)
def test_arguments_that_make_no_sense(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_a_function_with_variables_cannot_be_saved_in_a_configuration() -> None:
    own = keras.Variable(0.0, trainable=False)
    model = net(updates=[kt.updates.Function(lambda model, loss: own.assign(loss), [own])])
    fit(model)
    with pytest.raises(ValueError, match="has variables of its own, which no configuration"):
        model.save("model.keras")
