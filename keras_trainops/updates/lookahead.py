"""Lookahead: slow weights that the trained ones return to."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_trainops import paths
from keras_trainops.scalars import check_number, check_whole
from keras_trainops.updates.averaging import WeightAverage
from keras_trainops.values import tensor_of


@keras.saving.register_keras_serializable(package="keras_trainops")
class Lookahead(WeightAverage):
    """Moves slow weights towards the trained ones every few updates, and restarts from there.

    After every `k`-th weight update `s ← s + α · (w − s)`, then `w ← s`. The slow weights `s` start
    from the weights when training begins, after a warm start. They are kept in float32 for weights
    in half precision.

    The optimizer does not notice: it keeps its slots, and any of them works. The slow weights
    generalise better than the trained ones between two of these updates: `UseAverage` and `swapped`
    use them as they do averages. Put a `MovingAverage` after it in the list, so that it averages
    the weights that training continues with.

    Args:
        sync_period: The number `k` of weight updates from one run to the next, >= 1; `every` of
            other updates.
        slow_step_size: The share `α` of the trained weights, `0 < α <= 1`.
        patterns: Patterns, variables or layers (see `keras_trainops.paths`); None chooses the
            variables to train.

    Raises:
        ValueError: If an argument is not valid; at the first build, if a pattern matches no weight.

    Example:
        >>> import keras_trainops as kt
        >>> lookahead = kt.updates.Lookahead(sync_period=5, slow_step_size=0.5)

    References: Zhang et al. 2019, "Lookahead Optimizer: k steps forward, 1 step back";
    `optax.lookahead`; `tfa.optimizers.Lookahead`.
    """

    def __init__(
        self,
        sync_period: int = 5,
        slow_step_size: float = 0.5,
        patterns: paths.Patterns = None,
    ) -> None:
        super().__init__(patterns, every=check_whole("sync_period", sync_period, 1))
        self.slow_step_size = check_number(
            "slow_step_size", slow_step_size, "above 0 and at most 1", lambda a: 0 < a <= 1
        )

    def _make_scalars(self) -> dict[str, keras.Variable]:
        # The update policy keeps by this name whether it has started.
        return {**super()._make_scalars(), "started": self.add_variable("started", dtype="bool")}

    def start(self, model: keras.Model) -> None:
        for variable, slow in self._averages.values():
            slow.assign(tensor_of(variable, slow.dtype))
        self.scalars["count"].assign(1)  # from now on the slow weights are not the weights

    def shares(self, model: keras.Model) -> tuple[Any, Any]:
        return 1 - self.slow_step_size, self.slow_step_size

    def __call__(self, model: keras.Model, loss: Any) -> None:
        super().__call__(model, loss)
        for variable, slow in self._averages.values():
            variable.assign(ops.cast(slow, variable.dtype))

    def get_config(self) -> dict[str, Any]:
        return {
            "sync_period": self.every,
            "slow_step_size": self.slow_step_size,
            "patterns": paths.serializable(self.patterns),
        }
