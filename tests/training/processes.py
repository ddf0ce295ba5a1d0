"""Runs that one process and several make with the same data: the parts of each batch differ.

The functions work on every backend. In one process they are the oracle.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

import keras_trainops as kt
from keras_trainops import keras_private
from keras_trainops.backends import backend
from tests.processes.member import Place

BATCH, STEPS = 8, 4
ALONE = Place(0, 1, Path(), contextlib.nullcontext, {})
Found = dict[str, np.ndarray]


def data() -> tuple[np.ndarray, np.ndarray]:
    """The inputs and targets of all processes, in the order of one process."""
    random = np.random.default_rng(3)
    x = random.normal(size=(BATCH * STEPS, 4)).astype("float32")
    y = np.tanh(x @ random.normal(size=(4, 2))).astype("float32")
    return x, y


def part(place: Place, array: np.ndarray) -> np.ndarray:
    """The part of each batch that a process trains on, batch by batch."""
    rows = BATCH // place.count
    batches = array.reshape(-1, place.count, rows, *array.shape[1:])
    return batches[:, place.index].reshape(-1, *array.shape[1:])


def given(place: Place, x: np.ndarray, y: np.ndarray) -> dict[str, Any]:
    """The arguments of `fit` for the data of a process."""
    if place.count == 1 or keras.backend.backend() == "tensorflow":
        return {"x": x, "y": y, "batch_size": BATCH}  # its strategy divides a batch
    return {"x": part(place, x), "y": part(place, y), "batch_size": BATCH // place.count}


class Ghost(keras.layers.Layer):
    """Batch normalisation that normalises each part of a batch by itself.

    In one process it does what plain batch normalisation does in several: the statistics of the
    parts differ, and their mean goes into the moving statistics.

    Args:
        parts: The number of parts of a batch.
    """

    def __init__(self, parts: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.parts = parts

    def build(self, shape: tuple[int | None, ...]) -> None:
        width = shape[-1:]
        self.gamma = self.add_weight(shape=width, initializer="ones", name="gamma")
        self.beta = self.add_weight(shape=width, initializer="zeros", name="beta")
        self.mean = self._statistic("moving_mean", width, "zeros")
        self.variance = self._statistic("moving_variance", width, "ones")

    def _statistic(self, name: str, shape: tuple[int | None, ...], initial: str) -> Any:
        return self.add_weight(shape=shape, initializer=initial, name=name, trainable=False)

    def call(self, x: Any, training: bool = False) -> Any:
        if not training:
            return self._normalised(x, self.mean.value, self.variance.value)
        parts = ops.split(x, self.parts, axis=0)
        moments = [ops.moments(each, axes=[0]) for each in parts]
        for variable, i in ((self.mean, 0), (self.variance, 1)):
            mean = sum(pair[i] for pair in moments) / self.parts
            variable.assign(variable * 0.9 + mean * 0.1)
        pairs = zip(parts, moments, strict=True)
        return ops.concatenate([self._normalised(each, *pair) for each, pair in pairs])

    def _normalised(self, x: Any, mean: Any, variance: Any) -> Any:
        return (x - mean) / ops.sqrt(variance + 1e-3) * self.gamma + self.beta


def net(place: Place, middle: Callable[[], Any] | None = None, cls: Any = None) -> Any:
    """A model with the mixin, the same in all processes."""
    keras.utils.set_random_seed(5)
    with place.scope():
        inputs = keras.Input((4,))
        x = keras.layers.Dense(5, activation="tanh", name="body")(inputs)
        x = x if middle is None else middle()(x)
        return (cls or kt.TrainOpsModel)(inputs, keras.layers.Dense(2, name="head")(x))


def state(model: Any) -> Found:
    """The weights of a model, and the state of its optimizer and updates, by order."""
    sums = {id(v) for v in keras_private.gradient_sums(model.optimizer)}
    variables = [*model.weights, *model.optimizer.variables]
    shared = [v for v in variables if id(v) not in sums]
    return {f"{i:02d} {v.name}": ops.convert_to_numpy(v.value) for i, v in enumerate(shared)}


class Run(NamedTuple):
    """A training run on the data.

    Attributes:
        options: Returns arguments of `compile`; a strategy's scope is around the call.
        change: Changes the inputs of all processes in place.
        cls: The class of the model.
        middle: Makes a layer for the middle of the model.
        compares_logs: Whether the logs are results, too.
    """

    options: Callable[[], dict[str, Any]]
    change: Callable[[np.ndarray], None] = lambda x: None
    cls: type[kt.TrainOpsModel] = kt.TrainOpsModel
    middle: Callable[[], Any] | None = None
    compares_logs: bool = True

    def __call__(self, place: Place) -> Found:
        """Train a model, and return its state and its logs."""
        model, message = net(place, self.middle, self.cls), ""
        with place.scope():
            model.compile(**{"loss": "mse", **self.options()})
        x, y = data()
        self.change(x)
        try:
            model.fit(**given(place, x, y), shuffle=False, epochs=2, verbose=0)
        except kt.NonFiniteLossError as error:
            message = str(error)
        logs = model.history.history if self.compares_logs else {}
        found = {f"log {name}": np.array(values) for name, values in logs.items()}
        return {**state(model), **found, "message": np.array(message)}


def plain(place: Place) -> Found:
    """No transform at all; metrics, validation, evaluation, predictions and single batches."""
    model = net(place)
    with place.scope():
        model.compile(keras.optimizers.Adam(0.01), "mse", metrics=["mae", keras.metrics.AUC()])
    x, y = data()
    y = (y > 0).astype("float32")
    all_data = given(place, x, y)
    logs = model.fit(
        **all_data,
        shuffle=False,
        epochs=2,
        verbose=0,
        validation_data=(all_data["x"], all_data["y"]),
        validation_batch_size=all_data["batch_size"],
    ).history
    found = {f"log {name}": np.array(values) for name, values in logs.items()}
    found["evaluated"] = np.array(model.evaluate(**all_data, verbose=0))
    one = (part(place, x)[: BATCH // place.count], part(place, y)[: BATCH // place.count])
    # TensorFlow averages the results of replicas here, and a mean of AUCs is none.
    found["tested on a batch"] = np.array(model.test_on_batch(*one)[:2])
    found["trained on a batch"] = np.array(model.train_on_batch(*one)[:2])
    found["trained on another"] = np.array(model.train_on_batch(*one)[:2])
    local = keras.backend.backend() == "torch"  # TensorFlow gathers the predictions of workers
    predicted = model.predict(x, batch_size=BATCH, verbose=0)
    found["predicted"] = predicted if local else np.sort(predicted, axis=0)
    return {**found, **state(model)}


def one_nan(x: np.ndarray) -> None:
    """In the part of the last process of the second batch."""
    x[BATCH * 2 - 1, 0] = np.nan


def clip_and_noise() -> dict[str, Any]:
    return {
        "optimizer": keras.optimizers.SGD(0.1, momentum=0.9),
        "gradient_transforms": [
            kt.transforms.ClipByGlobalNorm(0.1),
            kt.transforms.Noise(1e-3, seed=2),
        ],
        "metrics": ["mae"],
    }


def accumulating() -> dict[str, Any]:
    return {**clip_and_noise(), **accumulating_in_keras()}


def accumulating_in_keras() -> dict[str, Any]:
    return {"optimizer": keras.optimizers.Adam(0.01, gradient_accumulation_steps=2)}


def scaling() -> dict[str, Any]:
    inner = keras.optimizers.Adam(0.01)
    optimizer = keras.optimizers.LossScaleOptimizer(inner, initial_scale=8.0)
    return {"optimizer": optimizer, "gradient_transforms": kt.transforms.ClipByGlobalNorm(0.1)}


def scaling_in_keras() -> dict[str, Any]:
    return {"optimizer": keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(0.01))}


def adam_with(transform: Any) -> Callable[[], dict[str, Any]]:
    return lambda: {"optimizer": keras.optimizers.Adam(0.01), "gradient_transforms": transform()}


def skipping_batches() -> dict[str, Any]:
    transform = kt.transforms.SkipNonFinite(per_batch=True)
    return {**accumulating_in_keras(), "gradient_transforms": transform}


def averages() -> dict[str, Any]:
    """Updates, and monitors in the logs."""
    return {
        "optimizer": keras.optimizers.SGD(0.1, use_ema=True, ema_overwrite_frequency=3),
        "gradient_transforms": [kt.transforms.Monitor(), kt.transforms.AdaptiveClip(0.01)],
        "updates": [kt.updates.MovingAverage(0.9, statistics=True), kt.updates.LayerUpdates()],
    }


class Own(kt.TrainOpsModel):
    """A step of the user's, with a log of its own."""

    def training_step(self, step: kt.Step, data: Any) -> dict[str, Any]:
        x, y, _ = step.unpack(data)

        def loss() -> Any:
            predicted = ops.cast(self(x, training=True), "float32")
            return ops.mean(ops.square(predicted - y))

        value, gradients = step.gradients(loss, self.trainable_variables)
        step.apply(gradients, self.trainable_variables)
        return {"loss": value, "twice": 2 * value}


class OwnOfKeras(kt.TrainOpsModel):
    """A training step of the user's for every backend but JAX, with a log that is no metric."""

    def train_step(self, data: Any) -> dict[str, Any]:
        x, y = data
        variables = self.trainable_variables
        if keras.backend.backend() == "torch":
            self.zero_grad()
            loss = self.compute_loss(y=y, y_pred=self(x, training=True))
            loss.backward()
            gradients = [v.value.grad for v in variables]
        else:
            import tensorflow as tf

            with tf.GradientTape() as tape:
                loss = self.compute_loss(y=y, y_pred=self(x, training=True))
            gradients = tape.gradient(loss, variables)
        with backend().no_gradients():
            self.optimizer.apply(gradients, variables)
        return {"loss": ops.sum(loss) if keras.backend.backend() == "torch" else loss}


def batch_norm(place: Place) -> Found:
    """Batch normalisation, each process of its part; in one process the oracle `Ghost`."""
    plain = functools.partial(keras.layers.BatchNormalization, momentum=0.9, name="norm")
    ghost = functools.partial(Ghost, place.arguments.get("parts", 1), name="norm")
    run = Run(lambda: {"optimizer": keras.optimizers.SGD(0.1)}, middle=plain)
    return run._replace(middle=plain if place.count > 1 else ghost)(place)


def half(
    dtype: str, cls: type[kt.TrainOpsModel], options: Callable[[], dict[str, Any]]
) -> Callable[[Place], Found]:
    """A run in half precision, with a NaN in the second batch of the last process.

    Data and weights are small integers, so that sums are exact in any order.
    """

    def train(place: Place) -> Found:
        with place.scope():
            inputs = keras.Input((4,))
            head = keras.layers.Dense(2, kernel_initializer="zeros", name="head", dtype=dtype)
            model = cls(inputs, head(inputs))
            model.compile(loss="mse", **options())
        x, y = data()
        x, y = np.rint(x), np.rint(9 * y)  # reached by weights after more steps than there are
        one_nan(x)
        model.fit(**given(place, x, y), shuffle=False, epochs=2, verbose=0)
        return state(model)

    return train


def stepping_by_one() -> dict[str, Any]:
    """Gradients are multiples of 1 / BATCH, so each weight changes by 1, 0 or -1."""
    return {
        "optimizer": keras.optimizers.SGD(float(BATCH)),
        "gradient_transforms": [
            kt.transforms.SkipNonFinite(),
            kt.transforms.ClipByValue(1 / BATCH),
        ],
    }


def scaling_and_stepping_by_one() -> dict[str, Any]:
    inner = keras.optimizers.SGD(float(BATCH))
    return {
        "optimizer": keras.optimizers.LossScaleOptimizer(
            inner, initial_scale=8.0, dynamic_growth_steps=2
        ),
        "gradient_transforms": kt.transforms.ClipByValue(1 / BATCH),
    }


RUNS: dict[str, Callable[[Place], Found]] = {
    "plain": plain,
    "clip and noise": Run(clip_and_noise),
    "accumulation": Run(accumulating),
    "accumulation of Keras": Run(accumulating_in_keras),
    "loss scale of Keras": Run(scaling_in_keras),
    "overflow": Run(scaling, one_nan, compares_logs=False),
    "skipped": Run(adam_with(kt.transforms.SkipNonFinite), one_nan, compares_logs=False),
    "skipped batches": Run(skipping_batches, one_nan, compares_logs=False),
    "zeroed": Run(adam_with(kt.transforms.ZeroNonFinite), one_nan, compares_logs=False),
    "check_numerics": Run(lambda: {"check_numerics": True}, one_nan, compares_logs=False),
    "averages": Run(averages),
    "own step": Run(clip_and_noise, cls=Own),
    "own step of Keras": Run(
        lambda: {**clip_and_noise(), "metrics": None}, cls=OwnOfKeras, compares_logs=False
    ),
    "batch norm": batch_norm,
    "float16": half("mixed_float16", Own, scaling_and_stepping_by_one),
    "bfloat16": half("mixed_bfloat16", kt.TrainOpsModel, stepping_by_one),
}


def all_runs(place: Place) -> Found:
    """Make the runs that the arguments name, or all."""
    found = {}
    for name in place.arguments.get("runs", RUNS):
        print(name, flush=True)
        found.update({f"{name}/{key}": value for key, value in RUNS[name](place).items()})
    return found


def of_run(found: Mapping[str, np.ndarray], name: str) -> Iterator[tuple[str, np.ndarray]]:
    """The results of one run, by their names."""
    for key, value in found.items():
        run, _, rest = key.partition("/")
        if run == name:
            yield rest, value
