from __future__ import annotations

import keras
import pytest

from keras_trainops.state import Stateful
from tests.helpers import two_layers, value


class Parent(Stateful):
    """Has state of its own and a child with more."""

    def __init__(self) -> None:
        self.child = Stateful()
        self.children = [self.child]


def test_state_includes_that_of_the_children() -> None:
    parent = Parent()
    own = parent.add_variable("own", (2,), initializer="ones")
    inner = parent.child.add_variable("a/b", dtype="int32")
    assert list(parent.walk()) == [parent, parent.child]
    assert [id(v) for v in parent.variables] == [id(own), id(inner)]
    assert (inner.name, inner.dtype, own.trainable) == ("a_b", "int32", False)
    assert value(own).tolist() == [1, 1]


def test_state_like_a_variable_has_its_shape_and_dtype() -> None:
    part = Stateful()
    kernel = keras.Variable("ones", (2, 3), dtype="float16", name="kernel")
    state = part.add_variable("a", like=kernel)
    mask = part.add_variable("b", dtype="bool", like=kernel)
    assert [(v.shape, v.dtype, v.trainable) for v in (state, mask)] == [
        ((2, 3), "float16", False),
        ((2, 3), "bool", False),
    ]
    assert value(state).tolist() == [[0, 0, 0]] * 2
    with pytest.raises(ValueError, match=r"state 'c' cannot have the shape \(3,\) and the layout"):
        part.add_variable("c", (3,), like=kernel)


def test_held_variables_exclude_the_others() -> None:
    parent = Parent()
    held = parent.add_variable("held")
    parent.add_variable("free", held=False)
    parent.child.add_variable("free", held=False)
    assert [id(v) for v in parent.held_variables] == [id(held)]
    assert len(parent.variables) == 3


def test_state_variable_is_created_once() -> None:
    part = Stateful()
    first = part.state_variable("started", dtype="bool")
    assert part.state_variable("started", dtype="bool") is first
    assert part.variables == [first]


def test_existing_variables_replace_the_state() -> None:
    part = Stateful()
    part.add_variable("old", held=False)
    new = keras.Variable(1.0)
    part.use_as_state([new])
    assert [id(v) for v in part.held_variables] == [id(new)]


def test_named_state_comes_first_and_keeps_its_name() -> None:
    part = Stateful()
    named, other = keras.Variable(1.0), keras.Variable(2.0)
    part.use_as_state([other], named={"started": named})
    assert [id(v) for v in part.variables] == [id(named), id(other)]
    assert part.state_variable("started") is named


def test_a_variable_of_two_parts_is_one_variable() -> None:
    parent, shared = Parent(), keras.Variable(1.0)
    parent.use_as_state([shared])
    parent.child.use_as_state([shared])
    assert [id(v) for v in parent.variables] == [id(shared)]


def test_seed_is_a_part_of_the_state() -> None:
    part = Stateful()
    generator = part.add_seed(3)
    before = value(part.variables[0])
    keras.random.normal((1,), seed=generator)
    assert (value(part.variables[0]) != before).any()


def test_rejects_a_second_model() -> None:
    part = Stateful()
    model, other = two_layers(), two_layers()
    part.bind_to(model.weights)
    part.bind_to(model.weights[:2])
    assert part.is_of_its_model(model.weights[0])
    assert not part.is_of_its_model(other.weights[0])
    with pytest.raises(ValueError, match="This Stateful already belongs to another model"):
        part.bind_to(other.weights)


def test_accepts_a_model_after_the_first_is_gone() -> None:
    part = Stateful()
    part.bind_to([keras.Variable(1.0)])
    second = keras.Variable(2.0)
    part.bind_to([second])
    with pytest.raises(ValueError, match="already belongs to another model"):
        part.bind_to([keras.Variable(3.0)])
