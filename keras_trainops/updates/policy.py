"""Which updates a training step runs, and when: the meaning of `compile(updates=...)`."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import keras
from keras import ops

from keras_trainops.arguments import misplaced
from keras_trainops.backends import backend
from keras_trainops.state import Stateful
from keras_trainops.updates.base import Update
from keras_trainops.updates.functions import as_update
from keras_trainops.updates.layer_updates import LayerUpdates
from keras_trainops.values import copy_of


class UpdatePolicy(Stateful):
    """The chosen updates.

    Args:
        updates: None: every layer's own updates and all registered ones. A list: exactly these.
        registered: What `model.add_update` registered, in order.
        before: The policy that it takes the place of, whose count of batches goes on.

    Raises:
        ValueError: If something in the list is no update, or is in it twice.
    """

    def __init__(
        self, updates: Any, registered: Sequence[Update], before: UpdatePolicy | None = None
    ) -> None:
        self.keeps_layer_updates = updates is None
        chosen = registered if updates is None else [as_update(u) for u in _as_list(updates)]
        self.after_weights = [u for u in chosen if not isinstance(u, LayerUpdates)]
        self.children = self.after_weights
        self._layer_updates = [u for u in chosen if isinstance(u, LayerUpdates)]
        self._left_out = [update.name for update in registered if update not in chosen]
        self._warned = False
        self._weights: set[int] = set()
        self._changes: dict[int, list[keras.Variable]] = {}
        self._batches: keras.Variable | None = before._batches if before is not None else None
        self._starting: list[tuple[Update, keras.Variable]] = []
        self._all_started = False
        twice = [u.name for i, u in enumerate(chosen) if any(u is v for v in chosen[:i])]
        if twice:
            raise ValueError(f"An update must be in the list once. Received twice: {twice[0]}")

    def build(self, model: keras.Model) -> None:
        """Checks the updates against the model, and creates their state.

        Raises:
            ValueError: If one does not fit, as where a pattern matches no weight.
        """
        for update in [*self._layer_updates, *self.after_weights]:
            update.bind_to(model.weights)
            update.build(model)
        starting = [u for u in self.after_weights if u.starts_from_weights]
        self._starting = [(u, u.state_variable("started", dtype="bool")) for u in starting]
        self._weights = {id(weight) for weight in model.weights}
        after_updates = [u.name for u in self.after_weights if u.on == "update"]
        if after_updates and not model.trainable_variables:
            raise ValueError(
                f"{', '.join(after_updates)} would never run: there is no weight to train, and so "
                'no weight update. Use `on="batch"`.'
            )
        if any(map(_counts_batches, self.after_weights)):
            if self._batches is None:
                self._batches = self.add_variable("batches", dtype="int32")
            self.use_as_state([self._batches])

    def start(self, model: keras.Model, *, anew: bool) -> bool:
        """Lets updates take what they need from the weights that training starts from.

        Args:
            model: The model, before a step.
            anew: Whether those do, too, that did already: after a warm start.

        Returns:
            Whether there was anything to do.
        """
        if self._all_started and not anew:
            return False  # so that the flags are not read before each step of `train_on_batch`
        for update, started in self._starting:
            if anew or not bool(copy_of(started)):
                update.start(model)
                started.assign(True)
        self._all_started = True
        return True

    def check(self, model: keras.Model) -> list[keras.Variable]:
        """Runs each update once without effect, to see which variables it reads and assigns.

        Args:
            model: The model, built for training.

        Returns:
            Variables that are read, and that are neither the model's nor an update's.

        Raises:
            ValueError: If an update assigns another variable, or a value of another shape.
        """
        known = {id(v) for v in [*model.variables, *model.optimizer.variables, *self.variables]}
        known |= {id(v) for v in model.metrics_variables}
        read: dict[int, keras.Variable] = {}
        for update in self.after_weights:
            touched = _Touched()

            def run(update: Update = update, touched: _Touched = touched) -> None:
                with touched:
                    update(model, ops.zeros(()))

            try:
                backend().trace(run)
            except ValueError as error:
                raise ValueError(f"The update {update.name!r} fails: {error}") from error
            strangers = [v.path for key, v in touched.assigned.items() if key not in known]
            if strangers:
                raise ValueError(
                    f"The update {update.name!r} assigns variables that are neither the model's "
                    f"nor its own: {', '.join(strangers)}. On JAX they would be lost, and no file "
                    "would keep them. Say that they are its own: `Function(fn, variables=[...])`, "
                    "or make them in an `Update` with `add_variable`."
                )
            self._changes[id(update)] = list(touched.assigned.values())
            read.update({key: v for key, v in touched.read.items() if key not in known})
        return list(read.values())

    def run(self, model: keras.Model, loss: Any, before: Any) -> None:
        """Runs the updates that are due, in their order, inside the training step.

        Args:
            model: The model in training.
            loss: The step's loss.
            before: How many weight updates there were before the step's.
        """
        if self._batches is not None:
            self._batches.assign(self._batches + 1)
        for (on, every), group in itertools.groupby(
            self.after_weights, lambda update: (update.on, update.every)
        ):
            updates = list(group)

            def run(loss: Any, updates: Sequence[Update] = updates) -> None:
                for update in updates:
                    update(model, loss)

            if on == "batch" and every == 1:
                run(loss)
                continue
            count = self._batches if on == "batch" else model.optimizer.iterations
            due = ops.equal(ops.mod(count, every), 0)
            if on == "update":
                due = ops.logical_and(due, ops.not_equal(count, before))
            changes = [v for update in updates for v in self._changes[id(update)]]
            backend().conditionally(due, run, lambda loss: None, (loss,), changes=changes)

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


class _Touched(keras.StatelessScope):
    """Notes which variables are read and assigned; nothing is written."""

    def __init__(self) -> None:
        super().__init__()
        self.read: dict[int, keras.Variable] = {}
        self.assigned: dict[int, keras.Variable] = {}

    def add_update(self, update: tuple[keras.Variable, Any]) -> None:
        self.assigned[id(update[0])] = update[0]
        super().add_update(update)

    def get_current_value(self, variable: keras.Variable) -> Any:
        self.read[id(variable)] = variable
        return super().get_current_value(variable)


def _counts_batches(update: Update) -> bool:
    return update.on == "batch" and update.every > 1


def _as_list(updates: Any) -> list[Any]:
    if isinstance(updates, (list, tuple)) and not hasattr(updates, "_fields"):
        return list(updates)
    if callable(updates) or misplaced(updates):  # one, or what says itself why it is none
        return [updates]
    raise ValueError(
        "`updates` must be None (all of them), an update or a list of updates, which may be empty. "
        f"Received: updates={updates!r}"
    )
