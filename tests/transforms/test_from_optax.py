"""Optax inside a chain; its transformations one by one are in `test_optax.py`."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import optax
import pytest
from keras import ops

import keras_trainops as kt
from tests.helpers import assert_same, differ, value, values, weights
from tests.training.small_models import fit_small, net, train
from tests.transforms.gradients import T, close, run

SGD = keras.optimizers.SGD
ON_JAX = pytest.mark.backends("jax")


@keras.saving.register_keras_serializable(package="tests")
def clipped_adam() -> Any:
    return optax.chain(optax.clip_by_global_norm(1.0), optax.scale_by_adam(eps=1e-7))


@pytest.mark.backends("tensorflow")
@pytest.mark.parametrize("given", [clipped_adam, optax.identity()])
def test_runs_on_jax_only(given: Any) -> None:
    with pytest.raises(NotImplementedError, match=r"`FromOptax` runs on JAX.*this is 'tensorflow'"):
        T.FromOptax(given)


@ON_JAX
def test_adam_of_optax_trains_like_that_of_keras() -> None:
    ours = train(net(), SGD(0.01), gradient_transforms=T.FromOptax(clipped_adam))
    stock = keras.optimizers.Adam(0.01, global_clipnorm=1.0, epsilon=1e-7)
    assert differ(ours, train(net(), stock)) <= 1e-5


@ON_JAX
@pytest.mark.parametrize("options", [{"run_eagerly": True}, {"steps_per_execution": 2}])
def test_eager_and_fused_steps_are_the_same(options: Any) -> None:
    plain = train(net(), SGD(0.01), gradient_transforms=T.FromOptax(clipped_adam))
    other = train(net(), SGD(0.01), gradient_transforms=T.FromOptax(clipped_adam), **options)
    assert differ(plain, other) <= 1e-6


@ON_JAX
def test_accumulation_equals_the_large_batch() -> None:
    small = SGD(0.01, gradient_accumulation_steps=2)
    ours = train(net(), small, gradient_transforms=T.FromOptax(clipped_adam), batch_size=4)
    assert differ(ours, train(net(), SGD(0.01), gradient_transforms=T.FromOptax(clipped_adam))) <= (
        1e-6
    )


@ON_JAX
def test_a_skipped_update_leaves_the_state() -> None:
    adam, w = T.FromOptax(clipped_adam), keras.Variable(np.ones(3, "float32"), name="w")
    optimizer = kt.TransformedOptimizer(SGD(0.1), [T.SkipNonFinite(), adam])
    optimizer.build([w])
    optimizer.apply([ops.ones(3)], [w])
    before = [value(v) for v in adam.variables]
    assert len(before) == 3
    optimizer.apply([ops.full((3,), np.nan)], [w])
    assert_same([value(v) for v in adam.variables], before)
    optimizer.apply([ops.ones(3)], [w])
    assert differ([value(v) for v in adam.variables], before) == 1  # the count


@ON_JAX
def test_state_has_the_dtypes_of_optax() -> None:
    adam = T.FromOptax(optax.scale_by_adam(mu_dtype="float32"))
    adam.build([keras.Variable(np.ones((2, 3)), dtype="bfloat16", name="w")])
    assert [(v.dtype, v.shape) for v in adam.variables] == [
        ("int32", ()),
        ("float32", (2, 3)),
        ("bfloat16", (2, 3)),
    ]
    assert [v.name for v in adam.variables] == [".count", ".mu['w']", ".nu['w']"]
    noise = T.FromOptax(optax.add_noise(0.1, 0.5, key=1))  # keeps a random key
    noise.build([keras.Variable(np.ones(2), name="w")])
    assert [v.dtype for v in noise.variables] == ["int32", "uint32"]


@ON_JAX
def test_missing_gradients_stay_none() -> None:
    for transformation in (optax.trace(0.9), optax.add_decayed_weights(0.1), optax.identity()):
        assert [g is None for g in run(T.FromOptax(transformation))] == [False, False, True, False]


@ON_JAX
def test_masks_name_variables_by_their_paths() -> None:
    def is_kernel(params: Any) -> Any:
        return {path: path.endswith("kernel") for path in params}

    decay = T.FromOptax(optax.masked(optax.scale(2.0), is_kernel))
    close(run(decay), run(T.Scale({".*kernel": 2.0})))
    twins = [keras.Variable(np.ones(2), name="w") for _ in range(2)]  # of nested models
    decay.build(twins)
    out = decay([ops.ones(2), ops.zeros(2)], twins)
    close([np.asarray(g) for g in out], [np.ones(2), np.zeros(2)])


@ON_JAX
def test_only_shows_optax_its_own_variables() -> None:
    joint = T.FromOptax(optax.clip_by_global_norm(0.5))
    close(run(T.Only("trunk", joint)), run(T.Only("trunk", T.ClipByGlobalNorm(0.5))))


@ON_JAX
def test_a_model_is_saved_and_resumed() -> None:
    whole, half = net(), net()
    for model in (whole, half):
        train(model, SGD(0.01), gradient_transforms=T.FromOptax(clipped_adam))
    half.save("half.keras")
    again = keras.saving.load_model("half.keras")
    for model in (whole, again):
        fit_small(model)
    assert_same(values(again), values(whole))


@ON_JAX
def test_a_session_resumes_a_transformation_without_a_name() -> None:
    def compiled() -> Any:
        model = net()
        noisy = optax.chain(optax.add_noise(0.01, 0.5, key=1), optax.scale_by_adam())
        model.compile(SGD(0.01), "mse", gradient_transforms=T.FromOptax(noisy))
        return model

    whole, half, again = compiled(), compiled(), compiled()
    fit_small(whole, epochs=3)
    fit_small(half, epochs=1, callbacks=[kt.TrainingSession("log")])
    fit_small(again, epochs=3, callbacks=[kt.TrainingSession("log")])
    assert_same(weights(again), weights(whole))
    with pytest.raises(ValueError, match=r"Pass `FromOptax` a function that returns it"):
        again.save("model.keras")


def unregistered() -> Any:
    return optax.identity()


@ON_JAX
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: T.FromOptax(3), r"`transformation` must be callable. Received: 3"),
        (lambda: T.FromOptax(lambda: 3), r"must be an optax `GradientTransformation`.*returned 3"),
        (lambda: T.FromOptax(unregistered).get_config(), r"'unregistered' cannot be saved"),
        (
            lambda: run(T.FromOptax(optax.contrib.reduce_on_plateau())),
            r"fails: .*'value'.* one that needs extra arguments, such as the loss, cannot be used",
        ),
        (
            lambda: run(
                T.FromOptax(
                    optax.GradientTransformation(
                        lambda params: (), lambda updates, state, params: (updates, updates)
                    )
                )
            ),
            r"(?s)changes the layout of its state.*from \(PyTreeDef.* to",
        ),
    ],
)
def test_rejects_what_it_cannot_run(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
