"""The layout of each variable, by the class of its layer."""

from __future__ import annotations

import string
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

import keras_trainops as kt
from keras_trainops.layouts.kinds import Layout, Linear
from keras_trainops.layouts.layers import layouts_of

pytestmark = pytest.mark.once


def layouts_by_name(layer: Any, *shapes: Any) -> dict[str, Layout]:
    layer.build(*shapes)
    found = layouts_of(layer)
    return {v.path.partition("/")[2] or v.name: found[id(v)] for v in layer.weights}


KINDS: list[tuple[Any, list[tuple[Any, ...]], dict[str, str]]] = [
    (layers.Dense(3), [(None, 4)], {"kernel": "linear", "bias": "vector"}),
    (layers.Embedding(9, 4), [(None, 5)], {"embeddings": "table"}),
    (
        layers.ReversibleEmbedding(9, 4, tie_weights=False),
        [(None, 5)],
        {"embeddings": "table", "reverse_embeddings": "linear"},
    ),
    (layers.Conv2D(6, 3, groups=2), [(None, 8, 8, 4)], {"kernel": "convolution", "bias": "vector"}),
    (layers.Conv1DTranspose(6, 3), [(None, 8, 4)], {"kernel": "convolution", "bias": "vector"}),
    (layers.DepthwiseConv2D(3), [(None, 8, 8, 4)], {"kernel": "depthwise", "bias": "vector"}),
    (
        layers.SeparableConv1D(6, 3),
        [(None, 8, 4)],
        {"depthwise_kernel": "depthwise", "pointwise_kernel": "convolution", "bias": "vector"},
    ),
    (
        layers.BatchNormalization(scale=False),
        [(None, 4)],
        {"beta": "vector", "moving_mean": "vector", "moving_variance": "vector"},
    ),
    (layers.LayerNormalization(), [(None, 4)], {"gamma": "vector", "beta": "vector"}),
    (layers.GroupNormalization(2), [(None, 5, 4)], {"gamma": "vector", "beta": "vector"}),
    (layers.RMSNormalization(), [(None, 4)], {"scale": "vector"}),
    (layers.PReLU(shared_axes=[1, 2]), [(None, 5, 5, 4)], {"alpha": "vector"}),
    (
        layers.LSTMCell(3),
        [(None, 4)],
        {"kernel": "recurrent", "recurrent_kernel": "recurrent", "bias": "recurrent"},
    ),
    (
        layers.GRUCell(3, use_bias=False),
        [(None, 4)],
        {"kernel": "recurrent", "recurrent_kernel": "recurrent"},
    ),
]


@pytest.mark.parametrize(("layer", "shapes", "expected"), KINDS, ids=lambda x: type(x).__name__)
def test_kinds(layer: Any, shapes: list[Any], expected: dict[str, str]) -> None:
    found = layouts_by_name(layer, *shapes)
    assert {name: layout.kind for name, layout in found.items()} == expected


def test_attention_projections_are_linear() -> None:
    shape = (None, 5, 6)
    found = layouts_by_name(layers.MultiHeadAttention(3, 2, value_dim=4), shape, shape)
    assert {name: repr(layout) for name, layout in found.items()} == {
        "query/kernel": "Linear([6, 3, 2])",
        "query/bias": "Vector([3, 2])",
        "key/kernel": "Linear([6, 3, 2])",
        "key/bias": "Vector([3, 2])",
        "value/kernel": "Linear([6, 3, 4])",
        "value/bias": "Vector([3, 4])",
        "attention_output/kernel": "Linear([3, 4, 6])",
        "attention_output/bias": "Vector([6])",
    }
    grouped = layers.GroupQueryAttention(4, 6, 2)
    found = layouts_by_name(grouped, shape, shape)
    kernels = {n: repr(layout) for n, layout in found.items() if n.endswith("kernel")}
    assert set(kernels.values()) == {
        "Linear([6, 6, 4])",
        "Linear([6, 2, 4])",
        "Linear([6, 4, 6])",
    }


class Tokens(layers.Layer):
    """A class token, a table of positions, and an own matrix."""

    def build(self, shape: Any) -> None:
        self.token = self.add_weight(shape=(1, 1, 4), name="token")
        self.positions = self.add_weight(shape=(4, 4), name="embeddings")
        self.matrix = self.add_weight(shape=(4, 4), name="matrix")


def test_weights_of_unknown_layers_are_parameters() -> None:
    found = layouts_by_name(Tokens(), (None, 5, 4))
    assert [layout.kind for layout in found.values()] == ["parameter", "table", "parameter"]


def test_an_old_gru_is_not_in_pytorch() -> None:
    found = layouts_by_name(layers.GRUCell(3, reset_after=False), (None, 4))
    assert not found["kernel"].readings((9, 4))
    assert [r.convention for r in found["kernel"].readings((4, 9))] == ["keras"]


def test_axes_of_one_layer_normalization_are_those_of_an_image() -> None:
    found = layouts_by_name(layers.LayerNormalization(axis=[1, 2, 3]), (None, 5, 6, 4))
    assert [repr(r.steps) for r in found["gamma"].readings((4, 5, 6))] == [
        "(Transpose([1, 2, 0]),)"
    ]


def test_matrices_of_lora_are_transposed() -> None:
    dense, convolution, table = layers.Dense(6), layers.Conv2D(6, 3), layers.Embedding(9, 6)
    model = keras.Sequential([keras.Input((8, 8, 4)), convolution, dense])
    table.build((None, 5))
    for layer in (dense, convolution, table):
        layer.enable_lora(2)
    found = layouts_of(model) | layouts_of(table)
    by_name = {
        (layer, v.name): found[id(v)]
        for layer in (dense, convolution, table)
        for v in layer.weights
    }
    assert repr(by_name[dense, "lora_kernel_a"].readings((2, 6))[0].steps) == "(Transpose(),)"
    assert repr(by_name[dense, "lora_kernel_b"].readings((6, 2))[0].steps) == "(Transpose(),)"
    a, b = by_name[convolution, "lora_kernel_a"], by_name[convolution, "lora_kernel_b"]
    assert repr(a.readings((2, 4, 3, 3))[0].steps) == "(Transpose([2, 3, 1, 0]),)"
    assert repr(b.readings((6, 2, 1, 1))[0].steps) == "(Transpose([2, 3, 1, 0]), Reshape())"
    assert repr(by_name[table, "lora_embeddings_a"].readings((2, 9))[0].steps) == "(Transpose(),)"


SIZES = dict(zip(string.ascii_letters, [2, 3, 4, 5, 6, 7, 8] * 8, strict=False))
EQUATIONS = [
    *("ab,bc->ac", "abc,cd->abd", "abc,dc->abd", "btd,df->btf"),
    *("abc,cde->abde", "bqm,muh->bquh", "btd,dnh->btnh", "abc,dce->abde"),
    *("btd,ndh->btnh", "bsd,kdh->bskh", "abc,cdef->abdef", "...x,xy->...y"),
    *("abcd,cde->abe", "bquh,uhm->bqm", "btnh,nhd->btd", "abcd,dce->abe", "ibnd,hnd->ibh"),
]


@pytest.mark.parametrize("equation", EQUATIONS)
def test_einsum_kernels_compute_what_a_linear_computes(equation: str) -> None:
    terms, result = equation.split("->")
    given = terms.partition(",")[0]
    shape = [SIZES[axis] for axis in given if axis != "."]
    outputs = [SIZES[axis] for axis in result if axis != "."][1:]
    layer = layers.EinsumDense(
        equation, outputs if "." not in equation else outputs or [SIZES["y"]]
    )
    layer.build((*([2] if "." in equation else []), *shape))
    (layout,) = layouts_of(layer).values()
    assert isinstance(layout, Linear)
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(layout.rows, layout.columns))
    x = rng.normal(size=(*([2] if "." in equation else []), *shape))
    expected = x.reshape(*x.shape[: x.ndim - len(layout.inputs)], -1) @ weight.T
    for tensor in (weight, weight[:, :, None]):
        (reading,) = [r for r in layout.readings(tensor.shape) if r.convention != "keras"]
        value = reading.adapter([tensor], layout.shape) if reading.adapter else tensor
        found = np.einsum(equation, x, value)
        np.testing.assert_allclose(found.reshape(expected.shape), expected)
    transposed = weight.T
    reading = layout.readings(transposed.shape)[-1]
    value = reading.adapter([transposed], layout.shape) if reading.adapter else transposed
    np.testing.assert_allclose(np.einsum(equation, x, value).reshape(expected.shape), expected)


def test_a_kernel_with_batch_axes_is_a_parameter() -> None:
    layer = layers.EinsumDense("ebd,edf->ebf", (None, 6), bias_axes="f")
    layer.build((3, 5, 4))
    assert [layout.kind for layout in layouts_of(layer).values()] == ["parameter", "vector"]


def test_flattened_features_are_found_through_normalizations() -> None:
    inputs = keras.Input((5, 6, 2))
    x = layers.Flatten()(layers.Conv2D(3, (2, 4))(inputs))
    norm, prelu, dense = layers.LayerNormalization(), layers.PReLU(), layers.Dense(7)
    model = keras.Model(inputs, dense(prelu(norm(x))))
    found = layouts_of(model)
    assert all(found[id(v)].torch_steps() for v in (*norm.weights, *prelu.weights))
    assert len(found[id(dense.kernel)].torch_steps()) == 4
    assert kt.adapt.from_torch(model).keys() >= {f"^{prelu.weights[0].path}$"}
