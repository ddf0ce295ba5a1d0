"""The tensors of a source with the values of a model."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np

from keras_trainops.adapt.base import Adapter, Chain, Shape, steps_of
from keras_trainops.checkpoints.checkpoint import Checkpoint, pieces_of
from keras_trainops.errors import RestoreError
from keras_trainops.restoring.loading.casting import Casting, cast
from keras_trainops.restoring.planning.assignment import Assignment
from keras_trainops.writing.resizing import resized_inverse

_KEPT = 64 << 20  # bytes: many files have the tensors of one expert side by side, not of one kind


class Part(NamedTuple):
    """What a variable contributes to a tensor.

    Attributes:
        assignment: The variable and all its keys.
        place: The tensor's index among these keys; 0 for a copy of the first.
    """

    assignment: Assignment
    place: int


class ModelTensors(Checkpoint):
    """The tensors of a source with the values of a model, each made when it is read.

    Args:
        like: The source.
        parts: What variables contribute to each tensor; all others are copied from `like`.
        keys: The keys to write, in the order of the new file.
        value_of: Returns the value of a variable, which is only read.
        has_values: False if `like` is a plan.
        shapes: Shapes of tensors that are not those of `like`.

    Attributes:
        problems: Lines about values that the source's dtypes cannot hold, and values that
            contradict each other, as far as tensors were read.
        notes: Lines for the report about tensors that the variables alone do not determine.
    """

    def __init__(
        self,
        like: Checkpoint,
        parts: Mapping[str, Sequence[Part]],
        keys: Sequence[str],
        value_of: Callable[[keras.Variable], np.ndarray],
        has_values: bool = True,
        shapes: Mapping[str, Shape] | None = None,
    ) -> None:
        super().__init__(like.location)
        self.format = like.format
        self.problems: list[str] = []
        self.notes: list[str] = []
        self._like, self._parts, self._has_values = like, parts, has_values
        self._entries = dict.fromkeys(keys)
        self._value_of, self._shapes = value_of, shapes or {}
        self._made: OrderedDict[int, Sequence[np.ndarray]] = OrderedDict()

    def _structure(self) -> Mapping[str, Any]:
        return self._like.structure()

    def _keys(self) -> Mapping[str, None]:
        return self._entries

    def _shape(self, key: str) -> tuple[int, ...]:
        return self._shapes[key] if key in self._shapes else self._like.shape(key)

    def _dtype(self, key: str) -> np.dtype:
        return self._like.dtype(key)

    def _read(self, key: str) -> np.ndarray:
        array = np.empty(self._shape(key), self._dtype(key))
        elements, place = array.reshape(-1), 0
        for piece in self.pieces(key):
            elements[place : place + piece.size] = piece
            place += piece.size
        return array

    def pieces(self, key: str, memory: np.ndarray | None = None) -> Iterator[np.ndarray]:
        if key not in self._parts:
            yield from self._copied(key)
            return
        casting = Casting(self.dtype(key))
        try:
            whole = self._whole(key)
        except RestoreError:
            raise
        except ValueError as error:  # an adapter without an inverse; go on, to find all of them
            self.problems.append(f"{key}: {error}")
            whole = np.zeros(self.shape(key), self.dtype(key))
        for piece in pieces_of(whole):
            yield casting(piece)
        if casting.complaint:
            paths = " and ".join(repr(part.assignment.path) for part in self._parts[key])
            self.problems.append(f"{key}: {paths} {casting.complaint}")

    def _copied(self, key: str) -> Iterator[np.ndarray]:
        if self._has_values:
            return self._like.pieces(key)
        # PyTorch's count of batches, which `load_state_dict` needs and evaluation does not use.
        return pieces_of(np.zeros(self.shape(key), self.dtype(key)))

    def _whole(self, key: str) -> np.ndarray:
        """Return the tensor, in any dtype."""
        (first, *others) = self._parts[key]
        if not others:
            whole = self._part(first)
        else:
            dtype = self.dtype(key)
            whole = cast(self._part(first), dtype)
            for part in others:
                whole = self._merged(key, whole, cast(self._part(part), dtype))
        return self._filled(key, whole) if np.ma.is_masked(whole) else np.ma.getdata(whole)

    def _merged(self, key: str, one: np.ndarray, other: np.ndarray) -> np.ndarray:
        """Return the elements of both arrays, which must agree where both have them."""
        known, new = ~np.ma.getmaskarray(one), ~np.ma.getmaskarray(other)
        values, others = np.ma.getdata(one), np.ma.getdata(other)
        both = known & new
        if not np.array_equal(values[both], others[both], equal_nan=True):
            paths = " and ".join(repr(part.assignment.path) for part in self._parts[key])
            self.problems.append(f"{key}: {paths} lead to it, but have different values")
        merged = np.ma.array(np.where(new, others, values), mask=~(known | new))
        return merged if merged.mask.any() else merged.data

    def _filled(self, key: str, array: np.ndarray) -> np.ndarray:
        """Return a masked array with the source's values in place of masked elements."""
        if not self._has_values:
            path = self._parts[key][0].assignment.path
            raise ValueError(
                "the model has only a part of it, and the rest is not in the plan. Pass the "
                f"original file as `like`, or leave {path!r} out with `exclude=`"
            )
        whole = self._like[key]
        if array.dtype != whole.dtype and not np.can_cast(array.dtype, whole.dtype):
            whole = whole.astype(np.result_type(whole, array.dtype))  # `Casting` checks it later
        known = ~np.ma.getmaskarray(array)
        whole[known] = np.ma.getdata(array)[known]
        return whole

    def _part(self, part: Part) -> np.ndarray:
        """Return the contribution of a variable; elements that it does not determine are masked."""
        number, assignment = id(part.assignment), part.assignment
        if len(assignment.keys) + len(assignment.copies) == 1:
            return self._make(assignment)[0]
        if number not in self._made:
            self._forget()
            self._made[number] = self._make(assignment)
        self._made.move_to_end(number)
        return self._made[number][part.place]

    def _forget(self) -> None:
        """Drop the tensors of all variables but the last ones."""
        kept = 0
        for number in [*reversed(self._made)]:
            kept += sum(array.nbytes for array in self._made[number])
            if kept > _KEPT:
                del self._made[number]

    def _make(self, assignment: Assignment) -> Sequence[np.ndarray]:
        """Return the tensors of a variable's keys."""
        value, adapter = self._value_of(assignment.variable), assignment.adapter
        target = tuple(assignment.variable.shape)
        shapes = [self._like.shape(key) for key in assignment.keys]
        if assignment.keys[0] in self._shapes:
            return [resized_inverse(adapter, value, shapes[0], target)]
        failure: ValueError | None = None
        arrays: Sequence[np.ndarray] = [value]
        if adapter is not None:
            try:
                arrays = _inverted(adapter, value, shapes, target)
            except ValueError as error:
                failure = error
        if failure or not self._is_exact(assignment):
            unchanged = self.unchanged(assignment, value)
            if unchanged is not None:
                return unchanged if failure else list(map(_masked_like, unchanged, arrays))
        if failure is not None:
            raise ValueError(self._why_lost(assignment, failure)) from failure
        if adapter is not None and not adapter.inverse_is_exact:
            self.notes.append(
                f"{' + '.join(assignment.keys)}: made from {assignment.path!r} by the inverse of "
                f"{adapter}, which is not exact"
            )
        return arrays

    def _is_exact(self, assignment: Assignment) -> bool:
        dtype = np.dtype(assignment.variable.dtype)
        is_exact = assignment.adapter is None or assignment.adapter.inverse_is_exact
        return is_exact and all(np.can_cast(self._like.dtype(k), dtype) for k in assignment.keys)

    def unchanged(self, assignment: Assignment, value: np.ndarray) -> list[np.ndarray] | None:
        """Return the source's tensors if they still make the variable's value, else None."""
        if not self._has_values:
            return None
        arrays = [self._like[key] for key in assignment.keys]
        adapted = arrays[0]
        if assignment.adapter is not None:
            adapted = assignment.adapter(arrays, tuple(assignment.variable.shape))
        if np.ma.is_masked(adapted) or np.shape(adapted) != value.shape:
            return None
        same = np.array_equal(cast(np.ma.getdata(adapted), value.dtype), value, equal_nan=True)
        # Read again, because a callable may have changed the arrays.
        return [self._like[key] for key in assignment.keys] if same else None

    def _why_lost(self, assignment: Assignment, failure: ValueError) -> str:
        adapter = assignment.adapter
        reason = str(failure) if isinstance(adapter, Chain) else f"{adapter}: {failure}"
        shape = ', or write the new shape with `shape="model"`'
        return (
            f"{assignment.path}: {reason}. Leave it out with `exclude=`, which copies the tensor "
            f"from the source{shape if any(step.resizes for step in steps_of(adapter)) else ''}"
        )


def _inverted(
    adapter: Adapter, value: np.ndarray, shapes: Sequence[Shape], target: Shape
) -> Sequence[np.ndarray]:
    """Return the tensors that an adapter makes the value of; a user's inverse is checked.

    Raises:
        ValueError: If the tensors do not follow from the value, or do not lead back to it.
    """
    arrays = list(adapter.inverse(value, shapes, target))
    if all(type(step).__module__.startswith("keras_trainops.") for step in steps_of(adapter)):
        return arrays
    found = [np.shape(array) for array in arrays]
    if found != [*shapes]:
        raise ValueError(f"its `inverse` returned shapes {found} in place of {list(shapes)}")
    if adapter.inverse_is_exact and not any(map(np.ma.is_masked, arrays)):
        again = adapter([np.array(array) for array in arrays], target)
        if not np.array_equal(np.ma.getdata(again), value, equal_nan=True):
            raise ValueError("its `inverse` returned tensors that are adapted to other values")
    return arrays


def _masked_like(array: np.ndarray, other: np.ndarray) -> np.ndarray:
    return np.ma.array(array, mask=np.ma.getmaskarray(other)) if np.ma.is_masked(other) else array
