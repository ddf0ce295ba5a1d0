"""Callbacks that need more of a `fit` than Keras gives them: the other callbacks, or the data."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any, Protocol, runtime_checkable

import keras

from keras_trainops.arguments import misplaced

_POSITION = 5  # of `callbacks` among the arguments of `fit`


@runtime_checkable
class Companion(Protocol):
    """A callback that a model with the mixin gives access to the other callbacks of a `fit`."""

    def accompany(
        self, model: keras.Model, callbacks: list[Any]
    ) -> AbstractContextManager[list[Any]]:
        """Surround the whole `fit`, also if it fails.

        Args:
            model: The model.
            callbacks: All callbacks that `fit` was given.

        Returns:
            A context manager that returns the callbacks `fit` shall use.
        """
        ...


@runtime_checkable
class Follower(Companion, Protocol):
    """A companion that follows the data as well. Its callbacks surround those of all others."""

    def see_data(self, iterator: Any) -> None:
        """Receive Keras's iterator over epochs, before anything is taken from it."""


@contextmanager
def accompanied(
    model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
    """Let companions among the callbacks of a `fit` arrange its callbacks.

    Args:
        model: A model with the mixin.
        args: The positional arguments of `fit`.
        kwargs: The other arguments of `fit`.

    Yields:
        The arguments to call `fit` with.

    Raises:
        ValueError: If something is not a callback, or there are several companions of one kind.
    """
    given = args[_POSITION] if len(args) > _POSITION else kwargs.get("callbacks")
    users_list = given if isinstance(given, keras.callbacks.CallbackList) else None
    own = keras.tree.flatten(given or []) if users_list is None else users_list.callbacks
    callbacks = list(own)
    _require_callbacks(callbacks)
    companions, follower = _companions(callbacks)
    if not companions:
        yield args, kwargs
        return
    with ExitStack() as stack:
        arranged = callbacks
        for companion in companions:
            arranged = stack.enter_context(companion.accompany(model, arranged))
        if users_list is not None:
            stack.enter_context(_listed(users_list, arranged, model))
        state = model.train_ops.fit
        state.sees_data = None if follower is None else follower.see_data
        try:
            yield _with_callbacks(args, kwargs, arranged if users_list is None else users_list)
        finally:
            state.sees_data, state.follows = None, False


def _require_callbacks(callbacks: Sequence[Any]) -> None:
    for callback in callbacks:
        why = None if isinstance(callback, keras.callbacks.Callback) else misplaced(callback)
        if why is not None:
            raise ValueError(f"`callbacks` must be Keras callbacks. {why}")


def _companions(callbacks: Sequence[Any]) -> tuple[list[Companion], Follower | None]:
    """Return the companions in the order in which they arrange callbacks, and the follower."""
    companions = [callback for callback in callbacks if isinstance(callback, Companion)]
    followers = [companion for companion in companions if isinstance(companion, Follower)]
    others = [companion for companion in companions if not isinstance(companion, Follower)]
    for kind in (followers, others):
        if len(kind) > 1:
            names = " and ".join(type(companion).__name__ for companion in kind)
            raise ValueError(f"`callbacks` may have one of these only: {names}")
    return [*others, *followers], next(iter(followers), None)


def _with_callbacks(
    args: tuple[Any, ...], kwargs: dict[str, Any], callbacks: Any
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if len(args) > _POSITION:
        return (*args[:_POSITION], callbacks, *args[_POSITION + 1 :]), kwargs
    return args, {**kwargs, "callbacks": callbacks}


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
