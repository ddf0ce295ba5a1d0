"""Compare what the processes of a run are about to restore, before any of them assigns it."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, get_args

import keras
import numpy as np

from keras_trainops.checkpoints.checkpoint import Checkpoint
from keras_trainops.errors import RestoreError
from keras_trainops.numbering import without_automatic
from keras_trainops.processes import Processes, ProcessTimeoutError, settled
from keras_trainops.restoring.loading.hold import Digests, Held
from keras_trainops.restoring.planning.assignment import Assignment

Who = Literal["each", "first", "alone"]
_WHAT = "to restore the model"
_ADVICE = (
    "Nothing was changed. All processes must restore the same model from the same checkpoint with "
    "the same arguments."
)


def processes_for(model: Any, who: Who) -> Processes:
    """Return the processes that restore a model together.

    Raises:
        ValueError: If the argument is not one of the three.
    """
    if who not in get_args(Who):
        raise ValueError(f"`processes` must be one of {get_args(Who)}. Received: {who!r}")
    return Processes(model, alone=who == "alone")


@contextlib.contextmanager
def with_advice() -> Iterator[None]:
    """Mention the way to restore in one process alone if the others do not come.

    Raises:
        ProcessTimeoutError: With that advice.
    """
    try:
        yield
    except ProcessTimeoutError as error:
        advised = ProcessTimeoutError(
            f"{error} `restore` is such a function; if only some processes call it, they must say "
            'so, with `processes="alone"`.'
        )
        raise settled(advised) from None


@contextlib.contextmanager
def agreed(processes: Processes) -> Iterator[None]:
    """Run a block that raises on all processes if it raises on one; see `Processes.agreed`."""
    with with_advice(), processes.agreed(_WHAT):
        yield


def gather(processes: Processes, document: Any) -> list[Any]:
    """Return the documents of all processes; see `Processes.gather`."""
    with with_advice():
        return processes.gather(document, _WHAT)


def broadcast_into(processes: Processes, array: np.ndarray) -> None:
    """Fill an array with that of process 0; see `Processes.broadcast_into`."""
    with with_advice():
        processes.broadcast_into(array, _WHAT)


def require_same(processes: Processes, facts: Mapping[str, str]) -> None:
    """Check that all processes have the same facts; see `Processes.require_same`.

    Raises:
        RestoreError: On all processes, with the first difference.
    """
    with with_advice():
        processes.require_same(facts, _WHAT, _ADVICE, RestoreError)


def facts_of(who: Who, assignments: Sequence[Assignment], checkpoint: Checkpoint) -> dict[str, str]:
    """Return what must be the same if each process reads for itself."""
    gets = {
        f"what variable {i} gets": _line(each, checkpoint) for i, each in enumerate(assignments)
    }
    return {"`processes`": who, **gets}


def facts_of_variables(who: Who, variables: Sequence[keras.Variable]) -> dict[str, str]:
    """Return what must be the same if one process reads for all."""
    facts = {f"variable {i}": _line_of(v.path, v) for i, v in enumerate(variables)}
    return {"`processes`": who, **facts}


def _line(assignment: Assignment, checkpoint: Checkpoint) -> str:
    keys = [*assignment.keys, *assignment.copies]
    found = " + ".join(f"{k!r} {checkpoint.dtype(k)} {checkpoint.shape(k)}" for k in keys)
    line = f"{_line_of(assignment.path, assignment.variable)} from {found}"
    return f"{line} by {_without_addresses(assignment.adapter)}" if assignment.adapter else line


def _line_of(path: str, variable: keras.Variable) -> str:
    """Return a line about a variable. Keras may have numbered its layers differently elsewhere."""
    return f"{without_automatic(path)} {variable.dtype} {tuple(variable.shape)}"


def _without_addresses(value: Any) -> str:
    """Return the `repr` of a value that other processes have too."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))


def require_same_values(
    processes: Processes, assignments: Sequence[Assignment], digests: Sequence[Digests]
) -> None:
    """Check that processes which read the same part of a variable read the same values.

    Raises:
        RestoreError: On all processes, with the first variable that differs.
    """
    if not processes.several:
        return
    first: dict[tuple[int, str], tuple[int, int]] = {}  # part -> process, digest
    for index, theirs in enumerate(gather(processes, list(digests))):
        for number, parts in enumerate(theirs):
            for part, digest in parts.items():
                other, expected = first.setdefault((number, part), (index, digest))
                if digest != expected:
                    raise RestoreError(
                        f"{assignments[number].path}: process {index} of {processes.count} read "
                        f"other values than process {other}, so their checkpoints differ. "
                        f"{_ADVICE} If they have no file in common, process 0 can read for all: "
                        '`processes="first"`.'
                    )


def assign_together(processes: Processes, held: Held) -> None:
    """Assign what is held, in all processes or in none."""
    if not processes.several:  # an interrupt leaves the new values, as in `assign`
        held.assign()
        return
    try:
        with agreed(processes):
            held.assign()
    except BaseException as error:
        held.undo(error)
        raise
