"""Bad batches that a gradient accumulation leaves out, against `optax.MultiSteps`."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import optax
import pytest
from keras import ops

import keras_trainops as kt
from tests.gradients import by_jax, nets
from tests.gradients.nets import X, Y
from tests.helpers import value

T, O = kt.transforms, keras.optimizers  # noqa: E741
BAD = Y.copy()
BAD[[2, 7, 15]] = [[np.nan], [np.inf], [np.nan]]  # in batches 1, 3 and 7, of two examples each


def trained(
    transforms: Any = None, optimizer: Any = None, y: np.ndarray = BAD, **options: Any
) -> Any:
    model = nets.net()
    optimizer = optimizer or O.SGD(0.2, 0.9, gradient_accumulation_steps=3)
    model.compile(optimizer, "mse", gradient_transforms=transforms, **options)
    nets.fit(model, y, epochs=3, batch_size=2)
    return model


def by_optax(chain: Any) -> nets.Weights:
    weights: Any = nets.start()
    several = optax.MultiSteps(chain, 3, should_skip_update_fn=optax.skip_not_finite)
    state, step = several.init(weights), by_jax.stepping(several)
    for x, y in nets.batches(X, BAD, size=2) * 3:
        weights, state = step(by_jax.gradient(weights, x, y), state, weights)
    return weights


def test_equals_optax() -> None:
    skip = T.SkipNonFinite(per_batch=True)
    model = trained(skip)
    nets.close(nets.value_of(model), by_optax(optax.sgd(0.2, 0.9)), 1e-5)
    assert int(ops.convert_to_tensor(model.optimizer.iterations)) == 7  # of 21 good batches
    assert int(value(skip.skipped)) == 9
    assert int(value(skip.consecutive)) == 0


def test_equals_optax_among_other_transforms() -> None:
    skip = T.Only(["trunk", "head"], T.SkipNonFinite(per_batch=True))
    model = trained([T.ClipByGlobalNorm(0.5), skip])
    chain = optax.chain(optax.clip_by_global_norm(0.5), optax.sgd(0.2, 0.9))
    nets.close(nets.value_of(model), by_optax(chain), 1e-5)


def test_otherwise_the_whole_update_is_skipped() -> None:
    skip = T.SkipNonFinite()
    model = trained(skip)
    assert int(value(skip.skipped)) > 0
    assert int(ops.convert_to_tensor(model.optimizer.iterations)) < 7


def test_good_batches_train_as_usual() -> None:
    """Averages of `use_ema` are updated with each batch, and not with a bad one."""

    def optimizer() -> Any:
        return O.Adam(0.01, use_ema=True, ema_momentum=0.9, gradient_accumulation_steps=3)

    usual = trained(None, optimizer(), Y)
    model = trained(T.SkipNonFinite(per_batch=True), optimizer(), Y)
    nets.close(nets.value_of(model), nets.value_of(usual), 1e-6)
    good = np.isfinite(BAD).all(axis=1).reshape(10, 2).all(axis=1).repeat(2)
    model, fewer = trained(T.SkipNonFinite(per_batch=True), optimizer()), nets.net()
    fewer.compile(optimizer(), "mse")
    fewer.fit(X[good], Y[good], batch_size=2, epochs=3, shuffle=False, verbose=0)
    nets.close(nets.value_of(model), nets.value_of(fewer), 1e-6)
    for ours, theirs in zip(model.optimizer.variables, fewer.optimizer.variables, strict=False):
        np.testing.assert_allclose(value(ours), value(theirs), atol=1e-6)


def test_after_too_many_in_a_row_a_bad_batch_counts() -> None:
    y = np.full_like(Y, np.nan)
    skip = T.SkipNonFinite(max_consecutive=4, per_batch=True)
    model = trained(skip, y=y)
    assert int(value(skip.skipped)) == 4
    assert np.isnan(model.get_weights()[0]).all()


def test_without_accumulation_updates_are_skipped() -> None:
    one, other = (T.SkipNonFinite(per_batch=per_batch) for per_batch in (True, False))
    models = [trained(skip, O.SGD(0.1)) for skip in (one, other)]
    nets.close(*map(nets.value_of, models), 0)
    assert int(value(one.skipped)) == int(value(other.skipped)) == 9


def test_a_loss_scale_leaves_them_out_in_any_case() -> None:
    def run(**options: Any) -> Any:
        inner = O.SGD(0.2, 0.9, gradient_accumulation_steps=3)
        return trained(optimizer=O.LossScaleOptimizer(inner, 2.0**10), **options)

    for transforms in (None, T.SkipNonFinite(per_batch=True)):
        model = run(transforms=transforms)
        nets.close(nets.value_of(model), by_optax(optax.sgd(0.2, 0.9)), 1e-5)


@pytest.mark.backends("tensorflow")
def test_a_batch_that_is_bad_on_one_replica_is_left_out_on_all() -> None:
    from tests.helpers import two_replicas

    with two_replicas().scope():
        two = trained(T.SkipNonFinite(per_batch=True))
    nets.close(nets.value_of(two), by_optax(optax.sgd(0.2, 0.9)), 1e-5)


def test_is_saved() -> None:
    model = trained(T.SkipNonFinite(3, per_batch=True))
    model.save("model.keras")
    (loaded,) = keras.saving.load_model("model.keras").optimizer.chain.transforms
    assert repr(loaded) == "SkipNonFinite(max_consecutive=3, per_batch=True)"
    assert int(value(loaded.skipped)) == 9
