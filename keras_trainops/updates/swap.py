"""Other values in a model's variables for a while, and the way back."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import keras
import numpy as np

from keras_trainops.values import assign_copies, copies_of, copy_of

Values = list[tuple[keras.Variable, np.ndarray]]


class Swap:
    """Puts values into variables, and the variables' own back afterwards.

    Both ways may be interrupted anywhere: `leave` goes on until each variable has its own value.
    """

    def __init__(self) -> None:
        self._own: list[tuple[keras.Variable, list[np.ndarray]]] = []
        self._put: Values = []

    @property
    def is_in(self) -> bool:
        """Whether the variables hold the values, and not their own."""
        return bool(self._own)

    def enter(
        self,
        values: Values,
        then: Callable[[], None] = lambda: None,
        changes: Sequence[keras.Variable] = (),
    ) -> None:
        """Assigns `values`, then calls `then`.

        Args:
            values: Variables, and what they are to hold.
            then: Called when they hold it. Where it raises all have their own values back.
            changes: The variables that it may assign, which get their own values back as well.
        """
        assert not self.is_in
        self._own = [(v, copies_of(v)) for v, _ in values]
        taken = {id(v) for v, _ in self._own}
        self._own += [(v, copies_of(v)) for v in changes if id(v) not in taken]
        try:
            for variable, value in values:
                variable.assign(value)
            then()
            # Read back: a dtype that NumPy lacks is another one on the host.
            self._put = [(v, copy_of(v)) for v, _ in self._own]
        except BaseException:
            self.leave()
            raise

    def leave(self, *, keep_assigned: bool = False) -> None:
        """Gives the variables their own values back, where they do not have them.

        Args:
            keep_assigned: Whether variables that were assigned other values meanwhile keep those.
        """
        put = {id(v): value for v, value in self._put} if keep_assigned else {}
        for variable, own in self._own:
            value = put.get(id(variable))
            if value is None or value.tobytes() == copy_of(variable).tobytes():
                assign_copies(variable, own)
        self._own, self._put = [], []
