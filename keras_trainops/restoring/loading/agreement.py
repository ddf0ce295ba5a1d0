"""Compare what the processes of a run are about to restore, before any of them assigns it."""

from __future__ import annotations

import contextlib
import json
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np

from keras_trainops.checkpoints.checkpoint import Checkpoint
from keras_trainops.errors import RestoreError
from keras_trainops.processes import Processes, ProcessTimeoutError
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
        raise ProcessTimeoutError(
            f"{error} `restore` is such a function; if only some processes call it, they must say "
            'so, with `processes="alone"`.'
        ) from None


@contextlib.contextmanager
def agreed(processes: Processes) -> Iterator[None]:
    """Run a block that raises on all processes if it raises on one; see `Processes.agreed`."""
    with with_advice(), processes.agreed(_WHAT):
        yield


def gather(processes: Processes, document: Any) -> list[Any]:
    """Return the documents of all processes; see `Processes.gather`."""
    with with_advice():
        return processes.gather(document, _WHAT)


def broadcast_array(processes: Processes, array: np.ndarray) -> np.ndarray:
    """Return the array of process 0.

    Args:
        processes: The processes.
        array: The array of process 0; elsewhere an array of the same shape and dtype.
    """
    data = np.ascontiguousarray(array).reshape(-1).view(np.uint8) if processes.is_first else None
    with with_advice():
        received = processes.broadcast_bytes(data, array.nbytes, _WHAT)
    return received.view(array.dtype).reshape(array.shape)


def require_same(processes: Processes, facts: Mapping[str, Sequence[str]]) -> None:
    """Check that all processes have the same facts.

    Args:
        processes: The processes.
        facts: Lines by what they are about.

    Raises:
        RestoreError: On all processes, with the first difference.
    """
    if not processes.several:
        return
    found = gather(processes, {name: _digest(lines) for name, lines in facts.items()})
    for name in found[0]:
        if any(each.get(name) != found[0][name] for each in found):
            raise RestoreError(_difference(name, gather(processes, list(facts.get(name, ())))))


def facts_of(
    who: Who, assignments: Sequence[Assignment], checkpoint: Checkpoint
) -> dict[str, list[str]]:
    """Return what must be the same if each process reads for itself."""
    return {
        "`processes`": [who],
        "what leads to the variables": [_line(each, checkpoint) for each in assignments],
    }


def _line(assignment: Assignment, checkpoint: Checkpoint) -> str:
    variable, keys = assignment.variable, [*assignment.keys, *assignment.copies]
    found = " + ".join(f"{k!r} {checkpoint.dtype(k)} {checkpoint.shape(k)}" for k in keys)
    line = f"{assignment.path} {variable.dtype} {tuple(variable.shape)} from {found}"
    return f"{line} by {_without_addresses(assignment.adapter)}" if assignment.adapter else line


def _without_addresses(value: Any) -> str:
    """Return the `repr` of a value that other processes have too."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))


def _digest(lines: Sequence[str]) -> int:
    return zlib.crc32(json.dumps(list(lines)).encode())


def _difference(name: str, found: Sequence[Sequence[str]]) -> str:
    """Return the message about the first line in which a process differs from process 0."""
    index, other = next((i, lines) for i, lines in enumerate(found) if lines != found[0])
    pairs = zip([*found[0], "nothing more"], [*other, "nothing more"], strict=False)
    first, second = next((a, b) for a, b in pairs if a != b)
    return (
        f"The processes differ in {name}: process 0 has {first}; process {index} of {len(found)} "
        f"has {second}. {_ADVICE}"
    )


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
    try:
        with agreed(processes):
            held.assign()
    except BaseException as error:
        held.undo(error)
        raise
