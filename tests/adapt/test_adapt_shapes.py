"""Adapters of slices, parts and several tensors, and what is refused before anything is read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import keras_trainops as kt
from keras_trainops.checkpoints.checkpoint import Checkpoint
from tests.helpers import refused, two_layers, value

A = np.arange(24.0).reshape(2, 3, 4)
NAN = np.nan  # what is left to the variable


def padded(places: list[int], length: int) -> np.ndarray:
    result = np.full((2, length, 4), NAN)
    result[:, places] = A
    return result


# What adapters make of arrays, by NumPy.
CASES: list[tuple[Any, list[np.ndarray], np.ndarray]] = [
    (kt.adapt.Reshape(), [A], A.reshape(4, 6)),
    (kt.adapt.Reshape([6, -1]), [A], A.reshape(6, 4)),
    (kt.adapt.Reshape([3, 8]), [A], A.reshape(3, 8)),
    (kt.adapt.Pad(axis=1), [A], padded([0, 1, 2], 5)),
    (kt.adapt.Pad(axis=-2, indices=[4, 0, 2]), [A], padded([4, 0, 2], 5)),
    (kt.adapt.Pad(axis=1, default=7), [A], np.nan_to_num(padded([0, 1, 2], 5), nan=7)),
    (kt.adapt.Pad(axis=1), [A], A),
    (kt.adapt.Crop(axis=2), [A], A[:, :, :3]),
    (kt.adapt.Crop(axis=-1, indices=[3, 0]), [A], A[:, :, [3, 0]]),
    (kt.adapt.Concat(axis=-1), [A, A[..., :1]], np.concatenate([A, A[..., :1]], 2)),
    (kt.adapt.Concat(), [A, A + 1, A + 2], np.concatenate([A, A + 1, A + 2])),
    (kt.adapt.Stack(), [A, A + 1], np.stack([A, A + 1])),
    (kt.adapt.Stack(axis=-1), [A, A + 1], np.stack([A, A + 1], -1)),
    (kt.adapt.Sum(), [A, A + 1, A + 2], 3 * A + 3),
    (kt.adapt.Split(2, 3, axis=1), [A], A[:, 2:]),
    (kt.adapt.Split(1, [1, 3], axis=-1), [A], A[..., 1:]),
    (kt.adapt.Gates([1, 0], axis=2), [A], A[..., [2, 3, 0, 1]]),
    (
        kt.adapt.Chain(kt.adapt.Concat(1), kt.adapt.Transpose(), kt.adapt.Crop(0)),
        [A, A],
        np.concatenate([A, A], 1).T[:3],
    ),
    (
        kt.adapt.channels_first_flatten((3, 4, 2)),
        [A.reshape(24, 1) * [1, 10]],
        np.moveaxis(A, 0, -1).reshape(24, 1) * [1, 10],
    ),
]


@pytest.mark.parametrize(
    ("adapter", "arrays", "expected"), CASES, ids=[repr(case[0]) for case in CASES]
)
def test_makes_the_same_as_numpy(
    adapter: kt.adapt.Adapter, arrays: list[np.ndarray], expected: np.ndarray
) -> None:
    assert adapter.shape([a.shape for a in arrays], expected.shape) == expected.shape
    for dtype in ("f4", ml_dtypes.bfloat16):
        adapted = adapter([a.astype(dtype) for a in arrays], expected.shape)
        computes = isinstance(adapter, kt.adapt.Sum)
        assert adapted.dtype == ("f4" if computes else dtype)
        kept = np.ma.getmaskarray(adapted)
        np.testing.assert_array_equal(kept, np.isnan(expected))
        wanted = expected.astype(dtype).astype("f4")
        np.testing.assert_array_equal(np.ma.getdata(adapted).astype("f4")[~kept], wanted[~kept])


def test_what_is_left_to_the_variable_keeps_its_value() -> None:
    model, array = two_layers(), np.arange(6.0).reshape(2, 3)
    before = value(model.get_layer("trunk").kernel)
    adapt = {"trunk/kernel": [kt.adapt.Pad(axis=0, indices=[3, 1])]}
    report = kt.restore(model, {"trunk/kernel": array}, adapt=adapt)
    after = value(model.get_layer("trunk").kernel)
    np.testing.assert_array_equal(after[[3, 1]], array)
    np.testing.assert_array_equal(after[[0, 2]], before[[0, 2]])
    assert report.adapted == {"trunk/kernel": "Chain(Pad(axis=0, indices=[3, 1]))"}


def test_a_callable_may_leave_elements_to_the_variable() -> None:
    model = two_layers()
    before = value(model.get_layer("head").kernel)
    leave_first = lambda a: np.ma.array(a, mask=np.arange(6).reshape(3, 2) == 0)  # noqa: E731
    kt.restore(model, {"head/kernel": np.ones((3, 2))}, adapt={"head": leave_first})
    expected = np.ones((3, 2), "f4")
    expected[0, 0] = before[0, 0]
    np.testing.assert_array_equal(value(model.get_layer("head").kernel), expected)


def test_integers_take_a_default_of_floats() -> None:
    array = np.arange(3, dtype="int8")
    adapted = kt.adapt.Pad(axis=0, default=0.5)([array], (4,))
    np.testing.assert_array_equal(adapted, [0, 1, 2, 0.5])


def test_one_tensor_goes_to_several_variables_and_several_to_one() -> None:
    model = two_layers()
    kernel, bias = np.arange(18.0).reshape(3, 6), np.arange(2.0)
    rename = {
        "fused": ["head/kernel", "trunk/kernel"],
        "b1": "head/bias",
        "b0": "head/bias",
    }
    adapt = {
        "head/kernel": kt.adapt.Split(0, [2, 4], axis=1),
        "trunk/kernel": [kt.adapt.Split(1, [2, 4], axis=1), kt.adapt.Transpose()],
        "head/bias": kt.adapt.Concat(),
    }
    arrays = {"fused": kernel, "b0": bias[:1], "b1": bias[1:]}
    report = kt.restore(model, arrays, rename=rename, adapt=adapt)
    np.testing.assert_array_equal(value(model.get_layer("head").kernel), kernel[:, :2])
    np.testing.assert_array_equal(value(model.get_layer("trunk").kernel), kernel[:, 2:].T)
    np.testing.assert_array_equal(value(model.get_layer("head").bias), [1, 0])  # as the rules stand
    assert report.restored["head/bias"] == "b1 + b0"


class Unreadable(Checkpoint):
    """Tells shapes, and fails the test where one is read."""

    format = "shapes"

    def __init__(self, shapes: dict[str, tuple[int, ...]]) -> None:
        super().__init__("shapes")
        self._shapes = shapes

    def _keys(self) -> dict[str, tuple[int, ...]]:
        return self._shapes

    def _shape(self, key: str) -> tuple[int, ...]:
        return self._shapes[key]

    def _dtype(self, key: str) -> np.dtype:
        return np.dtype("float32")

    def _read(self, key: str) -> np.ndarray:
        raise AssertionError(f"{key} was read")


@pytest.mark.parametrize(
    ("adapter", "message"),
    [
        (kt.adapt.Pad(axis=7), "`axis` must be one of the 2 axes of (4, 6). Received: axis=7"),
        (kt.adapt.Pad(axis=0), "4 slices do not fit into the variable's 3. `Crop` takes a part"),
        (kt.adapt.Pad(axis=1, indices=[0, 1]), "6 slices do not fit into the variable's 2"),
        (kt.adapt.Crop(axis=-3), "`axis` must be one of the 2 axes of (4, 6). Received: axis=-3"),
        (kt.adapt.Crop(axis=0, indices=[4]), "`indices` must be < 4, the length of the tensor's"),
        (kt.adapt.Concat(), "Concat(axis=0): it combines several tensors, and one key leads here"),
        (kt.adapt.Split(0, [2, 3], axis=1), "`parts` must add up to 6, the length of axis 1. Rec"),
        (kt.adapt.Split(0, 4, axis=1), "6 cannot be cut into 4 parts of one length"),
        (kt.adapt.Gates([2, 0, 1], axis=0), "4 of (4, 6) cannot be cut into 3 blocks"),
        (kt.adapt.Reshape([5, -1]), "(4, 6) has 24 elements, and (5, -1) has a multiple of 5"),
        (kt.adapt.channels_first_flatten((2, 3, 2)), "Reshape([2, 2, 3, -1])"),
        (
            [kt.adapt.Transpose(), kt.adapt.Reshape()],
            "(6, 4) after Transpose(), then Reshape(): (6, 4) has 24 elements, and the variable's",
        ),
        (
            [kt.adapt.Transpose(), kt.adapt.Crop(axis=0)],
            "(3, 4) after Chain(Transpose(), Crop(axis=0)); kt.adapt.Crop(axis=1) behind it would",
        ),
    ],
    ids=repr,
)
def test_what_does_not_fit_is_told_with_all_shapes_before_anything_is_read(
    adapter: Any, message: str
) -> None:
    model = two_layers()
    source = Unreadable({"head/kernel": (4, 6), "trunk/kernel": (1, 1)})
    options = {"adapt": {"head/kernel": adapter}, "include": "kernel"}
    both = r"(?s)restore 2 of 2 variables(?=.*! head/kernel)(?=.*! trunk/kernel)"
    with refused(model, both, kt.RestoreError):
        kt.restore(model, source, **options)
    report = kt.plan_restore(model, source, **options)
    line = next(line for line in report.problems if "head/kernel" in line)
    assert line.startswith("! head/kernel: (3, 2) in the model, (4, 6) under key 'head/kernel'")
    assert message in line


@pytest.mark.parametrize(
    ("shapes", "adapter", "message"),
    [
        ([(2, 3), (3, 2)], kt.adapt.Stack(), "must have one shape, and are (2, 3) and (3, 2)"),
        ([(2, 3), (3, 2)], kt.adapt.Sum(), "must have one shape, and are (2, 3) and (3, 2)"),
        ([(2, 3), (3, 2)], kt.adapt.Concat(1), "must have one shape but for axis 1, and are"),
        ([(2, 3), (3,)], kt.adapt.Concat(0), "must have one shape but for axis 0, and are"),
        ([(2, 3), (3,)], kt.adapt.Concat(1), "`axis` must be one of the 1 axes of (3,). Received"),
        ([(3, 2), (3, 2)], kt.adapt.Pad(0), "it takes one tensor, and 2 keys lead here. Combine"),
    ],
)
def test_keys_that_cannot_be_combined(shapes: Any, adapter: kt.adapt.Adapter, message: str) -> None:
    model = two_layers()
    source = Unreadable(dict(zip("ab", shapes, strict=True)))
    rename = {"a|b": "head/kernel"}
    report = kt.plan_restore(
        model, source, rename=rename, adapt={"head": adapter}, exclude="trunk", on_missing="ignore"
    )
    (line,) = report.problems
    assert f"{shapes[0]} under key 'a' and {shapes[1]} under key 'b'; {adapter}" in line
    assert message in line


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: kt.adapt.Pad(0, [1, 1]), r"`indices` must be places from 0, each once.*\[1, 1\]"),
        (lambda: kt.adapt.Crop(0, [0, -1]), r"`indices` must be places from 0.*\[0, -1\]"),
        (lambda: kt.adapt.Pad(0, default="no"), "`default` must be None, a number, .*'no'"),
        (lambda: kt.adapt.Pad(0, default=[None]), r"`default` must be None, a number, .*\[None\]"),
        (lambda: kt.adapt.Reshape([-1, -1]), r"`shape` must be a shape with at most one -1.*-1\]"),
        (lambda: kt.adapt.Split(3, 3), "`index` must be one of 3 parts, from 0. Rec.*index=3"),
        (lambda: kt.adapt.Split(0, [-1, 2]), r"`parts` must be lengths ≥ 0.*\[-1, 2\]"),
        (lambda: kt.adapt.Gates([0, 2]), r"`order` must be a permutation.*order=\[0, 2\]"),
        (lambda: kt.adapt.Chain(), "A chain of adapters must have at least one"),
        (lambda: kt.adapt.Chain(3), "An adapter must be of `keras_trainops.adapt`.* Received: 3"),
        (lambda: kt.adapt.channels_first_flatten([3]), r"`shape` must be .*shape=\[3\]"),
    ],
)
def test_arguments_that_make_no_sense(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_indices_and_defaults_are_counted() -> None:
    pad = kt.adapt.Pad(axis=0, indices=[0, 1, 2])
    with pytest.raises(ValueError, match=r"one index for each of 2 slices\. Received: 3 indices"):
        pad.shape([(2, 5)], (4, 5))
    with pytest.raises(ValueError, match=r"`indices` must be < 2, the length of the variable's"):
        pad.shape([(2, 5)], (2, 5))
    pad = kt.adapt.Pad(axis=0, default=np.ones((3, 1)))
    with pytest.raises(ValueError, match=r"`default` must be of shape \(2, 5\).*shape \(3, 1\)"):
        pad.shape([(2, 5)], (4, 5))
