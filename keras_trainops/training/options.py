"""What the mixin keeps on a model."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import keras

from keras_trainops.training.fit_callbacks import SeesData
from keras_trainops.training.numerics import NumericsGuard
from keras_trainops.training.trainability import Trainability
from keras_trainops.transforms.monitoring import Monitor
from keras_trainops.updates.base import Update
from keras_trainops.updates.policy import UpdatePolicy

COMPILE_ARGUMENTS = ("updates", "variables_to_train", "check_numerics")


@dataclass
class TrainOps:
    """What the mixin keeps on a model.

    Attributes:
        registered: Updates added by `add_update`.
        arguments: The `compile` arguments of ours that are not in the optimizer.
        policy: Which updates run.
        numerics: The guard of `check_numerics=True`.
        monitors: The `Monitor`s in the chain, whose norms go into the logs.
        norm_metrics: Their averages.
        shows_norms: Whether the averages are in the logs: not in those of an evaluation.
        carried: Variables of no layer, metric or optimizer that a step carries to the next.
        evaluation: What evaluations that callbacks make happen in, as with averages; None: nothing.
        why_unbuilt: Why the model could not be built before its first step, if so.
        sees_data: Told once of the data that a `fit` iterates over; None: nobody asks.
        follows: Whether a callback follows these data.
        compiled: What was trainable when the model was compiled; None: before that.
        wanted: What the user asked for that only our step can do.
        steps: How often our step, or Keras's behind it, was run or traced.
        before: What there was before the first step of the user's own, until that passes.
    """

    registered: list[Update] = field(default_factory=list)
    arguments: dict[str, Any] = field(default_factory=lambda: dict.fromkeys(COMPILE_ARGUMENTS))
    policy: UpdatePolicy = field(default_factory=lambda: UpdatePolicy(None, []))
    numerics: NumericsGuard | None = None
    monitors: list[Monitor] = field(default_factory=list)
    norm_metrics: list[keras.metrics.Metric] = field(default_factory=list)
    shows_norms: bool = True
    carried: list[keras.Variable] = field(default_factory=list)
    evaluation: Callable[[], AbstractContextManager[None]] | None = None
    why_unbuilt: str = ""
    sees_data: SeesData | None = None
    follows: bool = False
    compiled: Trainability | None = None
    wanted: tuple[str, ...] = ()
    steps: int = 0
    before: list[tuple[keras.Variable, Any]] | None = None

    def wants_own_step(self) -> bool:
        """Whether a policy or a check needs another training step than Keras's."""
        policy = self.policy
        return bool(self.numerics or policy.after_weights or not policy.keeps_layer_updates)
