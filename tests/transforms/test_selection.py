from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
from keras import ops

import keras_trainops as kt
from keras_trainops.transforms.scope import update_scope
from tests.helpers import assert_same, numpy, value, values
from tests.training.small_models import fit_small, net, train
from tests.transforms.gradients import GRADIENTS, T, close, each, run, variables


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


@keras.saving.register_keras_serializable(package="tests")
def every_third(updates: Any) -> Any:
    return ops.equal(updates % 3, 0)


def test_when_applies_its_transform_if_the_condition_holds() -> None:
    when = T.When(every_third, [T.Scale(2.0), lambda gs, vs: gs])
    close(run(when, iterations=6), each(lambda g: 2 * g))
    close(run(when, iterations=7), GRADIENTS)
    always = T.When(lambda t: True, T.Scale(2.0))  # a constant of Python
    close(run(always, iterations=7), each(lambda g: 2 * g))


def test_when_clips_if_its_transform_does() -> None:
    assert T.When(every_third, T.ClipByNorm(1.0)).clips
    assert not T.When(every_third, T.Scale(1.0)).clips
    assert not T.When(every_third, T.Momentum(0.9)).row_sparse


def test_when_scales_steps_only_then() -> None:
    when, made = T.When(every_third, T.ScaleStep({"trunk": 0.5})), variables()
    when.build(made)
    for updates, expected in ((3, 0.5), (4, 1.0)):
        with update_scope(lambda updates=updates: updates):
            factors = T.Chain([when]).step_factors(made)
        assert [f is None for f in factors] == [False, False, True, True]
        assert float(numpy(factors[0])) == expected


def test_when_skips_only_then() -> None:
    skip, w = T.SkipLarge(1.0), keras.Variable(np.zeros(2), name="w")
    optimizer = kt.TransformedOptimizer(
        keras.optimizers.SGD(1.0), T.When(lambda t: t >= 2, [T.Momentum(0.9), skip])
    )
    optimizer.build([w])
    for _ in range(5):
        optimizer.apply([ops.full((2,), 3.0)], [w])
    np.testing.assert_array_equal(value(w), [-6, -6])
    assert value(skip.skipped) == 3  # counted only where it acts
    assert value(optimizer.iterations) == 2


def test_when_is_saved_and_resumed() -> None:
    def chain() -> Any:
        return [T.When(every_third, [T.Ema(0.9), T.Noise(0.1, seed=2)]), T.Monitor()]

    whole, half = net(), net()
    train(whole, keras.optimizers.SGD(0.01), gradient_transforms=chain())
    train(half, keras.optimizers.SGD(0.01), gradient_transforms=chain())
    half.save("half.keras")
    again = keras.saving.load_model("half.keras")
    for model in (whole, again):
        fit_small(model)
    assert_same(values(again), values(whole))


def test_when_rejects_other_conditions() -> None:
    with pytest.raises(ValueError, match=r"`condition` must be callable. Received: 3"):
        T.When(3, T.Scale(1.0))  # type: ignore[arg-type]
    for condition, found in (
        (lambda t: t, r"\(\) and dtype int32"),
        (lambda t: [t > 1], r"\(1,\)"),
    ):
        with pytest.raises(ValueError, match=f"`condition` must return a boolean .* {found}"):
            run(T.When(condition, T.Scale(1.0)))
    when, made = T.When(every_third, T.Scale(1.0)), variables()
    when.build(made)
    with pytest.raises(RuntimeError, match="A condition has a value only while an optimizer runs"):
        when([ops.ones(v.shape) for v in made], made)


@pytest.mark.parametrize("updates", [0, 1])
def test_a_batch_is_left_out_only_while_the_condition_holds(updates: int) -> None:
    when = T.When(lambda t: t < 1, T.SkipNonFinite(per_batch=True))
    own = variables()
    when.build(own)
    bad = [None if g is None else g * np.float32("nan") for g in GRADIENTS]
    with update_scope(lambda: updates):
        assert bool(numpy(when.leaves_out(bad, own))) is (updates == 0)
    assert T.When(lambda t: t < 1, T.SkipNonFinite()).leaves_out(bad, own) is None
