"""User-defined steps: they run, or `compile` refuses the arguments that they do not support."""

from __future__ import annotations

import functools
from typing import Any

import keras
import numpy as np
import pytest

import keras_trainops as kt
from tests.helpers import assert_same, differ, numpy, refused, weights

T = kt.transforms
RNG = np.random.default_rng(0)
X = RNG.normal(size=(16, 4)).astype("float32")
Y = RNG.normal(size=(16, 2)).astype("float32")


def tensorflow_step(self: Any, data: Any) -> Any:
    import tensorflow as tf

    x, y, *_ = data
    with tf.GradientTape() as tape:
        loss = 7.0 * keras.ops.mean(keras.ops.square(self(x, training=True) - y))
    gradients = tape.gradient(loss, self.trainable_variables)
    self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
    for metric in self.metrics:  # as the guides of keras.io do
        if metric.name == "loss":
            metric.update_state(loss)
        else:
            metric.update_state(y, self(x))
    return {"own": loss, **{m.name: m.result() for m in self.metrics}}


def jax_step(self: Any, state: Any, data: Any) -> Any:
    import jax

    trainable, others, of_optimizer, of_metrics = state
    x, y, *_ = data

    def passes(trainable: Any, others: Any) -> Any:
        y_pred, others = self.stateless_call(trainable, others, x, training=True)
        return 7.0 * keras.ops.mean(keras.ops.square(y_pred - y)), others

    (loss, others), gradients = jax.value_and_grad(passes, has_aux=True)(trainable, others)
    trainable, of_optimizer = self.optimizer.stateless_apply(of_optimizer, gradients, trainable)
    return {"own": loss}, (trainable, others, of_optimizer, of_metrics)


def torch_step(self: Any, data: Any) -> Any:
    import torch

    x, y, *_ = data
    y = keras.ops.convert_to_tensor(y)
    self.zero_grad()
    loss = 7.0 * keras.ops.mean(keras.ops.square(self(x, training=True) - y))
    loss.backward()
    trainable = list(self.trainable_weights)
    with torch.no_grad():
        self.optimizer.apply([v.value.grad for v in trainable], trainable)
    return {"own": loss.detach()}


STEPS = {"tensorflow": tensorflow_step, "jax": jax_step, "torch": torch_step}


own_step = STEPS[keras.backend.backend()]


class AfterMixin(keras.Model):
    """Has its step after the mixin, once `with_train_ops` extends it."""

    train_step = own_step


class Below(AfterMixin):
    """Calls the step of its base, which is not the mixin's."""

    def train_step(self, *args: Any) -> Any:
        return super().train_step(*args)


class BeforeMixin(kt.TrainOpsMixin, keras.Model):
    train_step = own_step


class Logged(kt.TrainOpsMixin, keras.Model):
    """Adds to the logs of the step it overrides."""

    def train_step(self, *args: Any) -> Any:
        result = super().train_step(*args)
        logs, *state = result if isinstance(result, tuple) else (result,)
        logs = {**logs, "seen": 1.0}
        return (logs, *state) if state else logs


class Pretends(kt.TrainOpsMixin, keras.Model):
    """Mentions the step that it does not call."""

    def train_step(self, *args: Any) -> Any:
        if not args:
            return super().train_step(*args)
        return own_step(self, *args)


def net(model_class: Any) -> Any:
    keras.utils.set_random_seed(3)
    inputs = keras.Input((4,))
    x = keras.layers.Dense(5, activation="tanh", name="trunk")(inputs)
    x = keras.layers.BatchNormalization(name="norm")(x)
    return model_class(inputs, keras.layers.Dense(2, name="head")(x))


def of_object() -> Any:
    model = net(kt.TrainOpsModel)
    model.train_step = own_step.__get__(model)
    return model


MODELS: dict[str, Any] = {
    "class 'AfterMixin'": lambda: kt.with_train_ops(net(AfterMixin)),
    "class 'Below'": lambda: kt.with_train_ops(net(Below)),
    "class 'BeforeMixin'": lambda: net(BeforeMixin),
    "the model": of_object,
}


ONLY_OURS: dict[str, Any] = {
    "`updates`": lambda: {"updates": []},
    "`updates` ": lambda: {"updates": [kt.updates.LayerUpdates()]},
}
ALSO_OTHERS: dict[str, Any] = {
    **ONLY_OURS,
    "`check_numerics`": lambda: {"check_numerics": True},
    "`Monitor`": lambda: {"gradient_transforms": [T.ClipByNorm(1.0), T.Monitor()]},
}


every_owner = pytest.mark.parametrize("owner", MODELS)


def fit(model: Any) -> Any:
    return model.fit(X, Y, batch_size=8, epochs=2, shuffle=False, verbose=0).history


@functools.cache
def stock_run() -> tuple[Any, list[np.ndarray]]:
    return logs_and_weights(net(AfterMixin))


def logs_and_weights(model: Any) -> tuple[Any, list[np.ndarray]]:
    model.compile(keras.optimizers.SGD(0.01), "mse", metrics=["mae"])
    return fit(model), weights(model)


@every_owner
def test_an_own_step_runs_as_in_keras(owner: str) -> None:
    (ours, our_weights), (theirs, their_weights) = logs_and_weights(MODELS[owner]()), stock_run()
    assert ours == theirs
    assert "own" in ours
    assert_same(our_weights, their_weights)


@every_owner
@pytest.mark.parametrize("asked", ONLY_OURS)
def test_refuses_arguments_that_the_step_does_not_support(owner: str, asked: str) -> None:
    model, optimizer = MODELS[owner](), keras.optimizers.SGD(0.1)
    with refused(model, f"{asked.strip()} cannot be used with the `train_step` of {owner}"):
        model.compile(optimizer, "mse", **ONLY_OURS[asked]())
    assert not model.compiled
    assert not optimizer.built
    model.compile(optimizer, "mse")
    assert "own" in fit(model)


def test_the_error_says_what_to_do() -> None:
    with pytest.raises(ValueError, match=r"Leave it out, or have it call `super\(\).train_step`"):
        net(BeforeMixin).compile("sgd", "mse", updates=[])
    with pytest.raises(ValueError, match="Leave them out, or compute the loss in `compute_loss`"):
        model = kt.with_train_ops(net(AfterMixin))
        model.add_update(kt.updates.MovingAverage())
        model.compile("sgd", "mse")


@every_owner
@pytest.mark.parametrize("eager", [False, True], ids=["compiled", "eager"])
def test_monitors_log_norms_of_any_step(owner: str, eager: bool) -> None:
    model, stock = MODELS[owner](), net(kt.TrainOpsModel)
    optimizer = kt.TransformedOptimizer(keras.optimizers.SGD(0.01), T.Monitor())
    model.compile(optimizer, "mse", metrics=["mae"], run_eagerly=eager)
    logs = fit(model)
    assert {"own", "gradient_norm"} <= logs.keys()
    stock.compile(keras.optimizers.SGD(0.01), scaled_error, gradient_transforms=T.Monitor())
    np.testing.assert_allclose(logs["gradient_norm"], fit(stock)["gradient_norm"], rtol=1e-4)


def scaled_error(y: Any, y_pred: Any) -> Any:
    return 7.0 * keras.ops.mean(keras.ops.square(y_pred - y), axis=-1)


@every_owner
@pytest.mark.parametrize("eager", [False, True], ids=["compiled", "eager"])
def test_gradients_of_any_step_are_checked(owner: str, eager: bool) -> None:
    model, good = MODELS[owner](), MODELS[owner]()
    for each in (model, good):
        each.compile(keras.optimizers.Adam(0.01), check_numerics=True, run_eagerly=eager)
    good.fit(X[:8], Y[:8], batch_size=8, shuffle=False, verbose=0)
    bad = Y.copy()
    bad[9] = np.nan
    with pytest.raises(kt.NonFiniteLossError, match=r"The gradient of 'trunk/kernel' .*at step 1 "):
        model.fit(X, bad, batch_size=8, shuffle=False, verbose=0)
    for variable, twin in zip(model.trainable_weights, good.trainable_weights, strict=True):
        assert_same([numpy(variable)], [numpy(twin)])
    assert_same(*([numpy(v) for v in m.optimizer.variables[:6]] for m in (model, good)))
    model.compile(model.optimizer)
    assert all(t.is_saved for t in model.optimizer.chain.transforms)


@every_owner
def test_refuses_registered_updates(owner: str) -> None:
    model = MODELS[owner]()
    model.compile("sgd", "mse")
    with refused(model, "Updates registered with `add_update` cannot be used .* Leave them out"):
        model.add_update(kt.updates.MovingAverage())
    assert model.train_ops.registered == []
    assert "own" in fit(model)
    later = MODELS[owner]()
    later.add_update(kt.updates.MovingAverage())
    with refused(later, "Updates registered with `add_update` cannot be used .* Leave them out"):
        later.compile("sgd", "mse")


@every_owner
def test_transforms_work_in_steps_that_apply_gradients(owner: str) -> None:
    model = MODELS[owner]()
    before = {v.path: np.array(w) for v, w in zip(model.weights, weights(model), strict=True)}
    model.compile(keras.optimizers.SGD(1.0), "mse", gradient_transforms=T.ClipByNorm(1e-3))
    model.fit(X, Y, batch_size=16, verbose=0)
    for variable, now in zip(model.weights, weights(model), strict=True):
        moved = np.linalg.norm(now - before[variable.path])
        if variable.trainable:
            np.testing.assert_allclose(moved, 1e-3, rtol=1e-2)


def elsewhere(self: Any, *args: Any) -> Any:
    """Take a step without the model's optimizer, as with optimizers of its own."""
    *state, data = args
    logs = {"own": keras.ops.mean(keras.ops.convert_to_tensor(data[0]))}
    return (logs, *state) if state else logs


class AfterMixinElsewhere(keras.Model):
    train_step = elsewhere


class BeforeMixinElsewhere(kt.TrainOpsMixin, keras.Model):
    train_step = elsewhere


@pytest.mark.parametrize("eager", [False, True], ids=["compiled", "eager"])
@pytest.mark.parametrize("owner", ["AfterMixinElsewhere", "BeforeMixinElsewhere"])
def test_refuses_transforms_that_a_step_never_runs(owner: str, eager: bool) -> None:
    model = kt.with_train_ops(net(globals()[owner]))
    model.compile(
        keras.optimizers.SGD(0.1), "mse", gradient_transforms=T.ClipByNorm(1e-3), run_eagerly=eager
    )
    message = f"`gradient_transforms` cannot be used .* class '{owner}'.*with `self.optimizer`"
    with refused(model, message):
        fit(model)
    model.compile(keras.optimizers.SGD(0.1), "mse", run_eagerly=eager)
    assert "own" in fit(model)


@every_owner
def test_own_steps_respect_variables_to_train(owner: str) -> None:
    model = MODELS[owner]()
    trunk, head = weights(model)[:2], weights(model)[-2:]
    model.compile(keras.optimizers.AdamW(0.1), "mse", variables_to_train=["head"])
    assert "own" in fit(model)
    assert_same(weights(model)[:2], trunk)
    assert differ(weights(model)[-2:], head) > 1e-3


@pytest.mark.parametrize("asked", [None, *ALSO_OTHERS])
@pytest.mark.filterwarnings("ignore:`updates` leaves out updates")
def test_a_step_that_calls_ours_gives_its_results(asked: str | None) -> None:
    options = ALSO_OTHERS[asked] if asked else dict
    found = []
    for model_class in (Logged, kt.TrainOpsModel):
        model = net(model_class)
        model.compile(keras.optimizers.SGD(0.1), "mse", **options())
        history = fit(model)
        assert (history.pop("seen", None) == [1.0, 1.0]) is (model_class is Logged)
        found.append((weights(model), history))
    assert_same(found[0][0], found[1][0])
    assert found[0][1].keys() == found[1][1].keys()
    for name, values in found[1][1].items():
        np.testing.assert_allclose(found[0][1][name][-1], values[-1], rtol=0.5)


def test_checks_numerics_in_steps_that_call_ours() -> None:
    model = net(Logged)
    model.compile("sgd", "mse", check_numerics=True)
    with refused(model, "became NaN or infinite at step 0 ", kt.NonFiniteLossError):
        model.train_on_batch(X, np.full_like(Y, np.nan))


@pytest.mark.parametrize("eager", [False, True])
@pytest.mark.parametrize("train", ["fit", "train_on_batch"])
@pytest.mark.parametrize("asked", ONLY_OURS)
def test_refuses_steps_that_mention_ours_without_calling_it(
    asked: str, train: str, eager: bool
) -> None:
    model = net(Pretends)
    model.compile("sgd", "mse", run_eagerly=eager, **ONLY_OURS[asked]())
    before = weights(model)
    for _ in range(2):
        match = f"{asked.strip()} cannot be used .* of class 'Pretends'.* in every step"
        with pytest.raises(ValueError, match=match):
            getattr(model, train)(X, Y)
        assert_same(weights(model), before)
    assert "train_step" not in vars(model)


def test_a_replacement_may_close_over_the_step() -> None:
    model = net(kt.TrainOpsModel)
    original = model.train_step

    def replaced(*args: Any) -> Any:
        return original(*args)

    model.train_step = replaced
    model.compile("sgd", "mse", check_numerics=True)
    assert list(fit(model)) == ["loss"]
    assert vars(model)["train_step"] is replaced


class OwnMaker(kt.TrainOpsMixin, keras.Model):
    def make_train_function(self, force: bool = False) -> None:
        self.train_function = lambda *args: ({}, *args[:-1]) if len(args) > 1 else {}


@pytest.mark.parametrize("asked", ONLY_OURS)
def test_refuses_a_make_train_function_that_hides_ours(asked: str) -> None:
    match = f"{asked.strip()} cannot be used with the `make_train_function` of class 'OwnMaker'"
    with pytest.raises(ValueError, match=match):
        net(OwnMaker).compile("sgd", "mse", **ONLY_OURS[asked]())


class LosesNorms(kt.TrainOpsMixin, keras.Model):
    def compute_metrics(self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        return {m.name: m.result() for m in self.metrics}


class NeverResets(kt.TrainOpsMixin, keras.Model):
    def reset_metrics(self) -> None:
        pass


def test_norms_reach_logs_that_a_model_makes_itself() -> None:
    model = net(LosesNorms)
    model.compile("sgd", "mse", gradient_transforms=T.Monitor())
    assert fit(model).keys() == {"loss", "gradient_norm"}


def test_refuses_a_reset_that_loses_norms_with_monitors_only() -> None:
    with pytest.raises(ValueError, match=r"`Monitor` cannot be used .*class 'NeverResets'"):
        net(NeverResets).compile("sgd", "mse", gradient_transforms=T.Monitor())
    model = net(NeverResets)
    model.compile("sgd", "mse", gradient_transforms=T.ClipByNorm(1.0), check_numerics=True)
    assert "loss" in fit(model)


class OwnMetrics(keras.Model):
    """Overrides everything except the step."""

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> Any:
        return 7.0 * keras.ops.mean(keras.ops.square(y_pred - y))

    def compute_metrics(self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        for metric in self.metrics:
            if metric.name != "loss":
                metric.update_state(y, y_pred)
        return {"mine": 5.0, **{m.name: m.result() for m in self.metrics}}


@pytest.mark.parametrize("options", [{}, {"updates": []}, {"check_numerics": True}])
@pytest.mark.filterwarnings("ignore:`updates` leaves out updates")
def test_respects_own_losses_and_own_metrics(options: Any) -> None:
    history = []
    for extend in (True, False):
        model = net(OwnMetrics)
        if extend:
            kt.with_train_ops(model)
            monitor = T.Monitor()
            model.compile("sgd", "mse", gradient_transforms=monitor, **options)
        else:
            model.compile("sgd", "mse")
        history.append(model.fit(X, Y, batch_size=16, epochs=2, verbose=0, shuffle=False).history)
    ours, theirs = history
    assert all(norm > 0 for norm in ours.pop("gradient_norm"))
    assert ours["mine"] == theirs["mine"] == [5.0, 5.0]
    np.testing.assert_allclose(ours["loss"], theirs["loss"], rtol=1e-5)
