"""Private Keras API of optimizers: wrap an optimizer, copy it, or rebuild it for other variables.

`tests/test_keras_private.py` tests the behaviour that each use relies on.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import keras

from keras_trainops.keras_private import optimizer_steps

_BUILT_FOR = ("_trainable_variables", "_trainable_variables_indices")
# Private attributes that the wrapper exposes as its own.
_EXPOSED = (
    *_BUILT_FOR,
    *("_iterations", "_learning_rate", "_model_variables_moving_average"),
    *("_accumulated_gradients", "_distribution_strategy"),
)


class OptimizerShell(keras.optimizers.Optimizer):
    """An optimizer without hyperparameters and variables of its own, around others.

    Args:
        name: Its name.
    """

    built: bool

    def __init__(self, name: str | None) -> None:
        super().__init__(learning_rate=0.0, name=name)
        for attribute in [a for a in vars(self) if not a.startswith("_self_")]:
            if attribute not in ("_lock", "name", "built", "_variables", "_tracker"):
                delattr(self, attribute)
        _store(self, [])

    def set_trained(self, variables: Iterable[keras.Variable]) -> None:
        """Mark it as built for these variables."""
        with optimizer_steps.untracked():
            self._trainable_variables = list(variables)
        self.built = True


class OptimizerWrapper(OptimizerShell):
    """A wrapper around an optimizer that exposes the inner optimizer's attributes as its own.

    Only its name, `built` and the attributes of subclasses are its own. Everything else, such as
    the learning rate, the update count, slots and hyperparameters, is read from and written to the
    inner optimizer.
    """

    inner_optimizer: keras.optimizers.Optimizer

    def __init__(self, inner_optimizer: keras.optimizers.Optimizer, name: str | None) -> None:
        super().__init__(name)
        self.inner_optimizer = inner_optimizer

    def own_variables(self) -> list[keras.Variable]:
        """Return the variables that it tracks itself."""
        return list(self._variables)

    def track(self, variables: Iterable[keras.Variable]) -> None:
        """Track variables as its own."""
        for variable in variables:
            self._track_variable(variable)

    def __getattr__(self, name: str) -> Any:
        inner = self.__dict__.get("inner_optimizer")
        if inner is not None and (not name.startswith("_") or name in _EXPOSED):
            return getattr(inner, name)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __setattr__(self, name: str, value: Any) -> None:
        inner = self.__dict__.get("inner_optimizer")
        own = name.startswith("_") or name in self.__dict__ or hasattr(type(self), name)
        if inner is None or own or not hasattr(inner, name):
            super().__setattr__(name, value)
        else:
            setattr(inner, name, value)


def _store(optimizer: Any, variables: Iterable[keras.Variable]) -> None:
    """Make an optimizer track exactly these variables as its own."""
    vars(optimizer).pop("_tracker", None)
    optimizer._variables = []  # TensorFlow tracks appended variables
    optimizer._tracker = optimizer_steps.variable_tracker(optimizer._variables)
    for variable in variables:
        optimizer._track_variable(variable)


def _twin(optimizer: Any) -> Any:
    """Return a copy with the same attributes, but separate TensorFlow tracking."""
    twin = object.__new__(type(optimizer))
    for name, value in vars(optimizer).items():
        vars(twin)[name] = copy.copy(value) if name.startswith("_self_") else value
    if isinstance(vars(twin).get("build"), _BuildTogether):
        del vars(twin)["build"]
    return twin


class _BuildTogether:
    """`build` of a stand-in: builds the original, and takes over its attributes."""

    def __init__(self, original: Any, stand_in: Any) -> None:
        self.original, self._stand_in = original, stand_in

    def __call__(self, variables: Sequence[keras.Variable]) -> None:
        original, stand_in = self.original, self._stand_in
        if not original.built:
            original.build(variables)
        with optimizer_steps.untracked():
            for name, value in vars(original).items():
                other = name.startswith("_self_") or name in ("inner_optimizer", "build")
                if not other and vars(stand_in).get(name) is not value:
                    setattr(stand_in, name, value)
        stand_in.inner_optimizer.build(variables)


def with_another_inside(optimizer: Any, inner: keras.optimizers.Optimizer) -> Any:
    """Return a stand-in for a LossScaleOptimizer that wraps `inner` instead.

    It has the same class, attributes and variables, including those created when it is built.
    `optimizer` is not changed, except that its loss scale is shared.
    """
    built_with = vars(optimizer).get("build")
    original = built_with.original if isinstance(built_with, _BuildTogether) else optimizer
    stand_in = _twin(optimizer)
    stand_in.inner_optimizer = inner
    if not optimizer.built:
        vars(stand_in)["build"] = _BuildTogether(original, stand_in)
    return stand_in


def unbuilt(optimizer: Any) -> Any:
    """Return a copy of the optimizer, reset to its unbuilt state, with everything users have set.

    It is not recreated from `get_config`, which may be incomplete. `build` it for other variables,
    then call `take_over`.
    """
    new = _twin(optimizer)
    for name in [name for name in vars(new) if name.startswith("_self_")]:
        del vars(new)[name]  # TensorFlow tracks the copy from scratch
    for name, empty in (*zip(_BUILT_FOR, ([], {}), strict=True), ("built", False)):
        if name in vars(new):
            vars(new)[name] = empty
    _store(new, [])
    if "inner_optimizer" in vars(new):
        new.inner_optimizer = unbuilt(optimizer.inner_optimizer)
    if is_multi(optimizer):
        new._inner_optimizers = [unbuilt(part) for part in inside(optimizer)]
        vars(new)["build"] = _BuildByParts(optimizer, new)
    return new


class _BuildByParts:
    """`build` of a MultiOptimizer made from another: each variable keeps its part."""

    def __init__(self, old: Any, new: Any) -> None:
        self._old, self._new = old, new

    def __call__(self, variables: Sequence[keras.Variable]) -> None:
        old, new = self._old, self._new
        parts = {id(o): n for o, n in zip(inside(old), inside(new), strict=True)}
        places = getattr(old, "_var_to_optimizer_idx", {})

        def part_of(variable: keras.Variable) -> Any:
            place = places.get(old._var_key(variable))
            chosen = old._optimizer_map(variable) if place is None else inside(old)[place]
            return parts.get(id(chosen), chosen)

        del vars(new)["build"]
        new._optimizer_map = part_of
        try:
            new.build(variables)
        finally:
            new._optimizer_map = old._optimizer_map  # the one that files store


def take_over(new: Any, old: Any) -> None:
    """Give an optimizer made by `unbuilt` copies of the variables that `build` did not create.

    Args:
        new: The new optimizer, built.
        old: The optimizer that it was made from.
    """
    slots = {id(slot.variable) for slot in optimizer_steps.slots(old)}
    own = {id(v): v for v in old._variables if id(v) not in slots}
    copies = _Copies(own, old.name)
    with optimizer_steps.untracked():
        for name, value in list(vars(new).items()):
            if name in ("_variables", *_BUILT_FOR) or name.startswith("_self_"):
                continue
            if any(id(each) in own for each in _within(value)):
                setattr(new, name, copies.of(value))
    made = list(new._variables)
    _store(new, [*copies.made_in_order(), *made])


class _Copies:
    """Copies of variables, one for each however often it occurs.

    Args:
        own: The variables, by `id`.
        scope: The name scope of the copies.
    """

    def __init__(self, own: dict[int, keras.Variable], scope: str) -> None:
        self._own, self._scope = own, scope
        self._made: dict[int, keras.Variable] = {}

    def of(self, value: Any) -> Any:
        """Return a value, or a container of values, with copies in place of the variables."""
        if isinstance(value, dict):
            return {key: self.of(each) for key, each in value.items()}
        if isinstance(value, (list, tuple)) and not hasattr(value, "_fields"):
            return [self.of(each) for each in value]
        if id(value) in self._own and id(value) not in self._made:
            self._made[id(value)] = _copy_of(value, self._scope)
        return self._made.get(id(value), value)

    def made_in_order(self) -> list[keras.Variable]:
        """Return the copies made so far, in the order of the variables."""
        return [self._made[key] for key in self._own if key in self._made]


def _within(value: Any) -> Iterator[Any]:
    yield value
    if isinstance(value, (list, tuple, dict)):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _within(each)


def _copy_of(variable: keras.Variable, scope: str) -> keras.Variable:
    with keras.name_scope(scope):
        return keras.Variable(
            keras.ops.copy(keras.ops.convert_to_tensor(variable)),
            dtype=variable.dtype,
            trainable=variable.trainable,
            aggregation=variable.aggregation,
            name=variable.name,
            layout=layout_of(variable),
        )


def layout_of(variable: keras.Variable) -> Any:
    """Return how a distribution shards a variable over devices; None without a distribution."""
    return getattr(variable, "_layout", None)


def optimizer_variables(optimizer: Any) -> list[keras.Variable]:
    """Return the optimizer's own variables, without those of optimizers inside it."""
    return list(optimizer._variables)


def inside(optimizer: Any) -> list[Any]:
    """Return the optimizer that one wraps, or those that a group or a MultiOptimizer has."""
    inner = vars(optimizer).get("inner_optimizer")
    if inner is not None:
        return [inner]
    return list(getattr(optimizer, "optimizers", ()))


def named_optimizers(optimizer: Any) -> Mapping[str, Any]:
    """Return the optimizers of an `OptimizerGroup` by name; any other optimizer has the name ""."""
    alone = {} if optimizer is None else {"": optimizer}
    return getattr(optimizer, "by_name", alone)


def is_multi(optimizer: Any) -> bool:
    """Return whether an optimizer is a `MultiOptimizer`, whose parts see only their variables."""
    return isinstance(optimizer, getattr(keras.optimizers, "MultiOptimizer", ()))


def all_of(optimizer: Any) -> list[Any]:
    """Return an optimizer and all optimizers inside it."""
    return [optimizer, *itertools.chain(*map(all_of, inside(optimizer)))]


def innermost(optimizer: Any) -> Any:
    """Return the optimizer that updates the weights, inside those that scale or transform."""
    inner = getattr(optimizer, "inner_optimizer", None)
    return optimizer if inner is None else innermost(inner)


def gradient_sums(optimizer: Any) -> list[keras.Variable]:
    """Return the sums of gradients that an optimizer, or one inside it, keeps over batches."""
    everyone = [] if optimizer is None else all_of(optimizer)
    sums = (getattr(each, "_accumulated_gradients", ()) for each in everyone)
    return list(itertools.chain.from_iterable(sums))


@contextmanager
def shadowed(owner: Any, method: str, function: Callable[..., Any]) -> Iterator[None]:
    """Redirect calls of `owner.<method>` to `function`, on every thread.

    Args:
        owner: The object that has the method.
        method: Name of the method.
        function: Called with the same arguments.
    """
    attributes, missing = vars(owner), object()
    own = attributes.get(method, missing)
    attributes[method] = function
    try:
        yield
    finally:
        if own is missing:
            del attributes[method]
        else:
            attributes[method] = own


def excluded_from_decay(
    optimizer: Any, variables: Sequence[keras.Variable]
) -> tuple[list[int], str | None, bool]:
    """Return the variables that `exclude_from_weight_decay` excluded.

    Returns:
        Their positions among `variables`; the regular expression for names; and whether other
        variables are excluded too.
    """
    keys = set(getattr(optimizer, "_exclude_from_weight_decay", ()))
    pattern = getattr(optimizer, "_exclude_from_weight_decay_pattern", None)
    found = {i: optimizer._var_key(v) for i, v in enumerate(variables)}
    positions = [i for i, key in found.items() if key in keys]
    return positions, pattern and pattern.pattern, not keys <= set(found.values())


def track_apart(model: Any) -> None:
    """Make TensorFlow's checkpoints keep a model's optimizer under a name that nobody uses.

    `tf.train.Checkpoint(model, optimizer=...)` rejects an `optimizer` other than the one that the
    model tracks as `optimizer`. With another name it accepts both the user's optimizer and the
    wrapper.
    """
    if hasattr(model, "_delete_tracking"):
        model._delete_tracking("optimizer")
        model._track_trackable(model.optimizer, "transformed_optimizer", overwrite=True)
