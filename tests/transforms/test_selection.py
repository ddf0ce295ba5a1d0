from __future__ import annotations

import numpy as np
import pytest

from tests.gradients import GRADIENTS, T, close, run


def test_only_ignores_the_other_variables() -> None:
    g = GRADIENTS
    trunk = np.sqrt((g[0] ** 2).sum() + (g[1] ** 2).sum())
    out = run(T.Only("trunk", T.ClipByGlobalNorm(0.5)))
    close(out, [g[0] * 0.5 / trunk, g[1] * 0.5 / trunk, None, g[3]])
    nested = T.Only(["trunk", "head"], [T.Only("head", T.Scale(2.0)), lambda g, v: g])
    close(run(nested), [g[0], g[1], None, g[3] * 2])


def test_only_clips_if_its_transform_does() -> None:
    assert T.Only("head", T.ClipByNorm(1.0)).clips
    assert not T.Only("head", T.Scale(1.0)).clips


def test_only_rejects_unknown_patterns_and_lost_gradients() -> None:
    with pytest.raises(ValueError, match="Pattern 'haed' matches no variable"):
        run(T.Only("haed", T.Scale(1.0)))
    with pytest.raises(ValueError, match="returned 0 gradients for 1 variables"):
        run(T.Only("head", lambda g, v: []))


def test_rejects_empty_patterns() -> None:
    with pytest.raises(ValueError, match=r"`patterns` must name variables"):
        T.Only([], T.Scale(1.0))
