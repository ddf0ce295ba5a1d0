"""Each use of Keras's private API, held to the behaviour that is relied on.

When a new Keras fails a test here, its name says what has changed.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
from keras.src.saving import saving_lib

import keras_trainops as kt
from keras_trainops import keras_private
from keras_trainops.backends import backend
from keras_trainops.keras_private import saving
from tests.helpers import two_replicas, value


def model() -> keras.Model:
    inputs = keras.Input((3,))
    x = keras.layers.Dense(2, name="first")(inputs)
    x = keras.layers.BatchNormalization(name="norm")(x)
    inner_in = keras.Input((2,))
    inner = keras.Model(inner_in, keras.layers.Dense(2, name="deep")(inner_in), name="inner")
    return keras.Model(inputs, inner(x), name="outer")


def test_the_saving_walk_visits_every_weight_by_identity_with_the_names_of_its_owners() -> None:
    made = model()
    walk = keras_private.saving_walk(made)
    assert {id(entry.value) for entry in walk.entries} == {id(v) for v in made.weights}
    assert walk.owners[""] == "outer"
    assert walk.owners["layers/dense"] == "first"
    assert walk.owners["layers/functional"] == "inner"
    assert walk.owners["layers/functional/layers/dense"] == "deep"


def test_the_saving_walk_is_what_save_weights_writes() -> None:
    import h5py

    made = model()
    made.compile("adam", "mse")
    made.optimizer.build(made.trainable_variables)
    made.save_weights("w.weights.h5")
    with h5py.File("w.weights.h5") as file:
        for group, key, variable in keras_private.saving_walk(made).entries:
            np.testing.assert_array_equal(file[f"{group}/vars/{key}"][()], value(variable))
            assert (
                file[f"{group}/vars"].attrs["name"] == keras_private.saving_walk(made).owners[group]
            )


def test_the_saving_walk_makes_no_layer_for_each_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stock Keras does, as it looks for what it kept under another name."""
    made, created = [keras.layers.Dense(2) for _ in range(9)], []
    small, large = (keras.Sequential([keras.Input((2,)), *made[:n]]) for n in (1, 9))
    init = keras.layers.Layer.__init__

    def counted(layer: keras.layers.Layer, *arguments: Any, **options: Any) -> None:
        created.append(layer)
        init(layer, *arguments, **options)

    monkeypatch.setattr(keras.layers.Layer, "__init__", counted)
    for model in (small, large):
        keras_private.saving_walk(model)
    once = len(created)
    keras_private.saving_walk(large)
    assert len(created) == once


class Odd(keras.Model):
    """Has lists, dictionaries, lists in them, properties and failing ones, and shared layers."""

    of_the_class = keras.layers.Dense(4)

    def __init__(self) -> None:
        super().__init__(name="odd")
        self._last = keras.layers.Dense(2)
        self.several = {"b": keras.layers.Dense(2), "a": [keras.layers.Dense(3), self._last]}
        self.known_and_new = [self._last, 3, (self._last,), keras.layers.Dense(5)]
        self.known = [self._last, "x"]
        self.a_model = model()
        self.later = self.a_model.layers

    @property
    def again(self) -> Any:
        return self._last

    @property
    def failing(self) -> Any:
        raise RuntimeError("not yet")


def all_kinds() -> list[keras.Model]:
    odd, sequential = Odd(), keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)])
    odd.compile("adam", "mse", metrics=["mae"])
    sequential.compile("adam", "mse", metrics=["mae"])
    sequential.extra = keras.layers.Dense(3)
    return [odd, model(), sequential]


def test_the_saving_walk_lists_the_attributes_that_keras_lists() -> None:
    for each in all_kinds():
        attributes = saving._Attributes()
        for layer in [*keras_private.all_layers(each), *keras_private.all_layers(each)]:
            ours, theirs = attributes(layer), saving_lib._walk_saveable(layer)
            for (name, ours_is), (expected, same) in zip(ours, theirs, strict=True):
                assert name == expected
                assert ours_is is same or not isinstance(same, keras.layers.Layer)


def test_the_saving_walk_visits_what_keras_visits() -> None:
    """In its order, which numbers the groups."""
    for each in all_kinds():
        store = saving._RecordingStore()
        visited = saving._Visited(store, {id(getattr(each, "optimizer", None))})
        saving_lib._save_state(each, store, None, inner_path="", visited_saveables=visited)
        theirs, ours = store.walk, keras_private.saving_walk(each)
        assert [*ours.owners.items()] == [*theirs.owners.items()]
        assert [(e.group, e.key, id(e.value)) for e in ours.entries] == [
            (e.group, e.key, id(e.value)) for e in theirs.entries
        ]
        assert ours.groups == theirs.groups
        assert len(ours.groups) >= 2


def test_the_saving_walk_sees_attributes_that_come_later() -> None:
    odd = Odd()
    before = keras_private.saving_walk(odd).groups
    odd.new = keras.layers.Dense(2)
    Odd.new_of_the_class = keras.layers.Dense(2)
    try:
        new = keras_private.saving_walk(odd).groups.keys() - before.keys()
        assert new == {id(odd.new), id(Odd.new_of_the_class)}
    finally:
        del Odd.new_of_the_class


def test_the_saving_walk_leaves_the_optimizer_out() -> None:
    made = model()
    made.compile("adam", "mse")
    made.optimizer.build(made.trainable_variables)
    assert not [e for e in keras_private.saving_walk(made).entries if "optimizer" in e.group]


def of(*numbers: float) -> Any:
    return keras.ops.convert_to_tensor(np.array(numbers, "float32"))


def test_an_optimizer_hands_over_unscaled_gradients_of_each_batch_and_then_counts() -> None:
    optimizer = keras.optimizers.SGD(1.0, loss_scale_factor=4.0, gradient_accumulation_steps=2)
    variable, without = (keras.Variable([0.0, 0.0], name=name) for name in "vw")
    optimizer.build([variable, without])
    seen: list[Any] = []

    def apply_batch(gradients: Any, variables: Any) -> None:
        assert [id(v) for v in variables] == [id(variable)]
        seen.append(value_of(gradients[0]))
        sums = keras_private.accumulators(optimizer, variables)
        keras_private.accumulate(optimizer, list(gradients), sums)

    def value_of(tensor: Any) -> Any:
        return keras.ops.convert_to_numpy(tensor)

    for gradient in ((4.0, 8.0), (12.0, 8.0)):
        with (
            pytest.warns(UserWarning, match="Gradients do not exist for variables"),
            keras_private.applying(optimizer, apply_batch),
        ):
            optimizer.apply([of(*gradient), None], [variable, without])
    np.testing.assert_array_equal(seen, [[1.0, 2.0], [3.0, 2.0]])
    np.testing.assert_array_equal(
        value(keras_private.accumulators(optimizer, [variable])[0]), [4, 4]
    )
    assert value(keras_private.batch_count(optimizer)) == 2
    assert value(variable).tolist() == [0, 0]


def test_a_step_clips_decays_and_steps_and_averages_follow() -> None:
    optimizer = keras.optimizers.SGD(
        0.5, clipvalue=1.0, weight_decay=0.1, use_ema=True, ema_momentum=0.5
    )
    variable = keras.Variable([2.0, 4.0], name="v")
    optimizer.build([variable])
    assert [id(v) for v in keras_private.trained_by(optimizer)] == [id(variable)]
    ((name, average, weight),) = keras_private.slots(optimizer)
    assert name == "_model_variables_moving_average"
    assert weight is variable
    keras_private.step(optimizer, [of(9.0, 0.0)], [variable])
    np.testing.assert_allclose(value(variable), [2 * 0.95 - 0.5, 4 * 0.95], rtol=1e-6)
    keras_private.update_averages(optimizer)
    np.testing.assert_allclose(value(average), value(variable), rtol=1e-6)
    average.assign([7.0, 7.0])
    keras_private.overwrite_with_averages(optimizer)
    assert value(variable).tolist() == [7, 7]


@pytest.mark.backends("tensorflow")
def test_an_optimizer_takes_gradients_as_reduced_when_told_so() -> None:
    optimizer, variable = keras.optimizers.SGD(1.0), keras.Variable([0.0], name="v")
    optimizer.build([variable])
    with backend().without_reduction(optimizer):
        assert "_all_reduce_sum_gradients" in vars(optimizer)
        keras_private.step(optimizer, [of(1.0)], [variable])
    assert "_all_reduce_sum_gradients" not in vars(optimizer)
    assert value(variable).tolist() == [-1]


def test_the_seeds_of_a_model_are_found_by_name() -> None:
    inputs = keras.Input((3,))
    drop = keras.layers.Dropout(0.5, seed=1)
    (seed,) = keras_private.seeds(keras.Model(inputs, keras.layers.Dense(2)(drop(inputs))))
    assert seed is drop.seed_generator.state


def test_layers_know_their_losses_by_id_until_they_forget_them() -> None:
    """Which a freed tensor leaves to a new one: `stateless_call` alone would then lose its loss."""
    inputs = keras.Input((3,))
    model = keras.Model(inputs, keras.layers.Dense(2, activity_regularizer="l2")(inputs))
    state = [v.value for v in model.trainable_variables], [v.value for v in model.weights[2:]]
    _, _, losses = model.stateless_call(*state, np.ones((1, 3), "float32"), return_losses=True)
    assert len(losses) == 1
    assert model.layers[1]._loss_ids
    keras_private.forget_losses(model)
    assert not model.layers[1]._loss_ids


def test_a_kernel_with_lora_is_computed_and_its_variable_kept_apart() -> None:
    layer = keras.layers.Dense(2)
    layer.build((None, 3))
    plain = layer.kernel
    assert keras_private.kernel_of(layer) is plain
    layer.enable_lora(1)
    assert layer.kernel is not plain
    assert keras_private.kernel_of(layer) is plain


def test_layers_of_a_functional_model_know_where_their_inputs_come_from() -> None:
    inputs = keras.Input((3,))
    first, second, both = keras.layers.Dense(2), keras.layers.ReLU(), keras.layers.Add()
    keras.Model(inputs, both([second(first(inputs)), first(inputs)]))
    assert keras_private.operation_before(second) is first
    assert isinstance(keras_private.operation_before(first), keras.layers.InputLayer)
    assert keras_private.operation_before(both) is second
    assert keras_private.operation_before(keras_private.operation_before(first)) is None
    assert keras_private.operation_before(keras.layers.Dense(2)) is None
    model = keras.Sequential([keras.Input((3,)), keras.layers.ReLU(), keras.layers.Dense(2)])
    assert keras_private.operation_before(model.layers[1]) is model.layers[0]
    outside = keras.layers.ReLU()
    keras.Model(inputs, outside(model(inputs)))
    assert keras_private.operation_before(outside) is model.layers[1]


def test_a_model_tells_whether_its_layers_are_built() -> None:
    lazy = keras.Sequential([keras.layers.Dense(2, name="a")])
    assert not all(layer.built for layer in lazy._flatten_layers())
    lazy(np.ones((1, 3)))
    assert all(layer.built for layer in lazy._flatten_layers())


@pytest.mark.backends("tensorflow")
def test_symbolic_build_makes_variables_losses_and_metrics_from_specs_alone() -> None:
    lazy = keras.Sequential([keras.layers.Dense(2, name="a")])
    lazy.compile("adam", "mse", metrics=["mae"])
    import tensorflow as tf

    spec = tf.TensorSpec((None, 3)), tf.TensorSpec((None, 2)), None
    lazy._symbolic_build(data_batch=spec)
    assert [tuple(v.shape) for v in lazy.weights] == [(3, 2), (2,)]
    assert lazy.optimizer.built
    assert lazy._compile_metrics.built


@pytest.mark.backends("tensorflow")
def test_fit_asks_for_an_early_build_and_for_the_train_function_before_train_begin() -> None:
    events: list[str] = []

    class Spied(keras.Sequential):
        def _maybe_symbolic_build(self, iterator: Any = None, data_batch: Any = None) -> None:
            spec = iterator._distributed_dataset.element_spec
            assert [tuple(leaf.shape) for leaf in keras.tree.flatten(spec)] == [
                (None, 3),
                (None, 2),
            ]
            events.append("build")

        def make_train_function(self, force: bool = False) -> Any:
            events.append("function")
            return super().make_train_function(force)

    class Begin(keras.callbacks.Callback):
        def on_train_begin(self, logs: Any = None) -> None:
            events.append("begin")

    spied = Spied([keras.layers.Dense(2)])
    spied.compile("sgd", "mse")
    spied.fit(np.ones((4, 3)), np.ones((4, 2)), verbose=0, callbacks=[Begin()])
    assert events[:3] == ["build", "function", "begin"]


def test_fit_takes_the_logs_of_an_epoch_from_this_method() -> None:
    class Spied(keras.Sequential):
        def _get_metrics_result_or_logs(self, logs: Any) -> Any:
            return {**super()._get_metrics_result_or_logs(logs), "own": 1.0}

    spied = Spied([keras.layers.Dense(2)])
    spied.compile("sgd", "mse")
    assert spied.fit(np.ones((4, 3)), np.ones((4, 2)), verbose=0).history["own"] == [1.0]


@pytest.mark.backends("tensorflow")
def test_a_model_knows_the_strategy_that_it_was_made_under() -> None:
    assert model()._distribute_strategy is None
    strategy = two_replicas()
    with strategy.scope():
        made = model()
    assert made._distribute_strategy is strategy
    with backend().scope_of(made):
        variable = keras.Variable([1.0], name="v")
    assert len(variable.value.values) == 2


def test_stateless_scope_gets_every_assignment_and_the_losses() -> None:
    variable = keras.Variable(1.0)

    class Assigns(keras.layers.Layer):
        def call(self, x: Any) -> Any:
            variable.assign(variable + 1.0)
            variable.assign(variable * 3.0)
            self.add_loss(keras.ops.sum(x))
            return x

    calls = []

    class Scope(keras.StatelessScope):
        def add_update(self, update: Any) -> None:
            calls.append(float(keras.ops.convert_to_numpy(update[1])))
            super().add_update(update)

    layer = Assigns()
    with Scope([(variable, variable.value)], collect_losses=True) as scope:
        layer(np.ones(2))
        assert float(keras.ops.convert_to_numpy(layer.losses[0])) == 2.0
    assert calls == [2.0, 6.0]
    assert float(keras.ops.convert_to_numpy(scope.get_current_value(variable))) == 6.0
    assert float(keras.ops.convert_to_numpy(variable.value)) == 1.0


@pytest.mark.parametrize("name", ["_call_has_training_arg", "_compute_loss", "_loss_tracker"])
def test_the_training_step_finds_what_stock_uses(name: str) -> None:
    made = model()
    made.compile("sgd", "mse")
    assert hasattr(made, name)


def test_an_untested_keras_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    keras_private.warn_if_untested()  # this one is tested: a warning would be an error
    monkeypatch.setattr(keras, "__version__", "4.0.1")
    with pytest.warns(UserWarning, match=r"tested with Keras 3.12 to 3.15; this is Keras 4.0.1"):
        keras_private.warn_if_untested()


class Listener:
    """Notes what `EpochData` tells."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return lambda: self.told.append(name)


def follow(model: Any, skip: int = 0, **options: Any) -> tuple[Any, list[str], list[int]]:
    """Fits with the data followed: what is known of them, what was told, and the batches begun."""

    listener, begun, followed = Listener(), [], []

    class Followed(type(model)):  # type: ignore[misc]
        def _symbolic_build(self, iterator: Any = None, data_batch: Any = None) -> None:
            self._seen(iterator)
            super()._symbolic_build(iterator, data_batch)

        def _maybe_symbolic_build(self, iterator: Any = None, data_batch: Any = None) -> None:
            self._seen(iterator)
            super()._maybe_symbolic_build(iterator, data_batch)

        def _seen(self, iterator: Any) -> None:
            if iterator is not None and not followed:
                followed.append(keras_private.EpochData(iterator, listener, backend()))

    class Begun(keras.callbacks.Callback):
        def on_train_begin(self, logs: Any = None) -> None:
            listener.told.clear()
            followed[0].skip(skip)

        def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
            begun.append(batch)

    model.__class__ = Followed
    model.compile("sgd", "mse")
    x, y = np.ones((10, 3), "float32"), np.ones((10, 2), "float32")
    model.fit(x, y, batch_size=2, verbose=0, shuffle=False, callbacks=[Begun()], **options)
    return followed[0], listener.told, begun


def test_fit_hands_its_data_to_the_symbolic_build_and_iterates_over_them_by_these_methods() -> None:
    data, told, begun = follow(model(), epochs=2)
    assert data.kind == "ArrayDataAdapter"
    assert begun == [0, 1, 2, 3, 4] * 2
    assert [t for t in told if t != "skipped"][:3] == ["epoch_begins", "pass_made", "pass_used"]
    assert told.count("pass_used") == 2
    assert data.trained == 5


def test_batches_that_are_skipped_are_taken_and_not_told_to_callbacks() -> None:
    data, _, begun = follow(model(), skip=3, epochs=2)
    assert begun == [3, 4, 0, 1, 2, 3, 4]
    assert data.trained == 5


def test_adapters_of_data_know_the_size_of_a_batch() -> None:
    assert follow(model())[0].batch_size == 2


def test_with_steps_per_epoch_a_pass_continues_and_is_counted() -> None:
    data, told, begun = follow(model(), epochs=2, steps_per_epoch=2)
    assert begun == [0, 1, 0, 1]
    assert told.count("pass_used") == 1
    assert data.continues_pass(within=False)
    assert data.taken(within=False, announced=False) == 4


def test_fit_begins_with_the_epoch_it_is_told() -> None:
    made, begun = model(), []

    class Begin(keras.callbacks.Callback):
        def on_train_begin(self, logs: Any = None) -> None:
            keras_private.start_at_epoch(made, 2)

        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            begun.append(epoch)

    made.compile("sgd", "mse")
    x, y = np.ones((4, 3), "float32"), np.ones((4, 2), "float32")
    made.fit(x, y, epochs=4, verbose=0, callbacks=[Begin()])
    assert begun == [2, 3]
    keras_private.start_at_epoch(made, None)
    made.fit(x, y, epochs=1, verbose=0)
    assert made.history.epoch == [0]


def test_the_global_seed_is_that_which_random_numbers_without_one_advance() -> None:
    assert keras_private.random_seed() == 7  # of the fixture
    first = keras.random.normal((2,))
    seed = keras_private.global_seed()
    assert seed is not None
    before = value(seed)
    keras.random.normal((2,))
    assert not np.array_equal(before, value(seed))
    keras.utils.set_random_seed(7)
    assert keras_private.global_seed() is None
    np.testing.assert_array_equal(
        keras.ops.convert_to_numpy(keras.random.normal((2,))), keras.ops.convert_to_numpy(first)
    )


def test_metrics_are_built_from_shapes_alone() -> None:
    made = model()
    made.compile("sgd", "mse", metrics=["mae"])
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        batch: Any = tf.TensorSpec((None, 3)), tf.TensorSpec((None, 2)), None
    else:
        batch = np.ones((1, 3), "float32"), np.ones((1, 2), "float32"), None
    count = len(made.metrics_variables)
    keras_private.build_metrics(made, batch)
    assert len(made.metrics_variables) > count


def test_a_layer_saves_its_own_variables_in_this_order() -> None:
    layer = keras.layers.BatchNormalization()
    layer.build((None, 3))
    names = [v.name for v in keras_private.own_variables(layer)]
    assert names == ["gamma", "beta", "moving_mean", "moving_variance"]


def test_the_saving_walk_makes_a_layers_group_right_before_it_remembers_the_layer() -> None:
    inner = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)], name="inner")
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(3), inner])
    groups = keras_private.saving_walk(model).groups
    assert groups[id(model)] == ""
    assert groups[id(model.layers[0])] == "layers/dense"
    assert groups[id(inner)] == "layers/sequential"
    assert groups[id(inner.layers[0])] == "layers/sequential/layers/dense"


def test_lookup_layers_tell_their_vocabulary_and_the_layers_after_them() -> None:
    inputs = keras.Input((), dtype="string")
    text = keras.layers.TextVectorization(
        vocabulary=["a", "b"], idf_weights=[1.0, 2.0], output_mode="tf_idf"
    )
    dense = keras.layers.Dense(2)
    inner_inputs = keras.Input((3,))
    inner = keras.Model(inner_inputs, dense(inner_inputs))
    model = keras.Model(inputs, inner(keras.layers.Activation("relu")(text(inputs))))
    assert keras_private.vocabulary_layers(model) == [text]
    assert keras_private.vocabulary_of(text) == ("[UNK]", "a", "b")
    np.testing.assert_allclose(keras_private.idf_of(text), [1.5, 1.0, 2.0])
    assert keras_private.first_variables_after(text) == [dense]
    assert keras_private.first_variables_after(keras.layers.StringLookup(vocabulary=["a"])) is None
    assert keras_private.vocabulary_of(keras.layers.StringLookup()) == ()
    assert keras_private.idf_of(keras.layers.StringLookup(vocabulary=["a"])) is None


def test_clones_of_sequential_and_functional_models_are_made_where_the_mixin_looks() -> None:
    """`keep_in_clones` stands around these two functions; without it they forget the class."""
    from keras.src.models import cloning

    assert kt.TrainOpsMixin  # importing it wraps both functions

    class Stack(keras.Sequential):
        pass

    class OfInputs(keras.Model):
        def __init__(self, units: int) -> None:
            inputs = keras.Input((3,))
            super().__init__(inputs, keras.layers.Dense(units)(inputs))

    stack = Stack([keras.Input((3,)), keras.layers.Dense(2)])
    for made, function in ((stack, "sequential"), (OfInputs(2), "functional")):
        assert hasattr(getattr(cloning, f"_clone_{function}_model"), "__wrapped__")
        made.compile("sgd", "mse")
        clone = keras.models.clone_model(made)
        assert type(clone) is not type(made)
        assert clone.compiled


def test_optimizers_inside_others_are_found_with_their_sums_of_gradients() -> None:
    inner = keras.optimizers.SGD(gradient_accumulation_steps=2)
    outer = keras.optimizers.LossScaleOptimizer(inner)
    outer.build([keras.Variable([1.0], name="v")])
    assert keras_private.innermost(outer) is inner
    assert keras_private.all_of(outer) == [outer, inner]
    assert [tuple(v.shape) for v in keras_private.gradient_sums(outer)] == [(1,)]
    assert keras_private.gradient_sums(None) == []
    assert not keras_private.is_multi(outer)


def test_the_class_of_functional_models_is_known() -> None:
    assert keras_private.is_functional(type(model()))
    assert not keras_private.is_functional(keras.Sequential)
    assert not keras_private.is_functional(keras.Model)


def test_an_optimizer_wrapper_tracks_what_it_is_given_as_its_own() -> None:
    variable = keras.Variable([1.0], name="v")
    wrapper = keras_private.OptimizerWrapper(keras.optimizers.Adam(0.1), "wrapper")
    wrapper.track([variable])
    assert [id(v) for v in wrapper.own_variables()] == [id(variable)]


def test_an_optimizer_wrapper_has_nothing_of_its_own_but_its_name() -> None:

    inner = keras.optimizers.Adam(0.1)
    inner.build([keras.Variable([1.0], name="v")])
    front = keras_private.OptimizerWrapper(inner, "front")
    own = {name for name in vars(front) if not name.startswith("_self_")}
    assert own == {"_lock", "name", "built", "_variables", "_tracker", "inner_optimizer"}
    assert front._iterations is inner._iterations
    assert front._trainable_variables is inner._trainable_variables


def test_an_unbuilt_copy_is_built_for_others_and_has_no_variable_of_the_first() -> None:

    first, second = (keras.Variable([1.0], name=name) for name in "ab")
    old = keras.optimizers.Adam(0.1)
    old.build([first])
    new = keras_private.unbuilt(old)
    assert not new.built
    new.build([first, second])
    keras_private.take_over(new, old)
    assert [v.name for v in keras_private.optimizer_variables(new)][:2] == [
        "iteration",
        "learning_rate",
    ]
    assert len(keras_private.optimizer_variables(new)) == 2 + 2 * 2
    assert not {id(v) for v in keras_private.optimizer_variables(new)} & {
        id(v) for v in keras_private.optimizer_variables(old)
    }
    new.learning_rate = 0.5
    assert value(old.learning_rate) == np.float32(0.1)


def test_what_is_excluded_from_weight_decay_is_read_back() -> None:

    first, second = (keras.Variable([1.0], name=name) for name in "ab")
    optimizer = keras.optimizers.SGD(weight_decay=0.1)
    optimizer.exclude_from_weight_decay([second], ["bias"])
    assert keras_private.excluded_from_decay(optimizer, [first, second]) == ([1], "bias", False)
    assert keras_private.excluded_from_decay(optimizer, [first]) == ([], "bias", True)


@pytest.mark.backends("tensorflow")
def test_a_dataset_that_shuffles_without_a_seed_has_seeds_of_zero() -> None:
    import tensorflow as tf

    numbers = tf.data.Dataset.range(8)
    keras.src.backend.common.global_state.set_global_attribute("global_random_seed", None)
    tf.random.set_seed(None)
    assert keras_private.has_unseeded_shuffle(numbers.shuffle(8).map(lambda x: x).batch(2))
    assert not keras_private.has_unseeded_shuffle(numbers.shuffle(8, seed=1).batch(2))
    assert not keras_private.has_unseeded_shuffle(numbers.batch(2))


def test_a_constant_copy_of_a_tensor_keeps_its_mask() -> None:
    masked = keras.layers.Masking()(np.array([[[1.0], [0.0]]], "float32"))
    stopped = keras_private.stop_gradient(masked)
    loss = keras.losses.MeanAbsoluteError()
    assert float(loss(np.full((1, 2, 1), 3.0, "float32"), stopped)) == 2.0  # of the first


def test_a_scope_of_values_falls_back_to_the_scope_around_it_and_then_to_the_variable() -> None:
    own, outer, inner = [keras.Variable(float(i), name=f"v{i}") for i in range(3)]

    def read() -> list[float]:
        tensors = [keras.ops.convert_to_tensor(v) for v in (own, outer, inner)]
        return [float(keras.ops.convert_to_numpy(tensor)) for tensor in tensors]

    around = keras.StatelessScope([(outer, keras.ops.convert_to_tensor(10.0))])
    with around, keras_private.ValueScope([(inner, keras.ops.convert_to_tensor(20.0))]) as scope:
        assert read() == [0.0, 10.0, 20.0]
        own.assign(5.0)
        assert read() == [5.0, 10.0, 20.0]
        with scope.left():
            assert keras_private.current_scope() is around
            assert read() == [0.0, 10.0, 2.0]
        (assigned,) = scope.take_assigned()
        assert (assigned.variable is own, assigned.by_layer) == (True, False)
        assert read() == [0.0, 10.0, 20.0]
    assert read() == [0.0, 1.0, 2.0]


def test_a_scope_knows_whether_a_layer_assigned_while_it_was_called() -> None:
    made, by_hand = model(), keras.Variable(0.0)
    with keras_private.ValueScope() as scope:
        made(np.ones((2, 3), "float32"), training=True)
        by_hand.assign(1.0)
    found = {assigned.variable.name: assigned.by_layer for assigned in scope.assigned}
    assert found == {"moving_mean": True, "moving_variance": True, by_hand.name: False}


@pytest.mark.backends("tensorflow", "torch")  # JAX makes metrics before it traces
def test_variables_made_in_a_scope_are_initialised_when_it_is_left() -> None:
    loss = keras.metrics.Mean  # as the trackers of several losses are, in the first step
    made: list[Any] = []

    def build() -> None:
        with keras_private.ValueScope() as scope:
            made.append(loss())
            made[0].update_state(4.0)
            with scope.left():
                for assigned in scope.take_assigned():
                    assigned.variable.assign(assigned.value)

    build()
    assert float(keras.ops.convert_to_numpy(made[0].result())) == 4.0


@pytest.mark.backends("tensorflow")
def test_losses_are_those_of_one_replica_on_this_thread_alone() -> None:
    from keras.src.losses import loss as loss_module

    def mean_of_ones(replica: Any = None) -> Any:
        return keras.losses.MeanSquaredError()(np.ones((2, 1)), np.zeros((2, 1)))

    before = loss_module.scale_loss_for_distribution
    strategy = two_replicas()
    assert [float(each) for each in strategy.run(mean_of_ones).values] == [0.5, 0.5]

    def of_one_replica() -> Any:
        with keras_private.losses_of_one_replica():
            return mean_of_ones()

    assert [float(each) for each in strategy.run(of_one_replica).values] == [1.0, 1.0]
    assert loss_module.scale_loss_for_distribution is before


def test_shapes_alone_build_layers_and_assign_nothing() -> None:
    layer, seen = keras.layers.BatchNormalization(), []

    def forward(x: Any) -> Any:
        with keras_private.ValueScope():
            seen.append(tuple(x.shape)[1:])
            return layer(x, training=True)

    out = keras_private.output_shapes(forward, keras.KerasTensor((None, 3), "float32"))
    assert tuple(out.shape) == (None, 3)
    assert layer.built
    np.testing.assert_array_equal(value(layer.moving_mean), np.zeros(3))


@pytest.mark.backends("jax")
def test_a_variable_of_a_distribution_has_a_layout_that_another_one_can_take() -> None:
    devices = keras.distribution.list_devices()[:1]
    mesh = keras.distribution.DeviceMesh((1, 1), ("batch", "model"), devices)
    layouts = keras.distribution.LayoutMap(mesh)
    layouts["kernel"] = (None, "model")
    keras.distribution.set_distribution(
        keras.distribution.ModelParallel(layout_map=layouts, batch_dim_name="batch")
    )
    try:
        kernel = keras.Variable("zeros", (2, 2), name="kernel")
        other = keras.Variable("zeros", (2, 2), layout=keras_private.layout_of(kernel))
        plain = keras.Variable("zeros", (2, 2))
    finally:
        keras.distribution.set_distribution(None)
    layout = keras_private.layout_of(kernel)
    assert layout.axes == (None, "model")
    assert keras_private.layout_of(other) is layout
    assert keras_private.layout_of(plain).axes == (None, None)
    assert keras_private.layout_of(keras.Variable("zeros", (2, 2))) is None


def test_an_iterator_over_epochs_knows_the_sizes_of_its_data() -> None:
    from keras.src.trainers.epoch_iterator import EpochIterator

    iterator = EpochIterator(np.zeros((10, 2)), np.zeros(10), batch_size=4)
    assert keras_private.facts_of_data(iterator) == {
        "the batch size": 4,
        "the number of batches in an epoch": 3,
    }


def test_frozen_weights_are_not_among_those_that_layers_assign_themselves() -> None:
    inputs = keras.Input((2,))
    x = keras.layers.BatchNormalization(name="norm")(inputs)
    model = keras.Model(inputs, keras.layers.Dense(1, name="head")(x))
    model.trainable = False
    names = [v.path for v in keras_private.state_of_layers(model)]
    assert names == ["norm/moving_mean", "norm/moving_variance"]


def test_a_dataset_knows_the_texts_and_seeds_that_it_is_made_of() -> None:
    import tensorflow as tf

    texts = tf.data.Dataset.from_tensor_slices(["b", "a"]).shuffle(2, seed=3)
    found, ((_, seed),) = keras_private.order_of_dataset(texts.batch(2))  # the other is global
    assert (found, seed) == (["b", "a"], 3)
    lines = tf.data.TextLineDataset(["y", "x"]).shuffle(2)
    found, seeds = keras_private.order_of_dataset(lines)
    assert found == ["y", "x"]
    assert keras_private.has_unseeded_shuffle(lines) is ([0, 0] in seeds)
    records = tf.data.TFRecordDataset(["r", "q"]).map(lambda text: text)
    assert keras_private.order_of_dataset(records) == (["r", "q"], [])
    assert keras_private.order_of_dataset(tf.data.Dataset.range(3)) == ([], [])
