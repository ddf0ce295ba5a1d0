from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
from keras import ops

from keras_trainops.transforms.layouts import owners_scope
from tests.helpers import numpy, value
from tests.transforms.gradients import GRADIENTS, T, close, each, run, variables

COLUMNS = {"kernel": (0,)}


def agc(w: np.ndarray, g: np.ndarray, axes: Any, clipping: float) -> np.ndarray:
    norm_w = np.sqrt((w**2).sum(axis=axes, keepdims=True))
    norm_g = np.sqrt((g**2).sum(axis=axes, keepdims=True))
    limit = clipping * np.maximum(norm_w, 1e-3)
    return np.where(norm_g > limit, g * limit / np.maximum(norm_g, 1e-6), g)


def test_adaptive_clip_follows_its_formula() -> None:
    g = [np.array(x) for x in GRADIENTS if x is not None]
    g[0][:, 0] *= 1e-3  # one unit that is small enough
    clipped = run(T.AdaptiveClip(0.2, axes=COLUMNS), [g[0], g[1], None, g[2]])
    ones = [np.ones_like(x) for x in g]
    expected = [agc(w, x, 0 if x.ndim == 2 else None, 0.2) for w, x in zip(ones, g, strict=True)]
    close([clipped[0], clipped[1], clipped[3]], expected)
    np.testing.assert_allclose(clipped[0][:, 0], g[0][:, 0], rtol=1e-6)
    assert np.abs(clipped[0][:, 1] - g[0][:, 1]).max() > 0.1


def test_adaptive_clip_knows_the_units_of_layers() -> None:
    layer = keras.layers.Conv2DTranspose(5, (3, 2))
    layer.build((None, 8, 8, 4))
    clip, (kernel, bias) = T.AdaptiveClip(0.01), layer.trainable_variables
    with owners_scope([layer]):
        clip.build([kernel, bias])
    g = np.random.default_rng(1).normal(size=kernel.shape)
    ours = clip([ops.convert_to_tensor(g, "float32"), None], [kernel, bias])
    close([numpy(ours[0]), ours[1]], [agc(value(kernel), g, (0, 1, 3), 0.01), None])


def test_adaptive_norm_clip_follows_its_formula() -> None:
    clip, made = T.AdaptiveNormClip(deviations=1.5, decay=0.8), variables()
    clip.build(made)
    mean = square = 0.0
    clipped = 0
    for step, size in enumerate([1, 1.2, 0.9, 1.1, 9, 1, 0.8, 5, np.inf, 1, 1.3]):
        gradients = each(lambda g, size=size: g * size)
        norm = np.sqrt(sum((g**2).sum() for g in gradients if g is not None))
        if np.isfinite(norm):
            counted = step if step < 8 else step - 1  # one norm was not finite
            decay = min(0.8, counted / (counted + 1))
            mean = decay * mean + (1 - decay) * np.log(norm + 1e-8)
            square = decay * square + (1 - decay) * np.log(norm + 1e-8) ** 2
        limit = np.exp(mean + 1.5 * np.sqrt(max(1e-8, square - mean**2)))
        factor = 1.0 if norm < limit else np.exp(mean) / norm
        clipped += factor < 0.9
        tensors = [None if g is None else ops.convert_to_tensor(g, "float32") for g in gradients]
        out = clip(tensors, made)
        if np.isfinite(norm):
            expected = [None if g is None else g * factor for g in gradients]
            close([None if g is None else numpy(g) for g in out], expected, rtol=2e-5)
    assert 2 <= clipped <= 4


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: T.AdaptiveClip(0.0), r"`clipping` must be > 0. Received: clipping=0.0"),
        (lambda: T.AdaptiveClip(0.1, epsilon=-1), r"`epsilon` must be > 0. Received: epsilon=-1"),
        (lambda: T.AdaptiveNormClip(decay=1.0), r"`decay` must be at least 0 and below 1"),
        (lambda: T.AdaptiveNormClip(0), r"`deviations` must be > 0"),
    ],
)
def test_rejects_invalid_arguments(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
