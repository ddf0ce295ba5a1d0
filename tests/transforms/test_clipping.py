from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
from keras import ops

from tests.helpers import numpy
from tests.transforms.gradients import GRADIENTS, T, close, each, run

GLOBAL = np.sqrt(sum((g**2).sum() for g in GRADIENTS if g is not None))


@pytest.mark.parametrize("limit", [0.5, 3.0, 1000.0])
def test_clip_by_norm(limit: float) -> None:
    norms = [np.linalg.norm(g) for g in GRADIENTS if g is not None]
    assert min(norms) < 3.0 < max(norms)
    close(run(T.ClipByNorm(limit)), each(lambda g: g * limit / max(np.linalg.norm(g), limit)))


@pytest.mark.parametrize("limit", [0.5, 1000.0])
def test_clip_by_global_norm(limit: float) -> None:
    close(run(T.ClipByGlobalNorm(limit)), each(lambda g: g * limit / max(GLOBAL, limit)))


def test_clip_by_value() -> None:
    close(run(T.ClipByValue(0.7)), each(lambda g: np.clip(g, -0.7, 0.7)))


@pytest.mark.parametrize("limit", [0.5, 3.0, 1000.0])
def test_clip_by_block_rms(limit: float) -> None:
    expected = each(lambda g: g / max(1.0, np.sqrt((g**2).mean()) / limit))
    close(run(T.ClipByBlockRMS(limit)), expected)


def test_block_rms_of_rows_is_that_of_the_whole_embedding() -> None:
    embedding = keras.Variable(np.zeros((10, 3)), name="embeddings")
    clip, rows = T.ClipByBlockRMS(0.1), np.array([[3.0, -4.0, 0.0]])
    (out,) = clip([ops.convert_to_tensor(rows, "float32")], [embedding])
    close([numpy(out)], [rows * 0.1 / np.sqrt(25 / 30)])


def test_float16_norms_do_not_overflow() -> None:
    gradient = np.array([[300.0, 300.0, 0.0]] * 4)
    gradients = [gradient, None, None, None]
    norm = np.linalg.norm(gradient)
    for clip in (T.ClipByNorm(1.0), T.ClipByGlobalNorm(1.0)):
        close(run(clip, gradients, "float16"), [gradient / norm, None, None, None], rtol=1e-3)
    expected = gradient / np.sqrt((gradient**2).mean())
    close(run(T.ClipByBlockRMS(1.0), gradients, "float16")[:1], [expected], rtol=1e-3)


def test_infinite_norm_makes_all_gradients_nan() -> None:
    gradients = [np.full((4, 3), np.inf), np.ones(3), None, np.ones((3, 2))]
    assert all(np.isnan(g).all() for g in run(T.ClipByGlobalNorm(1.0), gradients) if g is not None)


@pytest.mark.parametrize(
    "kind", [T.ClipByNorm, T.ClipByGlobalNorm, T.ClipByValue, T.ClipByBlockRMS]
)
@pytest.mark.parametrize("bad", [0, -1.0, float("nan"), float("inf"), True, "1", None])
def test_rejects_a_limit_that_is_not_positive(kind: Any, bad: Any) -> None:
    with pytest.raises(
        ValueError, match=r"`(max_norm|max_value|threshold)` must be > 0. Received: "
    ):
        kind(bad)
