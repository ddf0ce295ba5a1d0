"""Transforms that multiply gradients or steps by factors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import keras

from keras_trainops import paths
from keras_trainops.scalars import (
    Number,
    check_number,
    deserialize_number,
    is_number,
    serialize_number,
)
from keras_trainops.transforms.pending import Pending
from keras_trainops.transforms.rescaling import Rescaling
from keras_trainops.transforms.scope import value_of

Factor: TypeAlias = "Number | keras.Variable"
Factors: TypeAlias = "Factor | Mapping[str, Factor] | Iterable[tuple[paths.Pattern, Factor]]"


class _FactorsByPattern(Rescaling):
    """Base class of transforms with a factor for each pattern."""

    def __init__(self, factors: Factors) -> None:
        self.factors = _as_pairs(factors)

    def build(self, variables: Sequence[keras.Variable]) -> None:
        chosen = paths.first_match(self.factors, paths.by_path(variables))
        self.use_as_state(self._own_variables())
        self._factor_of = {id(v): c for v, c in zip(variables, chosen, strict=True)}

    def _own_variables(self) -> list[keras.Variable]:
        """Return the factors that are variables.

        Raises:
            ValueError: If one belongs to the model, whose variables the optimizer does not save; on
                JAX it cannot even read them.
        """
        factors: list[Any] = [factor for _, factor in self.factors]
        own = [factor for factor in factors if isinstance(factor, keras.Variable)]
        for variable in own:
            if self.is_of_its_model(variable):
                raise ValueError(
                    f"A factor must not be one of the model's own variables: {variable.path!r}. "
                    "Create another one, `keras.Variable(1.0, trainable=False)`: the optimizer "
                    "keeps it, and saves it with its state."
                )
        return own

    def get_config(self) -> dict[str, Any]:
        rules = [(pattern, serialize_number(factor)) for pattern, factor in self.factors]
        return {"factors": paths.serializable_rules(rules)}


@keras.saving.register_keras_serializable(package="keras_trainops")
class Scale(_FactorsByPattern):
    """Scales each gradient by the factor of the first pattern its variable's path matches.

    `g' = c · g`; variables that no pattern matches keep `c = 1`.

    Optimizers that normalise the gradient, such as Adam, cancel a constant factor almost
    completely; use `ScaleStep` to multiply the learning rate. The factor matters under SGD, and
    before a global clip.

    Args:
        factors: Mapping from pattern (see `keras_trainops.paths`) to factor, pairs of these if a
            pattern is a variable or a layer, or one factor for all. A factor is a number, a
            schedule over the weight updates, or a scalar `keras.Variable`, which is read in every
            update: assign to it as to a learning rate, for example in a callback. It is saved and
            resumed with the optimizer; a transform loaded from a file has a new variable, in
            `factors`.

    Attributes:
        factors: The pairs of pattern and factor.

    Returns:
        Gradients with the shapes and dtypes they came with; `None` stays `None`.

    Raises:
        ValueError: If a factor is none of these; at the first build, if a pattern matches no
            variable (the message names the closest paths) or never wins, or a factor is one of the
            model's variables.

    Example:
        >>> import keras, keras_trainops as kt
        >>> scale = kt.transforms.Scale({"backbone": 0.1, "head": 10.0})
        >>> factor = keras.Variable(0.1, trainable=False)  # assigned by a callback
        >>> scale = kt.transforms.Scale({"backbone": factor})

    References: `multiply_gradients` of tf.contrib.training.
    """

    def multipliers(self, gradients: Sequence[Pending]) -> Sequence[Any]:
        return [g.of_each([self._value(v) for v in g.variables]) for g in gradients]

    def _value(self, variable: keras.Variable) -> Any:
        factor = self._factor_of[id(variable)]
        return None if factor is None else value_of(factor)


@keras.saving.register_keras_serializable(package="keras_trainops")
class ScaleStep(_FactorsByPattern):
    """Multiplies the learning rate of variables by scaling the optimizer's step.

    `w' = w + c · (u - w)`, where `u` is the optimizer's result for the weights `w`, including
    weight decay; variables that no pattern matches keep `c = 1`. It works with every optimizer
    (with plain SGD it equals `Scale`) and at any place in the chain.

    To freeze variables use `variables_to_train`, which saves their gradients and slots as well.

    Args:
        factors: As in `Scale`.

    Returns:
        The gradients.

    Raises:
        ValueError: As in `Scale`.

    Example:
        >>> import keras_trainops as kt
        >>> slow_backbone = kt.transforms.ScaleStep({"backbone": 0.1})

    References: learning-rate multipliers of Caffe's `lr_mult` and of PyTorch's parameter groups.
    """

    def multipliers(self, gradients: Sequence[Pending]) -> Sequence[Any]:
        return [None] * len(gradients)

    def step_factors(self, variables: Sequence[keras.Variable]) -> Sequence[Factor | None]:
        return [self._factor_of[id(variable)] for variable in variables]


@keras.saving.register_keras_serializable(package="keras_trainops")
class LayerwiseDecay(ScaleStep):
    """Multiplies the learning rate of each layer by a factor that decays from output to input.

    The step of the `i`-th of `L` layers, counted from 1, is scaled by `max(min_scale, d^(L - i))`.
    The last layer takes its whole step, and so do variables outside the list.

    Args:
        decay: The base `d`, `0 < d <= 1`.
        layers: Patterns, variables or layers, or lists of these, from the input to the output.
        min_scale: The smallest factor, >= 0.

    Returns:
        The gradients.

    Raises:
        ValueError: If a number is out of range; at the first build, if a pattern matches no
            variable or never wins.

    Example:
        >>> import keras_trainops as kt
        >>> blocks = [f"block{i}" for i in range(12)]
        >>> decay = kt.transforms.LayerwiseDecay(0.75, ["embedding", *blocks, "head"])

    References: Bao et al. 2021, "BEiT: BERT Pre-Training of Image Transformers"; timm's
    `param_groups_layer_decay`.
    """

    def __init__(
        self, decay: float, layers: Sequence[paths.Patterns], min_scale: float = 0
    ) -> None:
        self.decay = check_number("decay", decay, "above 0 and at most 1", lambda d: 0 < d <= 1)
        self.min_scale = check_number("min_scale", min_scale, ">= 0", lambda x: x >= 0)
        self.layers = [paths.as_list(patterns) for patterns in layers]
        last = len(self.layers) - 1
        factors: list[tuple[paths.Pattern, Number]] = []
        for i, patterns in enumerate(self.layers):
            factor = max(min_scale, decay ** (last - i))
            factors += [(pattern, factor) for pattern in patterns]
        super().__init__(factors)

    def get_config(self) -> dict[str, Any]:
        layers = [paths.serializable(patterns) for patterns in self.layers]
        return {"decay": self.decay, "layers": layers, "min_scale": self.min_scale}


def _is_scalar_variable(value: Any) -> bool:
    return isinstance(value, keras.Variable) and tuple(value.shape) == ()


def _as_pairs(factors: Any) -> list[tuple[paths.Pattern, Factor]]:
    if not isinstance(factors, (Mapping, list, tuple)):
        factors = [(".*", factors)]
    pairs = [(pattern, deserialize_number(factor)) for pattern, factor in paths.as_rules(factors)]
    if not pairs:
        raise ValueError("`factors` must name at least one pattern. Received: an empty mapping")
    for pattern, factor in pairs:
        if not is_number(factor) and not _is_scalar_variable(factor):
            raise ValueError(
                "A factor must be a finite number, a `LearningRateSchedule` or a scalar "
                f"`keras.Variable`. Received: {factor!r} for {paths.describe(pattern)}"
            )
    return pairs
