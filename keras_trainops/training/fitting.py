"""Callbacks that need more of a `fit` than Keras tells them: their neighbours, and its data."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol, runtime_checkable

import keras

SeesData = Callable[[Any], None]
_POSITION = 5  # of `callbacks` among the arguments of `fit`


@runtime_checkable
class Companion(Protocol):
    """A callback that a model with the mixin lets in on more."""

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

    def see_data(self, iterator: Any) -> None:
        """Called with Keras's iterator over epochs, before anything is taken from it."""


@contextmanager
def accompanied(
    model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
    """What `fit` is to be called with, where there may be a companion among its callbacks.

    Raises:
        ValueError: If there are several.
    """
    positional = len(args) > _POSITION
    given = args[_POSITION] if positional else kwargs.get("callbacks")
    own = isinstance(given, keras.callbacks.CallbackList)  # which is left as it is
    callbacks = [] if own or given is None else keras.tree.flatten(given)
    companions = [c for c in callbacks if isinstance(c, Companion)]
    if not companions:
        yield args, kwargs
        return
    if len(companions) > 1:
        names = " and ".join(type(c).__name__ for c in companions)
        raise ValueError(f"`callbacks` may have one of these only: {names}")
    with companions[0].accompany(model, callbacks) as arranged:
        model.train_ops.sees_data = companions[0].see_data
        try:
            if positional:
                yield (*args[:_POSITION], arranged, *args[_POSITION + 1 :]), kwargs
            else:
                yield args, {**kwargs, "callbacks": arranged}
        finally:
            model.train_ops.sees_data, model.train_ops.follows = None, False
