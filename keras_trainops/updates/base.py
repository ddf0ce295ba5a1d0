"""The protocol of updates.

An *update* is a non-gradient change of state in a training step: batch-norm statistics, averages,
whatever a user registers. (optax calls the transformed gradients updates; we never do.)
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

    Subclasses override `__call__`, `get_config` and, where they have state, `build`; and register
    themselves with `keras.saving.register_keras_serializable`. State made with `add_variable` is
    saved and resumed with the optimizer.

    Args:
        every: It runs once in so many weight updates or batches.
        on: `"update"` counts weight updates (`optimizer.iterations`): under
            `gradient_accumulation_steps` there is one in several batches, and in a batch whose
            update is skipped, as after an overflow, there is none. `"batch"` counts batches.

    Raises:
        ValueError: If an argument does not fit.
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
        """Checks the update against the model, before its first step, and creates its state.

        It is called again where the model is compiled again, and then keeps the state.

        Raises:
            ValueError: If it does not fit the model.
        """

    def start(self, model: keras.Model) -> None:
        """Takes from the model what training is to start from.

        Called as training with it begins, and again after a `WarmStart`. A run that is resumed
        does not call it.
        """

    @property
    def starts_from_weights(self) -> bool:
        """Whether it takes anything as training begins."""
        return type(self).start is not Update.start

    @abstractmethod
    def __call__(self, model: keras.Model, loss: Any) -> None:
        """Assigns whatever it assigns, with `keras.ops`, inside the training step.

        It may assign the model's variables and its own, no others.

        Args:
            model: The model in training.
            loss: The step's loss, a scalar tensor (unscaled).
        """

    @property
    def name(self) -> str:
        """How messages name the update."""
        return type(self).__name__

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments, as Keras serialises them."""
        return {"every": self.every, "on": self.on}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Update:
        """The update with these constructor arguments."""
        return cls(**config)
