"""Every format, written by the tool it belongs to, into a model whose every weight differs."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import h5py
import keras
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import tensorflow as tf

import keras_trainops as kt
from tests.helpers import (
    assert_same,
    make_everything,
    randomise,
    refused,
    rich_model,
    two_layers,
    value,
    weights,
)

tf1 = tf.compat.v1


def plain_model(seed: int) -> keras.Model:
    """Layers whose paths are unique, as formats that only know paths need."""
    inputs = keras.Input((6, 6, 2))
    x = keras.layers.SeparableConv2D(3, 3, name="separable")(inputs)
    x = keras.layers.BatchNormalization(name="norm")(x)
    x = keras.layers.Conv2D(4, 3, name="conv")(x)
    x = keras.layers.Flatten()(x)
    return randomise(keras.Model(inputs, keras.layers.Dense(5, name="head")(x)), seed)


def arrays_of(model: keras.Model) -> dict[str, np.ndarray]:
    return {variable.path: value(variable) for variable in model.weights}


def write_tf1(model: keras.Model, prefix: str, **options: object) -> None:
    """The model's weights as a TF1 graph's variables, with Adam's slots and a global step."""
    arrays = arrays_of(model)
    os.makedirs(os.path.dirname(prefix), exist_ok=True)  # the V1 writer makes none
    with tf.Graph().as_default(), tf1.Session() as session:
        variables = [tf1.get_variable(name, initializer=array) for name, array in arrays.items()]
        loss = tf.add_n([tf.reduce_sum(v**2) for v in variables])
        tf1.train.AdamOptimizer().minimize(loss, tf1.train.get_or_create_global_step())
        session.run(tf1.global_variables_initializer())
        tf1.train.Saver(**options).save(session, prefix, write_meta_graph=False)


def write_checkpoint(model: keras.Model, prefix: str) -> None:
    model.compile("adam", "mse")
    model.optimizer.build(model.trainable_variables)
    tf.train.Checkpoint(model=model).save(prefix)


WRITERS: dict[str, Callable[[keras.Model], object]] = {
    "weights.h5": lambda m: m.save_weights("w.weights.h5") or "w.weights.h5",
    "keras": lambda m: m.save("w.keras") or "w.keras",
    "keras directory": lambda m: m.save("w_dir", zipped=False) or "w_dir",
    "legacy h5": lambda m: write_legacy(m, "w.h5") or "w.h5",
    "npz": lambda m: np.savez("w.npz", **arrays_of(m)) or "w.npz",
    "safetensors": lambda m: (
        safetensors.numpy.save_file(arrays_of(m), "w.safetensors") or "w.safetensors"
    ),
    "TF1": lambda m: write_tf1(m, "tf1/model.ckpt") or "tf1/model.ckpt",
    "TF1 directory": lambda m: write_tf1(m, "tf1/model.ckpt") or "tf1",
    "TF1 empty base name": lambda m: write_empty_base_name(m) or "empty",
    "TF1 V1 file": lambda m: (
        write_tf1(m, "tf1/old.ckpt", write_version=tf1.train.SaverDef.V1) or "tf1/old.ckpt"
    ),
    "TF2": lambda m: write_checkpoint(m, "tf2/ck") or "tf2",
    "TF2 prefix": lambda m: write_checkpoint(m, "tf2/ck") or "tf2/ck-1",
    "TF2 index file": lambda m: write_checkpoint(m, "tf2/ck") or "tf2/ck-1.index",
    "TF2 data file": lambda m: write_checkpoint(m, "tf2/ck") or "tf2/ck-1.data-00000-of-00001",
    "SavedModel": lambda m: m.export("exported", verbose=False) or "exported",
    "mapping": arrays_of,
    "model": lambda m: m,
}


def write_legacy(model: keras.Model, path: str) -> None:
    import logging

    logging.disable(logging.WARNING)  # absl warns of the format, which is the point here
    model.compile("adam", "mse")
    model.optimizer.build(model.trainable_variables)
    model.save(path)
    logging.disable(logging.NOTSET)


def write_empty_base_name(model: keras.Model) -> None:
    write_tf1(model, "elsewhere/x")
    os.makedirs("empty")
    for file in Path("elsewhere").glob("x.*"):
        os.rename(file, Path("empty", file.name[1:]))
    Path("empty/checkpoint").write_text('model_checkpoint_path: "/somebody/elses/machine/"\n')


@pytest.mark.parametrize(
    "form", ["weights.h5", "keras", "legacy h5", "npz", "safetensors", "TF1 V1 file"]
)
def test_content_tells_the_format_and_not_the_name(form: str) -> None:
    source, target = make_everything(plain_model)
    path = str(WRITERS[form](source))
    for name in ("weights.txt", "weights.npz", "weights.weights.h5"):
        os.rename(path, name)
        path = name
        assert len(kt.restore(target, name).restored) == len(target.weights)
        assert_same(weights(target), weights(source))
        randomise(target, 3)


def test_an_npy_is_one_array_by_the_name_of_its_file() -> None:
    array = np.arange(6, dtype="float32").reshape(3, 2)
    np.save("head.npy", array)
    with kt.open_checkpoint("head.npy") as checkpoint:
        assert {key: checkpoint.shape(key) for key in checkpoint} == {"head": (3, 2)}
        np.testing.assert_array_equal(checkpoint["head"], array)
    model = two_layers()
    kt.restore(model, "head.npy", rename={"head": "head/kernel"}, include="head/kernel")
    np.testing.assert_array_equal(value(model.get_layer("head").kernel), array)


@pytest.mark.parametrize("form", WRITERS)
def test_every_weight_arrives(form: str) -> None:
    source, target = make_everything(plain_model)
    report = kt.restore(target, WRITERS[form](source))
    assert_same(weights(target), weights(source))
    assert len(report.restored) == len(target.weights)
    assert not report.unexpected


@pytest.mark.parametrize("form", ["weights.h5", "keras", "keras directory", "model", "legacy h5"])
def test_every_weight_of_a_rich_model_arrives(form: str) -> None:
    source, target = make_everything(rich_model)
    if form == "legacy h5":
        source.save("w.h5", include_optimizer=False)
        written: object = "w.h5"
    else:
        written = WRITERS[form](source)
    kt.restore(target, written)
    assert_same(weights(target), weights(source))


@pytest.mark.parametrize("form", [f for f in WRITERS if f not in ("mapping", "model")])
def test_a_checkpoint_is_a_lazy_read_only_mapping(form: str) -> None:
    source = plain_model(1)
    expected = arrays_of(source)
    with kt.open_checkpoint(WRITERS[form](source)) as checkpoint:
        own = [key for key in checkpoint if key not in checkpoint.training_state]
        assert sorted(own) == sorted(expected)
        assert all(checkpoint.shape(key) == expected[key].shape for key in own)
        assert all(checkpoint.dtype(key) == np.dtype("float32") for key in own)
        assert len(checkpoint) == len(list(checkpoint))
        read = {key: checkpoint[key] for key in own}
        with pytest.raises(KeyError, match="nothing"):
            checkpoint["nothing"]
        with pytest.raises(KeyError, match="nothing"):
            checkpoint.shape("nothing")
        with pytest.raises(TypeError, match="item assignment"):
            checkpoint["head/bias"] = np.zeros(5)
    for key, array in read.items():  # valid after it was closed
        np.testing.assert_array_equal(array, expected[key])


@pytest.mark.parametrize("form", ["TF1", "TF2", "weights.h5", "keras", "legacy h5"])
def test_training_state_is_recognised(form: str) -> None:
    source = plain_model(1)
    source.compile("adam", "mse")
    source.optimizer.build(source.trainable_variables)
    report = kt.restore(plain_model(2), WRITERS[form](source))
    assert len(report.slots) >= 2 * len(source.trainable_variables)
    assert report.unexpected == ()


def test_partitioned_tf1_variables_are_whole() -> None:
    with tf.Graph().as_default(), tf1.Session() as session:
        with tf1.variable_scope("", partitioner=tf1.fixed_size_partitioner(3)):
            words = tf1.get_variable("words", (10, 4))
        session.run(tf1.global_variables_initializer())
        assert len(list(words)) == 3
        table = session.run(tf.convert_to_tensor(words))
        tf1.train.Saver().save(session, "parts.ckpt")
    with kt.open_checkpoint("parts.ckpt") as checkpoint:
        np.testing.assert_array_equal(checkpoint["words"], table)


def test_of_several_checkpoints_the_state_file_names_the_latest() -> None:
    for step, seed in ((1, 1), (2, 2)):
        write_tf1(plain_model(seed), f"many/model-{step}")
    with kt.open_checkpoint("many") as checkpoint:
        np.testing.assert_array_equal(
            checkpoint["head/bias"], arrays_of(plain_model(2))["head/bias"]
        )
    os.remove("many/checkpoint")
    with pytest.raises(kt.RestoreError, match=r"several checkpoints.*many/model-1.*many/model-2"):
        kt.open_checkpoint("many")


def test_plain_tf_module_checkpoints_open_by_name() -> None:
    module = tf.Module()
    module.w = tf.Variable(tf.ones((2, 3)), name="w")
    module.parts = [tf.Variable(1.0, name="p"), tf.Variable(2.0, name="p")]
    tf.train.Checkpoint(module=module).write("plain")
    with kt.open_checkpoint("plain") as checkpoint:
        assert sorted(checkpoint) == ["module/parts/0", "module/parts/1", "w"]
        assert float(checkpoint["module/parts/1"]) == 2.0


TF_KERAS = """
import sys
import numpy as np, tf_keras
def build():
    dense = tf_keras.layers.Dense
    inner = tf_keras.Sequential([dense(3, name="a"), dense(3, name="b")], name="inner")
    inputs = tf_keras.Input((4,))
    x = tf_keras.layers.BatchNormalization(name="norm")(inner(inputs))
    return tf_keras.Model(inputs, tf_keras.layers.Dense(2, name="head")(x))
model = build()
if "frozen" in sys.argv:
    model.get_layer("inner").layers[0].trainable = False  # changes the order in the file
rng = np.random.default_rng(0)
for w in model.weights:
    w.assign(rng.normal(size=w.shape))
model.compile("adam", "mse")
model.train_on_batch(np.ones((2, 4)), np.ones((2, 2)))
model.save("k2_model.h5"); model.save_weights("k2.h5"); model.save_weights("k2_tf/ck")
model.save("k2_saved", save_format="tf"); model.save_weights("k2.weights.h5")
model.save("k2.keras")
class Top(tf_keras.Model):
    def __init__(self):
        super().__init__()
        self.d = tf_keras.layers.Dense(2, name="d")
        self.scale = self.add_weight(name="scale", shape=(1,), initializer="ones")
    def call(self, x):
        return self.d(x) * self.scale
top = Top(); top(np.ones((1, 3))); top.save_weights("k2_top.h5")
np.savez("k2.npz", **{w.name.removesuffix(":0"): w.numpy() for w in model.weights})
"""


def keras3_twin() -> keras.Model:
    inputs = keras.Input((4,))
    x = keras.Input((4,))
    y = keras.layers.Dense(3, name="b")(keras.layers.Dense(3, name="a")(x))
    x = keras.Model(x, y, name="inner")(inputs)
    x = keras.layers.BatchNormalization(name="norm")(x)
    return randomise(keras.Model(inputs, keras.layers.Dense(2, name="head")(x)), 3)


@pytest.mark.parametrize("frozen", [False, True], ids=["trainable", "frozen sublayer"])
def test_keras_2_files_of_each_kind(frozen: bool) -> None:
    command = [sys.executable, "-c", TF_KERAS, *(["frozen"] if frozen else [])]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    expected = np.load("k2.npz")
    for source in ("k2_model.h5", "k2.h5", "k2_tf/ck", "k2_tf", "k2_saved", "k2.keras"):
        model = keras3_twin()
        report = kt.restore(model, source)
        assert report.unexpected == (), source
        for variable in model.weights:
            np.testing.assert_array_equal(value(variable), expected[variable.path], source)
    # This kind names no layers. It is refused, never loaded by position, and loads by rules.
    rules = {
        r"layers/dense/(\w+)": r"head/\1",
        r"layers/sequential/layers/dense/(\w+)": r"a/\1",
        r"layers/sequential/layers/dense_1/(\w+)": r"b/\1",
        r"layers/batch_normalization/(\w+)": r"norm/\1",
    }
    model = keras3_twin()
    with refused(model, "missing: a/", kt.RestoreError):
        kt.restore(model, "k2.weights.h5")
    kt.restore(model, "k2.weights.h5", rename=rules)
    for variable in model.weights:
        np.testing.assert_array_equal(value(variable), expected[variable.path])
    with kt.open_checkpoint("k2_top.h5") as checkpoint:  # the model's own variable as well
        assert [key.rpartition("/")[2] for key in checkpoint] == ["kernel", "bias", "scale"]
        assert "scale" in checkpoint


def test_names_decide_where_stock_loading_goes_by_position() -> None:
    """One more layer of the same shape in front: stock loads each layer wrong, in silence."""

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
    """Two variables of one shape, the second of which a reader would call the first."""

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        self.beta = self.add_weight(shape=(3,), name="beta", initializer="zeros")
        self.gamma = self.add_weight(shape=(3,), name="gamma", initializer="ones")

    def call(self, x: object) -> object:
        return x * self.gamma + self.beta


def test_variables_of_one_shape_in_a_layer_of_ones_own_are_not_swapped() -> None:
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


def test_layers_that_save_themselves() -> None:
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


def test_a_deflated_keras_file_is_read_too() -> None:
    source, target = make_everything(two_layers)
    source.save("w.keras")
    with (
        zipfile.ZipFile("w.keras") as stored,
        zipfile.ZipFile("small.keras", "w", zipfile.ZIP_DEFLATED) as deflated,
    ):
        for name in stored.namelist():
            deflated.writestr(name, stored.read(name))
    kt.restore(target, "small.keras")
    assert_same(weights(target), weights(source))


@pytest.mark.parametrize("form", ["safetensors", "weights.h5"])
def test_bfloat16_keeps_its_bits(form: str) -> None:
    array = np.arange(12, dtype="float32").reshape(4, 3).astype(ml_dtypes.bfloat16) / 7
    if form == "safetensors":
        safetensors.numpy.save_file({"trunk/kernel": array}, "w.safetensors")
        path = "w.safetensors"
    else:
        inputs = keras.Input((4,))
        layer = keras.layers.Dense(3, name="trunk", dtype="bfloat16", use_bias=False)
        model = keras.Model(inputs, layer(inputs))
        layer.kernel.assign(array)
        model.save_weights("w.weights.h5")
        path = "w.weights.h5"
    with kt.open_checkpoint(path) as checkpoint:
        assert checkpoint.dtype("trunk/kernel") == np.dtype(ml_dtypes.bfloat16)
        np.testing.assert_array_equal(
            checkpoint["trunk/kernel"].view("uint16"), array.view("uint16")
        )
    model = two_layers()
    kt.restore(model, path, include=["trunk/kernel"])
    np.testing.assert_array_equal(value(model.get_layer("trunk").kernel), array.astype("float32"))


def test_keras_1_names_without_a_scope_get_their_layer() -> None:
    with h5py.File("k1.h5", "w") as file:
        file.attrs["layer_names"] = [b"dense_1"]
        group = file.create_group("dense_1")
        group.attrs["weight_names"] = [b"dense_1_W", b"dense_1_b"]
        group["dense_1_W"], group["dense_1_b"] = np.ones((4, 3)), np.ones(3)
    with kt.open_checkpoint("k1.h5") as checkpoint:
        assert list(checkpoint) == ["dense_1/kernel", "dense_1/bias"]


def test_legacy_hdf5_names_that_a_layer_and_a_nested_model_share() -> None:
    def build(seed: int) -> keras.Model:
        x = keras.Input((4,))
        inner = keras.Model(x, keras.layers.Dense(4, name="dense")(x), name="inner")
        inputs = keras.Input((4,))
        return randomise(
            keras.Model(inputs, keras.layers.Dense(4, name="dense")(inner(inputs))), seed
        )

    source, target = make_everything(build)
    source.save("w.h5", include_optimizer=False)  # Keras cannot write the optimizer's names here
    report = kt.restore(target, "w.h5")
    assert_same(weights(target), weights(source))
    assert report.unexpected == ()


def test_the_same_model_under_other_automatic_names() -> None:
    """Sequential and subclassed models put their own, numbered name in front of every path."""

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
    """One of each kind of layer that keeps its weights in a way of its own."""
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
def test_every_kind_of_layer_arrives(form: str) -> None:
    source, target = make_everything(zoo)
    report = kt.restore(target, WRITERS[form](source))
    assert_same(weights(target), weights(source))
    assert report.unexpected == ()
    assert report.unbuilt == ()


def test_what_a_layer_derives_from_its_variables_is_derived_again() -> None:
    """`Normalization` computes with constants, not with its variables."""

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
    """Multiplies by the table of an embedding layer, which a weights file so stores twice."""

    def __init__(self, embedding: keras.layers.Layer | None, **kwargs: object) -> None:
        super().__init__(**kwargs)
        self.hidden = (embedding,)  # in a tuple it is no sublayer

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


def test_a_variable_that_two_layers_share_is_restored_once() -> None:
    source, target = make_everything(tied_model)
    source.save_weights("w.weights.h5")
    with kt.open_checkpoint("w.weights.h5") as checkpoint:
        assert len(checkpoint) == 2
    kt.restore(target, "w.weights.h5")
    assert_same(weights(target), weights(source))
    tied_model(3, tied=False).save_weights("w.weights.h5")
    with refused(target, "layers of this model share it, but .* differ", kt.RestoreError):
        kt.restore(target, "w.weights.h5")


class Twins(keras.Model):
    """Two layers of one name, one of which has two variables of one name."""

    def __init__(self) -> None:
        super().__init__()
        self.one = keras.layers.Dense(3, name="dense")
        self.two = keras.layers.Dense(3, name="dense")

    def build(self, input_shape: object) -> None:
        self.one.build((None, 3))
        self.two.build((None, 3))
        self.first = self.add_weight(shape=(3,), name="w")
        self.second = self.add_weight(shape=(3,), name="w")

    def call(self, x: object) -> object:
        return self.two(self.one(x)) * self.first + self.second


def twins(seed: int) -> keras.Model:
    model = Twins()
    model(np.ones((1, 3)))
    return randomise(model, seed)


@pytest.mark.parametrize("form", ["weights.h5", "model"])
def test_layers_and_variables_of_one_name_are_told_apart(form: str) -> None:
    source, target = make_everything(twins)
    report = kt.restore(target, WRITERS[form](source))
    assert_same(weights(target), weights(source))
    assert len(report.restored) == 6
    kt.restore(target, {"dense#1/bias": [1.0, 2.0, 3.0], "dense#2/bias": [4.0, 5.0, 6.0]})
    np.testing.assert_array_equal(value(target.two.bias), [4.0, 5.0, 6.0])


def test_variables_of_recurrent_cells_have_names() -> None:
    inputs = keras.Input((3, 2))
    keras.Model(inputs, keras.layers.GRU(2, name="gru")(inputs)).save_weights("w.weights.h5")
    with kt.open_checkpoint("w.weights.h5") as checkpoint:
        leaves = [key.rpartition("/")[2] for key in checkpoint]
    assert leaves == ["kernel", "recurrent_kernel", "bias"]
