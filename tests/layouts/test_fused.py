"""Parts of fused tensors, halves and stacks, against NumPy; each order differs from the others."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from keras_trainops.layouts.fused import (
    halves_of,
    only_order,
    orders_of,
    parts_of,
    stacked,
    stacked_halves,
)
from keras_trainops.layouts.kinds import Layout, Linear, Parameter, Vector
from keras_trainops.layouts.reading import Reading

pytestmark = pytest.mark.once

D, H, G, K = 7, 6, 2, 3
Readings = Sequence[Reading]


def taken(reading: Reading, tensors: Sequence[np.ndarray], layout: Layout) -> np.ndarray:
    value = reading.adapter(tensors, layout.shape) if reading.adapter else tensors[0]
    assert value.shape == layout.shape
    return value


def assert_inverse(readings: Readings, values: Sequence[np.ndarray], tensor: np.ndarray) -> None:
    found = np.ma.masked_all(tensor.shape)
    for reading, value in zip(readings, values, strict=True):
        assert reading.adapter is not None
        (part,) = reading.adapter.inverse(value, [tensor.shape], value.shape)
        known = ~np.ma.getmaskarray(part)
        assert found.mask[known].all()
        found[known] = part[known]
    assert not found.mask.any()
    np.testing.assert_array_equal(found.data, tensor)


def row(order: str, part: int, head: int, k: int, heads: int) -> int:
    """The row of a fused tensor that holds one row of a part."""
    shared = H // heads if heads < H else 1
    if order == "blocks":
        return [0, H * K, (H + heads) * K][part] + head * K + k
    if order == "per_head":
        return (head * 3 + part) * K + k
    group, inside = (divmod(head, shared)) if part == 0 else (head, shared + part - 1)
    return (group * (shared + 2) + inside) * K + k


def layouts(heads: int, permuted: bool) -> list[Layout]:
    order = (1, 0, 2) if permuted else None
    return [Linear((D,), (count, K), order) for count in (H, heads, heads)]


@pytest.mark.parametrize("convention", ["torch", "keras"])
@pytest.mark.parametrize("permuted", [False, True])
@pytest.mark.parametrize(
    ("order", "heads"),
    [("blocks", H), ("per_head", H), ("blocks", G), ("groups", G), ("blocks", 1)],
)
def test_parts_of_fused_kernels(order: Any, heads: int, permuted: bool, convention: Any) -> None:
    weight = np.random.default_rng(0).normal(size=((H + 2 * heads) * K, D))
    tensor = weight if convention == "torch" else weight.T
    kernels = layouts(heads, permuted)
    readings = parts_of(order, kernels, tensor.shape, convention)
    assert readings is not None
    values = [taken(r, [tensor], k) for r, k in zip(readings, kernels, strict=True)]
    for part, value in enumerate(values):
        by_head = value.transpose(1, 0, 2) if permuted else value
        for head, k in itertools.product(range(by_head.shape[1]), range(K)):
            np.testing.assert_array_equal(
                by_head[:, head, k], weight[row(order, part, head, k, heads)]
            )
    assert_inverse(readings, values, tensor)


@pytest.mark.parametrize(("order", "heads"), [("blocks", H), ("per_head", H), ("groups", G)])
def test_parts_of_fused_biases(order: Any, heads: int) -> None:
    tensor = np.random.default_rng(0).normal(size=(H + 2 * heads) * K)
    biases = [Vector((count, K)) for count in (H, heads, heads)]
    readings = parts_of(order, biases, tensor.shape, "torch")
    assert readings is not None
    values = [taken(r, [tensor], b) for r, b in zip(readings, biases, strict=True)]
    for part, value in enumerate(values):
        for head, k in itertools.product(range(len(value)), range(K)):
            assert value[head, k] == tensor[row(order, part, head, k, heads)]
    assert_inverse(readings, values, tensor)


def attention(x: np.ndarray, query: Any, key: Any, value: Any) -> np.ndarray:
    q, k, v = (np.einsum("td,dhk->htk", x, kernel) for kernel in (query, key, value))
    scores = np.exp(np.einsum("htk,hsk->hts", q, np.repeat(k, len(q) // len(k), 0)))
    weights = scores / scores.sum(-1, keepdims=True)
    return np.einsum("hts,hsk->thk", weights, np.repeat(v, len(q) // len(v), 0))


@pytest.mark.parametrize("heads", [H, G])
def test_another_order_computes_something_else(heads: int) -> None:
    rng = np.random.default_rng(0)
    tensor, x = rng.normal(size=((H + 2 * heads) * K, D)), rng.normal(size=(4, D))
    kernels = layouts(heads, False)
    found = orders_of(kernels, tensor.shape, "torch")
    assert list(found) == ["blocks", "per_head" if heads == H else "groups"]
    assert only_order(kernels, tensor.shape, "torch") is None
    one, other = (
        attention(x, *(taken(r, [tensor], k) for r, k in zip(readings, kernels, strict=True)))
        for readings in found.values()
    )
    assert np.abs(one - other).max() > 0.1


def test_a_single_head_has_one_order() -> None:
    kernels = layouts(1, False)
    assert only_order(kernels, ((H + 2) * K, D), "torch") == "blocks"
    assert only_order([Linear((D,), (8,))] * 3, (24, D), "torch") is None  # heads are unknown


def test_heads_may_be_given() -> None:
    kernels = [Linear((D,), (H * K,))] * 3
    assert parts_of("per_head", kernels, (3 * H * K, D), "torch") is None
    readings = parts_of("per_head", kernels, (3 * H * K, D), "torch", heads=H)
    by_head = parts_of("per_head", layouts(H, False), (3 * H * K, D), "torch")
    assert readings is not None
    assert by_head is not None
    tensor = np.random.default_rng(0).normal(size=(3 * H * K, D))
    for reading, other in zip(readings, by_head, strict=True):
        found = taken(reading, [tensor], kernels[0])
        np.testing.assert_array_equal(
            found, taken(other, [tensor], layouts(H, False)[0]).reshape(found.shape)
        )


def test_parts_may_have_other_sizes() -> None:
    """LeViT: 4 rows of key and 6 of value for each of 2 heads."""
    key, value = Linear((D,), (2, 4)), Linear((D,), (2, 6))
    tensor = np.random.default_rng(0).normal(size=(20, D))
    readings = parts_of("per_head", [key, value], tensor.shape, "torch")
    assert readings is not None
    values = [taken(readings[0], [tensor], key), taken(readings[1], [tensor], value)]
    np.testing.assert_array_equal(values[0][:, 1, 0], tensor[10])
    np.testing.assert_array_equal(values[1][:, 1, 0], tensor[14])
    assert_inverse(readings, values, tensor)


def test_the_fused_kernel_of_gpt2() -> None:
    tensor = np.random.default_rng(0).normal(size=(1, D, 3 * H * K))  # of TensorFlow
    kernels = layouts(H, False)
    readings = parts_of("blocks", kernels, tensor.shape, "keras")
    assert readings is not None
    assert repr(readings[1].steps) == "(Split(1, 3, axis=2), Reshape())"
    values = [taken(r, [tensor], k) for r, k in zip(readings, kernels, strict=True)]
    np.testing.assert_array_equal(values[1][:, 2, 1], tensor[0, :, (H + 2) * K + 1])
    assert_inverse(readings, values, tensor)


@pytest.mark.parametrize("shape", [(H * K, D), (4 * H * K, D), (D, 3 * H * K), (3 * H * K, D + 1)])
def test_other_shapes_do_not_fit(shape: tuple[int, ...]) -> None:
    kernels = layouts(H, False)
    assert not orders_of(kernels, shape, "torch")
    assert parts_of("groups", kernels, shape, "torch") is None


HALVES: list[tuple[Layout, tuple[int, ...], Any, int]] = [
    (Linear((4,), (6,)), (12, 4), "torch", 0),
    (Linear((4,), (6,)), (4, 12), "keras", 1),
    (Linear((2, 3), (6,)), (12, 6), "torch", 0),
    (Vector((6,)), (12,), "torch", 0),
    (Parameter((3, 4, 6)), (3, 12, 4), "torch", 1),
    (Parameter((3, 4, 6)), (3, 4, 12), "keras", 2),
    (Parameter((3, 6)), (3, 12), "torch", 1),
    (Parameter((3, 6)), (3, 12), "keras", 1),
]


@pytest.mark.parametrize("order", ["gate_up", "up_gate", "even_odd"])
@pytest.mark.parametrize(("layout", "shape", "convention", "axis"), HALVES)
def test_halves(
    layout: Layout, shape: tuple[int, ...], convention: Any, axis: int, order: Any
) -> None:
    tensor = np.random.default_rng(0).normal(size=shape)
    readings = halves_of(order, layout, layout, shape, convention)
    assert readings is not None
    gate, up = (taken(reading, [tensor], layout) for reading in readings)
    rows = np.moveaxis(tensor, axis, 0)
    expected = {
        "gate_up": (rows[:6], rows[6:]),
        "up_gate": (rows[6:], rows[:6]),
        "even_odd": (rows[::2], rows[1::2]),
    }[order]
    for value, half in zip((gate, up), expected, strict=True):
        outputs_last = np.moveaxis(half, 0, -1)
        np.testing.assert_array_equal(value, outputs_last.reshape(layout.shape))
    assert_inverse(readings, [gate, up], tensor)


def test_halves_of_other_shapes() -> None:
    layout = Linear((4,), (6,))
    for order, convention in itertools.product(("gate_up", "even_odd"), ("torch", "keras")):
        assert halves_of(order, layout, layout, (13, 4), convention) is None
    assert halves_of("even_odd", layout, layout, (4, 12), "torch") is None


def experts(shape: tuple[int, int], count: int = 3) -> list[np.ndarray]:
    return list(np.random.default_rng(0).normal(size=(count, *shape)))


def test_stacks_one_tensor_per_expert() -> None:
    layout, tensors = Parameter((3, 4, 6)), experts((6, 4))
    (reading,) = stacked(layout, (6, 4), 3)
    assert reading.convention == "torch"
    value = taken(reading, tensors, layout)
    np.testing.assert_array_equal(value[1], tensors[1].T)
    assert reading.adapter is not None
    back = reading.adapter.inverse(value, [(6, 4)] * 3, layout.shape)
    np.testing.assert_array_equal(back, tensors)
    (reading,) = stacked(layout, (4, 6), 3)
    assert (reading.convention, repr(reading.steps)) == ("keras", "(Stack(),)")
    assert [r.convention for r in stacked(Parameter((3, 4, 4)), (4, 4), 3)] == ["keras", "torch"]
    assert [r.convention for r in stacked(Parameter((3, 4)), (4,), 3)] == [None]
    assert not stacked(layout, (6, 4), 2)
    assert not stacked(layout, (24,), 3)


def test_stacks_gates_and_up_projections_into_one_variable() -> None:
    layout = Parameter((3, 4, 12))
    gates, ups = experts((6, 4)), [-tensor for tensor in experts((6, 4))]
    for order in ("gate_up", "even_odd"):
        (reading,) = stacked_halves(order, layout, (6, 4), 3)
        value = taken(reading, [*gates, *ups], layout)
        gate, up = (value[..., :6], value[..., 6:])
        if order == "even_odd":
            gate, up = value[..., ::2], value[..., 1::2]
        np.testing.assert_array_equal(gate[2], gates[2].T)
        np.testing.assert_array_equal(up[2], ups[2].T)
    (reading,) = stacked_halves("gate_up", layout, (4, 6), 3)
    value = taken(reading, [gate.T for gate in (*gates, *ups)], layout)
    np.testing.assert_array_equal(value[1, :, 6:], ups[1].T)
    assert not stacked_halves("up_gate", layout, (6, 4), 3)
    assert not stacked_halves("gate_up", layout, (6, 4), 2)


def test_four_ways_to_store_experts() -> None:
    """Apart, with all experts in one tensor, transposed or not, and as rows of one matrix."""
    weights = np.random.default_rng(0).normal(size=(3, 4, 6))  # as in Keras
    layout = Parameter(weights.shape)
    apart = taken(stacked(layout, (6, 4), 3)[0], [w.T for w in weights], layout)
    np.testing.assert_array_equal(apart, weights)
    for tensor in (
        weights.transpose(0, 2, 1),
        weights,
        weights.transpose(0, 2, 1).reshape(18, 4),
        weights.reshape(12, 6),
    ):
        (reading,) = layout.readings(tensor.shape)
        np.testing.assert_array_equal(taken(reading, [tensor], layout), weights)
