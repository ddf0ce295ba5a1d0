from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest

import keras_trainops as kt
from tests.helpers import refused, two_layers, value


def kernel(model: keras.Model, name: str = "head") -> np.ndarray:
    return value(model.get_layer(name).kernel)


def test_a_transpose_of_what_no_shape_could_tell() -> None:
    inputs = keras.Input((3,))
    model = keras.Model(inputs, keras.layers.Dense(3, name="head")(inputs))
    array = np.arange(9, dtype="f4").reshape(3, 3)
    adapt = {"kernel": kt.adapt.Transpose()}
    report = kt.restore(model, {"head/kernel": array}, adapt=adapt)
    np.testing.assert_array_equal(kernel(model), array.T)
    assert report.adapted == {"head/kernel": "Transpose()"}
    assert "Transpose()" in str(report)
    assert report.to_dict()["adapted"] == {"head/kernel": "Transpose()"}


@pytest.mark.parametrize("axes", [None, [1, 0], (2, 0, 1), (3, 2, 0, 1)])
def test_transposes_as_numpy_does(axes: Any) -> None:
    shape = (2, 3, 4, 5)[: len(axes) if axes else 3]
    array = np.arange(np.prod(shape)).reshape(shape)
    adapter = kt.adapt.Transpose(axes)
    expected = np.transpose(array, axes)
    assert adapter.shape([shape], ()) == expected.shape
    np.testing.assert_array_equal(adapter([array], ()), expected)


def test_the_first_pattern_that_matches_wins() -> None:
    model = two_layers()
    arrays = {"trunk/kernel": np.ones((12, 1)), "head/kernel": np.arange(6.0).reshape(2, 3)}
    adapt = {"head": kt.adapt.Transpose(), ".*/kernel": kt.adapt.Reshape()}
    report = kt.restore(model, arrays, adapt=adapt)
    assert report.adapted == {"trunk/kernel": "Reshape()", "head/kernel": "Transpose()"}
    np.testing.assert_array_equal(kernel(model), arrays["head/kernel"].T)


def test_callables_take_arrays_and_combine_keys_in_the_order_of_the_rules() -> None:
    model = two_layers()
    left, right = np.ones((3, 1)), np.full((3, 1), 2.0)
    rename = {"first": "head/kernel", "second": "head/kernel"}

    def side_by_side(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.concatenate([a, b], axis=1)

    report = kt.restore(
        model, {"second": right, "first": left}, rename=rename, adapt={"head": side_by_side}
    )
    np.testing.assert_array_equal(kernel(model), [[1, 2]] * 3)
    assert report.restored == {"head/kernel": "first + second"}
    assert report.adapted == {"head/kernel": "side_by_side"}
    with refused(model, r"Two keys for one variable: 'first' and 'second'.*with `adapt=`"):
        kt.restore(model, {"second": right, "first": left}, rename=rename)
    both = (
        r"\(3, 1\) under key 'first' and \(3, 1\) under key 'second'; Transpose\(\): it takes one"
    )
    with refused(model, both):
        kt.restore(
            model,
            {"second": right, "first": left},
            rename=rename,
            adapt={"head": kt.adapt.Transpose()},
        )


@pytest.mark.parametrize(
    ("adapt", "message"),
    [
        ({"haed": kt.adapt.Reshape()}, "`adapt`: Pattern 'haed' matches no variable.*'head/"),
        ({"head": kt.adapt.Reshape(), "head/kernel": kt.adapt.Reshape()}, "`adapt`: .* never"),
        ({"head/kernel": kt.adapt.Reshape()}, r"\(7, 1\) has 7 elements, and the variable's \(3, "),
        (
            {"head": kt.adapt.Transpose()},
            r"\(3, 2\) in the model, \(7, 1\) under key 'head/kernel', \(1, 7\) after T",
        ),
        ({"head": kt.adapt.Transpose([0, 2, 1])}, r"takes 3 axes, and the tensor is \(7, 1\)"),
        ({"head": lambda a: a[:6]}, r"becomes \(6, 1\) by <lambda>, and the variable is \(3, 2\)"),
        ({"head": lambda a: a[:6].reshape(3, 2) * np.nan}, "has 6 values that are NaN"),
        ({"head": lambda a: a @ a}, "head/kernel: <lambda> failed on 'head/kernel': .*matmul"),
        ({"head": "transpose"}, r"An adapter must be of `keras_trainops.adapt`.*'transpose'"),
        ({"head": kt.adapt.Transpose}, "An adapter must be of .*class"),
    ],
)
def test_what_cannot_be_adapted_is_refused(adapt: Any, message: str) -> None:
    model = two_layers()
    with refused(model, message):
        kt.restore(model, {"head/kernel": np.ones((7, 1))}, adapt=adapt)


def test_axes_that_are_no_permutation() -> None:
    with pytest.raises(ValueError, match=r"`axes` must be a permutation.*axes=\(0, 2\)"):
        kt.adapt.Transpose((0, 2))


def test_what_a_callable_keeps_is_not_the_variables_memory() -> None:
    model, kept = two_layers(), np.ones((3, 2), "f4")
    kt.restore(model, {"head/kernel": np.ones(1)}, adapt={"head": lambda _: kept})
    kept[:] = 5
    assert (kernel(model) == 1).all()
