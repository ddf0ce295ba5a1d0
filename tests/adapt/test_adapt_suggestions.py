"""What an error suggests fits, when it is pasted; and it is likely to be meant."""

from __future__ import annotations

import re

import keras
import numpy as np
from helpers import refused, two_layers

import keras_trainops as kt
from keras_trainops.adapt.suggestion import fitting, suggest

# Shapes of the tensors, of the variable, its path, and the adapter; None where none is likely.
LIKELY: list[tuple[list[tuple[int, ...]], tuple[int, ...], str, str | None]] = [
    ([(512, 1000)], (512, 10), "head/kernel", "Crop(axis=1)"),
    ([(1000,)], (10,), "head/bias", "Crop(axis=0)"),
    ([(512, 10)], (512, 12), "head/kernel", "Pad(axis=1)"),
    ([(10, 512)], (512, 10), "head/kernel", "Transpose()"),
    ([(1000, 512)], (512, 10), "head/kernel", "Chain(Transpose(), Crop(axis=1))"),
    ([(64, 3, 7, 5)], (7, 5, 3, 64), "stem/kernel", "Transpose([2, 3, 1, 0])"),
    ([(64, 3, 7, 7)], (7, 7, 3, 64), "stem/kernel", "Transpose([2, 3, 1, 0])"),
    ([(64, 3, 7)], (7, 3, 64), "stem/kernel", "Transpose([2, 1, 0])"),
    ([(2, 3, 5)], (5, 2, 3), "x", "Transpose([2, 0, 1])"),
    ([(2, 3, 5)], (3, 5, 2), "x", "Transpose([1, 2, 0])"),
    ([(7, 5, 3, 64)], (7, 5, 1, 64), "stem/kernel", "InputChannels()"),
    (
        [(64, 3, 7, 5)],
        (7, 5, 1, 64),
        "stem/kernel",
        "Chain(Transpose([2, 3, 1, 0]), InputChannels())",
    ),
    ([(784, 10)], (1024, 10), "dense/kernel", "Pad(axis=0)"),
    ([(512, 64)], (1024, 64), "positions/embeddings", "ResizePositions(new_grid=(1024,))"),
    ([(196, 64)], (400, 64), "pos_embed", "ResizePositions()"),
    ([(1, 197, 64)], (1, 401, 64), "embedding", "ResizePositions(prefix_tokens=1)"),
    ([(36, 12)], (12, 12), "attention/query/kernel", "Split(0, 3, axis=0)"),
    ([(12, 36)], (12, 12), "attention/value/kernel", "Split(2, 3, axis=1)"),
    ([(1, 1, 64, 10)], (64, 10), "head/kernel", "Reshape()"),
    ([(6, 6)], (6, 3, 2), "attention/query/kernel", "Reshape()"),
    ([(4, 6)], (3, 8), "x", None),
    ([(4, 6)], (5, 7), "x", None),
    ([(3, 2), (3, 4)], (3, 6), "x", "Concat(axis=1)"),
    ([(12,), (12,)], (2, 12), "gru/bias", "Stack(axis=0)"),
    ([(12,), (12,)], (12,), "lstm/bias", "Sum()"),
    ([(3, 2), (3, 2)], (3, 2), "head/kernel", None),
    ([(3, 2), (2, 3)], (5, 7), "x", None),
]


def test_the_likeliest_is_suggested_and_fits() -> None:
    rng = np.random.default_rng(0)
    for shapes, target, path, expected in LIKELY:
        found, text = fitting(shapes, target, path), suggest(shapes, target, path, re.escape(path))
        assert (found and repr(found)) == expected, (shapes, target, path)
        if found is None:
            assert text == ""
            continue
        (pasted,) = eval(f"dict({text})", {"kt": kt})["adapt"].values()  # as the user would
        steps = pasted if isinstance(pasted, list) else [pasted]
        arrays = [rng.normal(size=shape) for shape in shapes]
        ours, theirs = (
            np.ma.filled(adapter(arrays, target), 0) for adapter in (found, kt.adapt.Chain(*steps))
        )
        assert found.shape(shapes, target) == ours.shape == target
        np.testing.assert_array_equal(ours, theirs)


def test_a_mismatch_says_what_would_fit_and_that_fits() -> None:
    model = two_layers(name="net")
    arrays = {"head/kernel": np.ones((3, 5)), "head/bias": np.ones(5)}
    line = (
        r"! head/kernel: \(3, 2\) in the model, \(3, 5\) under key 'head/kernel'; "
        r'adapt=\{"head/kernel": kt\.adapt\.Crop\(axis=1\)\} would fit'
    )
    with refused(model, line, kt.RestoreError):
        kt.restore(model, arrays)
    report = kt.plan_restore(model, arrays, on_mismatch="ignore")
    assert [m.suggestion for m in report.mismatched] == [
        'adapt={"head/kernel": kt.adapt.Crop(axis=1)}',
        'adapt={"head/bias": kt.adapt.Crop(axis=0)}',
    ]
    assert report.to_dict()["mismatched"][1]["suggestion"].startswith('adapt={"head/bias"')
    adapt = {"head/kernel": kt.adapt.Crop(axis=1), "head/bias": kt.adapt.Crop(axis=0)}
    assert len(kt.restore(model, arrays, adapt=adapt).restored) == 2


def test_names_are_those_without_the_model_and_are_quoted_as_patterns() -> None:
    inputs = keras.Input((3,))
    model = keras.Sequential([inputs, keras.layers.Dense(2, name="head+2")])
    report = kt.plan_restore(model, {"head+2/kernel": np.ones((2, 3))})
    assert report.mismatched[0].suggestion == r'adapt={r"head\+2/kernel": kt.adapt.Transpose()}'


def test_keys_that_an_adapter_would_combine() -> None:
    model = two_layers()
    rename = {"left|right": "head/kernel"}
    arrays = {"left": np.ones((3, 1)), "right": np.ones((3, 1))}
    with refused(
        model, r"with `adapt=`: adapt=\{\"head/kernel\": kt.adapt.Concat\(axis=1\)\} would"
    ):
        kt.restore(model, arrays, rename=rename)


def test_nothing_is_adapted_unasked() -> None:
    model = two_layers()
    with refused(model, "kt.adapt.Transpose", kt.RestoreError):
        kt.restore(model, {"head/kernel": np.ones((2, 3))})
    report = kt.plan_restore(model, {"head/kernel": np.ones((2, 3))}, on_mismatch="ignore")
    assert not report.adapted


def test_a_suggestion_is_for_its_variable_alone() -> None:
    """`head/kernel` as a pattern would match that of the other head, too."""
    inputs = keras.Input((4,))
    inner = keras.Model(inputs, keras.layers.Dense(4, name="head")(inputs), name="enc")
    outer = keras.Input((4,))
    model = keras.Model(outer, keras.layers.Dense(6, name="head")(inner(outer)), name="outer")
    arrays = {path: np.zeros((4, 4)) for path in kt.plan_restore(model, model).restored}
    assert [path for path in arrays if path.endswith("kernel")] == [
        "enc/head/kernel",
        "head/kernel",
    ]
    arrays |= {"enc/head/bias": np.zeros(4), "head/bias": np.zeros(6)}
    arrays["head/kernel"] = np.zeros((6, 4))
    report = kt.plan_restore(model, arrays)
    (mismatch,) = report.mismatched
    assert mismatch.path.endswith("head/kernel")
    adapt = eval(f"dict({mismatch.suggestion})", {"kt": kt})["adapt"]  # as the user would
    assert list(kt.plan_restore(model, arrays, adapt=adapt).adapted) == [mismatch.path]
