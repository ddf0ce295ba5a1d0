"""The update policy: the updates that a training step runs, as `compile(updates=...)` chooses."""

from __future__ import annotations

import contextlib
import itertools
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import keras
from keras import ops

from keras_trainops.arguments import is_list, misplaced
from keras_trainops.backends import backend
from keras_trainops.keras_private import Assigned
from keras_trainops.state import Stateful
from keras_trainops.updates.base import Update
from keras_trainops.updates.functions import PolicyEntry, as_update
from keras_trainops.updates.layer_updates import LayerUpdates
from keras_trainops.values import copy_of


class UpdatePolicy(Stateful):
    """The chosen updates.

    Args:
        updates: None chooses every layer's own updates and all registered ones; a list chooses
            exactly its entries; so does a dictionary from the names of several optimizers to lists,
            whose updates follow that optimizer.
        registered: The updates that `model.add_update` registered, in order.
        previous: The policy that this one replaces; its count of batches continues.
        optimizers: The names of several optimizers.

    Attributes:
        keeps_layer_updates: True if all of the layers' own updates run.
        after_weights: The updates that run after the weight update, in order.

    Raises:
        ValueError: If an entry of the list is not an update, or is in it twice, or a name is not
            one of the optimizers'.
    """

    def __init__(
        self,
        updates: Any,
        registered: Sequence[PolicyEntry],
        previous: UpdatePolicy | None = None,
        optimizers: Sequence[str] = (),
    ) -> None:
        self.keeps_layer_updates = updates is None
        self._follows: dict[int, str] = {}  # the names of the optimizers, by the updates' `id`
        entries = list(registered) if updates is None else self._entries(updates, optimizers)
        _require_no_duplicates(entries)
        self.after_weights = [u for u in entries if isinstance(u, Update)]
        self.children = self.after_weights
        self._layer_updates = [u for u in entries if isinstance(u, LayerUpdates)]
        self._unused = [update.name for update in registered if update not in entries]
        self._warned = False
        self._weights: set[int] = set()
        self._assigned_by: dict[int, list[keras.Variable]] = {}
        self._batches: keras.Variable | None = previous._batches if previous is not None else None
        self._starting: list[tuple[Update, keras.Variable]] = []
        self._all_started = False

    def _entries(self, updates: Any, optimizers: Sequence[str]) -> list[PolicyEntry]:
        if not isinstance(updates, Mapping) or not optimizers:
            return [as_update(update) for update in _as_list(updates)]
        if not updates.keys() <= set(optimizers):
            raise ValueError(
                "The names in `updates` must be those of several optimizers "
                f"({', '.join(map(repr, optimizers))}). Received: {', '.join(map(repr, updates))}"
            )
        entries: list[PolicyEntry] = []
        for name, several in updates.items():
            own = [as_update(update) for update in _as_list(several)]
            self._follows.update({id(update): name for update in own})
            entries += own
        return entries

    def build(self, model: keras.Model) -> None:
        """Check the updates against the model, and create their state.

        Raises:
            ValueError: If one does not fit, for example if a pattern matches no weight.
        """
        entries: list[PolicyEntry] = [*self._layer_updates, *self.after_weights]
        for entry in entries:
            entry.bind_to(model.weights)
            entry.build(model)
        starting = [u for u in self.after_weights if u.starts_from_weights]
        self._starting = [(u, u.state_variable("started", dtype="bool")) for u in starting]
        self._weights = {id(weight) for weight in model.weights}
        self._require_weight_updates(model)
        if any(u.on == "batch" and u.every > 1 for u in self.after_weights):
            self._count_batches()

    def _require_weight_updates(self, model: keras.Model) -> None:
        after_updates = [u.name for u in self.after_weights if u.on == "update"]
        if after_updates and not model.trainable_variables:
            raise ValueError(
                f"{', '.join(after_updates)} would never run: there are no weights to train, hence "
                'no weight updates. Use `on="batch"`.'
            )

    def _count_batches(self) -> None:
        if self._batches is None:
            self._batches = self.add_variable("batches", dtype="int32")
        self.use_as_state([self._batches])

    def start(self, model: keras.Model, *, anew: bool) -> bool:
        """Initialise updates from the weights that training starts from.

        Args:
            model: The model, before a step.
            anew: If True, updates that have started before start again, as after a warm start.

        Returns:
            False if all updates have already started.
        """
        if self._all_started and not anew:
            return False  # do not read the flags before each step of `train_on_batch`
        for update, started in self._starting:
            if anew or not bool(copy_of(started)):
                update.start(model)
                started.assign(True)
        self._all_started = True
        return True

    def check(self, model: keras.Model) -> list[keras.Variable]:
        """Run each update once without effect, to record the variables it reads and assigns.

        Args:
            model: The model, built for training.

        Returns:
            Variables that updates read and that belong neither to the model nor to an update.

        Raises:
            ValueError: If an update assigns such a variable, or a value of a different shape.
        """
        known = {id(v) for v in [*model.variables, *model.optimizer.variables, *self.variables]}
        known |= {id(v) for v in model.metrics_variables}
        read: dict[int, keras.Variable] = {}
        for update in self.after_weights:
            accesses = _accesses_of(update, model)
            strangers = [v.path for key, v in accesses.assigned.items() if key not in known]
            if strangers:
                raise ValueError(
                    f"The update {update.name!r} assigns variables that are neither the model's "
                    f"nor its own: {', '.join(strangers)}. On JAX they would be lost, and no file "
                    "would store them. Declare them with `Function(fn, variables=[...])`, or "
                    "create them in an `Update` with `add_variable`."
                )
            self._assigned_by[id(update)] = list(accesses.assigned.values())
            read.update({key: v for key, v in accesses.read.items() if key not in known})
        return list(read.values())

    @property
    def of_batches(self) -> list[Update]:
        """The updates that count batches."""
        return [update for update in self.after_weights if update.on == "batch"]

    @contextlib.contextmanager
    def following(self, model: keras.Model, optimizer: str, loss: Any) -> Iterator[None]:
        """Surround what may be a weight update, and run the updates that it makes due, in order.

        Args:
            model: The model in training.
            optimizer: The name of the optimizer that may update the weights; "" for the only one.
            loss: The loss that it minimises.
        """
        followers = self._followers(optimizer)
        if not followers:
            yield
            return
        before = _weight_updates(model, optimizer)
        yield
        now = _weight_updates(model, optimizer)
        for (every, is_own), updates in itertools.groupby(
            followers, lambda update: (update.every, id(update) in self._follows)
        ):
            count, earlier = now[is_own], before[is_own]
            due = ops.logical_and(_is_multiple(count, every), ops.not_equal(count, earlier))
            self._run_if(due, list(updates), model, loss)

    def _followers(self, optimizer: str) -> list[Update]:
        """Return the updates that run after the weight updates of an optimizer.

        Args:
            optimizer: Its name among several; "" for the only one.
        """
        updates = [update for update in self.after_weights if update.on == "update"]
        return [u for u in updates if self._follows.get(id(u), optimizer) == optimizer]

    def run_for_batch(self, model: keras.Model, loss: Any) -> None:
        """Run the updates that a batch makes due, in their order, at the end of a step.

        Args:
            model: The model in training.
            loss: The step's loss.
        """
        if self._batches is not None:
            self._batches.assign(self._batches + 1)
        for every, updates in itertools.groupby(self.of_batches, lambda update: update.every):
            due = _is_multiple(self._batches, every) if every > 1 else None
            self._run_if(due, list(updates), model, loss)

    def _run_if(self, due: Any, updates: list[Update], model: keras.Model, loss: Any) -> None:
        """Run updates if they are due.

        Args:
            due: A scalar boolean tensor; None runs them unconditionally.
            updates: The updates, in order.
            model: The model in training.
            loss: The step's loss.
        """

        def run(loss: Any) -> None:
            for update in updates:
                update(model, loss)

        if due is None:
            run(loss)
            return
        assigned = itertools.chain.from_iterable(self._assigned_by[id(u)] for u in updates)
        backend().conditionally(due, run, lambda loss: None, (loss,), changes=list(assigned))

    def chosen(self, assigned: Iterable[Assigned]) -> list[Assigned]:
        """Return the assignments that the policy keeps; warn once about the rest.

        Only what layers assign to weights is subject to the policy: random seeds and metrics always
        advance.
        """
        assigned = list(assigned)
        kept = [each for each in assigned if self._keeps(each)]
        left_out = [each.variable.path for each in assigned if not self._keeps(each)]
        self._warn_once([*left_out, *self._unused])
        return kept

    def _keeps(self, assigned: Assigned) -> bool:
        of_weight = id(assigned.variable) in self._weights
        if self.keeps_layer_updates or not of_weight or not assigned.by_layer:
            return True
        return any(update.chooses(assigned.variable) for update in self._layer_updates)

    def _warn_once(self, left_out: Sequence[str]) -> None:
        if left_out and not self._warned:
            self._warned = True
            warnings.warn(
                "`updates` leaves out updates of layers or registered updates: "
                f"{', '.join(left_out)}. Add `LayerUpdates()` or the updates to the list, or pass "
                "`updates=None`, if they should run.",
                stacklevel=2,
            )


class _AccessRecorder(keras.StatelessScope):
    """Records the variables that are read and assigned; writes nothing."""

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


def _accesses_of(update: Update, model: keras.Model) -> _AccessRecorder:
    recorder = _AccessRecorder()

    def run() -> None:
        with recorder:
            update(model, ops.zeros(()))

    try:
        backend().trace(run)
    except ValueError as error:
        raise ValueError(f"The update {update.name!r} fails: {error}") from error
    return recorder


def _weight_updates(model: Any, optimizer: str) -> tuple[Any, Any]:
    """Return how many weight updates were made: by all optimizers, and by one of them.

    Args:
        model: The model in training.
        optimizer: Its name among several; "" for the only one.
    """
    group = model.optimizer
    own = group.by_name[optimizer] if optimizer else group
    return _now(group.iterations), _now(own.iterations)


def _now(count: Any) -> Any:
    """Return the value of a counter, which later assignments do not change."""
    return ops.copy(ops.convert_to_tensor(count))


def _is_multiple(count: Any, every: int) -> Any:
    return ops.equal(ops.mod(count, every), 0)


def _require_no_duplicates(entries: Sequence[PolicyEntry]) -> None:
    seen: set[int] = set()
    for entry in entries:
        if id(entry) in seen:
            raise ValueError(
                f"An update may be in the list only once. Received twice: {entry.name}"
            )
        seen.add(id(entry))


def _as_list(updates: Any) -> list[Any]:
    if is_list(updates):
        return list(updates)
    # A single update, or a value for which `as_update` raises a better error.
    if isinstance(updates, LayerUpdates) or callable(updates) or misplaced(updates):
        return [updates]
    raise ValueError(
        "`updates` must be None (all of them), an update or a list of updates, which may be empty. "
        f"Received: updates={updates!r}"
    )
