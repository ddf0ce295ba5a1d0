from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest

import keras_trainops as kt
from tests.helpers import assert_same, differ, numpy, refused, value, values, weights

T = kt.transforms
RNG = np.random.default_rng(0)
TRACED = pytest.mark.backends("tensorflow", "jax")  # PyTorch has no such option in Keras
X = RNG.normal(size=(24, 6)).astype("float32")
Y = RNG.normal(size=(24, 2)).astype("float32")


def functional(model_class: type[keras.Model] = keras.Model, rate: float = 0.2) -> keras.Model:
    keras.utils.set_random_seed(3)
    inputs = keras.Input((6,))
    x = keras.layers.Dense(5, activation="relu", name="trunk")(inputs)
    x = keras.layers.BatchNormalization(name="norm")(x)
    x = keras.layers.Dropout(rate, name="drop")(x)
    return model_class(inputs, keras.layers.Dense(2, name="head")(x))


def sequential() -> keras.Model:
    keras.utils.set_random_seed(3)
    return keras.Sequential(
        [keras.Input((6,)), keras.layers.Dense(5, name="trunk"), keras.layers.Dense(2, name="head")]
    )


class Subclassed(keras.Model):
    def __init__(self) -> None:
        super().__init__()
        self.trunk = keras.layers.Dense(5, name="trunk")
        self.drop = keras.layers.Dropout(0.2)
        self.norm = keras.layers.BatchNormalization(name="norm")
        self.head = keras.layers.Dense(2, name="head")

    def call(self, x: Any, training: bool = False) -> Any:
        x = self.norm(self.trunk(x), training=training)
        return self.head(self.drop(x, training=training))


class Mixed(kt.TrainOpsMixin, Subclassed):
    pass


def lazy(model_class: type[keras.Model]) -> keras.Model:
    keras.utils.set_random_seed(3)
    return model_class()


class Watch(keras.callbacks.Callback):
    """What there is when training begins, and how many batches were seen."""

    def __init__(self) -> None:
        super().__init__()
        self.batches = 0

    def on_train_begin(self, logs: Any = None) -> None:
        self.built = len(self.model.weights), self.model.optimizer.built

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.batches += 1


def dataset(kind: str) -> Any:
    import tensorflow as tf

    batches = tf.data.Dataset.from_tensor_slices((X, Y)).batch(8)
    if kind == "dataset":
        return batches
    if kind == "unknown length":
        return batches.filter(lambda x, y: True)
    return ((X[i : i + 8], Y[i : i + 8]) for i in (0, 8, 16))


@pytest.mark.filterwarnings("ignore:Your input ran out of data")  # stock says so too
@pytest.mark.parametrize("kind", ["dataset", "unknown length", "generator"])
@pytest.mark.parametrize("model_class", [Subclassed, Mixed])
def test_a_lazy_model_is_built_early_without_losing_a_batch(kind: str, model_class: Any) -> None:
    model, watch = lazy(model_class), Watch()
    model.compile("adam", "mse")
    model.fit(dataset(kind), verbose=0, shuffle=False, callbacks=[watch])
    assert watch.batches == 3
    early = model_class is Mixed or keras.backend.backend() != "tensorflow"
    assert watch.built == ((8, True) if early else (0, False))


def test_a_lazy_model_trains_bit_for_bit_as_stock() -> None:
    results = []
    for model_class in (Subclassed, Mixed):
        model = lazy(model_class)
        model.compile("adam", "mse", metrics=["mae"])
        history = model.fit(
            X, Y, batch_size=8, epochs=3, shuffle=False, verbose=0, validation_data=(X, Y)
        ).history
        results.append(([value(v) for v in model.variables], history))
    assert_same(results[0][0], results[1][0])
    assert results[0][1] == results[1][1]


@pytest.mark.parametrize("make", [functional, sequential, lambda: lazy(Subclassed)])
def test_with_train_ops_keeps_object_variables_names_and_outputs(make: Any) -> None:
    model = make()
    before = numpy(model(X))
    variables, paths = model.weights, [v.path for v in model.weights]
    assert kt.with_train_ops(model) is model
    assert isinstance(model, kt.TrainOpsMixin)
    assert all(a is b for a, b in zip(model.weights, variables, strict=True))
    assert [v.path for v in model.weights] == paths
    np.testing.assert_array_equal(numpy(model(X)), before)
    assert kt.with_train_ops(model) is model
    model.compile(
        "sgd", "mse", gradient_transforms=T.ClipByNorm(1e-9), updates=[kt.updates.LayerUpdates()]
    )
    trained = [v for v in model.weights if v.trainable]
    start = [value(v) for v in trained]
    model.fit(X, Y, verbose=0)
    assert differ([value(v) for v in trained], start) < 1e-8


@pytest.mark.parametrize("make", [functional, sequential])
def test_an_extended_model_is_saved_and_loaded(make: Any) -> None:
    model = kt.with_train_ops(make())
    model.compile("sgd", "mse", gradient_transforms=T.ClipByNorm(1.0))
    model.save("m.keras")
    loaded = keras.saving.load_model("m.keras")
    assert isinstance(loaded, kt.TrainOpsMixin)
    make().save("stock.keras")
    stock = keras.saving.load_model("stock.keras")
    assert [v.path for v in loaded.weights] == [v.path for v in stock.weights]
    np.testing.assert_array_equal(numpy(loaded(X)), numpy(model(X)))


def test_a_network_of_keras_applications() -> None:
    model = kt.with_train_ops(
        keras.applications.MobileNetV2((32, 32, 3), alpha=0.35, weights=None, classes=2)
    )
    model.compile(
        "sgd", "mse", gradient_transforms=[T.Scale({"predictions": 2.0}), T.ClipByNorm(1.0)]
    )
    model.fit(np.ones((4, 32, 32, 3)), Y[:4], verbose=0)
    assert model.optimizer.iterations == 1


def test_the_mixin_must_come_first() -> None:
    with pytest.raises(TypeError, match=r"must come before .*class Wrong\(TrainOpsMixin"):

        class Wrong(keras.Model, kt.TrainOpsMixin):
            pass


def test_what_is_no_model_is_refused() -> None:
    with pytest.raises(ValueError, match=r"`model` must be a Keras model. Received: 3"):
        kt.with_train_ops(3)


def test_transforms_need_an_optimizer() -> None:
    model = functional(kt.TrainOpsModel)
    with pytest.raises(ValueError, match="`gradient_transforms` need an optimizer"):
        model.compile(None, "mse", gradient_transforms=T.ClipByNorm(1.0))


ENTRY_POINTS: dict[str, Any] = {
    "fit": lambda m: m.fit(X, Y, batch_size=8, verbose=0, shuffle=False),
    "class_weight": lambda m: m.fit(
        X, (Y[:, :1] > 0).astype("int32"), class_weight={0: 1.0, 1: 9.0}, verbose=0, shuffle=False
    ),
    "sample_weight": lambda m: m.fit(X, Y, sample_weight=np.arange(24.0), verbose=0, shuffle=False),
    "train_on_batch": lambda m: [m.train_on_batch(X, Y) for _ in range(3)],
    "validation_split": lambda m: m.fit(X, Y, validation_split=0.25, verbose=0, shuffle=False),
}


@pytest.mark.parametrize("policy", [None, [kt.updates.LayerUpdates()]], ids=["default", "policy"])
@pytest.mark.parametrize("entry", ENTRY_POINTS)
def test_every_way_to_train_gives_what_stock_gives(entry: str, policy: Any) -> None:
    results = []
    for model_class, options in ((keras.Model, {}), (kt.TrainOpsModel, {"updates": policy})):
        model = functional(model_class)
        loss = "sparse_categorical_crossentropy" if entry == "class_weight" else "mse"
        model.compile("adam", loss, metrics=["mae"], **options)
        out = ENTRY_POINTS[entry](model)
        results.append(
            (
                values(model),
                getattr(out, "history", out),
                model.evaluate(X, Y, verbose=0) if loss == "mse" else 0,
                model.predict(X, verbose=0),
            )
        )
    (a, logs_a, eval_a, pred_a), (b, logs_b, eval_b, pred_b) = results
    assert_same(a, b)
    assert logs_a == logs_b
    assert eval_a == eval_b
    np.testing.assert_array_equal(pred_a, pred_b)


def test_several_inputs_by_name() -> None:
    a, b = keras.Input((3,), name="a"), keras.Input((3,), name="b")
    outputs = keras.layers.Dense(2)(keras.layers.Concatenate()([a, b]))
    model = kt.TrainOpsModel({"a": a, "b": b}, outputs)
    model.compile("sgd", "mse", updates=[kt.updates.LayerUpdates()])
    model.fit({"a": X[:, :3], "b": X[:, 3:]}, Y, verbose=0)
    assert model.optimizer.iterations == 1


@pytest.mark.backends("tensorflow")  # elsewhere Keras builds the optimizer
def test_evaluating_creates_no_optimizer_slots() -> None:
    model = functional(kt.TrainOpsModel)
    model.compile("adam", "mse")
    model.evaluate(X, Y, verbose=0)
    assert not model.optimizer.built


def a_layer(model: keras.Model) -> Any:
    return model.get_layer("head")


@pytest.mark.parametrize(
    "choose",
    [
        lambda m: "head",
        lambda m: ["head/kernel", "head/bias"],
        a_layer,
        lambda m: a_layer(m).weights,
    ],
    ids=["pattern", "patterns", "layer", "variables"],
)
@pytest.mark.parametrize("eager", [False, True], ids=["graph", "eager"])
def test_variables_not_to_train_are_left_alone(choose: Any, eager: bool) -> None:
    model = functional(kt.TrainOpsModel)
    optimizer = keras.optimizers.AdamW(0.1, weight_decay=0.5)
    model.compile(optimizer, "mse", variables_to_train=choose(model), run_eagerly=eager)
    before = {v.path: value(v) for v in model.weights}
    model.fit(X, Y, batch_size=8, verbose=0)
    changed = {v.path for v in model.weights if not np.array_equal(value(v), before[v.path])}
    # A batch norm outside the list keeps its averages, as in training; it is not frozen.
    moving = {"norm/moving_mean", "norm/moving_variance"}
    assert changed == {"head/kernel", "head/bias"} | moving
    assert len(optimizer.variables) == 2 + 2 * 2  # iteration, learning rate, and two slots each
    assert [v.path for v in model.trainable_variables] == ["head/kernel", "head/bias"]
    both = [*model.trainable_variables, *model.non_trainable_variables]
    assert {id(v) for v in both} == {id(v) for v in model.variables}


def test_averages_are_written_to_the_variables_they_belong_to() -> None:
    model = functional(kt.TrainOpsModel)
    optimizer = keras.optimizers.SGD(0.1, use_ema=True, ema_momentum=0.5)
    model.compile(optimizer, "mse", variables_to_train="head")
    trunk = value(model.get_layer("trunk").kernel)
    model.fit(X, Y, batch_size=8, verbose=0)
    np.testing.assert_array_equal(value(model.get_layer("trunk").kernel), trunk)
    average = next(v for v in optimizer.variables if "head_kernel_average" in v.path)
    np.testing.assert_array_equal(value(model.get_layer("head").kernel), value(average))


def test_a_pattern_that_matches_nothing_stops_before_training() -> None:
    model = functional(kt.TrainOpsModel)
    with refused(model, "Pattern 'heads' matches no variable. Closest paths: 'head/"):
        model.compile("sgd", "mse", variables_to_train=["heads"])
    unbuilt = lazy(Mixed)
    unbuilt.compile("sgd", "mse", variables_to_train=["heads"])
    with pytest.raises(Exception, match=r"Pattern 'heads' matches no variable\. Closest paths"):
        unbuilt.fit(X, Y, verbose=0)
    with pytest.raises(ValueError, match="A pattern must be a regular expression"):
        model.compile("sgd", "mse", variables_to_train=3)


def test_all_compile_arguments_survive_saving() -> None:
    model = functional(kt.TrainOpsModel, rate=0.0)  # Keras files keep no seeds
    model.compile(
        keras.optimizers.Adam(0.01),
        "mse",
        metrics=["mae"],
        gradient_transforms=[T.Scale({"head": 2.0}), T.ClipByGlobalNorm(0.5)],
        updates=[kt.updates.LayerUpdates(include=["norm"])],
        variables_to_train=[model.get_layer("head")],
        check_numerics=True,
    )
    model.fit(X, Y, batch_size=8, verbose=0)
    model.save("m.keras")
    loaded = keras.saving.load_model("m.keras")
    assert_same(values(loaded), values(model))
    assert loaded.train_ops.numerics is not None
    for each in (model, loaded):
        each.fit(X, Y, batch_size=8, epochs=2, shuffle=False, verbose=0)
    assert_same(weights(loaded), weights(model))


class LooksAtValues(kt.TrainOpsMixin, keras.Model):
    """Runs eagerly only: it cannot be built from shapes."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = keras.layers.BatchNormalization(name="norm")
        self.dense = keras.layers.Dense(2, name="dense")

    def call(self, x: Any, training: bool = False) -> Any:
        assert float(x[0, 0]) < 1e9
        return self.dense(self.norm(x, training=training))


@pytest.mark.backends("tensorflow")  # elsewhere Keras must build it
def test_a_model_that_cannot_be_built_from_shapes_trains_as_in_stock() -> None:
    model = LooksAtValues()
    model.compile(
        "sgd", "mse", run_eagerly=True, variables_to_train="dense", gradient_transforms=T.Scale(2.0)
    )
    model.fit(X, Y, verbose=0)
    assert [v.path.split("/")[-2] for v in model.trainable_variables] == ["dense", "dense"]
    assert model.optimizer.iterations == 1


@pytest.mark.backends("tensorflow")  # elsewhere Keras must build it
def test_a_policy_for_a_model_that_cannot_be_built_says_what_to_do() -> None:
    model = LooksAtValues()
    model.compile("sgd", "mse", run_eagerly=True, updates=[kt.updates.LayerUpdates()])
    with pytest.raises(ValueError, match=r"(?s)need a model that is built.*`model\(x\)`. Why"):
        model.fit(X, Y, verbose=0)
    model(X)
    model.fit(X, Y, verbose=0)
    assert (value(model.norm.moving_mean) != 0).all()


def poisoned(batch: int) -> np.ndarray:
    y = Y.copy()
    y[batch * 4 : batch * 4 + 4] = np.nan
    return y


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="default"),
        pytest.param({"run_eagerly": True}, id="eager"),
        pytest.param({"jit_compile": True}, id="xla", marks=TRACED),
        pytest.param({"steps_per_execution": 4}, id="steps", marks=TRACED),
    ],
)
def test_a_bad_loss_stops_with_the_state_of_the_last_good_step(options: dict[str, Any]) -> None:
    model, good = functional(kt.TrainOpsModel, 0.0), functional(kt.TrainOpsModel, 0.0)
    clean = {k: v for k, v in options.items() if k != "steps_per_execution"}
    for each, more in ((model, options), (good, clean)):
        each.compile(keras.optimizers.Adam(0.01), "mse", check_numerics=True, **more)
    with pytest.raises(kt.NonFiniteLossError, match="NaN or infinite at step 2 "):
        model.fit(X, poisoned(2), batch_size=4, shuffle=False, verbose=0)
    good.fit(X[:8], Y[:8], batch_size=4, shuffle=False, verbose=0)
    assert_same(weights(model), weights(good))
    assert_same(
        [value(v) for v in model.optimizer.variables], [value(v) for v in good.optimizer.variables]
    )
    model.fit(X, Y, batch_size=4, shuffle=False, verbose=0)  # training can go on
    assert model.optimizer.iterations == 8


def test_a_bad_loss_in_train_on_batch() -> None:
    model = functional(kt.TrainOpsModel)
    model.compile("sgd", "mse", check_numerics=True)
    before = weights(model)
    with pytest.raises(kt.NonFiniteLossError, match="at step 0 "):
        model.train_on_batch(X, np.full_like(Y, np.inf))
    assert_same(weights(model), before)


def test_without_the_check_nothing_is_raised() -> None:
    model = functional(kt.TrainOpsModel)
    model.compile("sgd", "mse")
    model.fit(X, poisoned(0), verbose=0)
    assert np.isnan(value(model.get_layer("head").bias)).all()
