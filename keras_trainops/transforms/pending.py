"""Gradients on their way through a chain, with factors that are still to be multiplied in."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, NamedTuple

import keras
from keras import ops

from keras_trainops.backends.types import Gradient

STACKED_ELEMENTS = 1 << 14  # of a gradient; copying larger ones costs more than operations on them


class Ratio(NamedTuple):
    """A factor that first multiplies, and then divides, as the formulas of clips do."""

    numerator: Any
    denominator: Any


class Pending:
    """A gradient, as a tensor and a factor that is still to be multiplied in.

    Most transforms multiply a gradient by a number that follows from norms. So a chain measures a
    norm once, and lets it follow the factors: `‖c·g‖ = |c|·‖g‖`. The tensor is read once for the
    norm and once for the product of all factors. A norm that is not finite makes the gradient NaN
    in the next transform that looks at it.

    It may also be a stack: several gradients of one shape and dtype as one tensor with an axis more
    in front. Then norms and factors are vectors.

    Args:
        tensor: The gradient, without the factor.
        variables: Its variable, or those of the stack.
        is_stack: Whether it is a stack.
        factor: A scalar or vector, at least float32; None for 1.
        measured: What `square()` gave when it was measured; None: not measured.
        since: The product of the factors since then; None for 1.
    """

    def __init__(
        self,
        tensor: Gradient,
        variables: Sequence[keras.Variable],
        is_stack: bool = False,
        factor: Any = None,
        measured: Any = None,
        since: Any = None,
    ) -> None:
        self.variables, self.is_stack = variables, is_stack
        self._tensor, self._factor = tensor, factor
        self._measured, self._since = measured, since

    def times(self, factor: Any) -> Pending:
        """Return the gradient times a number, a scalar or a vector; None for 1."""
        if factor is None or (isinstance(factor, (int, float)) and factor == 1):
            return self
        if isinstance(factor, Ratio):
            factor = Ratio(self._number(factor.numerator), self._number(factor.denominator))
            quotient = ops.divide(*factor)
        else:
            factor = quotient = self._number(factor)
        product = factor if self._factor is None else _quotient(self._factor) * quotient
        since = None
        if self._measured is not None:
            since = quotient if self._since is None else self._since * quotient
        return Pending(self._tensor, self.variables, self.is_stack, product, self._measured, since)

    def _number(self, factor: Any) -> Any:
        return factor if isinstance(factor, (int, float)) else ops.cast(factor, self.dtype)

    def of_each(self, numbers: Sequence[Any]) -> Any:
        """Return the factor for numbers of the variables, of which None means 1."""
        if len(set(map(id, numbers))) == 1 or not self.is_stack:
            return numbers[0]
        return ops.stack([ops.cast(1.0 if n is None else n, self.dtype) for n in numbers])

    @property
    def dtype(self) -> str:
        """The dtype of norms: that of the gradient, but at least float32."""
        found = keras.backend.standardize_dtype(self._tensor.dtype)
        return found if found == "float64" else "float32"

    def square(self) -> Any:
        """Return the sum of the squares of all elements, a scalar or, of a stack, a vector."""
        if self._measured is None:
            axes = tuple(range(1, len(self._tensor.shape))) if self.is_stack else None
            self._measured = ops.sum(ops.square(self._product()), axis=axes)
        if self._since is None:
            return self._measured
        return ops.square(self._since * ops.sqrt(self._measured))

    def norm(self) -> Any:
        """Return the L2 norm, a scalar or, of a stack, a vector."""
        if self._measured is None or self._since is None:
            return ops.sqrt(self.square())
        return ops.abs(self._since) * ops.sqrt(self._measured)

    def value(self) -> Gradient:
        """Return the gradient, or the stack, as one tensor."""
        if self._factor is not None:
            self._tensor = ops.cast(self._product(), self._tensor.dtype)
            self._factor = None
        return self._tensor

    def _product(self) -> Any:
        values = upcast(self._tensor)
        if isinstance(self._factor, Ratio):
            return values * self._fit(self._factor[0]) / self._fit(self._factor[1])
        return values if self._factor is None else values * self._fit(self._factor)

    def _fit(self, factor: Any) -> Any:
        """Return a factor in the dtype of the product and, of a stack, with all axes."""
        factor = ops.cast(factor, self.dtype)
        if not self.is_stack or not factor.shape:
            return factor
        return ops.reshape(factor, (-1, *[1] * (len(self._tensor.shape) - 1)))


class Gradients:
    """The gradients of one weight update.

    Args:
        parts: The gradients that are not None, in any order.
        variables: All variables, in order.
    """

    def __init__(self, parts: Sequence[Pending], variables: Sequence[keras.Variable]) -> None:
        self.parts, self.variables = parts, variables

    @classmethod
    def of(cls, gradients: Sequence[Gradient], variables: Sequence[keras.Variable]) -> Gradients:
        """Return gradients that are None or tensors, one per variable."""
        pairs = zip(gradients, variables, strict=True)
        return cls([Pending(g, (v,)) for g, v in pairs if g is not None], variables)

    def with_parts(self, parts: Iterable[Pending]) -> Gradients:
        """Return other gradients for the same variables."""
        return Gradients(list(parts), self.variables)

    def values(self) -> list[Gradient]:
        """Return None or a tensor for each variable."""
        found = {id(part.variables[0]): part.value() for part in self.apart().parts}
        return [found.get(id(variable)) for variable in self.variables]

    def stacked(self, kind: Callable[[keras.Variable], Hashable]) -> Gradients:
        """Return small gradients as stacks, as a large number of operations costs time as well.

        Args:
            kind: Only variables for which it is equal may be stacked.
        """
        groups: dict[Hashable, list[Pending]] = {}
        for place, part in enumerate(self.parts):
            (variable,), tensor = part.variables, part.value()
            shape = tuple(tensor.shape)  # that of some rows of an embedding differs
            fits = shape == tuple(variable.shape) and math.prod(shape) <= STACKED_ELEMENTS
            key = (shape, str(tensor.dtype), kind(variable)) if fits else place
            groups.setdefault(key, []).append(part)
        return self.with_parts(_stack(group) for group in groups.values())

    def apart(self) -> Gradients:
        """Return the gradients without stacks."""
        return self.with_parts(single for part in self.parts for single in _singles(part))


def joint_norm(gradients: Sequence[Pending]) -> Any:
    """Return the joint L2 norm of at least one gradient, a float32 or float64 scalar."""
    squares = [ops.sum(g.square()) if g.is_stack else g.square() for g in gradients]
    return ops.sqrt(ops.sum(ops.stack(squares)))


def global_norm(gradients: Sequence[Gradient]) -> Any:
    """Return the joint L2 norm of gradients without Nones, as a float32 or float64 scalar."""
    return joint_norm([Pending(gradient, ()) for gradient in gradients])


def upcast(gradient: Gradient) -> Gradient:
    """Cast a gradient so that sums of squares fit; float16 overflows at 65,504."""
    dtype = keras.backend.standardize_dtype(gradient.dtype)
    return gradient if dtype in ("float32", "float64") else ops.cast(gradient, "float32")


def _quotient(factor: Any) -> Any:
    return ops.divide(*factor) if isinstance(factor, Ratio) else factor


def _stack(group: Sequence[Pending]) -> Pending:
    if len(group) == 1:
        return group[0]
    variables = [variable for part in group for variable in part.variables]
    return Pending(ops.stack([part.value() for part in group]), variables, is_stack=True)


def _singles(part: Pending) -> Sequence[Pending]:
    if not part.is_stack:
        return [part]
    values = ops.unstack(part.value(), len(part.variables))
    return [Pending(value, (v,)) for value, v in zip(values, part.variables, strict=True)]
