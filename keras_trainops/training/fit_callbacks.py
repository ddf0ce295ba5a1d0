"""Callbacks that need access to the other callbacks of a `fit`, or to its data."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any, Protocol, runtime_checkable

import keras

from keras_trainops.arguments import misplaced
from keras_trainops.training.batch_callbacks import BatchCallbacks
from keras_trainops.training.call_arguments import CALLBACKS, EPOCHS, FIT_VERBOSE


@runtime_checkable
class FitWrapper(Protocol):
    """A callback that a model with the mixin gives access to the other callbacks of a `fit`."""

    def wrap_fit(self, model: Any, callbacks: list[Any]) -> AbstractContextManager[list[Any]]:
        """Surround the whole `fit`, even if it fails.

        Args:
            model: The model that `fit` trains.
            callbacks: All callbacks that `fit` was given.

        Returns:
            A context manager that returns the callbacks for `fit` to use.
        """
        ...


@runtime_checkable
class DataFollower(FitWrapper, Protocol):
    """A `FitWrapper` that also follows the data. Its callbacks surround all others."""

    def follow_data(self, iterator: Any) -> None:
        """Receive Keras's iterator over epochs, before anything is taken from it."""


@contextmanager
def wrapped_fit(
    model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
    """Let wrappers among the callbacks of a `fit` arrange its callbacks.

    Args:
        model: A model with the mixin.
        args: The positional arguments of `fit`.
        kwargs: The other arguments of `fit`.

    Yields:
        The arguments to call `fit` with.

    Raises:
        ValueError: If something is not a callback, or there are several wrappers of one kind.
    """
    given = CALLBACKS.of(args, kwargs)
    users_list = given if isinstance(given, keras.callbacks.CallbackList) else None
    own = keras.tree.flatten(given or []) if users_list is None else users_list.callbacks
    callbacks = list(own)
    _require_callbacks(callbacks)
    wrappers, follower = _wrappers(callbacks)
    model.train_ops.fit.facts["`UseAverage` and `TrainingSession` among the callbacks"] = [
        type(wrapper).__name__ for wrapper in wrappers
    ]
    with ExitStack() as stack:
        arranged = callbacks
        for wrapper in wrappers:
            arranged = stack.enter_context(wrapper.wrap_fit(model, arranged))
        if users_list is not None and wrappers:
            stack.enter_context(_listed(users_list, arranged, model))
        model.train_ops.fit.follow_data = None if follower is None else follower.follow_data
        new = users_list
        if users_list is None:
            verbose, epochs = FIT_VERBOSE.of(args, kwargs), EPOCHS.of(args, kwargs)
            new = BatchCallbacks(arranged, model, verbose, epochs)
        yield CALLBACKS.replaced(args, kwargs, new)


def _require_callbacks(callbacks: Sequence[Any]) -> None:
    for callback in callbacks:
        why = None if isinstance(callback, keras.callbacks.Callback) else misplaced(callback)
        if why is not None:
            raise ValueError(f"`callbacks` must be Keras callbacks. {why}")


def _wrappers(callbacks: Sequence[Any]) -> tuple[list[FitWrapper], DataFollower | None]:
    """Return the wrappers in the order in which they arrange callbacks, and the follower."""
    wrappers = [callback for callback in callbacks if isinstance(callback, FitWrapper)]
    followers = [wrapper for wrapper in wrappers if isinstance(wrapper, DataFollower)]
    others = [wrapper for wrapper in wrappers if not isinstance(wrapper, DataFollower)]
    for kind in (followers, others):
        if len(kind) > 1:
            names = " and ".join(type(wrapper).__name__ for wrapper in kind)
            raise ValueError(f"`callbacks` may contain only one of these: {names}")
    return [*others, *followers], next(iter(followers), None)


def evaluation_context(
    evaluation: Callable[[], AbstractContextManager[None]] | None, kwargs: dict[str, Any]
) -> AbstractContextManager[None]:
    """Return the context in which an `evaluate` with these arguments happens.

    The validation of a `fit` passes on its callbacks, which surround it themselves.
    """
    own = isinstance(kwargs.get("callbacks"), keras.callbacks.CallbackList)
    return nullcontext() if own or evaluation is None else evaluation()


@contextmanager
def _listed(users_list: Any, callbacks: list[Any], model: Any) -> Iterator[None]:
    """Give the user's `CallbackList` these callbacks, and its own back afterwards."""
    before = users_list.callbacks
    for callback in callbacks:
        if not any(callback is c for c in before):
            callback.set_model(model)
            callback.set_params(users_list.params)
    users_list.callbacks = callbacks
    try:
        yield
    finally:
        users_list.callbacks = before
