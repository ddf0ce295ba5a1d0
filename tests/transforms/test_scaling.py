from __future__ import annotations

from typing import Any

import pytest
from keras import ops

from keras_trainops.transforms.scope import update_scope
from tests.gradients import GRADIENTS, T, close, each, run, variables
from tests.helpers import numpy


def test_scale_uses_the_first_matching_pattern() -> None:
    g = GRADIENTS
    expected = [g[0] * 0.5, g[1] * 2, None, g[3]]
    close(run(T.Scale({"bias": 2.0, "trunk": 0.5})), expected)
    close(run(T.Scale(3.0)), each(lambda g: g * 3))
    made = variables()
    scale = T.Scale([(made[1], 2.0), (made[0], 0.5)])
    scale.build(made)
    tensors = [None if x is None else ops.convert_to_tensor(x, "float32") for x in g]
    close([None if x is None else numpy(x) for x in scale(tensors, made)], expected)
    again = T.Scale.from_config(scale.get_config())
    close(run(again), expected)


@pytest.mark.parametrize(
    ("factors", "message"),
    [
        ({"heads": 2.0}, "Pattern 'heads' matches no variable. Closest paths: 'head/kernel'"),
        ({"kernel": 2.0, "head": 1.0}, "Pattern 'head' never applies"),
        ({"head": "2"}, "A factor must be a finite number .* Received: '2' for Pattern 'head'"),
        ({"head": float("nan")}, "A factor must be a finite number"),
        ({}, "`factors` must name at least one pattern"),
        ("head", "A factor must be a finite number"),
    ],
)
def test_rejects_invalid_factors(factors: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(T.Scale(factors))


def test_layerwise_decay_has_the_factors_of_timm() -> None:
    made = variables()
    decay = T.LayerwiseDecay(0.5, ["trunk/kernel", "trunk/bias", ["unused", "head"]], min_scale=0.3)
    decay.build(made)
    assert list(decay.step_factors(made)) == [0.3, 0.5, 1.0, 1.0]
    chain = T.Chain([decay, T.ScaleStep({"head": 0.5}), T.Only("trunk", T.ScaleStep(2.0))])
    chain.build(made)
    with update_scope(lambda: 0):
        assert list(chain.step_factors(made)) == [0.6, 1.0, 1.0, 0.5]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: T.LayerwiseDecay(1.5, ["a"]), r"`decay` must be above 0 and at most 1"),
        (lambda: T.LayerwiseDecay(0.5, []), r"must name at least one pattern"),
    ],
)
def test_rejects_invalid_arguments(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
