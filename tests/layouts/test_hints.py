"""Suggestions in error messages work when pasted; errors without a sure one suggest nothing."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

import keras_trainops as kt
from keras_trainops.layouts.hints import fitting_adapter
from tests.helpers import refused, two_layers, value
from tests.layouts.torch_models import (
    PARTS,
    Separate,
    assert_close,
    attention_model,
    attention_rules,
    outputs,
    random_state,
)

DENSE, CONV, GROUPS = layers.Dense(1), layers.Conv2D(2, 1), layers.Conv2D(2, 1, groups=2)

# Shapes of the tensors, shape, path and layer of the variable, and the adapter; None if nothing is
# certain.
CASES: list[tuple[list[tuple[int, ...]], tuple[int, ...], str, Any, str | None]] = [
    ([(512, 1000)], (512, 10), "head/kernel", DENSE, "Crop(axis=1)"),
    ([(1000,)], (10,), "head/bias", DENSE, "Crop(axis=0)"),
    ([(512, 10)], (512, 12), "head/kernel", DENSE, "Pad(axis=1)"),
    ([(10, 512)], (512, 10), "head/kernel", DENSE, "Transpose()"),
    ([(10, 512)], (12, 512), "head/kernel", DENSE, None),  # other inputs
    ([(12, 512)], (10, 512), "words/embeddings", None, None),  # other words
    ([(5, 48)], (5, 32), "lstm/lstm_cell/kernel", None, None),  # a part of each gate
    ([(6, 3, 2)], (6, 2, 2), "attention/query/kernel", None, None),
    ([(64, 3, 7, 5)], (7, 5, 3, 64), "stem/kernel", CONV, "Transpose([2, 3, 1, 0])"),
    ([(64, 3, 7, 7)], (7, 7, 3, 64), "stem/kernel", CONV, None),  # PyTorch's order, or reversed?
    ([(64, 3, 7)], (7, 3, 64), "stem/kernel", None, "Transpose()"),
    ([(2, 3, 5)], (5, 2, 3), "x", None, "Transpose([2, 0, 1])"),
    ([(2, 3, 5)], (3, 5, 2), "x", None, "Transpose([1, 2, 0])"),
    ([(7, 5, 3, 64)], (7, 5, 1, 64), "stem/kernel", CONV, "InputChannels()"),
    ([(7, 5, 3, 64)], (7, 5, 1, 64), "stem/kernel", GROUPS, None),
    ([(7, 5, 3, 64)], (7, 5, 1, 64), "stem/kernel", None, None),  # depthwise?
    ([(7, 5, 48, 64)], (7, 5, 32, 64), "deep/kernel", CONV, None),  # not the inputs of a network
    ([(3, 2, 6)], (3, 1, 6), "attention/attention_output/kernel", None, None),
    ([(512, 64)], (1024, 64), "positions/embeddings", None, None),  # longer texts, or a grid?
    ([(256, 64)], (1024, 64), "pos_embed", None, None),
    ([(197, 64)], (401, 64), "pos_embed", None, "ResizePositions(prefix_tokens=1)"),
    ([(1, 197, 64)], (1, 401, 64), "embedding", None, "ResizePositions(prefix_tokens=1)"),
    ([(36, 12)], (12, 12), "attention/query/kernel", None, None),  # by heads or by parts?
    ([(1, 1, 64, 10)], (64, 10), "head/kernel", DENSE, "Reshape()"),
    ([(1, 1, 64, 64)], (64, 64), "head/kernel", DENSE, None),
    ([(10, 64, 1, 1)], (64, 10), "head/kernel", DENSE, None),
    ([(6, 12)], (6, 4, 3), "attention/query/kernel", None, "Reshape()"),
    ([(6, 6)], (6, 3, 2), "attention/query/kernel", None, None),  # transposed or not?
    ([(8, 4)], (4, 2, 4), "attention/query/kernel", None, None),
    ([(8, 1)], (8,), "x/bias", None, "Reshape()"),
    ([(4, 6)], (3, 8), "x", None, None),
    ([(4, 6)], (5, 7), "x", None, None),
    ([(3, 2), (3, 4)], (3, 6), "x", None, None),  # in which order?
    ([(12,), (12,)], (2, 12), "gru/bias", None, None),
    ([(12,), (12,)], (12,), "head/bias", DENSE, None),  # a sum would be unusual
    ([(0, 4)], (3, 4), "positions", None, None),
]


@pytest.mark.parametrize(("shapes", "target", "path", "owner", "expected"), CASES)
def test_suggests_only_certain_adapters(
    shapes: list[tuple[int, ...]], target: tuple[int, ...], path: str, owner: Any, expected: Any
) -> None:
    found = fitting_adapter(shapes, target, path, owner)
    assert (found and repr(found)) == expected
    if found is not None:
        arrays = [np.random.default_rng(0).normal(size=shape) for shape in shapes]
        assert found.shape(shapes, target) == found(arrays, target).shape == target


def pasted_adapter(report: kt.RestoreReport, model: keras.Model) -> dict[str, Any]:
    """Evaluate the only suggestion, as if a user had pasted it."""
    (mismatch,) = report.mismatched
    found: dict[str, Any] = eval(f"dict({mismatch.suggestion})", {"kt": kt, "model": model})
    return found["adapt"]


def test_suggests_a_chain_for_a_pytorch_head() -> None:
    model = two_layers()
    weight = np.random.default_rng(0).normal(size=(5, 3))
    arrays, rename = {"fc.weight": weight}, {r"fc\.weight": "head/kernel"}
    report = kt.plan_restore(model, arrays, rename=rename)
    assert report.mismatched[0].suggestion == (
        'adapt={**kt.adapt.from_torch(model), "head/kernel": '
        "[kt.adapt.Transpose(), kt.adapt.Crop(axis=1)]}"
    )
    kt.restore(model, arrays, rename=rename, adapt=pasted_adapter(report, model))
    np.testing.assert_allclose(value(model.get_layer("head").kernel), weight.T[:, :2], rtol=1e-6)


def test_suggests_no_crop_of_a_square_kernel() -> None:
    model = keras.Sequential([keras.Input((5,)), layers.Dense(3, name="head")])
    report = kt.plan_restore(model, {"head/kernel": np.ones((5, 5))})
    assert [m.suggestion for m in report.mismatched] == [""]
    report = kt.plan_restore(model, {"h.weight": np.ones((5, 5))}, rename={".*": "head/kernel"})
    assert "[kt.adapt.Transpose(), kt.adapt.Crop(axis=1)]" in report.mismatched[0].suggestion


def test_message_shows_the_adapter_that_fits() -> None:
    model = two_layers(name="net")
    arrays = {"head/kernel": np.ones((3, 5)), "head/bias": np.ones(5)}
    line = (
        r"! head/kernel: \(3, 2\) in the model, \(3, 5\) under key 'head/kernel'; "
        r'adapt=\{"head/kernel": kt\.adapt\.Crop\(axis=1\)\} would fit, '
        "and takes the first slices"
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


def test_paths_are_quoted_as_patterns() -> None:
    inputs = keras.Input((3,))
    model = keras.Sequential([inputs, keras.layers.Dense(2, name="head+2")])
    report = kt.plan_restore(model, {"head+2/kernel": np.ones((3, 4))})
    assert report.mismatched[0].suggestion == r'adapt={r"head\+2/kernel": kt.adapt.Crop(axis=1)}'


def test_suggests_no_way_to_combine_keys() -> None:
    model = two_layers()
    arrays = {"left": np.ones((3, 1)), "right": np.ones((3, 1))}
    with refused(model, r"or combine them by an adapter, with `adapt=`\.$|`adapt=`\.\n"):
        kt.restore(model, arrays, rename={"left|right": "head/kernel"})


def test_nothing_is_adapted_unasked() -> None:
    model = two_layers()
    with refused(model, r"adapt=kt.adapt.from_torch\(model\) would fit", kt.RestoreError):
        kt.restore(model, {"head/kernel": np.ones((2, 3))})
    report = kt.plan_restore(model, {"head/kernel": np.ones((2, 3))}, on_mismatch="ignore")
    assert not report.adapted


def test_pattern_matches_one_variable_only() -> None:
    """The pattern `head/kernel` would match the kernel of the other head too."""
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
    arrays["head/kernel"] = np.zeros((4, 7))
    report = kt.plan_restore(model, arrays)
    (mismatch,) = report.mismatched
    assert mismatch.path.endswith("head/kernel")
    adapt = eval(f"dict({mismatch.suggestion})", {"kt": kt})["adapt"]  # as the user would
    assert list(kt.plan_restore(model, arrays, adapt=adapt).adapted) == [mismatch.path]


def test_suggestion_for_attention_of_pytorch_works() -> None:
    module, model = Separate(3, 2, 6), attention_model()
    rename = attention_rules({**{part: part for part in PARTS}, "out": "attention_output"})
    state = random_state(module)
    report = kt.plan_restore(model, state, rename=rename)
    assert {m.suggestion for m in report.mismatched} == {"adapt=kt.adapt.from_torch(model)"}
    assert "attention_output/kernel" in report.mismatched[-1].path
    kt.restore(model, state, rename=rename, adapt=kt.adapt.from_torch(model))
    x = np.random.default_rng(1).normal(size=(2, 5, 6)).astype("f4")
    assert_close(model, x, outputs(module, x))
