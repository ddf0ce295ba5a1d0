from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from keras import ops

from keras_trainops.transforms.chain import as_transform
from tests.transforms.gradients import PATHS, T, close, each, run


def test_callables_and_lists_apply_in_order() -> None:
    def double(gradients: Any, variables: Any) -> Any:
        assert [v.path for v in variables] == PATHS
        return [None if g is None else g * 2 for g in gradients]

    close(run([double, T.ClipByValue(0.7)]), each(lambda g: np.clip(2 * g, -0.7, 0.7)))
    close(run([T.ClipByValue(0.7), double]), each(lambda g: 2 * np.clip(g, -0.7, 0.7)))


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda g, v: g[:2], r"FromFunction\(<lambda>\) returned 2 gradients for 4 variables"),
        (lambda g, v: None, "must return a list of gradients. Received: None"),
        (
            lambda g, v: [0 if x is None else x for x in g],
            "'unused/kernel', whose gradient was None",
        ),
        (lambda g, v: [None for x in g], "'trunk/kernel', whose gradient was shape"),
        (
            lambda g, v: [x if x is None else ops.sum(x) for x in g],
            r"returned a gradient of shape \(\) and dtype float32 for 'trunk/kernel'",
        ),
        (
            lambda g, v: [x if x is None else ops.cast(x, "float16") for x in g],
            "and dtype float16 for 'trunk/kernel', which was of .*float32",
        ),
    ],
)
def test_rejects_changed_lengths_shapes_dtypes_and_nones(function: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(function)


@pytest.mark.parametrize("bad", [3, "clip", T.ClipByNorm, [T.ClipByNorm(1.0), None]])
def test_rejects_values_that_are_not_transforms(bad: Any) -> None:
    with pytest.raises(ValueError, match="A gradient transform must be a `GradientTransform`"):
        as_transform(bad)
