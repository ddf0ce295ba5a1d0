"""Callbacks that need more of a `fit` than Keras tells them: their neighbours, and its data."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any, Protocol, runtime_checkable

import keras

from keras_trainops.arguments import misplaced

SeesData = Callable[[Any], None]
_POSITION = 5  # of `callbacks` among the arguments of `fit`


@runtime_checkable
class Companion(Protocol):
    """A callback that a model with the mixin lets in on the others of a `fit`."""

    def accompany(
        self, model: keras.Model, callbacks: list[Any]
    ) -> AbstractContextManager[list[Any]]:
        """Surrounds the whole `fit`, also where it fails.

        Args:
            model: The model.
            callbacks: All callbacks that `fit` was given.

        Returns:
            A context manager that gives the callbacks that `fit` shall have.
        """


@runtime_checkable
class Follower(Companion, Protocol):
    """One that follows the data as well. It stands around all others, companions too."""

    def see_data(self, iterator: Any) -> None:
        """Called with Keras's iterator over epochs, before anything is taken from it."""


@contextmanager
def accompanied(
    model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
    """What `fit` is to be called with, where there may be companions among its callbacks.

    Raises:
        ValueError: If there are several of a kind.
    """
    positional = len(args) > _POSITION
    given = args[_POSITION] if positional else kwargs.get("callbacks")
    own = given if isinstance(given, keras.callbacks.CallbackList) else None
    callbacks = list(own.callbacks) if own is not None else keras.tree.flatten(given or [])
    for callback in callbacks:
        why = None if isinstance(callback, keras.callbacks.Callback) else misplaced(callback)
        if why is not None:
            raise ValueError(f"`callbacks` must be Keras callbacks. {why}")
    companions = [c for c in callbacks if isinstance(c, Companion)]
    if not companions:
        yield args, kwargs
        return
    followers = [c for c in companions if isinstance(c, Follower)]
    others = [c for c in companions if not isinstance(c, Follower)]
    for kind in (followers, others):
        if len(kind) > 1:
            names = " and ".join(type(c).__name__ for c in kind)
            raise ValueError(f"`callbacks` may have one of these only: {names}")
    with ExitStack() as stack:
        arranged = callbacks
        for companion in (*others, *followers):
            arranged = stack.enter_context(companion.accompany(model, arranged))
        if own is not None:
            stack.enter_context(_listed(own, arranged, model))
        for follower in followers:
            model.train_ops.sees_data = follower.see_data
        try:
            if own is not None:
                yield args, kwargs
            elif positional:
                yield (*args[:_POSITION], arranged, *args[_POSITION + 1 :]), kwargs
            else:
                yield args, {**kwargs, "callbacks": arranged}
        finally:
            model.train_ops.sees_data, model.train_ops.follows = None, False


def surroundings(
    evaluation: Callable[[], AbstractContextManager[None]] | None, kwargs: dict[str, Any]
) -> AbstractContextManager[None]:
    """What an `evaluate` with these arguments happens in.

    The validation of a `fit` hands on its callbacks, which surround it themselves.
    """
    own = isinstance(kwargs.get("callbacks"), keras.callbacks.CallbackList)
    return nullcontext() if own or evaluation is None else evaluation()


@contextmanager
def _listed(given: Any, callbacks: list[Any], model: Any) -> Iterator[None]:
    """Within it the user's `CallbackList` has these callbacks, afterwards its own."""
    before = given.callbacks
    for callback in callbacks:
        if not any(callback is c for c in before):
            callback.set_model(model)
            callback.set_params(given.params)
    given.callbacks = callbacks
    try:
        yield
    finally:
        given.callbacks = before
