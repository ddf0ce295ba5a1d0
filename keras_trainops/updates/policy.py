"""Which updates a training step runs: the meaning of `compile(updates=...)`."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import keras

from keras_trainops.updates.base import Update, as_update
from keras_trainops.updates.layer_updates import LayerUpdates


class UpdatePolicy:
    """The chosen updates.

    Args:
        updates: None: every layer's own updates and all registered ones. A list: exactly these.
        registered: What `model.add_update` registered, in order.

    Raises:
        ValueError: If something in the list is no update.
    """

    def __init__(self, updates: Any, registered: Sequence[Update]) -> None:
        self.keeps_layer_updates = updates is None
        chosen = registered if updates is None else [as_update(u) for u in _as_list(updates)]
        self.after_weights = [u for u in chosen if not isinstance(u, LayerUpdates)]
        self._layer_updates = [u for u in chosen if isinstance(u, LayerUpdates)]
        self._left_out = [update.name for update in registered if update not in chosen]
        self._warned = False
        self._weights: set[int] = set()

    def build(self, model: keras.Model) -> None:
        """Checks the updates against the model.

        Raises:
            ValueError: If one does not fit, as where a pattern matches no weight.
        """
        for update in [*self._layer_updates, *self.after_weights]:
            update.build(model)
        self._weights = {id(weight) for weight in model.weights}

    def chosen(
        self, assigned: Iterable[tuple[keras.Variable, Any]]
    ) -> list[tuple[keras.Variable, Any]]:
        """Which of the layers' assignments happen; warns once of what else there would be.

        Only weights are subject to the policy: random seeds and metrics always advance.
        """
        assigned = list(assigned)
        kept = [(v, value) for v, value in assigned if self._keeps(v)]
        left_out = [v.path for v, _ in assigned if not self._keeps(v)]
        self._warn_once([*left_out, *self._left_out])
        return kept

    def _keeps(self, variable: keras.Variable) -> bool:
        if self.keeps_layer_updates or id(variable) not in self._weights:
            return True
        return any(update.chooses(variable) for update in self._layer_updates)

    def _warn_once(self, left_out: Sequence[str]) -> None:
        if left_out and not self._warned:
            self._warned = True
            warnings.warn(
                "`updates` leaves out updates that layers make or that were registered: "
                f"{', '.join(left_out)}. Add `LayerUpdates()` or the updates to the list, or pass "
                "`updates=None`, if they should run.",
                stacklevel=2,
            )


def _as_list(updates: Any) -> list[Any]:
    if isinstance(updates, (list, tuple)):
        return list(updates)
    raise ValueError(
        "`updates` must be None (all of them) or a list of updates, which may be empty. Received: "
        f"updates={updates!r}"
    )
