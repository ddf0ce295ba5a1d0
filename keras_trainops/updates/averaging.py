"""Averages of weights over the steps of training."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_trainops import paths
from keras_trainops.representation import CallRepr
from keras_trainops.scalars import (
    Number,
    check_number,
    check_positive,
    check_whole,
    deserialize_number,
    serialize_number,
    value_at,
)
from keras_trainops.updates.base import On, Update
from keras_trainops.updates.swap import Swap
from keras_trainops.values import copy_of


class WeightAverage(Update):
    """What averages of weights share: which, their state, and how they are used.

    The first time it runs an average takes the weights as they are, so that nothing of the initial
    or warm-started values is left in it. Averages of half-precision weights are kept in float32;
    integers are copied.

    Args:
        patterns: Patterns, variables or layers (see `keras_trainops.paths`); None: the variables
            to train.
        statistics: Whether the weights that are not trained, such as batch-norm statistics, are
            averaged too.
        every: It runs once in so many weight updates or batches.
        on: `"update"` or `"batch"`, what `every` counts; see `Update`.
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
        self.numbers: dict[str, keras.Variable] = {}

    def build(self, model: keras.Model) -> None:
        averages = {id(v): (v, self._average_of(v)) for v in self._chosen(model)}
        goes_on = bool(averages.keys() & self._averages.keys())
        numbers = self.numbers if goes_on else self._make_numbers()
        self._averages, self.numbers = averages, numbers
        self.use_as_state([*numbers.values(), *(average for _, average in averages.values())])

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
        average = self.add_variable(f"average_of_{variable.name}", variable.shape, dtype)
        average.assign((copy_of(variable) * self._share()).astype(average.dtype))
        return average

    def _share(self) -> float:
        """What an average holds of the weights that it starts from, while others go on."""
        return 1.0

    def _make_numbers(self) -> dict[str, keras.Variable]:
        """Counts and the like; `count` says how often it ran."""
        return {"count": self.add_variable("count", dtype="int32")}

    @abstractmethod
    def kept(self, model: keras.Model) -> tuple[Any, Any]:
        """How much of the average stays, and how much of the weights is added."""

    def __call__(self, model: keras.Model, loss: Any) -> None:
        stays, added = self.kept(model)
        for variable, average in self._averages.values():
            if keras.backend.is_float_dtype(average.dtype):
                dtype = average.dtype
                weights = ops.cast(added, dtype) * ops.cast(variable, dtype)
                average.assign(ops.cast(stays, dtype) * average + weights)
            else:
                average.assign(variable)
        self.numbers["count"].assign(self.numbers["count"] + 1)

    def correction(self) -> float:
        """By what the averages are to be multiplied; a number, outside of a step."""
        return 1.0

    def averages(self) -> list[tuple[keras.Variable, np.ndarray]]:
        """Each averaged variable and its average, in the variable's shape and dtype.

        As long as it has not run, the weights as they are.

        Raises:
            RuntimeError: If it was not built yet: training builds it.
        """
        if not self._averages:
            raise RuntimeError(
                f"{self.name} has no averages yet: pass it to `compile(updates=...)` or "
                "`add_update`, and train."
            )
        if not int(copy_of(self.numbers["count"])):
            return [(v, copy_of(v)) for v, _ in self._averages.values()]
        correction = self.correction()
        return [
            (v, (copy_of(a) * correction if correction != 1.0 else copy_of(a)).astype(v.dtype))
            for v, a in self._averages.values()
        ]

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """Within it the model has the averaged weights; afterwards, whatever happens, its own.

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
        swap.enter(self.averages())
        try:
            yield
        finally:
            swap.leave()

    def finalize(self) -> None:
        """Writes the averages into the model's weights, for good."""
        for variable, value in self.averages():
            variable.assign(value)

    def get_config(self) -> dict[str, Any]:
        return {
            "patterns": paths.serializable(self.patterns),
            "statistics": self.statistics,
            **super().get_config(),
        }


@keras.saving.register_keras_serializable(package="keras_trainops")
class MovingAverage(WeightAverage):
    """Keeps an exponential moving average of weights.

    `a ← d · a + (1 − d) · w`, and `a ← w` the first time. With `debias`, `a` starts from 0 and is
    divided by `1 − Π d` where it is used, as Adam's moments are.

    Args:
        decay: The decay `d`, `0 <= d < 1`; a number, or a schedule of the weight updates such as
            `WarmUp`.
        patterns: Patterns, variables or layers (see `keras_trainops.paths`); None: the variables
            to train.
        statistics: Whether the weights that are not trained, such as batch-norm statistics, are
            averaged too; integers are copied.
        debias: Whether the average is corrected for its start.
        every: It runs once in so many weight updates or batches.
        on: `"update"` or `"batch"`, what `every` counts; see `Update`.

    Raises:
        ValueError: If an argument does not fit; at the first build, if a pattern matches no weight.

    Example:
        >>> import keras_trainops as kt
        >>> average = kt.updates.MovingAverage(0.999, statistics=True)

    References: `tf.train.ExponentialMovingAverage`; `use_ema` of Keras's optimizers, which gives
    the same numbers; `ModelEmaV3` of timm.
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

    def _make_numbers(self) -> dict[str, keras.Variable]:
        product = {"product": self.add_variable("product")} if self.debias else {}
        return {**super()._make_numbers(), **product}

    def kept(self, model: keras.Model) -> tuple[Any, Any]:
        # As Keras does in `use_ema`, so that the numbers are the same.
        later = ops.cast(ops.not_equal(self.numbers["count"], 0), "float32")
        decay = value_at(self.decay, _updates_before(model))
        if not self.debias:
            decay = later * decay
            return decay, 1 - decay
        product = self.numbers["product"]
        product.assign(decay * ops.where(later > 0, product.value, 1.0))
        return later * decay, 1 - decay

    def _share(self) -> float:
        ran = self.debias and self.numbers and int(copy_of(self.numbers["count"]))
        return 1 - float(copy_of(self.numbers["product"])) if ran else 1.0

    def correction(self) -> float:
        return 1 / (1 - float(copy_of(self.numbers["product"]))) if self.debias else 1.0

    def get_config(self) -> dict[str, Any]:
        own = {"decay": serialize_number(self.decay), "debias": self.debias}
        return {**own, **super().get_config()}


@keras.saving.register_keras_serializable(package="keras_trainops")
class StochasticWeightAverage(WeightAverage):
    """Averages the weights of later steps, all with the same share (SWA).

    `a ← a + (w − a) / (n + 1)` for the `n + 1`-th weights that are averaged.

    Batch-norm statistics belong to the weights they were made with. Compute them anew for the
    averaged ones: `keras_trainops.UseAverage(swa, finalize=True, recalibrate=data)`.

    Args:
        start: The first weights averaged are those after so many weight updates.
        patterns: Patterns, variables or layers (see `keras_trainops.paths`); None: the variables
            to train.
        statistics: Whether the weights that are not trained are averaged too.
        every: It runs once in so many weight updates or batches.
        on: `"update"` or `"batch"`, what `every` counts; see `Update`.

    Raises:
        ValueError: If an argument does not fit; at the first build, if a pattern matches no weight.

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

    def kept(self, model: keras.Model) -> tuple[Any, Any]:
        count = ops.cast(self.numbers["count"], "float32")
        counts = ops.greater_equal(model.optimizer.iterations, self.first)
        added = ops.where(counts, 1 / (count + 1), 0.0)
        return 1 - added, added

    def __call__(self, model: keras.Model, loss: Any) -> None:
        super().__call__(model, loss)
        early = ops.less(model.optimizer.iterations, self.first)
        count = self.numbers["count"]
        count.assign(count - ops.cast(early, "int32"))

    def get_config(self) -> dict[str, Any]:
        return {"start": self.first, **super().get_config()}


@keras.saving.register_keras_serializable(package="keras_trainops")
class WarmUp(CallRepr, keras.optimizers.schedules.LearningRateSchedule):
    """A decay that starts low, so that an average soon forgets the first weights.

    After `t` weight updates `min(d, (1 + t) / (10 + t))` or, with a `power`,
    `min(d, 1 − (1 + t / γ)^(−p))`.

    Args:
        decay: The decay `d` in the end, `0 <= d < 1`.
        power: The power `p`, > 0, or None.
        gamma: The `γ` beside it, > 0, in weight updates.

    Raises:
        ValueError: If a number does not fit.

    Example:
        >>> import keras_trainops as kt
        >>> average = kt.updates.MovingAverage(kt.updates.WarmUp(0.9999, power=2 / 3))

    References: `num_updates` of `tf.train.ExponentialMovingAverage`; `ModelEmaV3` of timm.
    """

    def __init__(self, decay: float, power: float | None = None, gamma: float = 1.0) -> None:
        self.decay = check_decay(decay)
        self.power = check_number("power", power, "> 0", lambda p: p > 0, optional=True)
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


def check_decay(decay: Any, *, scheduled: bool = False) -> Any:
    """Refuses what is no decay or, if `scheduled`, a schedule.

    Raises:
        ValueError: If it is none.
    """
    must = "at least 0 and below 1"
    return check_number("decay", decay, must, lambda d: 0 <= d < 1, scheduled=scheduled)


def _updates_before(model: keras.Model) -> Any:
    """How many weight updates there were before the one that was just made."""
    return ops.maximum(ops.cast(model.optimizer.iterations, "int32") - 1, 0)
