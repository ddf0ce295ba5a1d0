"""Every answer to a question is code that can be pasted."""

from __future__ import annotations

import re

import numpy as np
import pytest

import keras_trainops as kt
from keras_trainops.layouts.fused import halves_of, orders_of
from keras_trainops.layouts.kinds import Linear, Parameter
from keras_trainops.layouts.questions import (
    code_of,
    question_about_halves,
    question_about_order,
    question_about_readings,
)

pytestmark = pytest.mark.once


def pasted(question: str) -> list[kt.adapt.Adapter]:
    """The adapters of all answers."""
    answers = re.findall(r"`(\[?kt\.adapt[^`]*)`", question)
    values = [eval(answer, {"kt": kt}) for answer in answers]
    return [kt.adapt.Chain(*v) if isinstance(v, list) else v for v in values]


def test_asks_for_the_order_of_a_fused_tensor() -> None:
    kernels = [Linear((4,), (6, 2)), *[Linear((4,), (3, 2))] * 2]
    tensor = np.random.default_rng(0).normal(size=(24, 4))
    question = question_about_order("qkv.weight", kernels, tensor.shape)
    assert question.startswith("'qkv.weight' is a fused tensor, but its name does not reveal")
    assert "one per part" in question
    found = orders_of(kernels, tensor.shape, "torch")
    readings = [reading for parts in found.values() for reading in parts]
    assert len(readings) == 6
    for answer, reading, kernel in zip(pasted(question), readings, kernels * 2, strict=True):
        assert reading.adapter is not None
        np.testing.assert_array_equal(
            answer([tensor], kernel.shape), reading.adapter([tensor], kernel.shape)
        )
    assert len(pasted(question_about_order("qkv.weight", kernels, (24, 4), index=1))) == 2


def test_asks_for_the_order_of_halves() -> None:
    half = Linear((4,), (6,))
    question = question_about_halves("fc1.weight", half, half, (12, 4))
    assert "if the rows alternate" in question
    readings = halves_of("up_gate", half, half, (12, 4), "torch")
    assert readings is not None
    assert [repr(a) for a in pasted(question)[2:4]] == [repr(r.adapter) for r in readings]


def test_asks_for_one_of_several_readings() -> None:
    readings = Parameter((4, 4)).readings((4, 4))
    question = question_about_readings("w", (4, 4), readings)
    assert [repr(answer) for answer in pasted(question)] == ["Reshape()", "Transpose()"]


def test_code_of_adapters() -> None:
    chain = kt.adapt.Chain(kt.adapt.Transpose(), kt.adapt.Split(0, [2, 3]))
    assert code_of(chain) == "[kt.adapt.Transpose(), kt.adapt.Split(0, [2, 3])]"
    assert code_of(()) == "kt.adapt.Reshape()"
