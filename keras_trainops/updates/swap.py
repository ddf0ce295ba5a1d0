"""Temporary values in a model's variables."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import keras
import numpy as np

from keras_trainops.values import assign_copies, copies_of, copy_of

Values = list[tuple[keras.Variable, np.ndarray]]


class Swap:
    """Assigns temporary values to variables, and restores their own afterwards.

    `enter` and `leave` may be interrupted at any point: call `leave` again to restore the rest.
    """

    def __init__(self) -> None:
        self._own: list[tuple[keras.Variable, list[np.ndarray]]] = []
        self._put: Values = []

    @property
    def is_in(self) -> bool:
        """True while the variables have the temporary values."""
        return bool(self._own)

    def enter(
        self,
        values: Values,
        then: Callable[[], None] = lambda: None,
        changes: Sequence[keras.Variable] = (),
    ) -> None:
        """Assign `values`, then call `then`.

        Args:
            values: Variables with their temporary values.
            then: Called afterwards. If it raises, all variables get their own values back.
            changes: Variables that `then` may assign; they get their own values back as well.
        """
        assert not self.is_in
        self._own = [(v, copies_of(v)) for v, _ in values]
        taken = {id(v) for v, _ in self._own}
        self._own += [(v, copies_of(v)) for v in changes if id(v) not in taken]
        try:
            for variable, value in values:
                variable.assign(value)
            then()
            # Read the values back: a dtype that NumPy lacks differs on the host.
            self._put = [(v, copy_of(v)) for v, _ in self._own]
        except BaseException:
            self.leave()
            raise

    def leave(self, *, keep_assigned: bool = False) -> None:
        """Restore the variables' own values.

        Args:
            keep_assigned: If True, variables that were assigned other values since `enter` keep
                those.
        """
        put = {id(v): value for v, value in self._put} if keep_assigned else {}
        for variable, own in self._own:
            value = put.get(id(variable))
            if value is None or value.tobytes() == copy_of(variable).tobytes():
                assign_copies(variable, own)
        self._own, self._put = [], []
