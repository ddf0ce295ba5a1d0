"""The protocol of updates.

An *update* is a non-gradient change of state in a training step: batch-norm statistics, averages,
or a function that a user registers. (In optax, "updates" are transformed gradients; not here.)
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, Literal, TypeAlias

import keras

from keras_trainops.representation import CallRepr
from keras_trainops.scalars import check_whole
from keras_trainops.state import Stateful

On: TypeAlias = Literal["update", "batch"]


class Update(CallRepr, Stateful):
    """Base class of updates that run after the weight update: subclass it, or pass a function.

    Subclasses override `__call__` and `get_config`, and `build` if they have state. They register
    themselves with `keras.saving.register_keras_serializable`. State made with `add_variable` is
    saved and resumed with the optimizer.

    Args:
        every: The number of weight updates or batches from one run to the next.
        on: `"update"` counts weight updates (`optimizer.iterations`). Gradient accumulation makes
            one per `gradient_accumulation_steps` batches; a batch with a skipped update, as after
            an overflow, makes none. `"batch"` counts batches.

    Raises:
        ValueError: If an argument is not valid.

    Example:
        >>> import keras_trainops as kt
        >>> class Count(kt.updates.Update):
        ...     def build(self, model):
        ...         self.steps = self.state_variable("steps", dtype="int32")
        ...
        ...     def __call__(self, model, loss):
        ...         self.steps.assign(self.steps + 1)
        >>> count = Count(every=10)
    """

    argument = "compile(updates=...)"
    every: int = 1
    on: On = "update"

    def __init__(self, every: int = 1, on: On = "update") -> None:
        every = check_whole("every", every, 1)
        if on not in ("update", "batch"):
            raise ValueError(f'`on` must be "update" or "batch". Received: on={on!r}')
        self.every, self.on = every, on

    def build(self, model: keras.Model) -> None:
        """Check the update against the model before its first step, and create its state.

        It is called again after the model is compiled again, and must then keep the state.

        Raises:
            ValueError: If the update does not fit the model.
        """

    def start(self, model: keras.Model) -> None:
        """Initialise the update from the model's weights.

        It is called when training with the update begins, and again after a `WarmStart`, but not
        when a run is resumed.
        """

    @property
    def starts_from_weights(self) -> bool:
        """True if the update overrides `start`."""
        return type(self).start is not Update.start

    @abstractmethod
    def __call__(self, model: keras.Model, loss: Any) -> None:
        """Assign variables with `keras.ops`, inside the training step.

        Only the model's variables and the update's own may be assigned.

        Args:
            model: The model in training.
            loss: The step's loss, a scalar tensor (unscaled).
        """

    @property
    def name(self) -> str:
        """The name of the update in messages."""
        return type(self).__name__

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments, as Keras serialises them."""
        return {"every": self.every, "on": self.on}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Update:
        """Create the update from its constructor's arguments."""
        return cls(**config)
