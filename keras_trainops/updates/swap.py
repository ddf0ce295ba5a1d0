"""Temporary values in a model's variables."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import keras

from keras_trainops.values import Copies, are_unchanged, assign_copies, copies_of


class Swap:
    """Assigns temporary values to variables, and restores their own afterwards.

    `enter` and `leave` may be interrupted at any point: call `leave` again to restore the rest.
    """

    def __init__(self) -> None:
        self._own: list[tuple[keras.Variable, Copies]] = []
        self._put: list[tuple[keras.Variable, Copies]] = []

    @property
    def is_in(self) -> bool:
        """True while the variables have the temporary values."""
        return bool(self._own)

    def enter(
        self,
        values: Iterable[tuple[keras.Variable, Any]],
        then: Callable[[], None] = lambda: None,
        changes: Sequence[keras.Variable] = (),
    ) -> None:
        """Assign `values`, then call `then`.

        Args:
            values: Variables, each once, with their temporary values, taken one after the other.
            then: Called afterwards. If it raises, all variables get their own values back.
            changes: Variables that `then` may assign; they get their own values back as well.
        """
        assert not self.is_in
        try:
            for variable, value in values:
                self._own.append((variable, copies_of(variable)))
                variable.assign(value)
            taken = {id(v) for v, _ in self._own}
            self._own += [(v, copies_of(v)) for v in changes if id(v) not in taken]
            then()
            # Read the values back: a dtype that NumPy lacks differs on the host.
            self._put = [(v, copies_of(v)) for v, _ in self._own]
        except BaseException:
            self.leave()
            raise

    def leave(self, *, keep_assigned: bool = False) -> None:
        """Restore the variables' own values.

        Args:
            keep_assigned: If True, variables that were assigned other values since `enter` keep
                those.
        """
        put = self._put if keep_assigned else []
        assigned = {id(v) for (v, _), same in zip(put, are_unchanged(put), strict=True) if not same}
        for variable, own in self._own:
            if id(variable) not in assigned:
                assign_copies(variable, own)
        self._own, self._put = [], []
