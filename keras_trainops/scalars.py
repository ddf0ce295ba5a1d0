"""Numbers that users pass: constants, schedules over the weight updates, or scalar variables."""

from __future__ import annotations

import numbers
from collections.abc import Callable
from typing import Any, TypeAlias

import keras
import numpy as np
from keras import ops

Number: TypeAlias = "float | keras.optimizers.schedules.LearningRateSchedule"

_VARIABLE = "variable"  # the key of its value in a configuration


def value_at(number: Any, iterations: Any) -> Any:
    """Return the value of a constant, schedule or variable after `iterations` weight updates."""
    if isinstance(number, keras.Variable):
        return ops.convert_to_tensor(number)
    return number(iterations) if is_schedule(number) else number


def is_schedule(number: Any) -> bool:
    """Return whether `number` is a schedule over the weight updates."""
    return isinstance(number, keras.optimizers.schedules.LearningRateSchedule)


def is_number(number: Any) -> bool:
    """Return whether `number` is a finite constant or a schedule."""
    if is_schedule(number):
        return True
    if not isinstance(number, numbers.Real) or isinstance(number, (bool, np.bool_)):
        return False
    return number == number and abs(number) != float("inf")  # NaN differs from itself


def check_positive(
    name: str, number: Any, *, scheduled: bool = False, optional: bool = False
) -> Any:
    """Return a finite number above 0 or, if `scheduled`, a schedule or, if `optional`, None.

    Args:
        name: The argument's name, for the message.
        number: The argument's value.
        scheduled: If True, a schedule is valid as well.
        optional: If True, None is valid as well.

    Raises:
        ValueError: If `number` is none of these.
    """
    return check_number(
        name, number, "> 0", lambda value: value > 0, scheduled=scheduled, optional=optional
    )


def check_decay(decay: Any, *, scheduled: bool = False) -> Any:
    """Return a decay or, if `scheduled`, a schedule.

    Raises:
        ValueError: If `decay` is neither.
    """
    must = "at least 0 and below 1"
    return check_number("decay", decay, must, lambda d: 0 <= d < 1, scheduled=scheduled)


def check_whole(name: str, number: Any, least: int, *, optional: bool = False) -> Any:
    """Return an integer of at least `least` or, if `optional`, None.

    Args:
        name: The argument's name, for the message.
        number: The argument's value.
        least: The smallest valid integer.
        optional: If True, None is valid as well.

    Raises:
        ValueError: If `number` is neither.
    """
    must = f"an integer >= {least}"
    return check_number(
        name, number, must, lambda n: isinstance(n, int) and n >= least, optional=optional
    )


def check_number(
    name: str,
    number: Any,
    must: str,
    test: Callable[[Any], bool],
    *,
    scheduled: bool = False,
    optional: bool = False,
) -> Any:
    """Return a finite number that passes `test`.

    Args:
        name: The argument's name, for the message.
        number: The argument's value.
        must: The requirement, for the message.
        test: Returns whether a number meets the requirement.
        scheduled: If True, a schedule is valid as well.
        optional: If True, None is valid as well.

    Returns:
        The number as a plain Python one; a schedule or None unchanged.

    Raises:
        ValueError: If the value is not valid; the message states the requirement.
    """
    if number is None and optional:
        return None
    if isinstance(number, np.generic):
        number = number.item()
    if is_schedule(number) and scheduled:
        return number
    if is_schedule(number) or not is_number(number) or not test(number):
        must += ", or None" if optional else ""
        raise ValueError(f"`{name}` must be {must}. Received: {name}={number!r}")
    return number


def serialize_number(number: Any) -> Any:
    """Return a number, schedule or scalar variable as a saved configuration stores it."""
    if isinstance(number, keras.Variable):
        value = ops.convert_to_numpy(ops.convert_to_tensor(number)).item()
        return {_VARIABLE: value, "dtype": number.dtype, "name": number.name}
    return keras.saving.serialize_keras_object(number) if is_schedule(number) else number


def deserialize_number(number: Any) -> Any:
    """Return the number or schedule that `serialize_number` was given, or a variable like it."""
    if not isinstance(number, dict):
        return number
    if _VARIABLE not in number:
        return keras.saving.deserialize_keras_object(number)
    options = {name: value for name, value in number.items() if name != _VARIABLE}
    return keras.Variable(number[_VARIABLE], trainable=False, **options)
