from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest

import keras_trainops as kt
from tests.helpers import assert_same, numpy, refused, two_layers, value, values

U = kt.updates
RNG = np.random.default_rng(0)
X = RNG.normal(size=(24, 4)).astype("float32")
Y = 5 * RNG.normal(size=(24, 2)).astype("float32")


def net(*updates: Any) -> Any:
    model = kt.with_train_ops(two_layers())
    optimizer = keras.optimizers.Adam(0.05)
    model.compile(optimizer, "mse", updates=[U.LayerUpdates(), *updates])
    return model


def fit(model: Any, epochs: int = 1) -> Any:
    model.fit(X, Y, batch_size=2, epochs=epochs, shuffle=False, verbose=0)
    return model


def kernel(model: Any, name: str = "trunk") -> np.ndarray:
    return value(model.get_layer(name).kernel)


def test_constraint_by_pattern_equals_constraint_of_layer() -> None:
    projected = fit(net(U.Project("trunk/kernel", keras.constraints.UnitNorm(axis=0))))
    np.testing.assert_allclose(np.linalg.norm(kernel(projected), axis=0), 1, rtol=1e-5)
    stock = two_layers()
    stock.get_layer("trunk").kernel.constraint = keras.constraints.UnitNorm(axis=0)
    stock.compile(keras.optimizers.Adam(0.05), "mse")
    fit(stock)
    np.testing.assert_allclose(kernel(projected), kernel(stock), rtol=1e-5)


def test_function_projects_every_few_updates() -> None:
    def positive(value: Any) -> Any:
        return keras.ops.maximum(value, 0)

    model = net(U.Project(["head"], positive, every=24))
    fit(model)
    assert (kernel(model, "head") < 0).any()
    fit(model)
    assert (kernel(model, "head") >= 0).all()
    assert (kernel(model, "trunk") < 0).any()


def test_spectral_norm_stays_below_its_limit() -> None:
    free = fit(net(), epochs=10)
    assert np.linalg.norm(kernel(free), 2) > 2
    kept = fit(net(U.Project("trunk/kernel", U.SpectralNorm(0.7, iterations=3))), epochs=10)
    norm = np.linalg.norm(kernel(kept), 2)
    assert norm == pytest.approx(0.7, rel=1e-3)  # it wants to be larger


def test_spectral_norm_below_the_limit_changes_nothing() -> None:
    assert_same(
        [kernel(fit(net(U.Project("trunk/kernel", U.SpectralNorm(100.0)))))], [kernel(fit(net()))]
    )


def test_spectral_norm_recovers_from_a_zero_kernel() -> None:
    projection = U.SpectralNorm(1.0)
    variable = keras.Variable(np.zeros((3, 2)))
    projection.build(variable)
    assert_same([numpy(projection(variable.value))], [np.zeros((3, 2), "float32")])
    ones = keras.ops.convert_to_tensor(100 * np.ones((3, 2), "float32"))
    assert np.linalg.norm(numpy(projection(ones)), 2) == pytest.approx(1.0, rel=1e-5)


def test_spectral_norm_flattens_kernels_of_convolutions() -> None:
    inputs = keras.Input((5, 5, 3))
    x = keras.layers.Conv2D(4, 2, name="conv")(inputs)
    model = kt.TrainOpsModel(inputs, keras.layers.GlobalAveragePooling2D()(x))
    projection = U.Project("conv/kernel", U.SpectralNorm(0.5, iterations=60))
    model.compile("sgd", "mse", updates=[projection])
    model.fit(RNG.normal(size=(4, 5, 5, 3)), RNG.normal(size=(4, 4)), verbose=0)
    matrix = value(model.get_layer("conv").kernel).reshape(-1, 4)
    assert np.linalg.svd(matrix)[1][0] == pytest.approx(0.5, rel=1e-4)


def test_pruned_weights_stay_pruned() -> None:
    model = net(U.Project(".*/kernel", U.FixedMask()))
    pruned = kernel(model)
    pruned[0] = 0
    model.get_layer("trunk").kernel.assign(pruned)
    fit(model)
    assert (kernel(model)[0] == 0).all()
    assert (kernel(model)[1:] != 0).all()
    assert (kernel(fit(net()))[0] != 0).all()  # else they would grow again


def test_pruning_by_magnitude_uses_warm_started_weights() -> None:
    loaded = RNG.normal(size=(4, 3)).astype("float32")
    model = net(U.Project("trunk/kernel", U.FixedMask(sparsity=0.5)))
    start = kt.WarmStart({"trunk/kernel": loaded}, verbose=0)
    model.fit(X, Y, verbose=0, callbacks=[start])
    smallest = np.abs(loaded) <= np.sort(np.abs(loaded), axis=None)[5]
    np.testing.assert_array_equal(kernel(model) == 0, smallest)


def test_saved_state_is_resumed_exactly() -> None:
    def updates() -> list[Any]:
        return [
            U.Project("trunk/kernel", U.SpectralNorm(0.7)),
            U.Project("head/kernel", U.FixedMask(0.5)),
            U.Project("head/bias", keras.constraints.NonNeg(), every=2),
        ]

    whole = fit(fit(net(*updates())))
    fit(net(*updates())).save("half.keras")
    loaded = keras.saving.load_model("half.keras")
    assert_same(values(fit(loaded)), values(whole))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: U.Project("head", U.SpectralNorm), "`projection` must be callable"),
        (lambda: U.Project([], abs), "`patterns` must name variables"),
        (lambda: U.SpectralNorm(0.0), "`limit` must be > 0"),
        (lambda: U.SpectralNorm(iterations=0), "`iterations` must be an integer >= 1"),
        (lambda: U.FixedMask(1.0), "`sparsity` must be above 0 and below 1, or None"),
    ],
)
def test_rejects_invalid_arguments(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("update", "message"),
    [
        (U.Project("haed", abs), "'haed' matches no variable. Closest paths: 'head"),
        (
            U.Project("head", U.SpectralNorm()),
            r"Project\(SpectralNorm\) does not fit 'head/bias': a spectral norm needs a matrix",
        ),
        (U.Project("head", lambda value: value[:1]), r"Project\(<lambda>\)' fails: The shape of"),
    ],
)
def test_rejects_projections_that_do_not_fit(update: Any, message: str) -> None:
    model = net(update)
    model.optimizer.build(model.trainable_variables)
    with refused(model, message):
        fit(model)
