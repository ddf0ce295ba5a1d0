"""The protocol, where it takes effect, and how it is saved."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest

import keras_trainops as kt
from tests.gradients import nets
from tests.gradients.nets import X, Y
from tests.helpers import assert_same_arithmetic, refused, value, values
from tests.training.small_models import TRACED

G, O = kt.gradients, keras.optimizers  # noqa: E741
SOURCES = [
    G.SharpnessAware(0.1),
    G.SharpnessAware(0.2, adaptive=True),
    G.PerExampleClip(0.5),
    G.PerExampleClip(0.5, microbatch=3),
    G.ProjectConflicts(),
]
each_source = pytest.mark.parametrize("source", SOURCES, ids=str)
HEADS = ("head", "second")
TARGETS = [Y, -Y]


@keras.saving.register_keras_serializable(package="tests")
class Doubled(G.GradientSource):
    """Twice the gradient."""

    def __call__(self, step: Any, objective: Any, variables: Any) -> Any:
        (value, aux), gradients = step.gradients(
            objective.whole, variables, aux=True, keep_updates=objective.keep_updates
        )
        return G.Found(value, aux, [2 * gradient for gradient in gradients])


class Wrong(G.GradientSource):
    """Returns what it is given."""

    def __init__(self, returned: Any) -> None:
        self.returned = returned

    def __call__(self, step: Any, objective: Any, variables: Any) -> Any:
        return self.returned


def trained(source: Any, optimizer: Any = None, **options: Any) -> Any:
    fitting = {k: options.pop(k) for k in ("epochs", "batch_size") if k in options}
    model = nets.net(HEADS)
    optimizer = O.SGD(0.1) if optimizer is None else optimizer
    model.compile(optimizer, "mse", gradients=source, **options)
    nets.fit(model, TARGETS, **fitting)
    return model


def test_a_source_of_the_users() -> None:
    nets.close(
        nets.value_of(trained(Doubled(), O.SGD(0.1))), nets.value_of(trained(None, O.SGD(0.2)))
    )


def test_updates_get_a_loss_that_is_a_number() -> None:
    class OfOne(Doubled):
        def __call__(self, *args: Any) -> Any:
            return super().__call__(*args)._replace(value=1.0)

    seen = keras.Variable(0.0, trainable=False, name="seen")
    update = kt.updates.Function(lambda model, loss: seen.assign(loss), [seen])
    model = nets.net(HEADS)
    model.compile("sgd", "mse", gradients=OfOne(), updates=[kt.updates.LayerUpdates(), update])
    nets.fit(model, TARGETS)
    assert value(seen) == 1.0


def test_transforms_follow_the_source() -> None:
    clip = kt.transforms.ClipByGlobalNorm(0.1)
    norms = kt.transforms.Monitor()
    model = nets.net(HEADS)
    model.compile("sgd", "mse", gradients=Doubled(), gradient_transforms=[clip, norms])
    history = nets.fit(model, TARGETS)
    np.testing.assert_allclose(history["gradient_norm"], 0.1, rtol=1e-5)


@each_source
def test_accumulates_as_one_batch_after_the_other(source: G.GradientSource) -> None:
    """An update is that with the mean of the gradients of two batches."""
    accumulated = trained(
        source, O.SGD(0.1, gradient_accumulation_steps=2), batch_size=10, epochs=1
    )
    means = [before - w for before, w in zip(_start(), accumulated.get_weights(), strict=True)]
    steps = []
    for part in (slice(0, 10), slice(10, 20)):
        model = nets.net(HEADS)
        model.compile(O.SGD(0.1), "mse", gradients=source)
        model.train_on_batch(X[part], [y[part] for y in TARGETS])
        steps.append([b - w for b, w in zip(_start(), model.get_weights(), strict=True)])
    for mean, first, second in zip(means, *steps, strict=True):
        np.testing.assert_allclose(mean, (first + second) / 2, atol=1e-6)


def _start() -> list[np.ndarray]:
    return nets.net(HEADS).get_weights()


@each_source
def test_is_saved_and_goes_on(source: G.GradientSource) -> None:
    model = trained(source, O.Adam(0.01), epochs=1)
    model.save("model.keras")
    loaded = keras.saving.load_model("model.keras")
    assert repr(loaded.train_ops.gradients) == repr(source)
    for each in (model, loaded):
        nets.fit(each, TARGETS)
    assert_same_arithmetic(values(model), values(loaded))


@each_source
@TRACED
def test_several_steps_per_execution_and_eager_steps(source: G.GradientSource) -> None:
    plain = nets.value_of(trained(source, batch_size=5))
    several = trained(source, batch_size=5, steps_per_execution=2)
    nets.close(nets.value_of(several), plain)
    eager = trained(source, batch_size=5, run_eagerly=True)
    nets.close(nets.value_of(eager), plain)


@each_source
@pytest.mark.backends("tensorflow")
def test_works_under_xla(source: G.GradientSource) -> None:
    plain = nets.value_of(trained(source))
    nets.close(nets.value_of(trained(source, jit_compile=True)), plain, 1e-5)


@each_source
@pytest.mark.backends("jax")
def test_four_devices_equal_one(source: G.GradientSource) -> None:
    one = nets.value_of(trained(source))
    keras.distribution.set_distribution(keras.distribution.DataParallel())
    try:
        nets.close(nets.value_of(trained(source)), one)
    finally:
        keras.distribution.set_distribution(None)


@each_source
def test_several_optimizers_each_get_their_part(source: G.GradientSource) -> None:
    model = nets.net(HEADS)
    model.compile(
        optimizers={"slow": O.SGD(0.1), "fast": O.SGD(0.1)},
        variables_to_train={"slow": "trunk", "fast": ["head", "second"]},
        loss="mse",
        gradients=source,
    )
    nets.fit(model, TARGETS)
    nets.close(nets.value_of(model), nets.value_of(trained(source)))


@each_source
def test_frozen_variables_have_no_part(source: G.GradientSource) -> None:
    model = trained(source, variables_to_train=HEADS)
    found, before = nets.value_of(model), nets.start(HEADS)
    for name in ("kernel", "bias"):
        np.testing.assert_array_equal(found[f"trunk/{name}"], before[f"trunk/{name}"])
    assert nets.moved(found, HEADS) > 1e-3


@each_source
def test_a_bad_loss_stops_training(source: G.GradientSource) -> None:
    model = nets.net(HEADS)
    model.compile(O.SGD(0.1), "mse", gradients=source, check_numerics=True)
    bad = [np.where(np.arange(20)[:, None] == 12, np.nan, y) for y in TARGETS]
    with pytest.raises(kt.NonFiniteLossError, match="The loss became NaN or infinite at step 1 "):
        nets.fit(model, bad)
    assert all(np.isfinite(w).all() for w in model.get_weights())


@each_source
def test_mixed_precision_skips_an_overflow(source: G.GradientSource) -> None:
    model = nets.net(HEADS, dtype="mixed_float16")
    model.dtype_policy = "mixed_float16"
    model.compile(O.SGD(0.01), "mse", gradients=source)
    large = [np.where(np.arange(20)[:, None] == 12, 1e20, y) for y in TARGETS]
    nets.fit(model, large)
    assert all(np.isfinite(w).all() for w in model.get_weights())
    assert nets.moved(nets.value_of(model), HEADS) > 1e-4
    assert int(model.optimizer.iterations) < 6


def test_several_optimizers_scale_losses() -> None:
    """Gradients of 1e-8 are 0 in float16 without a scale."""
    model = nets.net(HEADS, dtype="mixed_float16")
    model.dtype_policy = "mixed_float16"
    model.compile(
        optimizers={"slow": O.SGD(1e5), "fast": O.SGD(1e5)},
        variables_to_train={"slow": "trunk", "fast": ["head", "second"]},
        loss=["mse", "mse"],
        loss_weights=[1e-7, 1e-7],
        gradients=Doubled(),
    )
    nets.fit(model, TARGETS)
    before = nets.start(HEADS)["trunk/kernel"]
    assert np.abs(nets.value_of(model)["trunk/kernel"] - before).min() > 1e-6


class WithoutMinimize(kt.TrainOpsModel):
    def training_step(self, step: kt.Step, data: Any) -> dict[str, Any]:
        x, y, _ = step.unpack(data)
        loss, gradients = step.gradients(
            lambda: keras.ops.mean(keras.ops.square(self(x)[0] - y[0])), self.trainable_variables
        )
        step.apply(gradients, self.trainable_variables)
        return {"loss": loss}


def test_a_step_that_does_not_ask_for_it_is_an_error() -> None:
    model = nets.net(HEADS, WithoutMinimize)
    model.compile("sgd", gradients=G.SharpnessAware(0.1))
    message = r"`compile\(gradients=SharpnessAware\(rho=0.1, .*does not call `step.minimize`"
    with refused(model, message):
        nets.fit(model, TARGETS)


class WithoutData(kt.TrainOpsModel):
    def training_step(self, step: kt.Step, data: Any) -> dict[str, Any]:
        x, y, _ = step.unpack(data)
        return {"loss": step.minimize(lambda: keras.ops.mean(keras.ops.square(self(x)[0] - y[0])))}


def test_examples_need_data() -> None:
    model = nets.net(HEADS, WithoutData)
    model.compile("sgd", gradients=G.PerExampleClip(1.0))
    with refused(model, r"`PerExampleClip` needs the examples of the batch"):
        nets.fit(model, TARGETS)


class Extra(kt.TrainOpsModel):
    """Returns a scalar and a tensor besides the loss."""

    def training_step(self, step: kt.Step, data: Any) -> dict[str, Any]:
        x, y, _ = step.unpack(data)

        def loss(batch: Any) -> tuple[Any, Any]:
            x, y = batch
            y_pred = self(x, training=True)
            return keras.ops.mean(keras.ops.square(y_pred - y)), (keras.ops.mean(y_pred), y_pred)

        value, (mean, y_pred) = step.minimize(loss, data=(x, y), aux=True)
        return {"loss": value, "mean": mean, "again": keras.ops.mean(y_pred)}


@pytest.mark.parametrize("source", [None, *SOURCES[:4]], ids=str)
def test_other_results_are_those_of_the_batch(source: Any) -> None:
    model = nets.net(model_class=Extra)
    model.compile(O.SGD(0.0), gradients=source)
    history = nets.fit(model, epochs=1)
    predicted = nets.predicted(nets.start(), X)
    np.testing.assert_allclose(history["mean"], [predicted.mean()], rtol=1e-5)
    np.testing.assert_allclose(history["again"], [predicted.mean()], rtol=1e-5)
    np.testing.assert_allclose(history["loss"], [np.square(predicted - Y).mean()], rtol=1e-5)


class OwnTrainStep(kt.TrainOpsModel):
    def train_step(self, *args: Any) -> Any:
        raise AssertionError("not reached")


def test_a_keras_step_of_the_users_is_refused() -> None:
    model = nets.net(model_class=OwnTrainStep)
    with refused(
        model, r"`gradients` cannot be used with the `train_step` of class 'OwnTrainStep'"
    ):
        model.compile("sgd", "mse", gradients=G.SharpnessAware())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("sam", "`gradients` must be a .*GradientSource`. Received: gradients='sam'"),
        (G.SharpnessAware, "is a class: pass an instance"),
        (kt.transforms.Centralize(), r"It belongs in `compile\(gradient_transforms=...\)`"),
        (keras.optimizers.SGD(), "is a Keras `Optimizer`"),
    ],
)
def test_refuses_what_is_no_source(wrong: Any, message: str) -> None:
    model = nets.net()
    with refused(model, message):
        model.compile("sgd", "mse", gradients=wrong)


def test_a_source_among_the_transforms_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"It belongs in `compile\(gradients=...\)`"):
        nets.net().compile("sgd", "mse", gradient_transforms=[G.SharpnessAware()])


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (7, "Wrong must return a `keras_trainops.gradients.Found`. It returned 7"),
        (G.Found(0.0, None, []), "Wrong returned 0 gradients for 4 variables"),
        (G.Found(0.0, None, [np.zeros(2)] * 4), r"shape \(2,\) for 'trunk/kernel', whose shape is"),
        (G.Found(0.0, None, [None] * 4), r"returned None for 'trunk/kernel'"),
    ],
)
def test_checks_what_a_source_returns(returned: Any, message: str) -> None:
    model = nets.net()
    model.compile("sgd", "mse", gradients=Wrong(returned))
    with pytest.raises(ValueError, match=message):
        nets.fit(model)
