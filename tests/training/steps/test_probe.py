"""Mistakes in a training step, which are errors before anything has changed."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
from keras import ops

import keras_trainops as kt
from tests.helpers import refused, value
from tests.training.custom_steps import NOISE, REAL, adversaries, fit, stepping


def square(model: Any) -> Any:
    return lambda: ops.sum(model.trainable_variables[0] ** 2)


def no_dictionary(model: Any, step: Any, data: Any) -> Any:
    return step.minimize(square(model))


def no_scalar_log(model: Any, step: Any, data: Any) -> Any:
    return {"predictions": model(data[0])}


def no_scalar_loss(model: Any, step: Any, data: Any) -> Any:
    return {"loss": ops.mean(step.minimize(lambda: model(data[0])))}


def a_stranger(model: Any, step: Any, data: Any) -> Any:
    frozen = model.layers[1].kernel
    loss, gradients = step.gradients(lambda: ops.sum(frozen**2), [frozen])
    step.apply(gradients, [frozen])
    return {"loss": loss}


def twice(model: Any, step: Any, data: Any) -> Any:
    kernel, bias = model.trainable_variables[-2:]
    step.minimize(lambda: ops.sum(kernel**2), [kernel])
    return {"loss": step.minimize(lambda: ops.sum((bias + 1.0) ** 2), [bias])}


def independent(model: Any, step: Any, data: Any) -> Any:
    constant = ops.convert_to_tensor(np.float32(3))
    return {"loss": step.minimize(lambda: constant * constant)}


def too_few_gradients(model: Any, step: Any, data: Any) -> Any:
    loss, gradients = step.gradients(square(model), model.trainable_variables)
    step.apply(gradients[:1], model.trainable_variables)
    return {"loss": loss}


def apply_inside(model: Any, step: Any, data: Any) -> Any:
    def loss() -> Any:
        return step.minimize(square(model))

    return {"loss": step.gradients(loss, model.trainable_variables)[0]}


def metrics_inside(model: Any, step: Any, data: Any) -> Any:
    with step.values(model.trainable_variables[:1], [model.trainable_variables[0] * 2.0]):
        step.update_metrics(data[1], model(data[0]))
    return {}


@pytest.mark.parametrize(
    ("text", "kind", "message"),
    [
        (no_dictionary, ValueError, r"`training_step` must return a dictionary .*Received: "),
        (no_scalar_log, ValueError, r"must return scalars as logs.*\(4, 2\) for 'predictions'"),
        (no_scalar_loss, ValueError, r"must return a scalar. Received: shape \(4, 2\)"),
        (
            a_stranger,
            ValueError,
            r"No optimizer trains 'dense_0/kernel'. The model must be compiled",
        ),
        (twice, ValueError, r"has already updated weights in this step.*`again=True`"),
        (independent, ValueError, r"does not depend on .*dense_1/kernel, dense_1/bias"),
        (too_few_gradients, ValueError, r"Received: 1 gradients, 2 variables"),
        (apply_inside, RuntimeError, r"`step.minimize` must be called outside of functions"),
        (metrics_inside, RuntimeError, r"`step.update_metrics` must be called outside"),
    ],
)
def test_mistakes_change_nothing(text: Any, kind: type[Exception], message: str) -> None:
    model = stepping(text, layers=2, variables_to_train="dense_1")
    with refused(model, message, kind):
        model.fit(NOISE, REAL, batch_size=4, verbose=0)


def test_an_optimizer_may_update_several_times_on_request() -> None:
    def text(model: Any, step: Any, data: Any) -> Any:
        for again in (False, True, True):
            variables = model.trainable_variables[:1]
            loss = step.minimize(square(model), variables, again=again)
        return {"loss": loss}

    model = stepping(text)
    model.train_on_batch(NOISE[:4], REAL[:4])
    assert value(model.optimizer.iterations) == 3
    np.testing.assert_allclose(value(model.weights[0]), np.full((6, 2), 0.8**3), rtol=1e-6)


def test_a_step_must_name_the_optimizer_by_its_variables(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = adversaries()

    def both(step: Any, data: Any) -> Any:
        variables = model.critic.trainable_variables + model.generator.trainable_variables
        loss, gradients = step.gradients(lambda: sum(ops.sum(v**2) for v in variables), variables)
        step.apply(gradients, variables)
        return {"loss": loss}

    def directly(step: Any, data: Any) -> Any:
        variables = model.critic.trainable_variables
        _, gradients = step.gradients(lambda: sum(ops.sum(v**2) for v in variables), variables)
        model.optimizer.apply(gradients, variables)
        return {}

    for text, kind, message in (
        (both, ValueError, "one optimizer at a time. Received variables of: 'critic' and 'gen"),
        (directly, RuntimeError, "`self.optimizer` is several optimizers: critic, generator"),
    ):
        with refused(model, message, kind), monkeypatch.context() as patch:
            patch.setattr(type(model), "training_step", lambda self, *args, t=text: t(*args))
            fit(model)


def test_it_builds_layers_that_only_the_step_calls() -> None:
    class Lazy(kt.TrainOpsMixin, keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = keras.layers.Dense(3), keras.layers.Dense(1)

        def training_step(self, step: kt.Step, data: Any) -> Any:
            x, _, _ = step.unpack(data)

            def loss() -> Any:
                return ops.mean(self.second(self.first(x)) ** 2)

            return {"loss": step.minimize(loss, self.trainable_variables)}

    model: Any = Lazy()
    model.compile("sgd")
    seen: list[int] = []
    count = keras.callbacks.LambdaCallback(
        on_train_begin=lambda logs: seen.append(len(model.trainable_variables))
    )
    history = model.fit(NOISE, batch_size=4, epochs=3, verbose=0, callbacks=[count]).history
    assert seen == [4]  # a warm start at this moment finds them
    assert history["loss"][2] < history["loss"][0]


def test_an_unexpected_log_is_an_error() -> None:
    calls: list[int] = []

    def text(model: Any, step: Any, data: Any) -> Any:
        calls.append(0)
        return {"always": 1.0} if len(calls) == 1 else {"always": 1.0, "later": 2.0}

    model = stepping(text)
    with pytest.raises(KeyError, match="log 'later' that it did not return before"):
        model.fit(NOISE, REAL, batch_size=4, verbose=0)
