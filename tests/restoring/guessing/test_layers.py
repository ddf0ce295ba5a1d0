from __future__ import annotations

from typing import Any

import pytest

from keras_trainops.restoring.guessing.layers import adaptation, layers_of, matching_leaves


@pytest.mark.parametrize(
    ("leaf", "shape", "wanted", "torch", "expected"),
    [
        ("kernel", (7, 4), (4, 7), True, "from_torch"),
        ("kernel", (4, 4), (4, 4), True, "from_torch"),  # square: only the names show the layout
        ("kernel", (4, 7), (4, 7), True, None),
        ("kernel", (7, 4), (4, 7), False, None),
        ("kernel", (8, 3, 5, 2), (5, 2, 3, 8), True, "from_torch"),
        ("kernel", (8, 1, 5, 2), (5, 2, 8, 1), True, "from_torch"),  # depthwise
        ("kernel", (8, 3, 5), (5, 3, 8), True, "from_torch"),
        ("embeddings", (9, 4), (9, 4), True, ""),
        ("gamma", (4,), (4,), True, ""),
        ("kernel", (5, 2, 3, 8), (30, 8), False, "Reshape"),
        ("kernel", (1, 1, 3, 8), (3, 8), False, "Reshape"),
        ("kernel", (1, 1, 8, 3), (3, 8), False, None),
        ("bias", (1, 8), (8,), False, None),
    ],
)
def test_adaptation_names_the_adapter_that_fits(
    leaf: str, shape: Any, wanted: Any, torch: bool, expected: str | None
) -> None:
    assert adaptation(leaf, shape, wanted, torch) == expected


@pytest.mark.parametrize(
    ("theirs", "ours", "fit"),
    [
        ({"l.weight": (5,), "l.bias": (5,)}, {"n/gamma": (5,), "n/beta": (5,)}, True),
        ({"l.weight": (5,), "l.bias": (5,)}, {"n/kernel": (5, 5), "n/bias": (5,)}, False),
        (
            {"l.weight": (5,), "l.bias": (5,)},  # no batch normalisation
            {"n/gamma": (5,), "n/beta": (5,), "n/moving_mean": (5,), "n/moving_variance": (5,)},
            False,
        ),
        ({"l.weight": (7, 5)}, {"n/kernel": (5, 7), "n/bias": (7,)}, True),
        ({"l.bias": (7,)}, {"n/kernel": (5, 7), "n/bias": (7,)}, False),
        ({"l.weight": (7, 5), "l.bias": (7,)}, {"n/kernel": (5, 7)}, False),
        ({"l.weight": (7, 5), "l.extra": (7,)}, {"n/kernel": (5, 7), "n/bias": (7,)}, False),
        ({"weight": (9, 5)}, {"words/embeddings": (9, 5)}, True),
    ],
)
def test_layers_fit_only_as_a_whole(theirs: Any, ours: Any, fit: bool) -> None:
    (one,), (other,) = layers_of(theirs, "/."), layers_of(ours, "/")
    assert (matching_leaves(one, other, torch=True) is not None) == fit
