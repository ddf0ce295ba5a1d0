"""Keras's private API of optimizers: what they keep, to stand in front of one and to make another.

`tests/test_keras_private.py` holds each use to the behaviour relied on here, as it does those in
`optimizer_steps.py`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import keras

from keras_trainops.keras_private import optimizer_steps

_BUILT_FOR = ("_trainable_variables", "_trainable_variables_indices")
# What an optimizer in front of another reads of it though its name is private.
_SHOWN = (
    *_BUILT_FOR,
    *("_iterations", "_learning_rate", "_model_variables_moving_average"),
    *("_accumulated_gradients", "_distribution_strategy"),
)


class InFront(keras.optimizers.Optimizer):
    """An optimizer in front of another that looks like it: what it has not itself, the other has.

    Its own are its name, whether it is built and what a subclass keeps; all the rest, the learning
    rate, the count of updates, slots and hyperparameters, is read and written there.
    """

    inner_optimizer: keras.optimizers.Optimizer
    built: bool

    def __init__(self, inner_optimizer: keras.optimizers.Optimizer, name: str | None) -> None:
        super().__init__(learning_rate=0.0, name=name)
        for attribute in [a for a in vars(self) if not a.startswith("_self_")]:
            if attribute not in ("_lock", "name", "built", "_variables", "_tracker"):
                delattr(self, attribute)
        _store(self, [])
        self.inner_optimizer = inner_optimizer

    def __getattr__(self, name: str) -> Any:
        inner = self.__dict__.get("inner_optimizer")
        if inner is not None and (not name.startswith("_") or name in _SHOWN):
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
    """Has an optimizer track these variables as its own, and no others."""
    vars(optimizer).pop("_tracker", None)
    optimizer._variables = []  # TensorFlow tracks what is appended
    optimizer._tracker = optimizer_steps.variable_tracker(optimizer._variables)
    for variable in variables:
        optimizer._track_variable(variable)


def _twin(optimizer: Any) -> Any:
    """Another object with the same attributes; what TensorFlow tracks in it is its own."""
    twin = object.__new__(type(optimizer))
    for name, value in vars(optimizer).items():
        vars(twin)[name] = copy.copy(value) if name.startswith("_self_") else value
    if isinstance(vars(twin).get("build"), _BuildTogether):
        del vars(twin)["build"]
    return twin


class _BuildTogether:
    """`build` of a stand-in: it builds whom it stands in for, and takes over what that keeps."""

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
    """What stands in for a LossScaleOptimizer, with another optimizer inside.

    It is of the same class and has the same attributes and variables, those it is built with too.
    `optimizer` stays as it is, and its loss scale moves as the other's does.
    """
    built_with = vars(optimizer).get("build")
    original = built_with.original if isinstance(built_with, _BuildTogether) else optimizer
    stand_in = _twin(optimizer)
    stand_in.inner_optimizer = inner
    if not optimizer.built:
        vars(stand_in)["build"] = _BuildTogether(original, stand_in)
    return stand_in


def unbuilt(optimizer: Any) -> Any:
    """The same optimizer as it was before it was built, with all that its user has set.

    Nothing is made from a configuration, which may not tell everything. `build` it for other
    variables, and then call `take_over`.
    """
    new = _twin(optimizer)
    for name in [name for name in vars(new) if name.startswith("_self_")]:
        del vars(new)[name]  # what TensorFlow tracks: it begins anew
    for name, empty in (*zip(_BUILT_FOR, ([], {}), strict=True), ("built", False)):
        if name in vars(new):
            vars(new)[name] = empty
    _store(new, [])
    if "inner_optimizer" in vars(new):
        new.inner_optimizer = unbuilt(optimizer.inner_optimizer)
    if isinstance(optimizer, getattr(keras.optimizers, "MultiOptimizer", ())):
        new._inner_optimizers = [unbuilt(part) for part in inside(optimizer)]
        vars(new)["build"] = _BuildByParts(optimizer, new)
    return new


class _BuildByParts:
    """`build` of a MultiOptimizer made of another: each variable goes to the part it was with."""

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
            new._optimizer_map = old._optimizer_map  # which is what a file keeps


def take_over(new: Any, old: Any) -> None:
    """Gives an optimizer of `unbuilt` copies of the variables that its `build` did not make."""
    slots = {id(v) for values in optimizer_steps.slot_lists(old).values() for v in values}
    own = {id(v): v for v in old._variables if id(v) not in slots}
    copies: dict[int, keras.Variable] = {}

    def copied(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: copied(each) for key, each in value.items()}
        if isinstance(value, (list, tuple)) and not hasattr(value, "_fields"):
            return [copied(each) for each in value]
        if id(value) in own and id(value) not in copies:
            copies[id(value)] = _copy_of(value, old.name)
        return copies.get(id(value), value)

    with optimizer_steps.untracked():
        for name, value in list(vars(new).items()):
            if name in ("_variables", *_BUILT_FOR) or name.startswith("_self_"):
                continue
            if any(id(each) in own for each in _within(value)):
                setattr(new, name, copied(value))
    made = list(new._variables)
    _store(new, [*(copies[key] for key in own if key in copies), *made])


def _within(value: Any) -> Iterator[Any]:
    yield value
    if isinstance(value, (list, tuple, dict)):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _within(each)


def _copy_of(variable: keras.Variable, scope: str) -> keras.Variable:
    with keras.name_scope(scope):
        return keras.Variable(
            keras.ops.convert_to_numpy(keras.ops.convert_to_tensor(variable)),
            dtype=variable.dtype,
            trainable=variable.trainable,
            aggregation=variable.aggregation,
            name=variable.name,
        )


def optimizer_variables(optimizer: Any) -> list[keras.Variable]:
    """The variables that the optimizer itself has, without those of others inside it."""
    return list(optimizer._variables)


def inside(optimizer: Any) -> list[Any]:
    """The optimizers that one consists of: what it wraps, or the parts of a MultiOptimizer."""
    inner = vars(optimizer).get("inner_optimizer")
    return list(getattr(optimizer, "optimizers", ())) if inner is None else [inner]


def all_of(optimizer: Any) -> list[Any]:
    """An optimizer and all inside it."""
    return [optimizer, *(each for part in inside(optimizer) for each in all_of(part))]


@contextmanager
def shadowed(optimizer: Any, method: str, function: Callable[..., Any]) -> Iterator[None]:
    """Within it, on every thread, calls of an optimizer's method reach `function`."""
    attributes, missing = vars(optimizer), object()
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
    """What `exclude_from_weight_decay` was told.

    Returns:
        The positions among `variables` of those excluded; the expression for names of others; and
        whether variables are excluded that are not among them.
    """
    keys = set(getattr(optimizer, "_exclude_from_weight_decay", ()))
    pattern = getattr(optimizer, "_exclude_from_weight_decay_pattern", None)
    found = {i: optimizer._var_key(v) for i, v in enumerate(variables)}
    positions = [i for i, key in found.items() if key in keys]
    return positions, pattern and pattern.pattern, not keys <= set(found.values())


def track_apart(model: Any) -> None:
    """Has TensorFlow's checkpoints keep a model's optimizer under a name that is free.

    `tf.train.Checkpoint(model, optimizer=...)` refuses any `optimizer` but the one that the model
    has under this name: so it takes the user's own as well as the one around it.
    """
    if hasattr(model, "_delete_tracking"):
        model._delete_tracking("optimizer")
        model._track_trackable(model.optimizer, "transformed_optimizer", overwrite=True)
