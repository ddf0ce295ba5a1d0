from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest

from keras_trainops.transforms.layouts import owner_of, owners_scope, unit_axes
from tests.helpers import numpy, value
from tests.transforms.gradients import T, variables

L = keras.layers
RNG = np.random.default_rng(1)


def units_by_experiment(call: Any, kernel: keras.Variable, features: int) -> np.ndarray:
    """Which output unit each element of a kernel feeds: what changes when the element does."""
    start, units = value(kernel), np.empty(kernel.shape, dtype=object)
    base = call()
    for index in np.ndindex(*kernel.shape):
        changed = start.copy()
        changed[index] += 1.0
        kernel.assign(changed)
        moved = np.abs(call() - base) > 1e-4
        axes = tuple(range(moved.ndim - features))
        units[index] = tuple(np.flatnonzero(moved.any(axis=axes).ravel()))
        assert units[index]
    kernel.assign(start)
    return units


LAYERS: dict[str, tuple[Any, tuple[int, ...], int]] = {
    "dense": (lambda: L.Dense(3), (4,), 1),
    "conv1d": (lambda: L.Conv1D(3, 2), (5, 2), 1),
    "conv2d": (lambda: L.Conv2D(3, 2), (4, 4, 2), 1),
    "conv2d grouped": (lambda: L.Conv2D(4, 2, groups=2), (4, 4, 4), 1),
    "conv3d": (lambda: L.Conv3D(3, 2), (3, 3, 3, 2), 1),
    "conv1d transposed": (lambda: L.Conv1DTranspose(3, 2), (4, 2), 1),
    "conv2d transposed": (lambda: L.Conv2DTranspose(3, 2), (3, 3, 2), 1),
    "conv3d transposed": (lambda: L.Conv3DTranspose(3, 2), (2, 2, 2, 2), 1),
    "depthwise 1d": (lambda: L.DepthwiseConv1D(2, depth_multiplier=2), (5, 3), 1),
    "depthwise 2d": (lambda: L.DepthwiseConv2D(2, depth_multiplier=2), (4, 4, 3), 1),
    "einsum": (lambda: L.EinsumDense("abc,cde->abde", (3, 2, 3)), (3, 4), 2),
    "einsum, two summed": (lambda: L.EinsumDense("abcd,cde->abe", (3, 5)), (3, 2, 2), 1),
}


def attention_parts() -> dict[str, Any]:
    attention = L.MultiHeadAttention(2, 3, name="attention")
    attention.build((None, 4, 5), (None, 4, 5))
    return {
        "query": (attention.query_dense, (4, 5), 2),
        "key": (attention.key_dense, (4, 5), 2),
        "value": (attention.value_dense, (4, 5), 2),
        "output": (attention.output_dense, (4, 2, 3), 1),
    }


@pytest.mark.parametrize("name", [*LAYERS, "query", "key", "value", "output"])
def test_axes_lead_to_one_output_unit(name: str) -> None:
    layer, shape, features = LAYERS[name] if name in LAYERS else attention_parts()[name]
    layer = layer if isinstance(layer, L.Layer) else layer()
    x = RNG.normal(size=(2, *shape)).astype("float32")
    layer(x)
    (kernel,) = [v for v in layer.trainable_variables if v.name.endswith("kernel")]
    with owners_scope([layer]):
        (axes,) = unit_axes([kernel]).values()
    expected = units_by_experiment(lambda: numpy(layer(x)), kernel, features)
    assert axes
    assert len({*expected.ravel()}) == expected.size // np.prod([kernel.shape[a] for a in axes])
    for index in np.ndindex(*kernel.shape):
        first = tuple(0 if axis in axes else i for axis, i in enumerate(index))
        assert expected[index] == expected[first]


def test_axes_of_weights_in_composite_layers() -> None:
    inputs = keras.Input((6, 8, 2))
    x = L.SeparableConv2D(4, 3, depth_multiplier=2, name="separable")(inputs)
    x = L.BatchNormalization(name="norm")(x)
    x = L.Reshape((-1, 4))(x)
    x = L.LSTM(3, name="lstm")(x)
    words = keras.Input((4,), dtype="int32")
    y = L.Flatten()(L.Embedding(5, 3, name="words")(words))
    z = L.MultiHeadAttention(2, 3, name="attention")(inputs[:, 0], inputs[:, 0])
    x = L.Concatenate()([x, y, L.Flatten()(z)])
    model = keras.Model([inputs, words], L.Dense(1, name="head")(x))
    with owners_scope(list(model._flatten_layers())):
        axes = dict(
            zip(
                [v.path for v in model.trainable_variables],
                unit_axes(model.trainable_variables).values(),
                strict=True,
            )
        )
    assert axes["separable/depthwise_kernel"] == (0, 1)
    assert axes["separable/pointwise_kernel"] == (0, 1, 2)
    assert axes["norm/gamma"] is None
    assert axes["lstm/lstm_cell/recurrent_kernel"] == (0,)
    assert axes["words/embeddings"] == (1,)
    assert axes["attention/query/bias"] is None
    assert axes["attention/attention_output/kernel"] == (0, 1)
    assert axes["head/kernel"] is None  # one output: all of it is one unit


def test_unknown_layout_must_be_given() -> None:
    made = variables()
    with pytest.raises(ValueError, match=r"'trunk/kernel' of shape \(4, 3\).*`axes=\{pat"):
        T.AdaptiveClip(0.1).build(made)
    with pytest.raises(ValueError, match=r"must be axes of the shape \(4, 3\)\. Received: \(2,\)"):
        T.Centralize(axes={"trunk/kernel": (2,), "kernel": (0,)}).build(made)
    T.Centralize(axes={".*": None}).build(made)


def test_owner_is_the_innermost_layer() -> None:
    inputs = keras.Input((4,))
    layers = [keras.layers.Dense(2, name="dense"), keras.layers.Dense(2, name="last")]
    inner = keras.Sequential([keras.Input((4,)), *layers])
    model = keras.Model(inputs, inner(inputs))
    kernel = inner.get_layer("dense").kernel
    with owners_scope([model, inner.get_layer("dense"), inner]):
        assert owner_of(kernel) is inner.get_layer("dense")
    assert owner_of(kernel) is None
