"""Every use of Keras's private API that is the same on all backends.

What only one backend needs stands in `training/steps/`. `tests/test_keras_private.py` holds each
use to the behaviour relied on here, so that a new Keras that changes one fails a test with a name.
"""

from __future__ import annotations

import functools
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple

import keras
from keras.src.backend.common import global_state
from keras.src.models import cloning
from keras.src.saving import saving_lib
from keras.src.trainers import data_adapters
from keras.src.utils import tracking

TESTED_KERAS = ((3, 12), (3, 15))


def warn_if_untested() -> None:
    """Says once, at import, when the installed Keras lies outside the tested range."""
    version = tuple(int(part) for part in keras.__version__.split(".")[:2])
    low, high = TESTED_KERAS
    if not low <= version <= high:
        tested = f"{low[0]}.{low[1]} to {high[0]}.{high[1]}"
        warnings.warn(
            f"keras_trainops is tested with Keras {tested}; this is Keras {keras.__version__}. It "
            "uses some of Keras's private API: run its tests before you rely on it.",
            stacklevel=3,
        )


def all_layers(model: keras.Model) -> list[keras.layers.Layer]:
    """The model and all layers in it, however deep."""
    return list(model._flatten_layers())


def own_variables(layer: keras.layers.Layer) -> list[keras.Variable]:
    """The weights that a layer made or was given itself, in the order in which it saves them."""
    return [*layer._trainable_variables, *layer._non_trainable_variables]


def unbuilt_layers(model: keras.Model) -> tuple[str, ...]:
    """The names of layers that will have variables but, never called, have none yet."""
    return tuple(
        layer.name
        for layer in all_layers(model)
        if not layer.built and type(layer).build is not keras.layers.Layer.build
    )


def forget_losses(model: keras.Model) -> None:
    """Has layers forget the losses of the step before, which a stateless call does not.

    Layers know their losses by `id`. One that is freed may have the `id` of a new one of another
    layer, which is then dropped.
    """
    model._clear_losses()


def kernel_of(layer: Any) -> keras.Variable:
    """The variable of a layer's kernel; with LoRA `layer.kernel` is computed from several."""
    return layer.kernel if isinstance(layer.kernel, keras.Variable) else layer._kernel


def seeds(model: keras.Model) -> list[keras.Variable]:
    """The states of the seed generators in a model's layers, which Keras's files leave out."""
    weights = {id(v) for v in model.weights}
    return [v for v in model.variables if id(v) not in weights and v.name == "seed_generator_state"]


def call_in_training(model: Any, x: Any) -> Any:
    """A forward pass as Keras's training step makes it."""
    return model(x, training=True) if model._call_has_training_arg else model(x)


def batches(data: Any, batch_size: int | None = None) -> Iterator[Any]:
    """The inputs of each batch of what `fit` takes, in order; of `(x, y)` the `x`."""
    if isinstance(data, tuple):
        data, *_ = data
    adapter = data_adapters.get_data_adapter(data, batch_size=batch_size)
    for batch in adapter.get_numpy_iterator():
        yield keras.utils.unpack_x_y_sample_weight(batch)[0]


def trained_by(optimizer: keras.optimizers.Optimizer) -> list[keras.Variable]:
    """The variables that a built optimizer was built for."""
    return list(optimizer._trainable_variables)


@contextmanager
def replaced(
    optimizer: keras.optimizers.Optimizer, method: str, replacement: Callable[..., Any]
) -> Iterator[None]:
    """Within it, and on this thread, calls of an optimizer's method reach `replacement`.

    On the thread: the replicas of a strategy are traced in turns, each by a thread of its own.
    Outside of it the optimizer is as Keras made it, whoever uses it.
    """
    stand_in = optimizer.__dict__.get(method)
    if stand_in is None:
        stand_in = optimizer.__dict__[method] = _StandIn(getattr(optimizer, method))
    mine = (threading.get_ident(), replacement)
    stand_in.replacements.append(mine)
    try:
        yield
    finally:
        stand_in.replacements.remove(mine)
        if not stand_in.replacements:
            optimizer.__dict__.pop(method, None)


class _StandIn:
    """A method of one object, which threads have replaced for themselves for a while."""

    def __init__(self, own: Callable[..., Any]) -> None:
        self._own = own
        self.replacements: list[tuple[int, Callable[..., Any]]] = []

    def __call__(self, *args: Any) -> Any:
        this = threading.get_ident()
        mine = [function for thread, function in self.replacements if thread == this]
        return (mine[-1] if mine else self._own)(*args)


def applying(
    optimizer: keras.optimizers.Optimizer, apply_batch: Callable[..., None]
) -> AbstractContextManager[None]:
    """Has `apply_batch(gradients, variables)` do what `optimizer` does with unscaled gradients.

    What is left to Keras's `apply` before it: to drop variables without a gradient, and unscaling;
    and after it: constraints, and counting.
    """
    return replaced(optimizer, "_backend_apply_gradients", apply_batch)


def batch_count(optimizer: keras.optimizers.Optimizer) -> keras.Variable:
    """The count of batches; with accumulation `iterations`, of weight updates, is a part of it."""
    return optimizer._iterations


def accumulators(
    optimizer: keras.optimizers.Optimizer, variables: Iterable[keras.Variable]
) -> list[keras.Variable]:
    """The sums of gradients of an optimizer that accumulates, for these of its variables."""
    return [optimizer._accumulated_gradients[optimizer._get_variable_index(v)] for v in variables]


def gradient_sums(optimizer: Any) -> list[keras.Variable]:
    """The sums of gradients that an optimizer, or one inside it, adds up over batches."""
    inside = [getattr(optimizer, "inner_optimizer", None), *getattr(optimizer, "optimizers", ())]
    sums = list(getattr(optimizer, "_accumulated_gradients", ()))
    return [*sums, *(v for part in inside if part is not None for v in gradient_sums(part))]


def accumulate(
    optimizer: keras.optimizers.Optimizer, gradients: list[Any], sums: list[keras.Variable]
) -> None:
    """Adds one batch's gradients to the sums."""
    optimizer._backend_increment_gradient_accumulators(gradients, sums)


def step(
    optimizer: keras.optimizers.Optimizer, gradients: list[Any], variables: list[keras.Variable]
) -> None:
    """One weight update as the optimizer makes it: its own clip, weight decay, the step."""
    clipped = optimizer._clip_gradients(gradients)
    optimizer._apply_weight_decay(variables)
    optimizer._backend_update_step(clipped, variables, optimizer.learning_rate)


def update_averages(optimizer: keras.optimizers.Optimizer) -> None:
    """What `use_ema` does in every batch."""
    optimizer._update_model_variables_moving_average(optimizer._trainable_variables)


def overwrite_with_averages(optimizer: keras.optimizers.Optimizer) -> None:
    """What `ema_overwrite_frequency` does every so many weight updates."""
    optimizer._overwrite_model_variables_with_average_value(optimizer._trainable_variables)


def track_loss(model: Any, loss: Any, batch_size: Any) -> None:
    """Adds a batch's loss to the mean that the logs hold."""
    model._loss_tracker.update_state(loss, sample_weight=batch_size)


def slot_lists(optimizer: keras.optimizers.Optimizer) -> dict[str, list[Any]]:
    """What a built optimizer keeps per variable, by the name of the attribute."""
    count = len(trained_by(optimizer))
    return {
        name: list(value)
        for name, value in vars(optimizer).items()
        if name not in ("_variables", "_trainable_variables")
        and isinstance(value, list)
        and len(value) == count
        and all(slot is None or isinstance(slot, keras.Variable) for slot in value)
        and any(slot is not None for slot in value)
    }


def serialized_function(function: Callable[..., Any]) -> Any:
    """A function as a saved configuration keeps it: by its registered name.

    Raises:
        ValueError: If it is not registered, so that no file with it could be loaded.
    """
    name = keras.saving.get_registered_name(function)
    own = str(getattr(function, "__module__", "")).startswith("keras.")
    if not own and keras.saving.get_registered_object(name) is not function:
        raise ValueError(
            f"The function {name!r} cannot be saved: a file keeps the name of a function, and this "
            "one is not registered. Register it, before saving and before loading, with "
            "`keras.saving.register_keras_serializable(package=...)(function)`, or save the "
            "weights alone with `save_weights`."
        )
    return keras.saving.serialize_keras_object(function)


class SavedEntry(NamedTuple):
    """One value that Keras's own saving walk stores for a model.

    Attributes:
        group: Where the weights file keeps its owner, as in `layers/dense_1`.
        key: The name inside the owner's `vars` group, as in `0`.
        value: What the owner stored: a `keras.Variable` for layers that save themselves the
            standard way.
    """

    group: str
    key: str
    value: Any


class SavingWalk(NamedTuple):
    """What Keras would write for a model, without writing it.

    Attributes:
        owners: The name of the layer that each group belongs to.
        entries: The values, in the order of the walk.
        groups: The group of each layer, by its `id`.
    """

    owners: dict[str, str]
    entries: list[SavedEntry]
    groups: dict[int, str]


class _RecordingStore(saving_lib.H5IOStore):
    """A weights store that keeps what it is given instead of writing it to a file."""

    def __init__(self) -> None:  # the base class would open a file
        self.walk = SavingWalk({}, [], {})
        self._group = ""
        self._keys: set[str] = set()

    def __bool__(self) -> bool:
        return True

    def make(self, path: str, metadata: dict[str, str] | None = None) -> _RecordingStore:
        self._group, self._keys = path, set()
        if metadata:
            self.walk.owners[path] = metadata["name"]
        return self

    def __setitem__(self, key: str, value: Any) -> None:
        self._keys.add(key)
        self.walk.entries.append(SavedEntry(self._group, key, value))

    def __len__(self) -> int:
        return len(self._keys)

    def keys(self) -> Iterator[str]:
        return iter(self._keys)

    def belongs_to(self, saveable: int) -> None:
        """Notes whose group was made last."""
        self.walk.groups.setdefault(saveable, self._group)


class _Visited(set[int]):
    """What the walk has been to: each layer is added right after its group was made."""

    def __init__(self, store: _RecordingStore, skipped: set[int]) -> None:
        super().__init__(skipped)
        self._store = store

    def add(self, saveable: int) -> None:
        super().add(saveable)
        self._store.belongs_to(saveable)


def saving_walk(model: keras.Model) -> SavingWalk:
    """Runs Keras's own saving walk over `model` and records where each variable would go.

    The optimizer is left out: its variables are no weights, and Keras copies each one.
    """
    for kind in {layer._obj_type() for layer in all_layers(model)}:
        # Keras looks for it here, but keeps it under another name, and so makes it for each layer.
        global_state.set_global_attribute(
            f"saving_attr_skiplist_{kind}", saving_lib.get_attr_skipset(kind)
        )
    store = _RecordingStore()
    visited = _Visited(store, {id(getattr(model, "optimizer", None))})
    saving_lib._save_state(model, store, None, inner_path="", visited_saveables=visited)
    return store.walk


def keep_in_clones(kind: Any, extend: Callable[[keras.Model], keras.Model]) -> None:
    """Has `keras.models.clone_model` extend the clone of a model of this kind.

    Keras makes the clone of any sequential model a `keras.Sequential`, and of a functional one with
    a constructor of its own a plain functional model. It asks nobody, and then compiles the clone
    as the model was compiled. Other models are cloned as before.
    """
    for name in ("_clone_sequential_model", "_clone_functional_model"):
        setattr(cloning, name, _extending(getattr(cloning, name), kind, extend))


def _extending(
    clone: Callable[..., Any], kind: Any, extend: Callable[[keras.Model], keras.Model]
) -> Callable[..., Any]:
    @functools.wraps(clone)
    def extending(model: Any, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(model, kind):
            return clone(model, *args, **kwargs)
        compiled, model.compiled = model.compiled, False
        try:
            cloned = extend(clone(model, *args, **kwargs))
        finally:
            model.compiled = compiled
        if compiled:
            cloned.compile_from_config(model.get_compile_config())
        return cloned

    return extending


def build_metrics(model: Any, data_batch: Any) -> None:
    """Creates the variables of losses and metrics, from the shapes of a batch alone."""
    model._symbolic_build(data_batch=data_batch)


def start_at_epoch(model: Any, epoch: int | None) -> None:
    """Has the `fit` that is about to begin its epochs begin with this one; None: with its own."""
    model._initial_epoch = epoch


def global_seed() -> keras.Variable | None:
    """The state of the seeds that `keras.random` takes where it is given none, if any were."""
    generator = global_state.get_global_attribute("global_seed_generator")
    return None if generator is None else generator.state


def random_seed() -> int | None:
    """What `keras.utils.set_random_seed` was given last."""
    return global_state.get_global_attribute("global_random_seed")


def variable_tracker(variables: list[keras.Variable]) -> Any:
    """What adds to the list each variable that becomes an attribute of an optimizer."""
    is_variable = lambda value: isinstance(value, keras.Variable)  # noqa: E731
    return tracking.Tracker({"variables": (is_variable, variables)})


def untracked() -> AbstractContextManager[None]:
    """Within it Keras does not track what becomes an attribute."""
    return tracking.DotNotTrackScope()
