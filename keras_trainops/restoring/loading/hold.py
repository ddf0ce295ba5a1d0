"""Read the parts of variables that this process holds, once, and hold them until all is read.

Nothing is assigned before every tensor is read and checked, in all processes. The price is memory
for what this process holds of the variables, which they take over where the backend allows that.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np

from keras_trainops.backends import backend
from keras_trainops.checkpoints.checkpoint import PIECE, Checkpoint, pieces_of
from keras_trainops.checkpoints.storage.parts import Index, aligned_copy, shape_of, whole
from keras_trainops.checkpoints.storage.raw import aligned
from keras_trainops.processes import checksum_of
from keras_trainops.restoring.loading.adapting import (
    adapted_parts,
    cast_and_mask,
    complaint_about_copy,
    line_about,
    refuse,
    unmasked,
)
from keras_trainops.restoring.loading.casting import Casting
from keras_trainops.restoring.loading.signals import signals_wait
from keras_trainops.restoring.loading.tensors import Destination
from keras_trainops.restoring.loading.threads import in_order
from keras_trainops.restoring.loading.undoing import assigned, derive_again
from keras_trainops.restoring.planning.assignment import Assignment
from keras_trainops.restoring.spread import bytes_here, held_parts, is_spread

_CORNER = 256  # elements, of a tensor that no process reads whole

Digests = dict[str, int]  # CRC-32 of what was read, by the part


class Held:
    """Values for variables, until they are assigned.

    Args:
        model: The model that the variables belong to.
    """

    def __init__(self, model: keras.Model) -> None:
        self._model = model
        self._values: list[tuple[keras.Variable, Any]] = []
        self._before: list[tuple[keras.Variable, Any]] = []

    def add(self, variable: keras.Variable, value: Any) -> None:
        """Hold a value for a variable."""
        self._values.append((variable, value))

    def assign(self) -> None:
        """Assign all values; if that fails, `undo`."""
        with signals_wait():
            try:
                self._values.reverse()
                while self._values:
                    variable, value = self._values.pop()  # frees what the backend copies
                    self._before.append((variable, backend().snapshot(variable)))
                    variable.assign(value)
                self._derive_again()
            except BaseException as error:
                self.undo(error)
                raise

    def undo(self, cause: BaseException) -> None:
        """Assign the previous values; add a note to `cause` if that fails too."""
        with signals_wait():
            lost = sum(not assigned(*each) for each in self._before)
            self._derive_again()
            self._before.clear()
        if lost:
            cause.add_note(
                f"The model is half-loaded: {lost} variables keep their new values. Restore it "
                "again before you use it."
            )

    def _derive_again(self) -> None:
        derive_again(self._model, [variable for variable, _ in self._before])


def value_from(variable: keras.Variable, array: np.ndarray, kept: np.ndarray | None) -> Any:
    """Return the value to assign.

    Args:
        variable: The variable.
        array: The whole value, in the variable's dtype.
        kept: Mask of the elements that keep the variable's value.
    """
    indices = held_parts(variable)
    parts = [aligned_copy(array[index]) for index in indices]
    _keep(variable, indices, parts, [None if kept is None else kept[index] for index in indices])
    return _value(variable, parts, Destination())


def hold(
    model: keras.Model,
    assignments: Sequence[Assignment],
    checkpoint: Checkpoint,
    progress: Callable[[int], None] = lambda nbytes: None,
    *,
    compared: bool = True,
) -> tuple[Held, list[Digests]]:
    """Read and check the parts that this process holds, once.

    Args:
        model: The model that the variables belong to.
        assignments: The planned assignments.
        checkpoint: The source.
        progress: Called repeatedly with the number of bytes processed since the last call.
        compared: Whether other processes compare what they have read.

    Returns:
        The values, and for each assignment the digests of what was read, if they are compared.

    Raises:
        RestoreError: If a tensor cannot be read, is not finite, or is out of range in the
            variable's dtype, or if the files change meanwhile.
    """
    held, digests, problems = Held(model), list[Digests](), list[str]()
    found = in_order(
        lambda assignment: _read(assignment, checkpoint, compared),
        assignments,
        lambda assignment: _may_be_in_thread(assignment, checkpoint),
    )
    for assignment, (value, lines, digest) in zip(assignments, found, strict=True):
        problems += lines
        digests.append(digest)
        if not problems:
            held.add(assignment.variable, value)
        progress(bytes_here(assignment.variable))
    refuse(problems, checkpoint)
    checkpoint.require_unchanged()
    return held, digests


def _may_be_in_thread(assignment: Assignment, checkpoint: Checkpoint) -> bool:
    """Return True if reading needs plain bytes only, without user code or other libraries."""
    keys = [*assignment.keys, *assignment.copies]
    plain = all(checkpoint.in_pieces(key) and checkpoint.in_parts(key) for key in keys)
    return assignment.adapter is None and plain


def _read(
    assignment: Assignment, checkpoint: Checkpoint, compared: bool
) -> tuple[Any, list[str], Digests]:
    """Return the value, lines about problems, and the digests."""
    variable, dtype = assignment.variable, np.dtype(assignment.variable.dtype)
    indices, casting, destination = held_parts(variable), Casting(dtype), Destination()
    masks: list[np.ndarray | None] = [None] * len(indices)
    if assignment.adapter is None:
        is_one = backend().parts_here(variable) is None
        memory = destination.memory if is_one else aligned
        parts = [memory(shape_of(index), dtype) for index in indices]
        for index, part in zip(indices, parts, strict=True):
            _fill(part, checkpoint, assignment.keys[0], index, casting)
    else:
        parts, masks = _adapted(assignment, checkpoint, indices, casting)
    digests = Digests()
    if compared:
        named = zip(map(_name, indices), parts, strict=True)
        digests = {name: checksum_of(part) for name, part in named}
        digests |= _corners(assignment, checkpoint)
    _keep(variable, indices, parts, masks)
    problems = [line_about(assignment, casting.complaint)] if casting.complaint else []
    problems += _about_copies(assignment, checkpoint, indices)
    return None if problems else _value(variable, parts, destination), problems, digests


def _pieces(
    checkpoint: Checkpoint, key: str, index: Index, memory: np.ndarray | None = None
) -> Iterator[np.ndarray]:
    """Yield the elements of a part in C order, some of them at a time.

    They may already be in `memory`, a flat array with room for the part.
    """
    if index == whole(checkpoint.shape(key)):
        yield from checkpoint.pieces(key, memory)
    elif checkpoint.in_parts(key):
        yield from (checkpoint.part(key, block).reshape(-1) for block in _blocks(index))
    else:
        yield from pieces_of(checkpoint.part(key, index))


def _blocks(index: Index) -> Iterator[Index]:
    """Cut a part into parts of about `PIECE` elements, one after the other in C order."""
    shape = shape_of(index)
    axis = next((i for i, length in enumerate(shape) if length > 1), 0)
    rows = max(1, PIECE // max(1, math.prod(shape[axis + 1 :])))
    for start in range(index[axis].start, index[axis].stop, rows):
        block = slice(start, min(start + rows, index[axis].stop))
        yield (*index[:axis], block, *index[axis + 1 :])


def _fill(
    part: np.ndarray, checkpoint: Checkpoint, key: str, index: Index, casting: Casting
) -> None:
    """Read a part of a tensor, and check it while it is in the processor's cache."""
    elements, place = part.reshape(-1), 0
    for piece in _pieces(checkpoint, key, index, elements):
        # NumPy copies nothing if the piece is already there.
        elements[place : place + piece.size] = casting(piece)
        place += piece.size


def _adapted(
    assignment: Assignment, checkpoint: Checkpoint, indices: Sequence[Index], casting: Casting
) -> tuple[list[np.ndarray], list[np.ndarray | None]]:
    """Return the parts, and for each a mask of the elements to keep, or None."""
    parts, masks = list[np.ndarray](), list["np.ndarray | None"]()
    for array in adapted_parts(assignment, checkpoint, indices):
        casting.check(unmasked(array))
        part, mask = cast_and_mask(array, casting.dtype)
        parts.append(aligned_copy(part))
        masks.append(mask)
    return parts, masks


def _keep(
    variable: keras.Variable,
    indices: Sequence[Index],
    parts: Sequence[np.ndarray],
    masks: Sequence[np.ndarray | None],
) -> None:
    """Put the variable's values in place of masked elements."""
    for index, part, mask in zip(indices, parts, masks, strict=True):
        if mask is not None:
            part[mask] = backend().host_part(variable, index)[mask]


def _value(variable: keras.Variable, parts: Sequence[np.ndarray], destination: Destination) -> Any:
    if backend().parts_here(variable) is None:
        return destination.tensor(parts[0])
    return backend().from_parts(variable, parts)


def _corners(assignment: Assignment, checkpoint: Checkpoint) -> Digests:
    """Return digests of a few elements that all processes read, of tensors that none reads whole.

    Otherwise processes that read different parts could not tell that their files differ.
    """
    if not is_spread(assignment.variable):
        return {}
    found = Digests()
    for key in filter(checkpoint.in_parts, assignment.keys):
        last = len(checkpoint.shape(key)) - 1
        corner = tuple(slice(0, _CORNER if axis == last else 1) for axis in range(last + 1))
        found[key] = checksum_of(checkpoint.part(key, corner))
    return found


def _about_copies(
    assignment: Assignment, checkpoint: Checkpoint, indices: Sequence[Index]
) -> list[str]:
    """Return lines about tensors of layers that share the variable, with other values."""
    if assignment.adapter is not None:
        indices = [whole(checkpoint.shape(assignment.keys[0]))]

    def is_equal(copy: str) -> bool:
        keys = (assignment.keys[0], copy)
        pairs = (zip(*(_pieces(checkpoint, k, i) for k in keys), strict=True) for i in indices)
        return all(np.array_equal(a, b) for a, b in itertools.chain.from_iterable(pairs))

    differing = [copy for copy in assignment.copies if not is_equal(copy)]
    return [complaint_about_copy(assignment, copy) for copy in differing]


def _name(index: Index) -> str:
    """Return the name of a part: `[0:512, 0:64]`."""
    return f"[{', '.join(f'{each.start}:{each.stop}' for each in index)}]"
