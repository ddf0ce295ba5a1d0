from __future__ import annotations

from typing import Any

import numpy as np
import optax
import pytest

from tests.gradients import GRADIENTS, T, close, each, run
from tests.transforms.optax_oracle import by_optax

COLUMNS = {"kernel": (0,)}


def test_centralize_follows_its_formula_and_optax() -> None:
    out = run(T.Centralize(axes=COLUMNS))
    kernels = [0, 3]
    expected = [
        g - g.mean(0) if i in kernels else g for i, g in enumerate(GRADIENTS) if g is not None
    ]
    close([g for g in out if g is not None], expected)
    given = [g.astype("float32").T for g in GRADIENTS if g is not None]
    theirs = by_optax(optax.centralize(), given)  # takes the first axis for the output
    close([g for g in out if g is not None], [g.T for g in theirs])


def test_normalize_follows_its_formula_and_optax() -> None:
    norm = np.sqrt(sum((g**2).sum() for g in GRADIENTS if g is not None))
    close(run(T.Normalize(2.0)), each(lambda g: 2.0 * g / (norm + 1e-6)))
    alone = T.Normalize(2.0, scope="variable")
    close(run(alone), each(lambda g: 2.0 * g / (np.linalg.norm(g) + 1e-6)))
    given = [g.astype("float32") for g in GRADIENTS if g is not None]
    theirs = by_optax(optax.normalize_by_update_norm(scale_factor=2.0), given)
    close([g for g in run(T.Normalize(2.0)) if g is not None], theirs)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: T.Normalize(-1.0), r"`norm` must be > 0. Received: norm=-1.0"),
        (lambda: T.Normalize(scope="all"), r'`scope` must be "global" or "variable"'),
    ],
)
def test_rejects_invalid_arguments(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
