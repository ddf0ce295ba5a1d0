"""Numbers that users give, each a constant or a schedule of the weight updates."""

from __future__ import annotations

import numbers
from collections.abc import Callable
from typing import Any, TypeAlias

import keras
import numpy as np

Number: TypeAlias = "float | keras.optimizers.schedules.LearningRateSchedule"


def value_at(number: Any, iterations: Any) -> Any:
    """A number's value after so many weight updates: schedules are asked for it."""
    return number(iterations) if is_schedule(number) else number


def is_schedule(number: Any) -> bool:
    """Whether `number` is a schedule of the weight updates."""
    return isinstance(number, keras.optimizers.schedules.LearningRateSchedule)


def is_number(number: Any) -> bool:
    """Whether `number` is a finite constant or a schedule."""
    if is_schedule(number):
        return True
    constant = isinstance(number, numbers.Real) and not isinstance(number, (bool, np.bool_))
    return constant and abs(number) < float("inf")


def check_positive(name: str, number: Any, *, scheduled: bool = False) -> Any:
    """Refuses what is not a finite number above 0, or, if `scheduled`, a schedule.

    Raises:
        ValueError: If it is not.
    """
    return check_number(name, number, "> 0", lambda value: value > 0, scheduled=scheduled)


def check_whole(name: str, number: Any, least: int, *, optional: bool = False) -> Any:
    """Refuses what is not a whole number of at least `least` or, if `optional`, None.

    Raises:
        ValueError: If it is not.
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
    """Refuses what is not a finite number for which `test` holds.

    Args:
        name: The argument's name, for the message.
        number: Its value.
        must: What it must be, for the message.
        test: Whether a number is that.
        scheduled: Whether a schedule passes, too.
        optional: Whether None passes, too.

    Returns:
        The number, as a plain Python one.

    Raises:
        ValueError: If it is not; the message says what it must be.
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


def serialize_number(number: Number) -> Any:
    """A number or schedule as a saved configuration keeps it."""
    return keras.saving.serialize_keras_object(number) if is_schedule(number) else number


def deserialize_number(number: Any) -> Number:
    """The inverse of `serialize_number`."""
    return keras.saving.deserialize_keras_object(number) if isinstance(number, dict) else number
