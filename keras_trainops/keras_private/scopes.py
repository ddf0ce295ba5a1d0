"""Private Keras API of scopes: other values for variables, and losses of one replica.

`tests/test_keras_private.py` tests the behaviour that each use relies on.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import keras
from keras.src import backend as keras_backend
from keras.src.backend.common import global_state
from keras.src.backend.common.variables import initialize_all_variables
from keras.src.losses import loss as loss_module


class Assigned(NamedTuple):
    """A variable that was assigned within a scope.

    Attributes:
        variable: The variable.
        value: The last value assigned.
        by_layer: Whether only layers assigned it, while they were called.
    """

    variable: keras.Variable
    value: Any
    by_layer: bool


class ValueScope(keras.StatelessScope):
    """Gives variables other values, and collects what is assigned to variables.

    All others have the value that they have in the scope around it, or their own. Nothing is
    written; inside the scope a variable reads as the value assigned to it. If a layer assigns a
    *trainable* variable, as spectral normalisation does, the gradient reaches the variable as if it
    had had the new value all along. That matches layers that assign directly.

    Args:
        values: Variables and their values.
    """

    original_scope: Any

    def __init__(self, values: Iterable[tuple[keras.Variable, Any]] = ()) -> None:
        super().__init__(list(values), collect_losses=True)
        self._assigned: dict[int, Assigned] = {}

    @property
    def assigned(self) -> list[Assigned]:
        """The assigned variables, in the order of their first assignment."""
        return list(self._assigned.values())

    def take_assigned(self) -> list[Assigned]:
        """Return `assigned`, and let these variables read as outside the scope again."""
        taken = self.assigned
        for key in self._assigned:
            del self.state_mapping[key]
        self._assigned = {}
        return taken

    def get_current_value(self, variable: keras.Variable) -> Any:
        value = self.state_mapping.get(id(variable))
        if value is None and self.original_scope is not None:
            value = self.original_scope.get_current_value(variable)
        # Weight regularisers read the scope instead of the variable, and fail on None.
        return variable._value if value is None else value

    def add_update(self, update: tuple[keras.Variable, Any]) -> None:
        in_layer = global_state.get_global_attribute("current_call_ctx") is not None
        self.add(Assigned(*update, in_layer))

    def add(self, assigned: Assigned) -> None:
        """Assign a variable within the scope."""
        variable, value, by_layer = assigned
        current, before = self.get_current_value(variable), self._assigned.get(id(variable))
        by_layer = by_layer and (before is None or before.by_layer)
        self._assigned[id(variable)] = Assigned(variable, value, by_layer)
        if variable.trainable and current is not None:
            value = _take_value_keep_gradient(current, value)
        super().add_update((variable, value))

    @contextmanager
    def left(self) -> Iterator[None]:
        """Leave the scope for a while: assignments reach the scope around it, or the variables."""
        global_state.set_global_attribute("stateless_scope", self.original_scope)
        if self.original_scope is None:
            initialize_all_variables()  # those that were created in the scope, as those of losses
        try:
            yield
        finally:
            global_state.set_global_attribute("stateless_scope", self)


def assign(assigned: Assigned) -> None:
    """Assign a variable in the innermost scope, or permanently if there is none."""
    scope = current_scope()
    if isinstance(scope, ValueScope):
        scope.add(assigned)
    else:
        assigned.variable.assign(assigned.value)


def current_scope() -> Any:
    """Return the innermost stateless scope; None outside of one."""
    return global_state.get_global_attribute("stateless_scope")


@keras.ops.custom_gradient
def _take_value_keep_gradient(current: Any, value: Any) -> Any:
    """Return `value` with the gradient of `current`."""

    def gradient(*args: Any, upstream: Any = None) -> tuple[Any, Any]:
        if upstream is None:
            (upstream,) = args
        return upstream, keras.ops.zeros_like(upstream)

    return keras.ops.add(value, 0), gradient


def stop_gradient(tensor: Any) -> Any:
    """Return a tensor as a constant, with its mask, which Keras's losses read."""
    stopped = keras.ops.stop_gradient(tensor)
    mask = keras_backend.get_keras_mask(tensor)
    if mask is not None:
        keras_backend.set_keras_mask(stopped, mask)
    return stopped


def output_shapes(function: Callable[..., Any], *inputs: Any) -> Any:
    """Run a function on shapes alone, which builds the layers that it calls.

    Args:
        function: Takes and returns tensors.
        *inputs: Trees of `keras.KerasTensor`s.

    Returns:
        What it returns, as `keras.KerasTensor`s.
    """
    return keras_backend.compute_output_spec(function, *inputs)


@contextmanager
def losses_of_one_replica() -> Iterator[None]:
    """Keep Keras's losses from dividing by the number of replicas, on the current thread.

    The replicas of a strategy are traced in turns, each by its own thread.
    """
    with ExitStack() as stack:
        for factor in _FACTORS:
            stack.enter_context(factor.left_out())
        yield


class _Factor:
    """A function of Keras that multiplies losses, which some threads replace with the identity.

    Args:
        name: The function's name in Keras's module of losses.
    """

    def __init__(self, name: str) -> None:
        self._name, self._lock = name, threading.Lock()
        self._threads: list[int] = []
        self._of_keras: Callable[[Any], Any] = getattr(loss_module, name)

    def __call__(self, value: Any) -> Any:
        return value if threading.get_ident() in self._threads else self._of_keras(value)

    @contextmanager
    def left_out(self) -> Iterator[None]:
        """Replace the function on the current thread, and restore it after the last one."""
        with self._lock:
            if not self._threads:
                self._of_keras = getattr(loss_module, self._name)
                setattr(loss_module, self._name, self)
            self._threads.append(threading.get_ident())
        try:
            yield
        finally:
            with self._lock:
                self._threads.remove(threading.get_ident())
                if not self._threads:
                    setattr(loss_module, self._name, self._of_keras)


_FACTORS = [_Factor(f"{verb}_loss_for_distribution") for verb in ("scale", "unscale")]
