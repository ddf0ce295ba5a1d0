from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest

import keras_trainops as kt
from tests.helpers import assert_same, refused, two_layers, two_replicas, value, weights

X, Y = np.ones((8, 4), "float32"), np.zeros((8, 2), "float32")


class FirstWeights(keras.callbacks.Callback):
    """Record the weights before the first step."""

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        if batch == 0:
            self.weights = weights(self.model)


class Lazy(keras.Model):
    def __init__(self) -> None:
        super().__init__(name="lazy")
        self.trunk = keras.layers.Dense(3, name="trunk")
        self.head = keras.layers.Dense(2, name="head")

    def call(self, x: Any) -> Any:
        return self.head(self.trunk(x))


class MixedIn(kt.TrainOpsMixin, Lazy):
    pass


def fit(model: keras.Model, *callbacks: keras.callbacks.Callback, **options: Any) -> Any:
    return model.fit(X, Y, batch_size=4, verbose=0, callbacks=list(callbacks), **options)


def test_loads_weights_before_the_first_step(capsys: pytest.CaptureFixture[str]) -> None:
    source, model = two_layers(1), two_layers(2)
    source.save_weights("w.weights.h5")
    model.compile("sgd", "mse")
    start, first = kt.WarmStart("w.weights.h5"), FirstWeights()
    fit(model, start, first)
    assert_same(first.weights, weights(source))
    assert start.report.applied
    assert "restored 4 of 4 variables" in capsys.readouterr().out


def test_verbose_0_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    model = two_layers()
    model.compile("sgd", "mse")
    fit(model, kt.WarmStart(two_layers(1), verbose=0))
    assert capsys.readouterr().out == ""


def test_builds_a_lazy_model_with_the_mixin() -> None:
    source = two_layers(1)
    source.save_weights("w.weights.h5")
    model = MixedIn()
    model.compile("adam", "mse")
    assert not model.weights
    first = FirstWeights()
    fit(model, kt.WarmStart("w.weights.h5", verbose=0), first)
    assert_same(first.weights, weights(source))


@pytest.mark.backends("tensorflow")
def test_rejects_a_lazy_model_without_the_mixin() -> None:
    model = Lazy()
    model.compile("sgd", "mse")
    with pytest.raises(kt.RestoreError, match=r"has no variables yet.*mix in `TrainOpsMixin`"):
        fit(model, kt.WarmStart({"head/bias": np.ones(2)}))
    assert not model.weights
    model(X)
    fit(model, kt.WarmStart({"head/bias": np.ones(2)}, verbose=0))


@pytest.mark.backends("tensorflow")
def test_reports_why_a_model_cannot_be_built() -> None:
    class Broken(kt.TrainOpsMixin, keras.Model):
        def call(self, x: Any) -> Any:
            raise RuntimeError("no way to build this")

    model = Broken()
    model.compile("sgd", "mse")
    with pytest.raises(kt.RestoreError, match=r"(?s)could not be built.*no way to build this"):
        fit(model, kt.WarmStart({"x": np.ones(2)}))


def test_loads_once() -> None:
    model = two_layers(2)
    model.compile("sgd", "mse")
    start, first = kt.WarmStart({"head/bias": [5.0, 6.0]}, verbose=0), FirstWeights()
    fit(model, start)
    after = weights(model)
    fit(model, start, first)
    assert_same(first.weights, after)


def test_a_resumed_run_skips_it(capsys: pytest.CaptureFixture[str]) -> None:
    model = two_layers(2)
    model.compile("adam", "mse")
    fit(model)
    before = weights(model)
    start, first = kt.WarmStart({"head/bias": [5.0, 6.0]}), FirstWeights()
    fit(model, start, first)
    assert_same(first.weights, before)
    assert start.report is None
    assert "WarmStart skipped: the optimizer has made 2 updates" in capsys.readouterr().out


def test_backup_and_restore_keeps_its_weights() -> None:
    class Stop(Exception):
        pass

    class Interrupt(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            if epoch == 2:
                raise Stop("interrupted")

    def run(*more: keras.callbacks.Callback) -> keras.Model:
        model = two_layers(2)
        model.compile("adam", "mse")
        backup = keras.callbacks.BackupAndRestore("backup")
        start = kt.WarmStart({"head/bias": [5.0, 6.0]}, verbose=0)
        fit(model, backup, start, *more, epochs=4, shuffle=False)
        return model

    uninterrupted = run()
    with pytest.raises(Stop, match="interrupted"):
        run(Interrupt())
    assert_same(weights(run()), weights(uninterrupted))


def test_errors_stop_fit_before_the_first_step() -> None:
    model = two_layers(2)
    model.compile("adam", "mse")
    model.optimizer.build(model.trainable_variables)
    with refused(model, "missing: head/bias", kt.RestoreError):
        np.savez("w.npz", **{"head/kernel": np.ones((3, 2))})
        fit(model, kt.WarmStart("w.npz", include=["head"]))


def test_averages_start_from_the_loaded_weights() -> None:
    model = two_layers(2)
    model.compile(keras.optimizers.SGD(0.0, use_ema=True, ema_momentum=0.9), "mse")
    source = two_layers(1)
    fit(model, kt.WarmStart(source, verbose=0))
    averages = [v for v in model.optimizer.variables if "average" in v.path]
    assert len(averages) == 4
    for average, loaded in zip(averages, weights(source), strict=True):
        np.testing.assert_allclose(value(average), loaded, rtol=1e-6)


def test_loads_full_precision_into_mixed_precision_models() -> None:
    keras.mixed_precision.set_global_policy("mixed_float16")
    try:
        model = two_layers(2)
        source = two_layers(1)
    finally:
        keras.mixed_precision.set_global_policy("float32")
    model.compile("sgd", "mse")
    first = FirstWeights()
    fit(model, kt.WarmStart(source, verbose=0), first)
    assert_same(first.weights, weights(source))
    assert first.weights[0].dtype == np.dtype("float32")


def test_arrays_and_the_model_share_no_memory() -> None:
    """JAX uses the memory of an aligned array for a variable, and trains in place."""
    memory = np.empty(4 * 2 * 4 + 64, "uint8")
    start = -memory.ctypes.data % 64
    kernel = memory[start : start + 32].view("float32").reshape(4, 2)
    kernel[:] = 1
    inputs = keras.Input((4,))
    model = keras.Model(inputs, keras.layers.Dense(2, name="head", use_bias=False)(inputs))
    model.compile("sgd", "mse")
    fit(model, kt.WarmStart({"head/kernel": kernel}, verbose=0))
    assert (kernel == 1).all()
    trained = weights(model)[0]
    assert not (trained == 1).all()
    kernel[:] = 5
    np.testing.assert_array_equal(weights(model)[0], trained)


@pytest.mark.backends("tensorflow")
def test_loads_both_replicas_of_a_mirrored_variable() -> None:
    strategy = two_replicas()
    with strategy.scope():
        inputs = keras.Input((4,))
        model = kt.TrainOpsModel(inputs, keras.layers.Dense(2, name="head")(inputs))
        clip = kt.transforms.ClipByNorm(1.0)
        model.compile(keras.optimizers.SGD(0.0), "mse", gradient_transforms=clip)
    start = kt.WarmStart({"head/kernel": np.full((4, 2), 3.0)}, verbose=0)
    x, y = np.ones((8, 4)), np.ones((8, 2))
    model.fit(x, y, batch_size=4, verbose=0, callbacks=[start])
    copies = strategy.experimental_local_results(model.get_layer("head").kernel.value)
    assert len(copies) == 2
    for copy in copies:
        assert (copy.numpy() == 3).all()
