"""Averages of weights over training steps."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_trainops import paths
from keras_trainops.backends import backend
from keras_trainops.representation import CallRepr
from keras_trainops.scalars import (
    Number,
    check_decay,
    check_positive,
    check_whole,
    deserialize_number,
    serialize_number,
    value_at,
)
from keras_trainops.updates.base import On, Update
from keras_trainops.updates.swap import Swap
from keras_trainops.values import copy_of, tensor_of


class WeightAverage(Update):
    """Base class of averages of weights.

    Unless a subclass overrides `start`, the first run copies the current weights, so initial
    values, or values from before a warm start, never enter the average. Averages of half-precision
    weights are kept in float32; integers are copied.

    Args:
        patterns: Patterns, variables or layers (see `keras_trainops.paths`); None averages the
            variables to train.
        statistics: If True, average the weights that are not trained as well, such as batch-norm
            statistics.
        every: The number of weight updates or batches from one run to the next.
        on: `"update"` or `"batch"`, the unit of `every`; see `Update`.
    """

    def __init__(
        self,
        patterns: paths.Patterns = None,
        statistics: bool = False,
        every: int = 1,
        on: On = "update",
    ) -> None:
        super().__init__(every, on)
        paths.as_list(patterns)
        self.patterns, self.statistics = patterns, statistics
        self._averages: dict[int, tuple[keras.Variable, keras.Variable]] = {}
        self.scalars: dict[str, keras.Variable] = {}

    def build(self, model: keras.Model) -> None:
        averages = {id(v): (v, self._average_of(v)) for v in self._chosen(model)}
        continues = bool(averages.keys() & self._averages.keys())
        scalars = self.scalars if continues else self._make_scalars()
        self._averages, self.scalars = averages, scalars
        self.use_as_state((average for _, average in averages.values()), named=scalars)

    def _chosen(self, model: keras.Model) -> list[keras.Variable]:
        named = paths.by_path(model.weights)
        trained = {id(v) for v in model.trainable_variables}
        if self.patterns is None:
            chosen = [id(v) in trained for _, v in named]
        else:
            chosen = paths.select(self.patterns, named)
        return [
            v
            for (_, v), yes in zip(named, chosen, strict=True)
            if yes or (self.statistics and id(v) not in trained)
        ]

    def _average_of(self, variable: keras.Variable) -> keras.Variable:
        if id(variable) in self._averages:
            return self._averages[id(variable)][1]
        dtype = variable.dtype
        dtype = "float32" if dtype in ("float16", "bfloat16") else dtype
        average = self.add_variable(f"average_of_{variable.name}", dtype=dtype, like=variable)
        average.assign(_scaled(tensor_of(variable, dtype), self._initial_fraction()))
        return average

    def _initial_fraction(self) -> float:
        """Initial fraction of the weights for an average that is added during training."""
        return 1.0

    def _make_scalars(self) -> dict[str, keras.Variable]:
        """Create the scalars that all averages share; `count` is the number of runs."""
        return {"count": self.add_variable("count", dtype="int32")}

    @abstractmethod
    def shares(self, model: keras.Model) -> tuple[Any, Any]:
        """Return the shares of the old average and of the weights in the new average."""

    def __call__(self, model: keras.Model, loss: Any) -> None:
        old_share, new_share = self.shares(model)
        for variable, average in self._averages.values():
            if keras.backend.is_float_dtype(average.dtype):
                dtype = average.dtype
                weights = ops.cast(new_share, dtype) * ops.cast(variable, dtype)
                average.assign(ops.cast(old_share, dtype) * average + weights)
            else:
                average.assign(variable)
        self.scalars["count"].assign(self.scalars["count"] + 1)

    def correction(self) -> float:
        """Return the factor to apply when the averages are used, outside of a step."""
        return 1.0

    def averages(self) -> list[tuple[keras.Variable, np.ndarray]]:
        """Return each averaged variable with its average, in the variable's shape and dtype.

        Before the first run these are the weights themselves.

        Raises:
            RuntimeError: If the average is not built yet; training builds it.
            ValueError: If a variable is sharded over processes: use `swapped` or `finalize`.
        """
        return [(variable, np.array(backend().on_host(t))) for variable, t in self.tensors()]

    def tensors(self) -> Iterator[tuple[keras.Variable, Any]]:
        """Yield what `averages` returns as tensors on the variables' devices, one at a time."""
        if not self._averages:
            raise RuntimeError(
                f"{self.name} has no averages yet: pass it to `compile(updates=...)` or "
                "`add_update`, and train."
            )
        ran = bool(copy_of(self.scalars["count"]))
        correction = self.correction() if ran else 1.0
        for variable, average in self._averages.values():
            source = average if ran else variable
            value = _scaled(tensor_of(source), correction)
            yield variable, ops.cast(value, variable.dtype)

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """Give the model the averaged weights; restore its own on exit, even after an error.

        Example:
            >>> import keras, keras_trainops as kt
            >>> average = kt.updates.MovingAverage(0.9)
            >>> model = kt.TrainOpsModel(inputs := keras.Input((1,)), keras.layers.Dense(1)(inputs))
            >>> model.compile("sgd", "mse", updates=[kt.updates.LayerUpdates(), average])
            >>> x = keras.ops.ones((4, 1))
            >>> history = model.fit(x, x, verbose=0)
            >>> with average.swapped():
            ...     loss = model.evaluate(x, x, verbose=0)
        """
        swap = Swap()
        swap.enter(self.tensors())
        try:
            yield
        finally:
            swap.leave()

    def finalize(self) -> None:
        """Assign the averages to the model's weights permanently."""
        for variable, value in self.tensors():
            variable.assign(value)

    def get_config(self) -> dict[str, Any]:
        return {
            "patterns": paths.serializable(self.patterns),
            "statistics": self.statistics,
            **super().get_config(),
        }


def _scaled(value: Any, factor: float) -> Any:
    """Return a value times a factor; integers are copied, not averaged."""
    dtype = keras.backend.standardize_dtype(value.dtype)
    return value * factor if factor != 1.0 and keras.backend.is_float_dtype(dtype) else value


@keras.saving.register_keras_serializable(package="keras_trainops")
class MovingAverage(WeightAverage):
    """Keeps an exponential moving average of weights.

    `a ← d · a + (1 − d) · w`, and `a ← w` in the first run. With `debias`, `a` starts from 0 and is
    divided by `1 − Π d` when it is used, like Adam's moments.

    Args:
        decay: The decay `d`, `0 <= d < 1`; a number, or a schedule over the weight updates such as
            `WarmUp`.
        patterns: Patterns, variables or layers (see `keras_trainops.paths`); None averages the
            variables to train.
        statistics: If True, average the weights that are not trained as well, such as batch-norm
            statistics; integers are copied.
        debias: If True, start from 0 and correct the average for it.
        every: The number of weight updates or batches from one run to the next.
        on: `"update"` or `"batch"`, the unit of `every`; see `Update`.

    Raises:
        ValueError: If an argument is not valid; at the first build, if a pattern matches no weight.

    Example:
        >>> import keras_trainops as kt
        >>> average = kt.updates.MovingAverage(0.999, statistics=True)

    References: `tf.train.ExponentialMovingAverage`; `use_ema` of Keras's optimizers, with equal
    results; `ModelEmaV3` of timm.
    """

    def __init__(
        self,
        decay: Number = 0.999,
        patterns: paths.Patterns = None,
        statistics: bool = False,
        debias: bool = False,
        every: int = 1,
        on: On = "update",
    ) -> None:
        super().__init__(patterns, statistics, every, on)
        self.decay = check_decay(deserialize_number(decay), scheduled=True)
        self.debias = debias

    def _make_scalars(self) -> dict[str, keras.Variable]:
        product = {"product": self.add_variable("product")} if self.debias else {}
        return {**super()._make_scalars(), **product}

    def shares(self, model: keras.Model) -> tuple[Any, Any]:
        # The same arithmetic as `use_ema` of Keras, for equal results.
        later = ops.cast(ops.not_equal(self.scalars["count"], 0), "float32")
        decay = value_at(self.decay, _updates_before(model))
        if not self.debias:
            decay = later * decay
            return decay, 1 - decay
        product = self.scalars["product"]
        product.assign(decay * ops.where(later > 0, product.value, 1.0))
        return later * decay, 1 - decay

    def _initial_fraction(self) -> float:
        ran = self.debias and self.scalars and int(copy_of(self.scalars["count"]))
        return 1 - float(copy_of(self.scalars["product"])) if ran else 1.0

    def correction(self) -> float:
        return 1 / (1 - float(copy_of(self.scalars["product"]))) if self.debias else 1.0

    def get_config(self) -> dict[str, Any]:
        own = {"decay": serialize_number(self.decay), "debias": self.debias}
        return {**own, **super().get_config()}


@keras.saving.register_keras_serializable(package="keras_trainops")
class StochasticWeightAverage(WeightAverage):
    """Averages the weights of later steps with equal shares (SWA).

    `a ← a + (w − a) / (n + 1)` for the `n + 1`-th weights that are averaged.

    Batch-norm statistics depend on the weights. Recompute them for the averaged ones:
    `keras_trainops.UseAverage(swa, finalize=True, recalibrate=data)`.

    Args:
        start: The first weights averaged are those after this many weight updates.
        patterns: Patterns, variables or layers (see `keras_trainops.paths`); None averages the
            variables to train.
        statistics: If True, average the weights that are not trained as well.
        every: The number of weight updates or batches from one run to the next.
        on: `"update"` or `"batch"`, the unit of `every`; see `Update`.

    Raises:
        ValueError: If an argument is not valid; at the first build, if a pattern matches no weight.

    Example:
        >>> import keras_trainops as kt
        >>> swa = kt.updates.StochasticWeightAverage(start=10_000, every=100)

    References: Izmailov et al. 2018, "Averaging Weights Leads to Wider Optima and Better
    Generalization"; `torch.optim.swa_utils.AveragedModel`.
    """

    def __init__(
        self,
        start: int = 0,
        patterns: paths.Patterns = None,
        statistics: bool = False,
        every: int = 1,
        on: On = "update",
    ) -> None:
        super().__init__(patterns, statistics, every, on)
        self.first = check_whole("start", start, 0)

    def shares(self, model: keras.Model) -> tuple[Any, Any]:
        count = ops.cast(self.scalars["count"], "float32")
        started = ops.greater_equal(model.optimizer.iterations, self.first)
        added = ops.where(started, 1 / (count + 1), 0.0)
        return 1 - added, added

    def __call__(self, model: keras.Model, loss: Any) -> None:
        super().__call__(model, loss)
        early = ops.less(model.optimizer.iterations, self.first)
        count = self.scalars["count"]
        count.assign(count - ops.cast(early, "int32"))

    def get_config(self) -> dict[str, Any]:
        return {"start": self.first, **super().get_config()}


@keras.saving.register_keras_serializable(package="keras_trainops")
class WarmUp(CallRepr, keras.optimizers.schedules.LearningRateSchedule):
    """Decay that starts low, so that an average soon forgets the first weights.

    After `t` weight updates `min(d, (1 + t) / (10 + t))` or, with a `power`,
    `min(d, 1 − (1 + t / γ)^(−p))`.

    Args:
        decay: The final decay `d`, `0 <= d < 1`.
        power: The power `p`, > 0, or None for the first formula.
        gamma: The time scale `γ` of the second formula, > 0, in weight updates.

    Raises:
        ValueError: If a number is out of range.

    Example:
        >>> import keras_trainops as kt
        >>> average = kt.updates.MovingAverage(kt.updates.WarmUp(0.9999, power=2 / 3))

    References: `num_updates` of `tf.train.ExponentialMovingAverage`; `ModelEmaV3` of timm.
    """

    def __init__(self, decay: float, power: float | None = None, gamma: float = 1.0) -> None:
        self.decay = check_decay(decay)
        self.power = check_positive("power", power, optional=True)
        self.gamma = check_positive("gamma", gamma)

    def __call__(self, step: Any) -> Any:
        step = ops.cast(step, "float32")
        if self.power is None:
            low = (1 + step) / (10 + step)
        else:
            low = 1 - (1 + step / self.gamma) ** -self.power
        return ops.minimum(self.decay, low)

    def get_config(self) -> dict[str, Any]:
        return {"decay": self.decay, "power": self.power, "gamma": self.gamma}


def _updates_before(model: keras.Model) -> Any:
    """Return the number of weight updates before the one just made."""
    return ops.maximum(ops.cast(model.optimizer.iterations, "int32") - 1, 0)
