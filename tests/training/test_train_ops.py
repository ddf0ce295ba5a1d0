from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

import keras_trainops as kt
from keras_trainops.training.train_ops import Compiled, FitState, TrainOps
from tests.training.optimizers.kinds import net


def test_compile_and_add_update_replace_the_compiled_record() -> None:
    model = net()
    state, first = model.train_ops, model.train_ops.compiled
    model.compile("sgd", "mse", updates=[], check_numerics=True)
    second = state.compiled
    assert model.train_ops is state
    assert second is not first
    assert first == dataclasses.replace(first, arguments=dict.fromkeys(first.arguments))
    assert second.arguments["updates"] == []
    assert second.numerics is not None
    assert second.need_our_step_for == ("`updates`", "`check_numerics`")
    model.compile("sgd", "mse")
    third, policy = state.compiled, state.policy
    model.add_update(kt.updates.MovingAverage())
    assert state.compiled is not third
    assert third.policy is policy
    assert state.policy is not policy
    assert state.policy.after_weights
    assert state.compiled.trainability is third.trainability


def test_the_compiled_record_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError, match="cannot assign to field 'numerics'"):
        Compiled().numerics = None


def test_plain_models_need_no_step_of_their_own() -> None:
    state = TrainOps()
    assert not state.needs_our_step()
    assert state.arguments == {
        "updates": None,
        "variables_to_train": None,
        "check_numerics": None,
        "gradients": None,
    }
    model = net()
    for options in ({"updates": []}, {"check_numerics": True}):
        model.compile("sgd", "mse", **options)
        assert model.train_ops.needs_our_step()
    model.compile("sgd", "mse")
    assert not model.train_ops.needs_our_step()


def test_data_are_shown_once() -> None:
    seen: list[Any] = []
    state, iterator = FitState(follow_data=seen.append), object()
    assert not state.show_data(None)
    assert state.show_data(iterator)
    assert not state.show_data(iterator)
    assert state.follows
    assert seen == [iterator]
    assert not FitState().show_data(np.ones(2))
