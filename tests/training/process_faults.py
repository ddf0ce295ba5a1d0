"""What several processes do if they differ, or if nobody has prepared them."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import warnings
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

import keras_trainops as kt
from keras_trainops.processes import Processes
from tests.processes.member import Place
from tests.training.processes import BATCH, Found, all_runs, data, given, net, part, state


def failure(function: Callable[[], Any]) -> np.ndarray:
    """Return the message of the error that a function raises."""
    try:
        function()
    except Exception as error:
        return np.array(f"{type(error).__name__}: {error}")
    return np.array("none")


def differing(place: Place) -> Found:
    """Start to train with another argument on the last process."""
    x, y = data()
    other = place.index == place.count - 1

    def message(batch_size: int = BATCH, epochs: int = 1, **options: Any) -> np.ndarray:
        model = net(place)
        with place.scope():
            made = {name: make() for name, make in options.items()}
            model.compile(loss="mse", **{"optimizer": "sgd", **made})
        return failure(
            lambda: model.fit(x, y, batch_size=batch_size, epochs=epochs, shuffle=False, verbose=0)
        )

    clip = kt.transforms.ClipByGlobalNorm
    average = kt.updates.MovingAverage
    sgd = keras.optimizers.SGD
    adam = keras.optimizers.Adam
    found = {
        "momentum": message(optimizer=lambda: sgd(0.1, momentum=0.1 if other else 0.2)),
        "norm": message(gradient_transforms=lambda: clip(1.0 if other else 2.0)),
        "transforms": message(gradient_transforms=lambda: [clip(1.0)] * (1 if other else 2)),
        "updates": message(updates=lambda: average(0.9 if other else 0.8)),
        "epochs": message(epochs=2 if other else 1),
        "batch size": message(batch_size=BATCH * (2 if other else 1)),
    }
    if keras.backend.backend() != "jax":  # which compares the values of all variables itself
        found["class of the optimizer"] = message(optimizer=lambda: adam() if other else sgd())
    if keras.backend.backend() == "torch":  # other processes create variables together
        found["learning rate"] = message(optimizer=lambda: sgd(0.1 if other else 0.2))
        found["check_numerics"] = message(check_numerics=lambda: other)
        model = net(place)
        model.compile("sgd", "mse", updates=kt.updates.MovingAverage(0.9))
        callbacks = [kt.UseAverage()] if other else []
        found["callbacks"] = failure(lambda: model.fit(x, y, callbacks=callbacks, verbose=0))
        model = kt.TrainOpsModel(
            i := keras.Input((4,)), keras.layers.Dense(2, use_bias=other, name="one")(i)
        )
        model.compile("sgd", "mse")
        found["variables"] = failure(lambda: model.fit(x, y, batch_size=BATCH, verbose=0))
    return found


def printed(place: Place) -> Found:
    """The progress of `fit` and `evaluate`, by default and as asked for."""
    model = net(place)
    with place.scope():
        model.compile("sgd", "mse")
    x, y = data()
    found = {}
    for name, options in {"auto": {}, "asked": {"verbose": 2}}.items():
        for method in ("fit", "evaluate"):
            with contextlib.redirect_stdout(io.StringIO()) as text:
                getattr(model, method)(**given(place, x, y), **options)
            found[f"{method} {name}"] = np.array(text.getvalue())
    return found


class Scale(keras.layers.Layer):
    """Multiplies by a variable without axes."""

    def build(self, shape: Any) -> None:
        self.scale = self.add_weight(shape=(), initializer="ones", name="scale")

    def call(self, x: Any) -> Any:
        return x * self.scale


def numbered(place: Place) -> Found:
    """Restore and train where Keras numbers the layers differently, as another model came first."""
    if place.index:
        keras.layers.Dense(1)  # takes the next number
    keras.utils.set_random_seed(5)
    with place.scope():
        layers = [keras.Input((4,)), keras.layers.Dense(3), Scale(), keras.layers.Dense(2)]
        model = kt.with_train_ops(keras.Sequential(layers))
        model.compile(keras.optimizers.SGD(0.1, momentum=0.9), "mse")
    tensors = {"a": np.ones((4, 3)), "b": np.zeros(3), "c": np.array(2.0)}
    name, scale = (layer.name for layer in model.layers[:2])
    rename = {"a": f"{name}/kernel", "b": f"{name}/bias", "c": f"{scale}/scale"}
    for who in ("each", "first"):
        kt.restore(model, tensors, rename=rename, on_missing="ignore", processes=who, verbose=0)
    model.fit(**given(place, *data()), verbose=0)
    values = [*model.weights, *model.optimizer.variables]
    found = {f"{i}": ops.convert_to_numpy(v.value) for i, v in enumerate(values)}
    return {**found, "name": np.array(name)}


class Forked(kt.TrainOpsModel):
    """The layer "odd" is used for batches with a positive first number alone."""

    def call(self, x: Any, training: bool = False) -> Any:
        y = self.get_layer("head")(x)
        return y + self.get_layer("odd")(x) if bool(x[0, 0] > 0) else y


def torch_alone(place: Place) -> Found:
    """What only concerns PyTorch, whose processes are independent."""
    import torch

    x, y = data()
    mine = {"x": part(place, x), "y": part(place, y), "batch_size": BATCH // place.count}
    found: Found = {}

    # Other initial weights
    keras.utils.set_random_seed(place.index)
    model = kt.TrainOpsModel(i := keras.Input((4,)), keras.layers.Dense(2, name="one")(i))
    model.compile("sgd", "mse")
    found["other weights"] = failure(lambda: model.fit(**mine, verbose=0))

    # The same batch, and then others
    for name, arguments in {"same": {"x": x, "y": y, "batch_size": BATCH}, "other": mine}.items():
        model = net(place)
        model.compile("sgd", "mse")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            model.fit(**arguments, verbose=0)
        found[f"{name} batch"] = np.array(" ".join(str(each.message) for each in caught))

    # In DistributedDataParallel: its own step makes gradients equal, Keras's does not
    for wraps in (False, True):
        model = net(place)
        model.compile(keras.optimizers.SGD(0.1), "mse")
        if wraps:
            torch.nn.parallel.DistributedDataParallel(model).module.fit(**mine, verbose=0)
        else:
            model.fit(**mine, verbose=0)
        found.update({f"wrapped {wraps}/{k}": v for k, v in state(model).items()})

    # A callback that stops all, by a value that all see
    model = net(place)
    model.compile(keras.optimizers.SGD(0.1), "mse")
    stop = keras.callbacks.EarlyStopping("val_loss", patience=0, min_delta=1e3)
    shifted = {**mine, "y": mine["y"] + 100 * place.index}
    fitted = model.fit(
        **shifted, epochs=5, verbose=0, callbacks=[stop], validation_data=(mine["x"], mine["y"])
    )
    found["epochs until the stop"] = np.array(len(fitted.epoch))

    # An evaluation of unequal parts
    rows = slice(0, BATCH) if place.index == 0 else slice(BATCH, None)
    found["unequal parts"] = np.array(model.evaluate(x[rows], y[rows], batch_size=BATCH, verbose=0))
    found["all parts"] = np.array(float(np.mean(np.square(model.predict(x, verbose=0) - y))))

    # A gradient on one process only
    found.update(forked(place))

    # PyTorch's own batch normalisation keeps its statistics in buffers, not in Keras variables
    torch.manual_seed(5)
    norm = torch.nn.BatchNorm1d(4)
    norm.register_buffer("mask", torch.full((2,), torch.finfo(torch.float32).min))
    wrapped = keras.layers.TorchModuleWrapper(norm, output_shape=(None, 4))
    model = kt.TrainOpsModel(i := keras.Input((4,)), keras.layers.Dense(2, name="one")(wrapped(i)))
    model.compile("sgd", "mse")
    model.fit(**mine, shuffle=False, verbose=0)
    found["mean of buffers"] = norm.running_mean.numpy()
    found["mask"] = norm.mask.numpy()
    expected = np.zeros(4)
    for batch in x.reshape(-1, BATCH, 4):
        expected = 0.9 * expected + 0.1 * batch.mean(0)
    found["mean of all rows"] = expected

    found.update(parting(place))

    # Compiled before the processes have met
    torch.distributed.destroy_process_group()
    model = net(place)
    model.compile(keras.optimizers.SGD(0.1), "mse")
    meeting = f"file://{place.directory / 'meeting'}"
    torch.distributed.init_process_group(
        "gloo", init_method=meeting, rank=place.index, world_size=place.count
    )
    model.fit(**mine, verbose=0)
    found.update({f"compiled before/{k}": v for k, v in state(model).items()})
    found.update(sharded_by_fsdp())
    return found


def forked(place: Place) -> Found:
    """Only the first process has a gradient of "odd"; then nobody has one."""
    keras.utils.set_random_seed(5)
    inputs = keras.Input((4,))
    layers = [keras.layers.Dense(2, name=name, use_bias=False) for name in ("head", "odd")]
    model = Forked(inputs, keras.layers.Add()([layer(inputs) for layer in layers]))
    model.compile(keras.optimizers.SGD(1.0, momentum=0.5), "mse")
    kernel = model.get_layer("odd").kernel
    kernel.assign(np.zeros((4, 2)))
    x = np.full((1, 4), 1.0 if place.index == 0 else -1.0, "float32")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # gradients do not exist for variables
        model.get_layer("head").kernel.assign(np.zeros((4, 2)))
        model.train_on_batch(x, np.full((1, 2), 4.0, "float32"))
        once = keras.ops.convert_to_numpy(kernel)
        model.train_on_batch(-np.abs(x), np.full((1, 2), 4.0, "float32"))
    return {"odd once": once, "odd twice": keras.ops.convert_to_numpy(kernel)}


def parting(place: Place) -> Found:
    """The last process stops, fails or has a batch less, and the first one evaluates alone."""
    x, y = data()
    last = place.index == place.count - 1
    mine = {"x": part(place, x), "y": part(place, y), "batch_size": BATCH // place.count}

    class Parts(keras.callbacks.Callback):
        def __init__(self, how: str) -> None:
            super().__init__()
            self.how = how

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            if last and self.how == "stops":
                self.model.stop_training = True
            if last and self.how == "fails":
                raise OSError("no space left")

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            if not last and self.how == "evaluates":
                self.model.evaluate(x, y, verbose=0)

        def on_train_end(self, logs: Any = None) -> None:
            if last and self.how == "fails at the end":
                raise KeyError("history")

    def message(how: str) -> np.ndarray:
        model = net(place)
        model.compile("sgd", "mse")
        batches = ((mine["x"][:2], mine["y"][:2]) for _ in range(1 if last else 2))
        arguments = {"x": batches} if how == "has less" else {**mine, "epochs": 2}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the same batch
            return failure(lambda: model.fit(**arguments, callbacks=[Parts(how)], verbose=0))

    hows = ("stops", "fails", "fails at the end", "evaluates", "has less")
    return {f"parts {how}": message(how) for how in hows}


def sharded_by_fsdp() -> Found:
    """FSDP is refused."""
    import torch
    from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard

    def model() -> Any:
        inputs = keras.Input((4,))
        return kt.TrainOpsModel(inputs, keras.layers.Dense(2, name="one")(inputs))

    x, y = np.ones((2, 4), "float32"), np.ones((2, 2), "float32")
    first, second, part_of, before = model(), model(), model(), model()
    before.compile("sgd", "mse")
    FullyShardedDataParallel(first, device_id=torch.device("cpu"))
    fully_shard(second)
    fully_shard(part_of.layers[1])
    fully_shard(before)
    tensors = {"one/kernel": np.ones((4, 2)), "one/bias": np.ones(2)}
    return {
        "FSDP1": failure(lambda: first.compile("sgd", "mse")),
        "FSDP2": failure(lambda: second.compile("sgd", "mse")),
        "a layer in FSDP2": failure(lambda: part_of.compile("sgd", "mse")),
        "compiled before FSDP2": failure(lambda: before.fit(x, y, verbose=0)),
        "restored": failure(lambda: kt.restore(second, tensors)),
    }


def strategies(place: Place) -> Found:
    """The strategy of several processes in an evaluator, and one that is refused."""
    import tensorflow as tf

    cluster = {job: ["127.0.0.1:1"] for job in ("chief", "worker", "evaluator")}
    evaluator = {"cluster": cluster, "task": {"type": "evaluator", "index": 0}}
    os.environ["TF_CONFIG"] = json.dumps(evaluator)
    found = alone(place, tf.distribute.MultiWorkerMirroredStrategy())
    del os.environ["TF_CONFIG"]
    return {"evaluator": found, **parameter_server()}


def alone(place: Place, strategy: Any) -> np.ndarray:
    """Restore under a strategy; returns the number of processes, and what was restored."""
    model = net(dataclasses.replace(place, scope=strategy.scope))
    kt.restore(model, {"head/bias": np.ones(2)})
    return np.array([Processes(model).count, *model.get_layer("head").bias.numpy()])


def parameter_server() -> Found:
    """A strategy under which Keras 3 does not train, with its servers in this process."""
    import tensorflow as tf

    from tests.processes.launch import free_ports

    jobs = ("worker", "ps")
    addresses = {job: [f"127.0.0.1:{port}"] for job, port in zip(jobs, free_ports(2), strict=True)}
    cluster = tf.train.ClusterSpec(addresses)
    servers = [tf.distribute.Server(cluster, job_name=job, task_index=0) for job in jobs]
    resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(cluster, rpc_layer="grpc")
    strategy = tf.distribute.ParameterServerStrategy(resolver)
    with strategy.scope():
        inputs = keras.Input((4,))
        model = kt.TrainOpsModel(inputs, keras.layers.Dense(2, name="one")(inputs))
    tensors = {"one/kernel": np.ones((4, 2)), "one/bias": np.ones(2)}
    found = {
        "compiled": failure(lambda: model.compile("sgd", "mse")),
        "restored": failure(lambda: kt.restore(model, tensors)),
    }
    del servers
    return found


def files(place: Place) -> Found:
    """Train on datasets of files that the engine divides: in another order, and shuffled."""
    import tensorflow as tf

    if keras.backend.backend() == "jax":
        keras.distribution.set_distribution(keras.distribution.DataParallel())
    names = [str(place.directory / f"{name}.txt") for name in "ab"]

    def started(names: list[str], shuffled: bool) -> np.ndarray:
        model = net(place)
        with place.scope():
            model.compile("sgd", "mse")
        dataset = tf.data.Dataset.from_tensor_slices(names)
        dataset = dataset.shuffle(2) if shuffled else dataset
        x, y = data()
        batches = dataset.repeat().map(lambda _: (x[:BATCH], y[:BATCH])).unbatch().batch(BATCH)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            message = failure(lambda: model.fit(batches, steps_per_epoch=1, verbose=0))
        about = [str(each.message) for each in caught if "without a seed" in str(each.message)]
        return np.array([str(message), *about])

    tf.random.set_seed(5)
    found = {"order": started(names[:: -1 if place.index else 1], shuffled=False)}
    found["seeded"] = started(names, shuffled=True)
    return found


def undistributed(place: Place) -> np.ndarray:
    """Train on JAX without a distribution; returns the message."""
    model = net(place)
    model.compile("sgd", "mse")
    x, y = data()
    return failure(lambda: model.fit(x, y, verbose=0))


def everything(place: Place) -> Found:
    """All of it in one launch, which takes longer than most of what it does."""
    found = {} if keras.backend.backend() == "jax" else all_runs(place)
    if keras.backend.backend() == "jax":
        found["undistributed"] = undistributed(place)
        keras.distribution.set_distribution(
            keras.distribution.DataParallel(auto_shard_dataset=False)
        )
    scenes = [differing, printed, numbered]
    scenes += [torch_alone] if keras.backend.backend() == "torch" else [files]
    for scene in scenes:
        found.update({f"{scene.__name__}/{name}": value for name, value in scene(place).items()})
    return found
