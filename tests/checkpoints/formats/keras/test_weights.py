"""Keys of `.weights.h5` files and of models."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pytest

import keras_trainops as kt
from tests.checkpoints.old_keras_model import old_keras_model
from tests.checkpoints.writers import WRITERS
from tests.helpers import assert_same, make_everything, randomise, refused, value, weights

pytestmark = pytest.mark.once

DATA = Path(__file__).parents[2] / "data"


def test_loads_by_name_and_not_by_position() -> None:
    """With one more layer in front, Keras silently loads each layer into the wrong one."""

    def stack(names: list[str], seed: int) -> keras.Model:
        x = inputs = keras.Input((3,))
        for name in names:
            x = keras.layers.Dense(3, name=name)(x)
        return randomise(keras.Model(inputs, x), seed)

    source = stack(["new", "a", "b"], 1)
    source.save_weights("w.weights.h5")
    stock = stack(["a", "b"], 2)
    stock.load_weights("w.weights.h5")
    assert not np.array_equal(
        value(stock.get_layer("a").kernel), value(source.get_layer("a").kernel)
    )
    ours = stack(["b", "a"], 2)
    report = kt.restore(ours, "w.weights.h5")
    for name in "ab":
        assert_same(
            [value(v) for v in ours.get_layer(name).weights],
            [value(v) for v in source.get_layer(name).weights],
        )
    assert report.unexpected == ("new/kernel", "new/bias")


class TwoOfAKind(keras.layers.Layer):
    """Two variables of one shape, in the opposite of the usual order."""

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        self.beta = self.add_weight(shape=(3,), name="beta", initializer="zeros")
        self.gamma = self.add_weight(shape=(3,), name="gamma", initializer="ones")

    def call(self, x: object) -> object:
        return x * self.gamma + self.beta


def test_never_swaps_variables_of_one_shape() -> None:
    def build(seed: int) -> keras.Model:
        inputs = keras.Input((3,))
        return randomise(keras.Model(inputs, TwoOfAKind(name="mine")(inputs)), seed)

    source, target = make_everything(build)
    source.save_weights("w.weights.h5")
    kt.restore(target, "w.weights.h5")
    assert_same(weights(target), weights(source))
    renamed = build(3)
    renamed.get_layer("mine").name = "yours"
    kt.restore(renamed, "w.weights.h5", rename={r"mine/(\d)": r"yours/\1"})
    assert_same(weights(renamed), weights(source))


def test_loads_layers_that_save_themselves() -> None:
    @keras.saving.register_keras_serializable(package="tests")
    class Own(keras.layers.Dense):
        def save_own_variables(self, store: object) -> None:
            store["matrix"], store["offset"] = self.kernel, self.bias

    inputs = keras.Input((3,))
    source = randomise(keras.Model(inputs, Own(2, name="own")(inputs)), 1)
    source.save_weights("w.weights.h5")
    inputs = keras.Input((3,))
    target = randomise(keras.Model(inputs, Own(2, name="own")(inputs)), 2)
    report = kt.restore(target, "w.weights.h5")
    assert dict(report.restored) == {"own/kernel": "own/matrix", "own/bias": "own/offset"}
    assert_same(weights(target), weights(source))


def test_ignores_automatic_names_of_models() -> None:
    """Paths in sequential and subclassed models start with the model's numbered name."""

    class Net(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.dense = keras.layers.Dense(2, name="dense")

        def call(self, x: object) -> object:
            return self.dense(x)

    for make in (
        lambda: keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, name="dense")]),
        Net,
    ):
        source, target = make(), make()
        for model, seed in ((source, 1), (target, 2)):
            model(np.ones((1, 4)))
            randomise(model, seed)
        assert source.name != target.name
        source.save_weights("w.weights.h5")
        for origin in (source, "w.weights.h5"):
            randomise(target, 3)
            kt.restore(target, origin)
            assert_same(weights(target), weights(source))


def zoo(seed: int) -> keras.Model:
    """Return a model with each kind of layer that stores its weights in its own way."""
    keras.backend.clear_session()
    layers = keras.layers
    images, steps = keras.Input((8, 8, 3)), keras.Input((6, 4))
    words = keras.Input((5,), dtype="int32")
    x = layers.Rescaling(1 / 255)(layers.RandomFlip()(images))
    x = layers.Normalization()(x)
    x = layers.DepthwiseConv2D(3)(layers.Conv2D(4, 3, padding="same")(x))
    x = layers.SeparableConv2D(4, 2)(layers.Conv2DTranspose(3, 2)(x))
    x = layers.PReLU()(layers.GroupNormalization(2)(x))
    x = layers.SpectralNormalization(layers.Conv2D(4, 1))(x)  # stores its kernel twice
    x = layers.GlobalAveragePooling2D()(x)
    y = layers.TimeDistributed(layers.Dense(4))(steps)
    y = layers.LSTM(4, return_sequences=True)(y)
    y = layers.Bidirectional(layers.GRU(3, return_sequences=True))(y)
    y = layers.SimpleRNN(4, return_sequences=True)(y)
    cells = layers.StackedRNNCells([layers.LSTMCell(3), layers.GRUCell(4)])
    y = layers.RNN(cells, return_sequences=True)(y)
    y = layers.LayerNormalization()(layers.Conv1D(4, 2)(y))
    y = layers.GroupQueryAttention(4, 2, 1)(y, y)
    y = layers.Attention(use_scale=True)([y, y])
    y = layers.EinsumDense("abc,cd->abd", output_shape=(None, 4), bias_axes="d")(y)
    y = layers.GlobalAveragePooling1D()(y)
    z = layers.Reshape((5, 2, 2))(layers.Embedding(7, 4)(words))
    z = layers.Flatten()(layers.ConvLSTM1D(3, 2)(z))
    outputs = layers.BatchNormalization(scale=False)(layers.Concatenate()([x, y, z]))
    return randomise(keras.Model([images, steps, words], layers.Dense(2)(outputs)), seed)


@pytest.mark.parametrize("form", ["weights.h5", "model"])
def test_restores_every_kind_of_layer(form: str) -> None:
    source, target = make_everything(zoo)
    report = kt.restore(target, WRITERS[form](source))
    assert_same(weights(target), weights(source))
    assert report.unexpected == ()
    assert report.unbuilt == ()


def test_recomputes_what_layers_derive_from_variables() -> None:
    """`Normalization` computes with constants that it derives from its variables."""

    def build(seed: int) -> tuple[keras.Model, keras.layers.Layer]:
        layer = keras.layers.Normalization(name="scale")
        inputs = keras.Input((3,))
        model = keras.Model(inputs, layer(inputs))
        layer.adapt(np.random.default_rng(seed).normal(seed, seed, (50, 3)))
        return model, layer

    (source, _), (target, layer) = build(2), build(5)
    source.save_weights("w.weights.h5")
    x = np.ones((2, 3), "float32")
    assert not np.allclose(target(x), source(x))
    kt.restore(target, "w.weights.h5")
    np.testing.assert_array_equal(target(x), source(x))
    (target, layer), finalize = build(5), keras.layers.Normalization.finalize_state
    before = np.array(target(x))

    def fails_once() -> None:
        layer.finalize_state = lambda: finalize(layer)
        finalize(layer)
        raise MemoryError("no room")

    layer.finalize_state = fails_once
    with refused(target, "no room", MemoryError):
        kt.restore(target, "w.weights.h5")
    np.testing.assert_array_equal(target(x), before)


class Tied(keras.layers.Layer):
    """Multiplies by the table of an embedding layer; a weights file stores it twice."""

    def __init__(self, embedding: keras.layers.Layer | None, **kwargs: object) -> None:
        super().__init__(**kwargs)
        self.hidden = (embedding,)  # in a tuple, it is not tracked as a sublayer

    def build(self, input_shape: object) -> None:
        (embedding,) = self.hidden
        self.table = embedding.embeddings if embedding else self.add_weight(shape=(7, 4), name="t")

    def call(self, x: object) -> object:
        return keras.ops.matmul(x, keras.ops.transpose(self.table))


def tied_model(seed: int, tied: bool = True) -> keras.Model:
    inputs = keras.Input((3,), dtype="int32")
    embedding = keras.layers.Embedding(7, 4, name="embedding")
    x = embedding(inputs)
    outputs = Tied(embedding if tied else None, name="out")(x)
    return randomise(keras.Model(inputs, outputs), seed)


def test_restores_a_shared_variable_once() -> None:
    source, target = make_everything(tied_model)
    source.save_weights("w.weights.h5")
    with kt.open_checkpoint("w.weights.h5") as checkpoint:
        assert len(checkpoint) == 2
    kt.restore(target, "w.weights.h5")
    assert_same(weights(target), weights(source))
    tied_model(3, tied=False).save_weights("w.weights.h5")
    with refused(target, "layers of this model share it, but .* differ", kt.RestoreError):
        kt.restore(target, "w.weights.h5")


def test_nameless_file_loads_unique_layers() -> None:
    """A layer is found if its class and shapes are unique."""
    inner, source = ["inner/a/kernel", "inner/a/bias", "inner/b/kernel", "inner/b/bias"], {}
    for variable in old_keras_model().weights:
        source[variable.path] = variable.numpy()
    model = old_keras_model(1000.0)
    path = DATA / "keras_3_3.weights.h5"
    with refused(model, "4 of 23 variables(?s:.*)missing: inner/", kt.RestoreError):
        kt.restore(model, path)
    report = kt.restore(model, path, exclude=["inner"])
    assert set(report.restored) == set(source) - set(inner)
    for variable in model.weights:
        if variable.path not in inner:
            np.testing.assert_array_equal(variable.numpy(), source[variable.path])
