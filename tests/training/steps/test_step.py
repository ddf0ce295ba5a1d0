"""What `training_step` can do, each compared with a closed form or with Keras."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
from keras import ops

import keras_trainops as kt
from tests.helpers import assert_same, differ, value, values, weights
from tests.training.custom_steps import NOISE, REAL, stepping

X, Y = NOISE[:4], REAL[:4]


def once(text: Any, **options: Any) -> tuple[Any, dict[str, Any]]:
    """Train on one batch with a step, and return the model and its logs."""
    model = stepping(text, **options)
    return model, model.train_on_batch(X, Y, return_dict=True)


def logged(text: Any) -> float:
    """Return the log "seen" of a step, which may leave the weights alone."""
    _, logs = once(lambda model, step, data: {"seen": text(model, step, data)})
    return float(logs["seen"])


def test_gradients_by_variables_are_the_closed_form() -> None:
    def text(model: Any, step: Any, data: Any) -> Any:
        x, y, _ = step.unpack(data)
        variables = model.trainable_variables
        _, (kernel, bias) = step.gradients(lambda: ops.mean((model(x) - y) ** 2), variables)
        return ops.sum(kernel**2) + ops.sum(bias**2)

    error = X @ np.ones((6, 2)) - Y
    kernel, bias = X.T @ error / 4, error.sum(0) / 4
    np.testing.assert_allclose(logged(text), (kernel**2).sum() + (bias**2).sum(), rtol=1e-5)


def test_gradients_keep_the_structure_of_sources() -> None:
    def text(model: Any, step: Any, data: Any) -> Any:
        x, _, _ = step.unpack(data)
        _, found = step.gradients(lambda a, b: ops.sum(a * b * b), {"a": x, "b": x + 1.0})
        return ops.sum(found["a"]) + 10.0 * ops.sum(found["b"])

    expected = ((X + 1) ** 2).sum() + 10 * (2 * X * (X + 1)).sum()
    np.testing.assert_allclose(logged(text), expected, rtol=1e-4)


def test_gradients_return_auxiliary_results() -> None:
    def text(model: Any, step: Any, data: Any) -> Any:
        x, _, _ = step.unpack(data)
        (loss, (twice, nothing)), _ = step.gradients(
            lambda: (ops.sum(model(x)), (2.0 * model(x), None)), model.trainable_variables, aux=True
        )
        assert nothing is None
        return ops.sum(twice) / loss

    np.testing.assert_allclose(logged(text), 2, rtol=1e-6)


def test_gradients_nest() -> None:
    """The gradient of a gradient's norm: d/dw |2 w x|^2 = 8 w x^2."""

    def text(model: Any, step: Any, data: Any) -> Any:
        x, _, _ = step.unpack(data)
        kernel = model.trainable_variables[0]

        def penalty() -> Any:
            _, slope = step.gradients(lambda x: ops.sum(ops.matmul(x, kernel) ** 2), x)
            return ops.sum(slope**2)

        return ops.sum(step.gradients(penalty, kernel)[1])

    kernel = np.ones((6, 2))
    slope = 2 * X @ kernel @ kernel.T
    expected = 2 * 2 * (X.T @ slope @ kernel + slope.T @ X @ kernel)
    np.testing.assert_allclose(logged(text), expected.sum(), rtol=1e-4)


def test_inner_gradients_do_not_follow_paths_of_the_outer_function() -> None:
    """A tensor made from the variable outside of the inner function is a constant in it."""

    def text(model: Any, step: Any, data: Any) -> Any:
        kernel = model.trainable_variables[0]

        def outer() -> Any:
            double = 2.0 * ops.convert_to_tensor(kernel)
            _, inner = step.gradients(lambda: ops.sum(double * kernel), kernel)
            return ops.sum(inner)

        return outer() + 0.0 * step.gradients(outer, kernel)[0]

    np.testing.assert_allclose(logged(text), 2 * 12, rtol=1e-6)


def test_a_source_without_influence_has_zeros() -> None:
    def text(model: Any, step: Any, data: Any) -> Any:
        x, _, _ = step.unpack(data)
        kernel, bias = model.trainable_variables
        _, (first, second) = step.gradients(lambda: ops.sum(ops.matmul(x, kernel)), [kernel, bias])
        assert tuple(second.shape) == (2,)
        return ops.sum(first) * 0.0 + ops.sum(ops.abs(second))

    assert logged(text) == 0


def test_rows_of_an_embedding_are_summed() -> None:
    """A norm of the sparse gradient would count a row that occurs twice as two rows."""

    class Words(kt.TrainOpsMixin, keras.Model):
        def training_step(self, step: kt.Step, data: Any) -> Any:
            x, _, _ = step.unpack(data)
            variables = self.trainable_variables
            _, (rows,) = step.gradients(lambda: ops.sum(self(x) ** 2), variables)
            return {"norm": ops.sqrt(ops.sum(rows**2))}

    inputs = keras.Input((3,), dtype="int32")
    model: Any = Words(inputs, keras.layers.Embedding(5, 2, embeddings_initializer="ones")(inputs))
    model.compile("sgd")
    logs = model.train_on_batch(np.array([[1, 1, 2]]), return_dict=True)
    np.testing.assert_allclose(logs["norm"], np.sqrt(2 * 4.0**2 + 2 * 2.0**2), rtol=1e-6)


def test_values_lend_variables_values_that_gradients_flow_through() -> None:
    """One inner step of MAML on `w`: d/dw f(w - 0.1 f'(w)) for f = sum w^2 is 2 * 0.8 * 0.8 w."""

    def text(model: Any, step: Any, data: Any) -> Any:
        kernel = model.trainable_variables[0]

        def adapted() -> Any:
            _, slope = step.gradients(lambda: ops.sum(kernel**2), kernel)
            with step.values([kernel], [kernel - 0.1 * slope]):
                return ops.sum(kernel**2)

        return ops.sum(step.gradients(adapted, kernel)[1])

    np.testing.assert_allclose(logged(text), 12 * 2 * 0.8 * 0.8, rtol=1e-5)


def test_values_leave_the_variables_alone() -> None:
    def text(model: Any, step: Any, data: Any) -> Any:
        x, _, _ = step.unpack(data)
        variables = model.trainable_variables
        with step.values(variables, [v * 0.0 for v in variables]):
            lent = ops.sum(model(x))
        return {"lent": lent, "own": ops.sum(model(x))}

    model, logs = once(text)
    assert logs["lent"] == 0
    np.testing.assert_allclose(logs["own"], (X @ np.ones((6, 2))).sum(), rtol=1e-5)
    np.testing.assert_array_equal(weights(model)[0], np.ones((6, 2)))


def test_gradients_of_each_example_are_those_of_batches_of_one() -> None:
    def text(model: Any, step: Any, data: Any) -> Any:
        x, y, w = step.unpack(data)
        variables = model.trainable_variables

        def loss(example: Any) -> Any:
            x, y, w = example
            assert w is None
            y_pred = model(x)
            return ops.mean((y_pred - y) ** 2), y_pred

        (losses, y_pred), (kernel, _) = step.per_example_gradients(
            loss, variables, (x, y, w), aux=True
        )
        assert tuple(y_pred.shape)[1:] == (1, 2)
        norms = ops.sqrt(ops.sum(kernel**2, axis=(1, 2)))
        return {"norms": ops.sum(norms), "losses": ops.sum(losses), "loss": ops.mean(losses)}

    _, logs = once(text)
    errors = X @ np.ones((6, 2)) - Y
    each = [np.outer(x, error) for x, error in zip(X, errors, strict=True)]
    norms = [np.linalg.norm(gradient) for gradient in each]
    np.testing.assert_allclose(logs["norms"], sum(norms), rtol=1e-5)
    np.testing.assert_allclose(logs["losses"], (errors**2).mean(1).sum(), rtol=1e-5)


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda: keras.optimizers.Adam(0.01), id="adam"),
        pytest.param(lambda: keras.optimizers.SGD(0.1, 0.9, loss_scale_factor=1024.0), id="scaled"),
        pytest.param(
            lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(0.01)), id="dynamic"
        ),
        pytest.param(lambda: keras.optimizers.SGD(0.1, gradient_accumulation_steps=2), id="sums"),
        pytest.param(lambda: keras.optimizers.AdamW(0.01, use_ema=True), id="average"),
    ],
)
def test_applied_gradients_train_as_keras_does(make: Any) -> None:
    """`gradients` and `apply` apart, and `minimize`, both equal Keras's own step."""

    def apart(model: Any, step: Any, data: Any) -> Any:
        x, y, w = step.unpack(data)
        variables = model.trainable_variables
        loss, gradients = step.gradients(lambda: step.loss(x, y, step.forward(x), w), variables)
        step.apply(gradients, variables)
        return {"loss": loss}

    def together(model: Any, step: Any, data: Any) -> Any:
        x, y, w = step.unpack(data)
        return {"loss": step.minimize(lambda: step.loss(x, y, step.forward(x), w))}

    trained = []
    for text in (None, apart, together):
        model = stepping(text, optimizer=make()) if text else plain(make())
        model.fit(NOISE, REAL, batch_size=4, epochs=2, shuffle=False, verbose=0)
        trained.append(values(model))
    for each in trained[1:]:
        assert differ(trained[0], each) <= 1e-6


def plain(optimizer: Any) -> keras.Model:
    inputs = keras.Input((6,))
    model = keras.Model(inputs, keras.layers.Dense(2, kernel_initializer="ones")(inputs))
    model.compile(optimizer, "mse")
    return model


def test_the_default_step_is_bit_equal_to_that_of_keras() -> None:
    """With slots, seeds, losses of layers, batch statistics and metrics."""

    class Own(kt.TrainOpsMixin, keras.Model):
        def training_step(self, step: kt.Step, data: Any) -> dict[str, Any]:
            return super().training_step(step, data)

    trained = []
    for cls in (keras.Model, Own):
        keras.utils.set_random_seed(3)
        x = inputs = keras.Input((6,))
        x = keras.layers.Dense(8, kernel_regularizer="l2", activity_regularizer="l1")(x)
        x = keras.layers.Dropout(0.3, seed=5)(keras.layers.BatchNormalization()(x))
        model: Any = cls(inputs, keras.layers.Dense(2)(x))
        model.compile(keras.optimizers.Adam(0.01), "mse", metrics=["mae"])
        sample_weight = np.linspace(0, 1, 24).astype("float32")
        history = model.fit(
            NOISE, REAL, batch_size=5, epochs=2, sample_weight=sample_weight, verbose=0,
            shuffle=False,
        ).history  # fmt: skip
        trained.append((values(model), history))
    assert_same(trained[0][0], trained[1][0])
    assert trained[0][1] == trained[1][1]


def test_several_optimizers_share_a_default_step() -> None:
    """Each trains its own layer, as a `MultiOptimizer` would."""
    inputs = keras.Input((6,))
    x = keras.layers.Dense(2, name="first", kernel_initializer="ones")(inputs)
    outputs = keras.layers.Dense(2, name="second", kernel_initializer="ones")(x)
    model: Any = kt.TrainOpsModel(inputs, outputs)
    optimizers = {"slow": keras.optimizers.SGD(0.01), "fast": keras.optimizers.SGD(0.1)}
    chosen = {"slow": "first", "fast": "second"}
    model.compile(optimizers=optimizers, variables_to_train=chosen, loss="mse")
    model.train_on_batch(X, Y)
    hidden = X @ np.ones((6, 2))
    error = (hidden @ np.ones((2, 2)) - Y) / 4
    kernel = 1 - 0.1 * hidden.T @ error
    np.testing.assert_allclose(value(model.get_layer("second").kernel), kernel, rtol=1e-5)
    kernel = 1 - 0.01 * X.T @ (error @ np.ones((2, 2)))
    np.testing.assert_allclose(value(model.get_layer("first").kernel), kernel, rtol=1e-5)


def test_layer_updates_of_a_second_pass_can_be_left_out() -> None:
    def text(model: Any, step: Any, data: Any) -> Any:
        x, _, _ = step.unpack(data)
        for keep in (True, False):
            step.gradients(
                lambda: ops.sum(model(x, training=True)),
                model.trainable_variables,
                keep_updates=keep,
            )
        return {}

    class Own(kt.TrainOpsMixin, keras.Model):
        def training_step(self, step: kt.Step, data: Any) -> Any:
            return text(self, step, data)

    inputs = keras.Input((6,))
    norm = keras.layers.BatchNormalization(momentum=0.5)
    model: Any = Own(inputs, norm(inputs))
    model.compile("sgd")
    model.train_on_batch(X, Y)
    np.testing.assert_allclose(value(norm.moving_mean), X.mean(0) / 2, rtol=1e-5, atol=1e-6)


def test_metrics_of_compile_are_updated() -> None:
    def text(model: Any, step: Any, data: Any) -> Any:
        x, y, w = step.unpack(data)
        step.update_metrics(y, model(x), w)
        return {"loss": step.loss(x, y, model(x), w)}

    _, logs = once(text, metrics=["mae"])
    np.testing.assert_allclose(logs["mae"], np.abs(X @ np.ones((6, 2)) - Y).mean(), rtol=1e-5)
    _, without = once(lambda model, step, data: {"own": ops.sum(data[0])}, metrics=["mae"])
    assert without.keys() == {"own"}


def test_own_assignments_are_kept_whatever_the_policy() -> None:
    """Weights that a step clips itself are not updates of layers."""

    def text(model: Any, step: Any, data: Any) -> Any:
        x, y, _ = step.unpack(data)
        loss = step.minimize(lambda: ops.mean((model(x) - y) ** 2))
        for variable in model.trainable_variables:
            variable.assign(ops.clip(variable, -0.01, 0.01))
        return {"loss": loss}

    model, _ = once(text, updates=[])
    assert max(np.abs(weight).max() for weight in weights(model)) <= 0.01


def test_logs_are_averaged_by_batch_size() -> None:
    model = stepping(lambda model, step, data: {"seen": ops.mean(data[0])})
    history = model.fit(NOISE, REAL, batch_size=10, shuffle=False, verbose=0).history
    np.testing.assert_allclose(history["seen"], [NOISE.mean()], rtol=1e-5)


def test_gradients_of_each_example_are_not_differentiated() -> None:
    """PyTorch would return zeros without a word."""

    def around(model: Any, step: Any, data: Any) -> Any:
        variables = model.trainable_variables

        def penalty() -> Any:
            _, each = step.per_example_gradients(lambda x: ops.sum(model(x)), variables, data[0])
            return ops.sum(each[0] ** 2)

        return step.gradients(penalty, variables)[0]

    def within(model: Any, step: Any, data: Any) -> Any:
        def loss(x: Any) -> Any:
            return ops.sum(step.gradients(lambda x: ops.sum(model(x)), x)[1])

        return step.per_example_gradients(loss, model.trainable_variables, data[0])[0]

    for text in (around, within):
        with pytest.raises(RuntimeError, match="per_example_gradients"):
            logged(text)


def test_updates_get_a_scalar_loss_of_several() -> None:
    seen = keras.Variable(0.0, trainable=False, name="seen")

    def text(model: Any, step: Any, data: Any) -> Any:
        x, y, _ = step.unpack(data)
        variables = model.trainable_variables

        def both() -> Any:
            error = model(x) - y
            return [ops.mean(error**2), ops.mean(ops.abs(error))], None

        (losses, _), rows = step.gradients_of_each(both, variables)
        step.apply([a + b for a, b in zip(*rows, strict=True)], variables)
        return {"loss": ops.sum(losses)}

    update = kt.updates.Function(lambda model, loss: seen.assign(loss), [seen])
    _, logs = once(text, updates=[update])
    np.testing.assert_allclose(value(seen), logs["loss"], rtol=1e-6)
