"""Restore from a file that only process 0 can read: it sends the values to the others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from keras_trainops.backends.grouping import grouped
from keras_trainops.checkpoints.checkpoint import Checkpoint
from keras_trainops.processes import Processes
from keras_trainops.restoring.loading.agreement import (
    agreed,
    assign_together,
    broadcast_into,
    facts_of_variables,
    gather,
    require_same,
)
from keras_trainops.restoring.loading.assign import check_all, read_again
from keras_trainops.restoring.loading.hold import Held, value_from
from keras_trainops.restoring.planning.assignment import Assignment, variable_bytes
from keras_trainops.restoring.planning.plan import Plan
from keras_trainops.restoring.planning.report import RestoreReport

_GROUP = 1 << 26  # bytes, of variables that are sent before all agree again


@dataclass
class _Transfer:
    """The value of a variable on its way.

    Attributes:
        variable: The variable.
        is_adapted: Whether an adapter made the value: only adapters mask elements.
        array: The whole value.
        kept: Mask of the elements to keep, or None; in other processes a place for it, if any.
    """

    variable: keras.Variable
    is_adapted: bool
    array: np.ndarray
    kept: np.ndarray | None = None


def restore_from_first(
    model: keras.Model,
    processes: Processes,
    prepare: Callable[[], tuple[Plan, Checkpoint]],
) -> RestoreReport:
    """Plan, read and check in process 0, and send some variables at a time.

    Args:
        model: The model.
        processes: The processes.
        prepare: Opens the source and makes the plan; it is called in process 0 only.

    Returns:
        The report of process 0; in other processes without `origin`.
    """
    variables = _variables_of(model)
    made: tuple[Plan, Checkpoint] | None = None  # in process 0
    document: Any = None
    with agreed(processes):
        if processes.is_first:
            made = plan, checkpoint = prepare()
            check_all(plan.assignments, checkpoint)
            document = _document(plan, variables)
    require_same(processes, facts_of_variables("first", variables))
    document = gather(processes, document)[0]
    held, transfers = Held(model), list[_Transfer]()
    targets = [(variables[place], is_adapted) for place, is_adapted in document["places"]]
    for group in grouped(range(len(targets)), lambda i: variable_bytes(targets[i][0]), _GROUP):
        with agreed(processes):
            _hold(held, transfers)
            transfers = [_begin(made, number, *targets[number]) for number in group]
        _send(processes, transfers)
    with agreed(processes):
        _hold(held, transfers)
        if made is not None:
            made[1].require_unchanged()
    assign_together(processes, held)
    return made[0].report if made else RestoreReport.from_dict(document["report"])


def _variables_of(model: keras.Model) -> list[keras.Variable]:
    """Return all variables that a restore can assign, in an order that all processes have."""
    optimizer: Any = getattr(model, "optimizer", None)
    state = [] if optimizer is None else optimizer.variables
    return list({id(v): v for v in [*model.weights, *model.variables, *state]}.values())


def _document(plan: Plan, variables: Sequence[keras.Variable]) -> dict[str, Any]:
    """Return what other processes need of the plan."""
    places = {id(variable): place for place, variable in enumerate(variables)}

    def place_of(assignment: Assignment) -> tuple[int, bool]:
        return places[id(assignment.variable)], assignment.adapter is not None

    return {"places": list(map(place_of, plan.assignments)), "report": plan.report.to_dict()}


def _begin(
    made: tuple[Plan, Checkpoint] | None, number: int, variable: keras.Variable, is_adapted: bool
) -> _Transfer:
    """Read the value for an assignment in process 0, and make room for it elsewhere."""
    shape = tuple(variable.shape)
    if made is None:
        kept = np.empty(shape, bool) if is_adapted else None
        return _Transfer(variable, is_adapted, np.empty(shape, np.dtype(variable.dtype)), kept)
    array, kept = read_again(made[0].assignments[number], made[1])
    contiguous = np.ascontiguousarray(array).reshape(shape)  # NumPy gives scalars an axis
    return _Transfer(variable, is_adapted, contiguous, kept)


def _send(processes: Processes, transfers: Sequence[_Transfer]) -> None:
    """Send what `_begin` has read in process 0."""
    adapted = [each for each in transfers if each.is_adapted]
    has_mask = gather(processes, [t.kept is not None for t in adapted])[0] if adapted else []
    for each, is_masked in zip(adapted, has_mask, strict=True):
        each.kept = each.kept if is_masked else None
    for each in transfers:
        broadcast_into(processes, each.array)
        if each.kept is not None:
            broadcast_into(processes, each.kept)


def _hold(held: Held, transfers: list[_Transfer]) -> None:
    """Hold values that have arrived, and forget the transfers."""
    while transfers:
        each = transfers.pop(0)
        held.add(each.variable, value_from(each.variable, each.array, each.kept))
