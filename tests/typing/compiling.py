"""The arguments of `compile` and `add_update`, and the transforms and updates to pass there."""

from collections.abc import Sequence
from typing import Any, assert_type

import keras

import keras_trainops as kt


class Net(kt.TrainOpsMixin, keras.Model):
    pass


def halve(gradients: list[Any], variables: list[keras.Variable]) -> list[Any]:
    return [None if g is None else g / 2 for g in gradients]


def keep(gradients: Sequence[Any], variables: Sequence[keras.Variable]) -> Sequence[Any]:
    return gradients


def count(model: Net, loss: Any) -> None:
    print(model.name, loss)


net, layer = Net(), keras.layers.Dense(2)
clip, average = kt.transforms.ClipByGlobalNorm(1.0), kt.updates.MovingAverage(0.99)
group = {"critic": keras.optimizers.Adam(1e-4), "actor": keras.optimizers.Adam(1e-3)}

net.compile(keras.optimizers.Adam(1e-3), "mse", metrics=["accuracy"], run_eagerly=True)
net.compile(optimizer="sgd", loss=keras.losses.MeanSquaredError(), jit_compile=False)
net.compile("sgd", loss=lambda y, y_pred: 0.0, metrics={"a": ["mae"]}, loss_weights=[1.0, 2.0])
net.compile(gradient_transforms=clip, updates=average, variables_to_train="head")
net.compile(gradient_transforms=[clip, halve, keep, lambda gradients, variables: gradients])
net.compile(gradient_transforms=(clip, kt.transforms.Scale({"head": 10.0})), check_numerics=True)
net.compile(updates=[], variables_to_train=["head", layer, net.weights[0]])
net.compile(updates=[kt.updates.LayerUpdates(include="norm"), average, count])
net.compile(updates=count, variables_to_train=net.trainable_variables)
net.compile(
    optimizers=group,
    gradient_transforms={"critic": clip, "actor": [clip, halve]},
    updates={"critic": average},
    variables_to_train={"critic": "critic/.*", "actor": [layer]},
)
net.compile(gradients=kt.gradients.SharpnessAware(0.05))
net.compile(kt.OptimizerGroup(group, {"critic": "critic", "actor": layer}))
net.compile(kt.TransformedOptimizer(keras.optimizers.SGD(0.1), [clip, halve]))

net.compile("sgd", "mse", metrcs=["mae"])  # error: reportCallIssue, call-arg
net.compile("sgd", "mse", metrics="mae")  # error: reportArgumentType, arg-type
net.compile("sgd", "mse", gradient_transform=clip)  # error: reportCallIssue, call-arg
net.compile(keras.losses.MeanSquaredError())  # error: reportArgumentType
net.compile(gradient_transforms=average)  # error: reportArgumentType, arg-type
net.compile(gradient_transforms="clip")  # error: reportArgumentType, arg-type
net.compile(gradient_transforms=kt.transforms.Centralize)  # error: reportArgumentType, arg-type
net.compile(gradient_transforms=lambda g: g)  # error: reportArgumentType, arg-type, misc
net.compile(gradients=clip)  # error: reportArgumentType, arg-type
net.compile(updates=0.99)  # error: reportArgumentType, arg-type
net.compile(variables_to_train=3)  # error: reportArgumentType
net.compile(optimizers=[keras.optimizers.Adam()])  # error: reportArgumentType, arg-type
net.compile(check_numerics="yes")  # error: reportArgumentType, arg-type


@net.add_update
def decorated(model: Net, loss: Any) -> None:
    print(model.name, loss)


@net.add_update(every=10, on="batch")
def rare(model: Net, loss: Any) -> None:
    print(model.name, loss)


rare(net, 0.0)
assert_type(net.add_update(average), kt.updates.MovingAverage)
net.add_update(count, variables=[keras.Variable(0.0)])
net.add_update(count, evry=10)  # error: reportCallIssue, call-overload
net.add_update(count, on="step")  # error: reportArgumentType, reportCallIssue, call-overload
net.add_update(3)  # error: reportArgumentType, reportCallIssue, call-overload

assert_type(clip, kt.transforms.ClipByGlobalNorm)
assert_type(average, kt.updates.MovingAverage)
assert_type(kt.updates.TargetNetwork("online", layer, tau=0.01), kt.updates.TargetNetwork)
assert_type(kt.transforms.Chain([clip, halve]).transforms, list[kt.transforms.GradientTransform])
kt.transforms.Only([layer, "head"], [clip, halve])
kt.transforms.AdaptiveClip(axes={"head/kernel": (0,), "bias": None})
kt.transforms.ClipByGlobalNorm(max_nrm=1.0)  # error: reportCallIssue, call-arg
kt.transforms.Normalize(scope="layer")  # error: reportArgumentType, arg-type
kt.transforms.Only("head", average)  # error: reportArgumentType, arg-type
kt.updates.MovingAverage(0.99, on="epoch")  # error: reportArgumentType, arg-type
kt.TransformedOptimizer("sgd", clip)  # error: reportArgumentType


class Halve(kt.transforms.GradientTransform):
    def __call__(self, gradients, variables):
        variables.append(0.0)  # error: reportAttributeAccessIssue
        return [None if g is None else g / 2 for g in gradients]


class Alone(kt.transforms.GradientTransform):
    def __call__(self, gradients):  # error: reportIncompatibleMethodOverride
        return gradients


class Compiled(kt.TrainOpsMixin, keras.Model):  # as with Keras alone: other parameters, an error
    def compile(self, optimizer, alpha=1.0):  # error: reportIncompatibleMethodOverride
        super().compile(optimizer, gradient_transforms=clip)


class Extended(kt.TrainOpsMixin, keras.Model):
    def compile(self, *args: Any, alpha: float = 1.0, **kwargs: Any) -> None:
        super().compile(*args, **kwargs)


Extended().compile("sgd", "mse", alpha=2.0, updates=[])
