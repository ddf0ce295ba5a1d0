"""The work of a suggestion grows with the number of names, not with that of their pairs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import keras
import numpy as np
import pytest

import keras_trainops as kt

pytestmark = pytest.mark.once

Shapes: TypeAlias = dict[str, tuple[int, ...]]
SMALL = 60
HOUSE = str(Path(kt.__file__).parent / "restoring")


class Many(keras.layers.Layer):
    """Many variables."""

    def __init__(self, shapes: Shapes) -> None:
        super().__init__(name="many")
        for name, shape in shapes.items():
            self.add_weight(shape=shape, name=name, initializer="zeros")


def word(number: int) -> str:
    """Return a word of its own, without digits."""
    return "x" + "".join(chr(ord("a") + int(digit)) for digit in str(number)) + "x"


def numbered(count: int) -> tuple[Shapes, Shapes]:
    ours: Shapes = {f"w{i}": (2,) for i in range(count)}
    return ours, {f"net/x{i}": (2,) for i in range(count)}


def blocks(count: int) -> tuple[Shapes, Shapes]:
    """A block for each two variables, and one more on the other side."""
    ours: Shapes = {f"block{i // 2}_part{i % 2}": (2, 2 + i % 2) for i in range(count)}
    return ours, {f"h.{i // 2}.piece{i % 2}": (2, 2 + i % 2) for i in range(count + 2)}


def one_block(count: int) -> tuple[Shapes, Shapes]:
    ours: Shapes = {f"block1_{word(i)}": (2, i + 1) for i in range(count)}
    return ours, {f"h.1.{word(i)}": (2, i + 1) for i in range(count)}


def same_words(count: int) -> tuple[Shapes, Shapes]:
    ours: Shapes = {word(i): (2,) for i in range(count)}
    return ours, {f"net/{word(i)}": (2,) for i in range(count)}


def like_words(count: int) -> tuple[Shapes, Shapes]:
    ours: Shapes = {f"{word(i)}_tower": (2,) for i in range(count)}
    return ours, {f"tower_of_{word(i)}": (2,) for i in range(count)}


def other_words(count: int) -> tuple[Shapes, Shapes]:
    ours: Shapes = {word(i): (2,) for i in range(count)}
    return ours, {f"net/y{word(i)}": (2,) for i in range(count)}


def shapes_of_their_own(count: int) -> tuple[Shapes, Shapes]:
    ours: Shapes = {word(i): (i + 1,) for i in range(count)}
    return ours, {f"net/y{word(i)}": (i + 1,) for i in range(count)}


def nothing_fits(count: int) -> tuple[Shapes, Shapes]:
    ours: Shapes = {word(i): (2,) for i in range(count)}
    return ours, {f"net/{word(i)}": (3,) for i in range(count)}


def one_side_larger(count: int) -> tuple[Shapes, Shapes]:
    ours: Shapes = {word(i): (2,) for i in range(5)}
    return ours, {f"net/y{word(i)}": (2,) for i in range(count)}


def rules_in_pairs(count: int) -> tuple[Shapes, Shapes]:
    """Two names for each rule."""
    ours: Shapes = {f"{word(i // 2)}_{i % 2}": (i + 1,) for i in range(count)}
    return ours, {f"net.{word(i // 2)}.{i % 2}": (i + 1,) for i in range(count)}


@contextmanager
def counted_calls() -> Iterator[list[int]]:
    """Count the calls of functions of the package, and the items of its generators."""
    count = [0]

    def on_event(frame: Any, event: str, argument: Any) -> None:
        count[0] += event == "call" and frame.f_code.co_filename.startswith(HOUSE)

    before = sys.getprofile()
    sys.setprofile(on_event)
    try:
        yield count
    finally:
        sys.setprofile(before)


def calls(ours: Shapes, theirs: Shapes) -> int:
    model = keras.Model(inputs := keras.Input((2,)), inputs)
    model.many = Many(ours)
    arrays = {key: np.zeros(shape, "float32") for key, shape in theirs.items()}
    with counted_calls() as count:
        str(kt.suggest_rename(model, arrays))
    return count[0]


@pytest.mark.parametrize(
    "names",
    [
        *(numbered, blocks, one_block, same_words, like_words, other_words),
        *(shapes_of_their_own, nothing_fits, one_side_larger, rules_in_pairs),
    ],
)
def test_work_grows_with_the_number_of_names(
    names: Callable[[int], tuple[Shapes, Shapes]],
) -> None:
    calls(*names(4))  # imports, caches
    small, large = calls(*names(SMALL)), calls(*names(2 * SMALL))
    assert large <= 2.3 * small
