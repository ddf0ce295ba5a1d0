"""Training steps of a user's own; parameters without annotations have the types of the mixin's."""

from typing import Any, assert_type

import keras

import keras_trainops as kt


class Net(kt.TrainOpsMixin, keras.Model):
    def training_step(self, step: kt.Step, data: Any) -> dict[str, Any]:
        x, y, sample_weight = step.unpack(data)

        def loss() -> tuple[Any, Any]:
            y_pred = step.forward(x)
            return step.loss(x, y, y_pred, sample_weight), y_pred

        value, y_pred = step.minimize(loss, self.trainable_variables, aux=True)
        step.update_metrics(y, y_pred, sample_weight, x=x)
        (value, _), gradients = step.gradients(loss, self.trainable_variables, aux=True)
        step.apply(gradients, self.trainable_variables, again=True)
        losses, each = step.per_example_gradients(self.example_loss, self.trainable_variables, x)
        assert_type(each, list[Any])
        with step.values(self.trainable_variables, gradients):
            step.forward(x)
        return {"loss": value, "losses": losses}

    def example_loss(self, x: Any) -> Any:
        return keras.ops.mean(self(x))

    def evaluation_step(self, step: kt.Step, data: Any) -> dict[str, Any]:
        return super().evaluation_step(step, data)


class Unannotated(kt.TrainOpsMixin, keras.Model):
    def training_step(self, step, data):
        step.minimise(lambda: 0.0)  # error: reportAttributeAccessIssue
        step.minimize(lambda: 0.0, keep_update=False)  # error: reportCallIssue
        step.gradients(lambda: 0.0)  # error: reportCallIssue
        step.apply([0.0], "head")  # error: reportArgumentType
        return {"loss": step.minimize(lambda: 0.0)}


class Wrong(kt.TrainOpsMixin, keras.Model):
    def training_step(self, step: Any):  # error: reportIncompatibleMethodOverride, override
        return {}


class OnJax(kt.TrainOpsMixin, keras.Model):
    def train_step(self, state, data):
        return super().train_step(state, data)


class Elsewhere(kt.TrainOpsMixin, keras.Model):
    def train_step(self, data):
        return super().train_step(data)

    def test_step(self, data):
        return super().test_step(data)
