"""The same steps as stock Keras, bit for bit."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest

import keras_trainops as kt
from tests.helpers import assert_same, assert_same_arithmetic, differ, weights
from tests.training.small_models import net, train, with_batch_norm

T = kt.transforms
O = keras.optimizers  # noqa: E741


CLIPS = {
    "global_clipnorm": (0.5, T.ClipByGlobalNorm),
    "clipnorm": (0.3, T.ClipByNorm),
    "clipvalue": (0.05, T.ClipByValue),
}


OPTIMIZERS: dict[str, Callable[..., Any]] = {
    "sgd": lambda **k: O.SGD(0.05, momentum=0.9, **k),
    "adam": lambda **k: O.Adam(0.01, **k),
    "adamw": lambda **k: O.AdamW(0.01, weight_decay=0.1, **k),
}


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "ema": {"use_ema": True, "ema_momentum": 0.9},
    "loss scale": {"loss_scale_factor": 8.0},
    "accumulation": {"gradient_accumulation_steps": 4},
}


@functools.cache
def stock(name: str, clip: str | None, option: str = "plain", *, eager: bool = False) -> list[Any]:
    """Return the weights that stock Keras trains, clipping with the optimizer's own argument."""
    own = {} if clip is None else {clip: CLIPS[clip][0]}
    optimizer = OPTIMIZERS[name](**own, **OPTIONS[option])
    return train(with_batch_norm(keras.Model), optimizer, run_eagerly=eager)


@pytest.mark.parametrize("eager", [False, True], ids=["graph", "eager"])
@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_clips_exactly_as_stock(name: str, clip: str, eager: bool) -> None:
    limit, transform = CLIPS[clip]
    ours = train(
        with_batch_norm(),
        OPTIMIZERS[name](),
        gradient_transforms=transform(limit),
        run_eagerly=eager,
    )
    expected = stock(name, clip, eager=eager)
    assert_same(ours, expected)
    assert differ(expected, stock(name, None)) > 1e-4  # the clip bites


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_equals_stock_under_each_option_of_an_optimizer(name: str, option: str) -> None:
    ours = train(
        with_batch_norm(),
        OPTIMIZERS[name](**OPTIONS[option]),
        gradient_transforms=T.ClipByGlobalNorm(0.5),
    )
    assert_same_arithmetic(ours, stock(name, "global_clipnorm", option))


@pytest.mark.backends("tensorflow", "jax")  # PyTorch has no XLA
def test_equals_stock_under_a_schedule_and_xla() -> None:
    def schedule() -> Any:
        return O.schedules.ExponentialDecay(0.1, 3, 0.5)

    stock_optimizer, clip = O.SGD(schedule(), global_clipnorm=0.5), T.ClipByGlobalNorm(0.5)
    expected = train(with_batch_norm(keras.Model), stock_optimizer, jit_compile=True)
    ours = train(with_batch_norm(), O.SGD(schedule()), gradient_transforms=clip, jit_compile=True)
    np.testing.assert_allclose(
        np.concatenate([w.ravel() for w in ours]),
        np.concatenate([w.ravel() for w in expected]),
        rtol=1e-6,
        atol=1e-7,
    )


def test_plain_models_take_a_transformed_optimizer() -> None:
    optimizer = kt.TransformedOptimizer(O.Adam(0.01), T.ClipByGlobalNorm(0.5))
    ours = train(with_batch_norm(keras.Model), optimizer)
    assert_same(ours, stock("adam", "global_clipnorm"))


def test_equals_stock_in_mixed_float16() -> None:
    plain = with_batch_norm(keras.Model, policy="mixed_float16")
    expected = train(plain, O.Adam(0.01, global_clipnorm=0.5))
    model = with_batch_norm(policy="mixed_float16")
    ours = train(model, O.Adam(0.01), gradient_transforms=T.ClipByGlobalNorm(0.5))
    assert isinstance(model.optimizer, O.LossScaleOptimizer)
    assert isinstance(model.optimizer.inner_optimizer, kt.TransformedOptimizer)
    assert_same(ours, expected)


STOCK = [
    "Adadelta",
    "Adafactor",
    "Adagrad",
    "Adam",
    "Adamax",
    "AdamW",
    "Ftrl",
    "Lamb",
    "Lion",
    "Muon",
    "Nadam",
    "RMSprop",
    "SGD",
]


def test_the_list_holds_every_stock_optimizer() -> None:
    found = {
        name
        for name, kind in vars(O).items()
        if isinstance(kind, type) and issubclass(kind, O.Optimizer)
    }
    others = {"Optimizer", "LossScaleOptimizer", "MultiOptimizer"}
    assert found - others - {"ScheduleFreeAdamW"} == set(STOCK)


@pytest.mark.parametrize("name", STOCK)
def test_every_stock_optimizer_takes_its_own_step(name: str) -> None:
    make = getattr(O, name)
    expected = train(net(keras.Model), make(0.01, global_clipnorm=0.5))
    ours = train(net(), make(0.01), gradient_transforms=T.ClipByGlobalNorm(0.5))
    assert_same_arithmetic(ours, expected)
    assert differ(ours, weights(net())) > 1e-4
