"""One training run, as a program: the same on every backend, device layout and route.

    python routes.py WEIGHTS_IN WEIGHTS_OUT [--devices one|mirrored|data] [--accumulate N]
        [--upto FILE] [--from FILE] ...

Prints nothing; writes the weights as an archive. `test_routes.py` compares what comes out.
"""

from __future__ import annotations

import argparse
import contextlib
import os
from typing import Any

parser = argparse.ArgumentParser()
parser.add_argument("start", help="archive of initial weights; made if it does not exist")
parser.add_argument("end", help="archive for the weights in the end")
parser.add_argument("--devices", default="one", choices=["one", "mirrored", "data"])
parser.add_argument("--accumulate", type=int, default=None)
parser.add_argument("--epochs", type=int, default=5)
parser.add_argument("--seeded", action="store_true", help="with noise and dropout")
parser.add_argument("--save", default=None, help=".keras file to write after the epochs")
parser.add_argument("--load", default=None, help=".keras file to go on from")
parser.add_argument("--policy", default="float32")
parser.add_argument("--bad", default=None, choices=["loss", "gradient", "skip"])
parser.add_argument("--unknown", action="store_true", help="data of unknown length")
arguments = parser.parse_args()

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
if arguments.devices == "data":
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"
if arguments.devices == "mirrored":
    import tensorflow as tf

    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)

import keras
import numpy as np

import keras_trainops as kt

L, T = keras.layers, kt.transforms
rng = np.random.default_rng(0)
IMAGES = rng.normal(size=(32, 6, 6, 2)).astype("float32")
WORDS = rng.integers(0, 7, size=(32, 3)).astype("int32")
Y = rng.normal(size=(32, 2)).astype("float32") * 10


def model() -> Any:
    """Convolutions, an embedding with rows that repeat, attention."""
    keras.utils.set_random_seed(3)
    images, words = keras.Input((6, 6, 2), name="images"), keras.Input((3,), dtype="int32")
    policy = arguments.policy
    x = L.Conv2D(4, 3, activation="tanh", name="conv", dtype=policy)(images)
    x = L.Conv2DTranspose(3, 2, activation="tanh", name="up", dtype=policy)(x)
    x = L.Flatten()(x)
    w = L.Embedding(7, 4, name="words")(words)
    # Without biases: the gradient of a key's bias is 0 but for rounding, which Adam enlarges.
    w = L.MultiHeadAttention(2, 3, use_bias=False, name="attention")(w, w)
    x = L.Concatenate()([x, L.Flatten()(w)])
    if arguments.seeded:
        x = L.Dropout(0.2, seed=7)(x)
    made = kt.TrainOpsModel([images, words], L.Dense(2, name="head", dtype="float32")(x))
    made.dtype_policy = policy
    return made


def chain() -> list[Any]:
    noise = [T.Noise(0.01, seed=1)] if arguments.seeded else []
    skip = [T.SkipNonFinite()] if arguments.bad == "skip" else []
    return [
        *skip,
        T.Centralize(),
        T.AdaptiveClip(0.05),
        T.AdaptiveNormClip(),
        *noise,
        T.ClipByGlobalNorm(0.5),
        T.ScaleStep({"conv": 0.5}),
        T.Monitor(["head"]),
    ]


def scope() -> Any:
    if arguments.devices == "mirrored":
        return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope()
    if arguments.devices == "data":
        keras.distribution.set_distribution(keras.distribution.DataParallel())
    return contextlib.nullcontext()


with scope():
    if arguments.load:
        net = keras.saving.load_model(arguments.load)
    else:
        net = model()
        net.compile(
            keras.optimizers.Adam(0.01, gradient_accumulation_steps=arguments.accumulate),
            "mse",
            gradient_transforms=chain(),
            check_numerics=arguments.bad in ("loss", "gradient"),
        )
        if os.path.exists(arguments.start):
            with np.load(arguments.start) as archive:
                net.set_weights([archive[f"w{i}"] for i in range(len(net.weights))])
        else:
            np.savez(arguments.start, **{f"w{i}": w for i, w in enumerate(net.get_weights())})
batch = 8 // (arguments.accumulate or 1)
if arguments.bad:
    Y[14] = np.nan  # in the second batch, and there on the second of two replicas
data: Any = {"x": [IMAGES, WORDS], "y": Y, "batch_size": batch}
if arguments.unknown:
    import tensorflow as tf

    slices = tf.data.Dataset.from_tensor_slices(((IMAGES, WORDS), Y))
    data = {"x": slices.batch(batch).filter(lambda x, y: True)}
try:
    history = net.fit(**data, epochs=arguments.epochs, shuffle=False, verbose=0).history
except kt.NonFiniteLossError as error:
    history = {}
    print(error)
if arguments.save:
    net.save(arguments.save)
np.savez(
    arguments.end,
    iterations=int(
        keras.ops.convert_to_numpy(keras.ops.convert_to_tensor(net.optimizer.iterations))
    ),
    norms=np.array(history.get("gradient_norm", [])),
    **{f"w{i}": w for i, w in enumerate(net.get_weights())},
)
