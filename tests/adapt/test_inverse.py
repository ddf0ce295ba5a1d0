"""Adapters backwards: `inverse(forward(x)) == x`, bit for bit, wherever the variable decides it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import keras
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import keras_trainops as kt
from keras_trainops.adapt import Adapter
from keras_trainops.layouts.fused import halves_of, orders_of, stacked, stacked_halves
from keras_trainops.layouts.kinds import (
    Convolution,
    Depthwise,
    Layout,
    Linear,
    Parameter,
    RecurrentKernel,
    Vector,
)
from keras_trainops.layouts.layers import layouts_of
from keras_trainops.layouts.reading import Convention

pytestmark = pytest.mark.once

Shape = tuple[int, ...]
DTYPES = ("float32", "float16", ml_dtypes.bfloat16, "int8", "float64")
dtypes = st.sampled_from(DTYPES)
lengths = st.integers(1, 5)
shapes = st.lists(lengths, min_size=1, max_size=4).map(tuple)


def tensor_of(shape: Shape, dtype: object = "float32", seed: int = 0) -> np.ndarray:
    """Return distinct bit patterns, NaNs included."""
    bits = np.random.default_rng(seed).integers(0, 256, (*shape, np.dtype(dtype).itemsize), "u1")
    return np.ascontiguousarray(bits).view(dtype).reshape(shape)


def assert_undone(adapter: Adapter, tensors: Sequence[np.ndarray], target: Shape) -> None:
    value = adapter(tensors, target)
    assert value.shape == target
    before = [tensor.shape for tensor in tensors]
    for back, tensor in zip(adapter.inverse(value, before, target), tensors, strict=True):
        assert not np.ma.is_masked(back)
        assert (back.shape, back.dtype) == (tensor.shape, tensor.dtype)
        assert np.ma.getdata(back).tobytes() == tensor.tobytes()


def result_of(adapter: Adapter, *before: Shape) -> Shape:
    shape = adapter.shape(before, ())
    assert shape is not None
    return shape


@given(shape=shapes, dtype=dtypes, data=st.data())
@settings(deadline=None)
def test_permutations_are_undone(shape: Shape, dtype: object, data: st.DataObject) -> None:
    rank = len(shape)
    order = data.draw(st.permutations(range(rank)))
    axis = data.draw(st.integers(-rank, rank - 1))
    length = shape[axis]
    gates = data.draw(st.permutations(range(data.draw(st.sampled_from(_divisors(length))))))
    for adapter in (
        kt.adapt.Transpose(),
        kt.adapt.Transpose(order),
        kt.adapt.Flip([axis]),
        kt.adapt.Gates(gates, axis),
        kt.adapt.Reshape([-1, 1]),
        kt.adapt.Crop(axis % rank, data.draw(st.permutations(range(length)))),
        kt.adapt.Chain(kt.adapt.Transpose(order), kt.adapt.Reshape([1, -1]), kt.adapt.Flip([1])),
    ):
        assert_undone(adapter, [tensor_of(shape, dtype)], result_of(adapter, shape))


def _divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]


@given(shape=shapes, dtype=dtypes, count=st.integers(2, 4), data=st.data())
@settings(deadline=None)
def test_combinations_are_undone(
    shape: Shape, dtype: object, count: int, data: st.DataObject
) -> None:
    tensors = [tensor_of(shape, dtype, seed) for seed in range(count)]
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    for adapter in (
        kt.adapt.Concat(axis),
        kt.adapt.Stack(axis),
        kt.adapt.Chain(kt.adapt.Stack(), kt.adapt.Transpose(), kt.adapt.Reshape([-1])),
    ):
        assert_undone(adapter, tensors, result_of(adapter, *[shape] * count))
    unequal = [tensor_of((n, 2), dtype) for n in data.draw(st.lists(lengths, min_size=2))]
    joined = kt.adapt.Concat()
    assert_undone(joined, unequal, result_of(joined, *[tensor.shape for tensor in unequal]))


def joined(parts: Sequence[np.ndarray], shape: Shape) -> np.ndarray:
    """Join parts that are masked where others have values."""
    whole = np.ma.masked_all(shape, parts[0].dtype)
    for part in parts:
        known = ~np.ma.getmaskarray(part)
        assert whole.mask[known].all()
        whole[known] = part[known]
    assert not whole.mask.any()
    return whole.data


@given(axis=st.integers(-2, 1), sizes=st.lists(lengths, min_size=1, max_size=4), dtype=dtypes)
@settings(deadline=None)
def test_parts_of_a_tensor_make_it_again(axis: int, sizes: list[int], dtype: object) -> None:
    shape = [3, 3]
    shape[axis] = sum(sizes)
    tensor = tensor_of(tuple(shape), dtype)
    backs = []
    for index in range(len(sizes)):
        part = kt.adapt.Chain(kt.adapt.Split(index, sizes, axis), kt.adapt.Transpose())
        value = part([tensor], ())
        backs += part.inverse(value, [tensor.shape], value.shape)
    assert joined(backs, tensor.shape).tobytes() == tensor.tobytes()


@given(
    groups=st.integers(1, 3),
    shared=st.integers(1, 3),
    size=st.integers(1, 3),
    width=st.integers(1, 7),
    permuted=st.booleans(),
    convention=st.sampled_from(["torch", "keras"]),
    dtype=dtypes,
)
@settings(deadline=None)
def test_fused_projections_make_their_tensor_again(
    groups: int,
    shared: int,
    size: int,
    width: int,
    permuted: bool,
    convention: Convention,
    dtype: object,
) -> None:
    """Blocks, per head, and groups of heads that share a key and a value."""
    heads = groups * shared
    order = (1, 0, 2) if permuted else None
    members = [Linear((width,), (count, size), order) for count in (heads, groups, groups)]
    rows = (heads + 2 * groups) * size
    shape = (rows, width) if convention == "torch" else (width, rows)
    tensor = tensor_of(shape, dtype)
    orders = orders_of(members, shape, convention)
    assert orders
    for readings in orders.values():
        backs: list[np.ndarray] = []
        for reading, member in zip(readings, members, strict=True):
            assert reading.adapter is not None
            value = reading.adapter([tensor], member.shape)
            backs += reading.adapter.inverse(value, [shape], member.shape)
        assert joined(backs, shape).tobytes() == tensor.tobytes()


sizes = st.integers(1, 4)


@given(space=st.lists(sizes, min_size=1, max_size=3), first=sizes, second=sizes, dtype=dtypes)
@settings(deadline=None)
def test_layouts_of_other_libraries_are_undone(
    space: list[int], first: int, second: int, dtype: object
) -> None:
    gates = [1, 0, 2]
    layouts: list[tuple[Layout, Shape]] = [
        (Linear((first,), (second,)), (second, first)),
        (Linear((first, 2), (second,)), (second, first * 2)),
        (Linear((first,), (second, 3)), (second * 3, first)),
        (Convolution([*space, first, second]), (second, first, *space)),
        (Depthwise([*space, first, second]), (first * second, 1, *space)),
        (RecurrentKernel((first, 3 * second), gates), (3 * second, first)),
        (Parameter((2, first, second)), (2, second, first)),
        (Vector((*space, first), has_channels_last=True), (first, *space)),
        (Vector((first * 6,), features=(2, 3, first)), (first * 6,)),
    ]
    for layout, shape in layouts:
        tensor = tensor_of(shape, dtype)
        readings = layout.readings(shape)
        assert readings
        for reading in readings:
            if reading.adapter is not None:
                assert_undone(reading.adapter, [tensor], layout.shape)
    features = (*space, first)
    flat = kt.adapt.Chain(kt.adapt.Transpose(), kt.adapt.channels_first_flatten(features))
    inputs = int(np.prod(features))
    assert_undone(flat, [tensor_of((second, inputs), dtype)], (inputs, second))


def test_halves_and_experts_are_undone() -> None:
    half, tensor = Linear((4,), (6,)), tensor_of((12, 4))
    for order in ("gate_up", "up_gate", "even_odd"):
        readings = halves_of(order, half, half, (12, 4), "torch")
        assert readings is not None
        backs = [
            reading.adapter.inverse(reading.adapter([tensor], (4, 6)), [(12, 4)], (4, 6))[0]
            for reading in readings
        ]
        assert joined(backs, (12, 4)).tobytes() == tensor.tobytes()
    experts = [tensor_of((6, 4), seed=seed) for seed in range(6)]
    for reading in stacked(Parameter((6, 4, 6)), (6, 4), 6):
        assert_undone(reading.adapter, experts, (6, 4, 6))
    for order in ("gate_up", "even_odd"):
        (reading,) = stacked_halves(order, Parameter((3, 4, 12)), (6, 4), 3)
        assert_undone(reading.adapter, experts, (3, 4, 12))


def network() -> keras.Model:
    """Return one layer of each kind that `from_torch` knows."""
    layers = keras.layers
    image, sequence = keras.Input((8, 8, 6)), keras.Input((5, 6))
    x = layers.Conv2D(6, (3, 2), padding="same")(image)
    x = layers.DepthwiseConv2D((2, 3), depth_multiplier=2)(x)
    x = layers.SeparableConv2D(6, 2)(x)
    x = layers.PReLU(shared_axes=[1, 2])(layers.Conv2DTranspose(4, (3, 2))(x))
    x = layers.LayerNormalization(axis=[1, 2, 3])(x)
    x = layers.Dense(3)(layers.BatchNormalization()(layers.Flatten()(x)))
    y = layers.Bidirectional(layers.GRU(4, return_sequences=True))(sequence)
    y = layers.LSTM(4, return_sequences=True)(y)
    y = layers.MultiHeadAttention(2, 3)(y, y)
    y = layers.GroupQueryAttention(2, 4, 2)(y, y)
    y = layers.EinsumDense("abc,cde->abde", (None, 2, 3))(y)
    return keras.Model([image, sequence], [x, y])


def test_every_layout_of_pytorch_is_undone() -> None:
    model, undone = network(), 0
    for layout in layouts_of(model).values():
        steps = [*layout.torch_steps()]
        if not steps or isinstance(steps[0], (kt.adapt.Sum, kt.adapt.Stack)):
            continue
        forward = kt.adapt.Chain(*steps)
        value = tensor_of(layout.shape)
        for reading in layout.readings(_torch_shape(forward, layout.shape)):
            if reading.adapter is not None:
                shape = _torch_shape(forward, layout.shape)
                (tensor,) = reading.adapter.inverse(value, [shape], layout.shape)
                back = reading.adapter([np.ascontiguousarray(tensor)], layout.shape)
                assert back.tobytes() == value.tobytes()
                undone += 1
    assert undone >= 20


def _torch_shape(forward: Adapter, target: Shape) -> Shape:
    """Find the shape, among those of the same elements, that is adapted to `target`."""
    size = int(np.prod(target))
    factors = [n for n in range(1, size + 1) if size % n == 0]
    for rank in (2, 3, 4, 1):
        for shape in itertools.product(factors, repeat=rank):
            if np.prod(shape) == size and _fits(forward, shape, target):
                return shape
    raise AssertionError(target)


def _fits(forward: Adapter, shape: Shape, target: Shape) -> bool:
    try:
        return forward.shape([shape], target) == target
    except ValueError:
        return False


@pytest.mark.parametrize("rotated", [4, 8])
def test_rotary_pairs_in_another_order_are_undone(rotated: int) -> None:
    """From neighbours to halves, in each head; the rest of a head stays."""
    heads, size = 3, 8
    one = [*range(0, rotated, 2), *range(1, rotated, 2), *range(rotated, size)]
    order = [head * size + index for head in range(heads) for index in one]
    adapter = kt.adapt.Chain(
        kt.adapt.Crop(axis=0, indices=order), kt.adapt.Transpose(), kt.adapt.Reshape([5, 3, 8])
    )
    tensor = tensor_of((heads * size, 5))
    assert_undone(adapter, [tensor], (5, heads, size))
    value = adapter([tensor], (5, heads, size))
    assert value[2, 1, rotated // 2].tobytes() == tensor[size + 1, 2].tobytes()


def test_slices_left_out_are_masked() -> None:
    tensor = np.arange(12.0).reshape(6, 2)
    cropped = kt.adapt.Crop(axis=0, indices=[4, 0])
    (back,) = cropped.inverse(cropped([tensor], (2, 2)), [(6, 2)], (2, 2))
    assert back[:, 0].tolist() == [0.0, None, None, None, 8.0, None]
    words = kt.adapt.Rows(["a", "b", "c"], ["c", "a"])
    (back,) = words.inverse(words([tensor[:3]], (2, 2)), [(3, 2)], (2, 2))
    assert back[:, 1].tolist() == [1.0, None, 5.0]


def test_what_a_tensor_cannot_hold_is_refused() -> None:
    ones = np.ones((4, 2))

    def refused(adapter: Adapter, shape: Shape, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            adapter.inverse(ones, [shape], ones.shape)

    refused(kt.adapt.Pad(axis=0), (3, 2), "no room for 1 slices of the variable")
    refused(kt.adapt.Rows([*"ab"], [*"abcd"], default=0.0), (2, 2), "no room for 2 slices")
    refused(kt.adapt.ResizePositions(2, 4), (2, 2), "do not determine the original ones")
    refused(kt.adapt.InputChannels(axis=1), (4, 6), "do not determine the channels")
    refused(kt.adapt.Chain(lambda x: x), (4, 2), "inverse of a callable is unknown")


def test_equal_lengths_are_undone() -> None:
    tensor = tensor_of((4, 4))
    for adapter in (
        kt.adapt.Pad(axis=1),
        kt.adapt.Crop(axis=0),
        kt.adapt.ResizePositions(),
        kt.adapt.InputChannels(),
        kt.adapt.Rows([*"abcd"], [*"cabd"]),
    ):
        (back,) = adapter.inverse(adapter([tensor], (4, 4)), [(4, 4)], (4, 4))
        np.testing.assert_array_equal(back, tensor)


def test_positions_of_another_grid_are_not_the_same() -> None:
    resized = kt.adapt.ResizePositions(old_grid=(2, 8), new_grid=(4, 4))
    with pytest.raises(ValueError, match="do not determine the original ones"):
        resized.inverse(np.ones((16, 3)), [(16, 3)], (16, 3))


def test_a_sum_goes_to_the_first_tensor() -> None:
    adapter = kt.adapt.Chain(kt.adapt.Sum(), kt.adapt.Gates([1, 0]))
    first, second = adapter.inverse(np.array([1.0, 2.0]), [(2,), (2,)], (2,))
    assert first.tolist() == [2.0, 1.0]
    assert second.tolist() == [0.0, 0.0]
    assert not adapter.inverse_is_exact
    assert kt.adapt.Chain(kt.adapt.Stack(), kt.adapt.Gates([1, 0])).inverse_is_exact


def test_one_plus_a_tensor_is_undone_up_to_rounding() -> None:
    tensor = np.random.default_rng(0).uniform(-0.9, 0.9, 10_000).astype("float32")
    adapter = kt.adapt.Add(1)
    (back,) = adapter.inverse(adapter([tensor], (10_000,)), [(10_000,)], (10_000,))
    assert 0 < np.abs(back - tensor).max() <= 2**-24  # 6e-8
    assert not adapter.inverse_is_exact


def test_copies_must_agree() -> None:
    adapter = kt.adapt.Repeat(2, axis=-1)
    assert_undone(adapter, [tensor_of((2, 3))], (2, 6))
    with pytest.raises(ValueError, match="copies of a slice differ"):
        adapter.inverse(np.arange(12.0).reshape(2, 6), [(2, 3)], (2, 6))


def test_an_adapter_of_ones_own_may_have_an_inverse() -> None:
    class Twice(Adapter):
        def shape(self, shapes: Sequence[Shape], target: Shape) -> Shape:
            return shapes[0]

        def __call__(self, arrays: Sequence[np.ndarray], target: Shape) -> np.ndarray:
            return arrays[0] * 2

    with pytest.raises(ValueError, match=r"its inverse is unknown"):
        Twice().inverse(np.ones(2), [(2,)], (2,))
    chain = kt.adapt.Chain(kt.adapt.Transpose(), Twice())
    with pytest.raises(ValueError, match=r"Twice.*: its inverse is unknown"):
        chain.inverse(np.ones((2, 3)), [(3, 2)], (2, 3))
    function: Callable[[np.ndarray], np.ndarray] = np.transpose
    with pytest.raises(ValueError, match=r"transpose: the inverse of a callable is unknown"):
        kt.adapt.Chain(function, kt.adapt.Reshape()).inverse(np.ones((2, 3)), [(3, 2)], (2, 3))
