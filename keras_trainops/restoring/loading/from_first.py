"""Send what process 0 reads to processes that share no file system with it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np

from keras_trainops.checkpoints.checkpoint import Checkpoint
from keras_trainops.processes import Processes
from keras_trainops.restoring.loading.agreement import (
    agreed,
    assign_together,
    broadcast_array,
    gather,
    require_same,
)
from keras_trainops.restoring.loading.assign import check_all, read_again
from keras_trainops.restoring.loading.hold import Held, value_from
from keras_trainops.restoring.planning.assignment import Assignment
from keras_trainops.restoring.planning.plan import Plan
from keras_trainops.restoring.planning.report import RestoreReport


def restore_from_first(
    model: keras.Model,
    processes: Processes,
    prepare: Callable[[], tuple[Plan, Checkpoint]],
) -> RestoreReport:
    """Plan, read and check in process 0, and send one variable after the other.

    Args:
        model: The model.
        processes: The processes.
        prepare: Opens the source and makes the plan; it is called in process 0 only.

    Returns:
        The report of process 0; in other processes without `origin`.
    """
    variables = _variables_of(model)
    made: tuple[Plan, Checkpoint] | None = None  # in process 0
    with agreed(processes):
        if processes.is_first:
            made = plan, checkpoint = prepare()
            check_all(plan.assignments, checkpoint)
    require_same(
        processes, {"`processes`": ["first"], "the variables": list(map(_line, variables))}
    )
    document = gather(processes, made and _document(made[0], variables))[0]
    held = Held(model)
    for number, (place, is_adapted) in enumerate(document["places"]):
        variable, found = variables[place], None
        with agreed(processes):
            if made is not None:
                found = read_again(made[0].assignments[number], made[1])
        held.add(variable, value_from(variable, *_sent(processes, variable, is_adapted, found)))
    with agreed(processes):
        if made is not None:
            made[1].require_unchanged()
    assign_together(processes, held)
    return made[0].report if made else RestoreReport.from_dict(document["report"])


def _variables_of(model: keras.Model) -> list[keras.Variable]:
    """Return all variables that a restore can assign, in an order that all processes have."""
    optimizer: Any = getattr(model, "optimizer", None)
    state = [] if optimizer is None else optimizer.variables
    return list({id(v): v for v in [*model.weights, *model.variables, *state]}.values())


def _line(variable: keras.Variable) -> str:
    return f"{variable.path} {variable.dtype} {tuple(variable.shape)}"


def _document(plan: Plan, variables: Sequence[keras.Variable]) -> dict[str, Any]:
    """Return what other processes need of the plan."""
    places = {id(variable): place for place, variable in enumerate(variables)}

    def place_of(assignment: Assignment) -> tuple[int, bool]:
        return places[id(assignment.variable)], assignment.adapter is not None

    return {"places": list(map(place_of, plan.assignments)), "report": plan.report.to_dict()}


def _sent(
    processes: Processes,
    variable: keras.Variable,
    is_adapted: bool,
    found: tuple[np.ndarray, np.ndarray | None] | None,
) -> tuple[np.ndarray, np.ndarray | None]:
    """Return what process 0 found: the value, and the mask of elements to keep, or None."""
    shape, dtype = tuple(variable.shape), np.dtype(variable.dtype)
    array, kept = (np.empty(shape, dtype), None) if found is None else found
    # Only adapters mask elements.
    is_masked = is_adapted and gather(processes, kept is not None)[0]
    array = broadcast_array(processes, array)
    if not is_masked:
        return array, None
    return array, broadcast_array(processes, np.empty(shape, bool) if kept is None else kept)
