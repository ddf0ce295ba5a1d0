from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import ops

from keras_trainops.transforms.scope import update_scope
from tests.transforms.gradients import GRADIENTS, T, close, each, run, variables

GLOBAL = np.sqrt(sum((g**2).sum() for g in GRADIENTS if g is not None))


def test_numbers_may_be_schedules_over_weight_updates() -> None:
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay([10], [1.0, 0.25])
    for step, factor in ((3, 1.0), (30, 0.25)):
        scaled = run(T.Scale({"trunk": schedule}), iterations=step)
        close(scaled[:2], [g * factor for g in GRADIENTS[:2]])
        expected = each(lambda g, c=factor: g * c / max(GLOBAL, c))
        close(run(T.ClipByGlobalNorm(schedule), iterations=step), expected)
    scale, made = T.Scale(schedule), variables()
    scale.build(made)
    with pytest.raises(RuntimeError, match="A schedule has a value only while an optimizer runs"):
        scale([ops.ones(v.shape) for v in made], made)


def test_update_is_skipped_if_any_condition_holds() -> None:
    with update_scope(lambda: 0) as scope:
        assert scope.skip() is None
        T.skip_update_if(ops.convert_to_tensor(False))
        assert not bool(scope.skip())
        T.skip_update_if(ops.convert_to_tensor(True))
        assert bool(scope.skip())
    with pytest.raises(RuntimeError, match="Only a transform that an optimizer runs can skip"):
        T.skip_update_if(ops.convert_to_tensor(True))
