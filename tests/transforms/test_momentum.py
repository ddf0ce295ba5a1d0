from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
from keras import ops

import keras_trainops as kt
from tests.helpers import assert_same, differ, numpy, two_replicas, value, values
from tests.training.small_models import fit_small, net, train
from tests.transforms.gradients import T, variables

SGD = keras.optimizers.SGD


def transformed(transform: Any, steps: list[float | None]) -> list[Any]:
    """What one variable's gradients, or their absence, become."""
    made = variables()[1:2]
    transform.build(made)
    out = []
    for size in steps:
        (g,) = transform([None if size is None else ops.full((3,), size)], made)
        out.append(None if g is None else float(numpy(g)[0]))
    return out


def test_momentum_follows_its_formula() -> None:
    np.testing.assert_allclose(transformed(T.Momentum(0.5), [1, 2, 3]), [1, 2.5, 4.25])
    nesterov = transformed(T.Momentum(0.5, nesterov=True), [1, 2, 3])
    np.testing.assert_allclose(nesterov, [1.5, 3.25, 5.125])


def test_ema_follows_its_formula() -> None:
    biased = transformed(T.Ema(0.5, debias=False), [1, 2, 3])
    np.testing.assert_allclose(biased, [0.5, 1.25, 2.125])
    np.testing.assert_allclose(transformed(T.Ema(0.5), [1, 2, 3]), [1, 5 / 3, 17 / 7], rtol=1e-6)


def test_a_missing_gradient_leaves_the_accumulator() -> None:
    assert transformed(T.Momentum(0.5), [1, None, 2]) == [1, None, 2.5]
    assert transformed(T.Ema(0.5, debias=False), [1, None, 2]) == [0.5, None, 1.25]


@pytest.mark.parametrize("nesterov", [False, True])
def test_momentum_before_sgd_is_that_of_sgd(nesterov: bool) -> None:
    ours = train(net(), SGD(0.01), gradient_transforms=T.Momentum(0.9, nesterov))
    stock = train(net(), SGD(0.01, momentum=0.9, nesterov=nesterov))
    assert differ(ours, stock) <= 1e-6


def test_accumulators_have_the_dtype_of_the_variable_or_their_own() -> None:
    for dtype, expected in ((None, "bfloat16"), ("float32", "float32")):
        momentum, made = T.Momentum(0.9, accumulator_dtype=dtype), variables("bfloat16")
        momentum.build(made)
        assert [v.dtype for v in momentum.variables] == [expected] * 4
        assert [v.shape for v in momentum.variables] == [v.shape for v in made]
        assert len({v.name for v in momentum.variables}) == 4


@pytest.mark.parametrize("make", [lambda: T.Momentum(0.9), lambda: T.Ema(0.9)])
def test_saved_accumulators_are_resumed_exactly(make: Any) -> None:
    whole, half = net(), net()
    train(whole, SGD(0.01), gradient_transforms=make())
    train(half, SGD(0.01), gradient_transforms=make())
    half.save("half.keras")
    again = keras.saving.load_model("half.keras")
    for model in (whole, again):
        fit_small(model)
    assert_same(values(again), values(whole))


def test_a_skipped_update_leaves_the_accumulators() -> None:
    ema, made = T.Ema(0.9), variables()[:2]
    optimizer = kt.TransformedOptimizer(SGD(0.1), [T.SkipNonFinite(), ema])
    optimizer.build(made)
    optimizer.apply([ops.ones((4, 3)), ops.ones(3)], made)
    before = [value(v) for v in ema.variables]
    optimizer.apply([ops.full((4, 3), np.nan), ops.ones(3)], made)
    assert_same([value(v) for v in ema.variables], before)
    optimizer.apply([ops.ones((4, 3)), ops.ones(3)], made)
    assert differ([value(v) for v in ema.variables], before) > 0.01


@pytest.mark.backends("tensorflow")
def test_two_replicas_equal_one_device() -> None:
    def trained() -> list[np.ndarray]:
        factor = keras.Variable(0.5, trainable=False)
        chain = [
            T.Momentum(0.9),
            T.When(lambda t: t % 2 == 0, [T.Ema(0.5), T.Trust(0.1)]),
            T.ClipByBlockRMS(0.05),
            T.ScaleStep({"head": factor}),
        ]
        return train(net(), SGD(0.1), gradient_transforms=chain)

    with two_replicas().scope():
        two = trained()
    assert differ(two, trained()) <= 1e-6


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: T.Momentum(1.0), r"`decay` must be at least 0 and below 1. Received: decay=1.0"),
        (lambda: T.Ema(-0.1), r"`decay` must be at least 0 and below 1"),
        (
            lambda: T.Ema(0.9, accumulator_dtype="int32"),
            r"`accumulator_dtype` must be a float dtype or None. Received: 'int32'",
        ),
    ],
)
def test_rejects_invalid_arguments(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
