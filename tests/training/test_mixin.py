from __future__ import annotations

import functools
from typing import Any

import keras
import numpy as np
import pytest

import keras_trainops as kt
from tests.helpers import assert_same, refused, value, values, weights
from tests.training.small_models import Mixed, functional, lazy

T = kt.transforms
RNG = np.random.default_rng(0)
X = RNG.normal(size=(24, 6)).astype("float32")
Y = RNG.normal(size=(24, 2)).astype("float32")


def test_the_mixin_must_come_first() -> None:
    with pytest.raises(TypeError, match=r"must come before .*class Wrong\(TrainOpsMixin"):

        class Wrong(keras.Model, kt.TrainOpsMixin):
            pass


ENTRY_POINTS: dict[str, Any] = {
    "fit": lambda m: m.fit(X, Y, batch_size=8, verbose=0, shuffle=False),
    "class_weight": lambda m: m.fit(
        X, (Y[:, :1] > 0).astype("int32"), class_weight={0: 1.0, 1: 9.0}, verbose=0, shuffle=False
    ),
    "sample_weight": lambda m: m.fit(X, Y, sample_weight=np.arange(24.0), verbose=0, shuffle=False),
    "train_on_batch": lambda m: [m.train_on_batch(X, Y) for _ in range(3)],
    "validation_split": lambda m: m.fit(X, Y, validation_split=0.25, verbose=0, shuffle=False),
}


@functools.cache
def stock_results(entry: str) -> tuple[Any, ...]:
    return results(keras.Model, entry)


def results(model_class: Any, entry: str, **options: Any) -> tuple[Any, ...]:
    """Train, and return the state, the logs, the evaluation and the predictions."""
    model = functional(model_class)
    loss = "sparse_categorical_crossentropy" if entry == "class_weight" else "mse"
    model.compile("adam", loss, metrics=["mae"], **options)
    out = ENTRY_POINTS[entry](model)
    return (
        values(model),
        getattr(out, "history", out),
        model.evaluate(X, Y, verbose=0) if loss == "mse" else 0,
        model.predict(X, verbose=0),
    )


@pytest.mark.parametrize("policy", [None, [kt.updates.LayerUpdates()]], ids=["default", "policy"])
@pytest.mark.parametrize("entry", ENTRY_POINTS)
def test_every_way_to_train_gives_what_stock_gives(entry: str, policy: Any) -> None:
    a, logs_a, eval_a, pred_a = stock_results(entry)
    b, logs_b, eval_b, pred_b = results(kt.TrainOpsModel, entry, updates=policy)
    assert_same(a, b)
    assert logs_a == logs_b
    assert eval_a == eval_b
    np.testing.assert_array_equal(pred_a, pred_b)


def test_trains_on_several_inputs_by_name() -> None:
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


@pytest.mark.filterwarnings("ignore:Your input ran out of data")  # stock Keras warns too
def test_unknown_length_gives_one_update_per_batch() -> None:
    """In Keras, the call that finds no more data runs one more update."""
    import tensorflow as tf

    inputs = keras.Input((6,))
    x = keras.layers.Dropout(0.5, seed=1)(inputs)
    model = kt.TrainOpsModel(inputs, keras.layers.Dense(2, name="head")(x))
    data = tf.data.Dataset.from_tensor_slices((X, Y)).batch(8).filter(lambda x, y: True)
    model.compile(keras.optimizers.AdamW(0.01, weight_decay=0.5), "mse")
    model.fit(data, epochs=5, verbose=0, shuffle=False)
    assert model.optimizer.iterations == 15
    (seed,) = [value(v) for v in model.variables if v.name == "seed_generator_state"]
    assert seed[1] == 15


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
def test_leaves_variables_not_to_train_alone(choose: Any, eager: bool) -> None:
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


def test_writes_averages_to_the_variables_to_train() -> None:
    model = functional(kt.TrainOpsModel)
    optimizer = keras.optimizers.SGD(0.1, use_ema=True, ema_momentum=0.5)
    model.compile(optimizer, "mse", variables_to_train="head")
    trunk = value(model.get_layer("trunk").kernel)
    model.fit(X, Y, batch_size=8, verbose=0)
    np.testing.assert_array_equal(value(model.get_layer("trunk").kernel), trunk)
    average = next(v for v in optimizer.variables if "head_kernel_average" in v.path)
    np.testing.assert_array_equal(value(model.get_layer("head").kernel), value(average))


def test_refuses_a_pattern_without_match_before_training() -> None:
    model = functional(kt.TrainOpsModel)
    with refused(model, "Pattern 'heads' matches no variable. Closest paths: 'head/"):
        model.compile("sgd", "mse", variables_to_train=["heads"])
    unbuilt = lazy(Mixed)
    unbuilt.compile("sgd", "mse", variables_to_train=["heads"])
    with pytest.raises(Exception, match=r"Pattern 'heads' matches no variable\. Closest paths"):
        unbuilt.fit(X, Y, verbose=0)
    with pytest.raises(ValueError, match="A pattern must be a regular expression"):
        model.compile("sgd", "mse", variables_to_train=3)


def test_saving_keeps_all_compile_arguments() -> None:
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
