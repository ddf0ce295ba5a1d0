"""A user's models: what the mixin and `with_train_ops` return, and Keras's methods on them."""

from typing import Any, assert_type

import keras
import numpy as np

import keras_trainops as kt

x, y = np.zeros((8, 4)), np.zeros((8, 2))


class Net(kt.TrainOpsMixin, keras.Model):
    def __init__(self, units: int) -> None:
        super().__init__()
        self.head = keras.layers.Dense(units)

    def call(self, x: Any) -> Any:
        return self.head(x)


class Stack(kt.TrainOpsMixin, keras.Sequential):
    pass


class Other(keras.Model):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width


inputs = keras.Input((4,))
net = Net(units=2)
functional = kt.TrainOpsModel(inputs, keras.layers.Dense(2)(inputs))
extended = kt.with_train_ops(keras.applications.ResNet50())
stack = Stack([keras.layers.Dense(2)])

assert_type(net, Net)
assert_type(functional, kt.TrainOpsModel)
assert_type(extended, kt.TrainOpsMixin)
assert_type(kt.with_train_ops(keras.Sequential()), kt.TrainOpsMixin)
assert_type(net.trainable_variables, list[keras.Variable])
kt.with_train_ops(Other(3)).compile("sgd", "mse", gradient_transforms=kt.transforms.Monitor())
print(net.head, net.weights[0].path, extended.optimizer.learning_rate, extended(x), stack.layers)
extended.summary()
stack.add(keras.layers.Dense(2))

history = net.fit(x, y, epochs=3, verbose=0, validation_split=0.5, validation_data=(x, y))
print(history.history["loss"][-1])
extended.fit(x, y, callbacks=[kt.UseAverage(), keras.callbacks.EarlyStopping(patience=3)])
functional.fit(x, y, class_weight={0: 1.0, 1: 2.0}, steps_per_epoch=None, validation_freq=[1, 5])
loss, accuracy = net.evaluate(x, y, verbose=0)
print(net.evaluate(x, y, return_dict=True)["loss"], net.predict(x, verbose=0).shape)
net.train_on_batch(x, y, return_dict=True)
net.test_on_batch(x, y, sample_weight=np.ones(8))

net.fit(x, y, epoch=3)  # error: reportCallIssue, call-arg
extended.fit(x, y, epochs="3")  # error: reportArgumentType, arg-type
functional.fit(x, y, verbose="no")  # error: reportArgumentType, arg-type
net.evaluate(x, y, verbos=0)  # error: reportCallIssue, call-arg
net.predict(x, batchsize=3)  # error: reportCallIssue, call-arg
net.train_on_batch()  # error: reportCallIssue, call-arg
net.test_on_batch(x, y, class_weight={})  # error: reportCallIssue, call-arg
kt.with_train_ops("resnet")  # error: reportArgumentType
kt.with_train_op(net)  # error: reportAttributeAccessIssue, attr-defined


class WrongOrder(keras.Model, kt.TrainOpsMixin):  # error: reportGeneralTypeIssues
    pass
