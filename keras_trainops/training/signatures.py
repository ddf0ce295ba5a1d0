"""The methods of a model with the mixin, as type checkers and editors see them.

Keras has no annotations: a checker guesses types from defaults, so `verbose=0` would be an error,
or knows nothing at all. At run time the mixin passes arguments on as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar, overload

import keras

from keras_trainops import paths
from keras_trainops.gradients.base import GradientSource
from keras_trainops.transforms.chain import Transforms
from keras_trainops.updates.base import On, Update
from keras_trainops.updates.functions import UpdateFn, Updates
from keras_trainops.updates.layer_updates import LayerUpdates

AnyOptimizer: TypeAlias = "str | keras.optimizers.Optimizer | dict[str, Any]"
Loss: TypeAlias = "str | keras.losses.Loss | Callable[..., Any]"
Losses: TypeAlias = "Loss | Sequence[Any] | Mapping[str, Any]"  # nested like the model's outputs
LossWeights: TypeAlias = "float | Sequence[Any] | Mapping[str, Any]"
Metrics: TypeAlias = "list[Any] | tuple[Any, ...] | dict[str, Any]"
Callbacks: TypeAlias = "keras.callbacks.Callback | Sequence[keras.callbacks.Callback]"
Verbose: TypeAlias = "Literal['auto'] | int"

Method = TypeVar("Method", bound=Callable[..., Any])
Added = TypeVar("Added", bound="Update | LayerUpdates | UpdateFn")
AddedFn = TypeVar("AddedFn", bound="UpdateFn")

if TYPE_CHECKING:
    from keras import Model as _Model
else:
    _Model = object


def typed_as(method: Method) -> Callable[[Callable[..., Any]], Method]:
    """Show a method to type checkers with the signature of another, whose text it gets, too."""

    def described(function: Any) -> Any:
        function.__doc__ = function.__doc__ or method.__doc__
        return function

    return described


class TypedModel(_Model):
    """A Keras model with the mixin; for type checkers it is the mixin's base class."""

    built: bool
    compiled: bool
    optimizer: Any
    train_function: Any
    test_function: Any

    @property
    def variables(self) -> list[keras.Variable]:
        raise NotImplementedError

    @property
    def weights(self) -> list[keras.Variable]:
        raise NotImplementedError

    def compile(
        self,
        optimizer: AnyOptimizer | None = "rmsprop",
        loss: Losses | None = None,
        loss_weights: LossWeights | None = None,
        metrics: Metrics | None = None,
        weighted_metrics: Metrics | None = None,
        run_eagerly: bool = False,
        steps_per_execution: int = 1,
        jit_compile: bool | Literal["auto"] = "auto",
        auto_scale_loss: bool = True,
        *,
        optimizers: Mapping[str, AnyOptimizer] | None = None,
        gradient_transforms: Transforms | Mapping[str, Transforms] | None = None,
        updates: Updates | Mapping[str, Updates] | None = None,
        variables_to_train: paths.Patterns | Mapping[str, paths.Patterns] = None,
        check_numerics: bool = False,
        gradients: GradientSource | None = None,
    ) -> None:
        """Configure the model for training; the first arguments are those of `keras.Model.compile`.

        Args:
            optimizer: As in Keras; it is not changed. With `gradient_transforms` the model's
                optimizer is a `TransformedOptimizer` around it, or a copy of a `LossScaleOptimizer`
                with one inside; the transforms replace those it has.
            loss: As in Keras: a name, a loss or a function, or one for each output.
            loss_weights: As in Keras: factors of the losses of several outputs.
            metrics: As in Keras: a list of names, metrics or functions, or one for each output.
            weighted_metrics: As in Keras: metrics that use the weights of the samples.
            run_eagerly: As in Keras: True compiles nothing, for debugging.
            steps_per_execution: As in Keras: batches in each call of the compiled function.
            jit_compile: As in Keras: whether to compile with XLA, or with Inductor on PyTorch.
            auto_scale_loss: As in Keras: whether float16 gets a `LossScaleOptimizer`.
            optimizers: Several optimizers by name, in place of `optimizer`; the model's optimizer
                is then an `OptimizerGroup` of them. `variables_to_train` says by these names which
                variables each trains, and `gradient_transforms` may be given by name, too.
            gradient_transforms: One transform, a list, or None: `GradientTransform`s or callables
                `fn(gradients, variables) -> gradients`.
            updates: The non-gradient updates. None: every layer's own, and those registered with
                `add_update`. One or a list: exactly these; `[]`: none (batch norm still normalises
                with batch statistics, random seeds still advance). By name, they follow the weight
                updates of one of several optimizers; otherwise those of all.
            variables_to_train: Patterns, variables or layers; None: all trainable variables. The
                others get no gradient, no weight decay, no optimizer slots and no update.
            check_numerics: If True, a NaN or infinite loss or gradient stops training with a
                `NonFiniteLossError`, which names the step and the tensor; the weights are those of
                the last good step.
            gradients: How a step computes the gradients of its loss, a `GradientSource`, as in
                `kt.gradients.SharpnessAware(rho=0.05)`. None: as in Keras. Transforms follow it.

        Raises:
            ValueError: If an argument is not valid; nothing changes. Patterns are checked when the
                model is built.
            NotImplementedError: On a backend other than TensorFlow, JAX and PyTorch.
        """
        raise NotImplementedError

    @overload
    def add_update(self, update: Added) -> Added: ...

    @overload
    def add_update(
        self,
        update: AddedFn,
        *,
        variables: Sequence[keras.Variable] = (),
        every: int = 1,
        on: On = "update",
    ) -> AddedFn: ...

    @overload
    def add_update(
        self,
        update: None = None,
        *,
        variables: Sequence[keras.Variable] = (),
        every: int = 1,
        on: On = "update",
    ) -> Callable[[AddedFn], AddedFn]: ...

    def add_update(
        self,
        update: Any = None,
        *,
        variables: Sequence[keras.Variable] = (),
        every: int = 1,
        on: On = "update",
    ) -> Any:
        """Register an update that runs after the weight update, unless `compile` says otherwise.

        It is also a decorator, with or without arguments: `@model.add_update(every=10)`.

        Args:
            update: An `Update`, or a function `fn(model, loss)` that assigns variables with
                `keras.ops`.
            variables: For a function: all variables that it assigns, except the model's.
            every: For a function: the number of weight updates or batches between two runs.
            on: For a function: `"update"` or `"batch"`, the unit of `every`.

        Returns:
            `update`.

        Raises:
            ValueError: If it is neither, or an option is not valid.
        """
        raise NotImplementedError

    def fit(
        self,
        x: Any = None,
        y: Any = None,
        batch_size: int | None = None,
        epochs: int = 1,
        verbose: Verbose = "auto",
        callbacks: Callbacks | None = None,
        validation_split: float = 0.0,
        validation_data: Any = None,
        shuffle: bool = True,
        class_weight: Mapping[int, float] | None = None,
        sample_weight: Any = None,
        initial_epoch: int = 0,
        steps_per_epoch: int | None = None,
        validation_steps: int | None = None,
        validation_batch_size: int | None = None,
        validation_freq: int | list[int] = 1,
    ) -> keras.callbacks.History:
        raise NotImplementedError

    def evaluate(
        self,
        x: Any = None,
        y: Any = None,
        batch_size: int | None = None,
        verbose: Verbose = "auto",
        sample_weight: Any = None,
        steps: int | None = None,
        callbacks: Callbacks | None = None,
        return_dict: bool = False,
    ) -> Any:
        raise NotImplementedError

    def predict(
        self,
        x: Any,
        batch_size: int | None = None,
        verbose: Verbose = "auto",
        steps: int | None = None,
        callbacks: Callbacks | None = None,
    ) -> Any:
        raise NotImplementedError

    def train_on_batch(
        self,
        x: Any,
        y: Any = None,
        sample_weight: Any = None,
        class_weight: Mapping[int, float] | None = None,
        return_dict: bool = False,
    ) -> Any:
        raise NotImplementedError

    def test_on_batch(
        self, x: Any, y: Any = None, sample_weight: Any = None, return_dict: bool = False
    ) -> Any:
        raise NotImplementedError

    # On JAX they take the state and the data, elsewhere the data: a user's own may be either.

    def train_step(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError

    def test_step(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError
