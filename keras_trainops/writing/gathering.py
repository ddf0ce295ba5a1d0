"""The values of a model, for the process that writes them: one tensor at a time."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_trainops import keras_private
from keras_trainops.backends import backend
from keras_trainops.processes import Processes
from keras_trainops.values import view_of
from keras_trainops.writing.lora import LowRank, low_rank_layers

WHAT = "to write the weights"
_END, _WAIT = "end", "wait"
_BEAT = 1.0  # seconds


class ModelValues:
    """The values of a model's variables, also of those that are sharded over processes.

    Either all processes ask for the same values in the same order, or the first one leads: it asks
    within `leading`, and meanwhile the others `follow`.

    Args:
        model: The model.

    Attributes:
        processes: The processes that train the model.
    """

    def __init__(self, model: keras.Model) -> None:
        self.processes = Processes(model)
        self._model: Any = model
        self._leads = False
        self._told = time.monotonic()

    def of(self, variable: keras.Variable) -> np.ndarray:
        """Return the value of a variable, which is only read."""
        if backend().is_whole(variable.value):
            return view_of(variable)
        return self._gathered(variable, lambda: ops.convert_to_tensor(variable), merged=False)

    def merged(self, layer: LowRank) -> np.ndarray:
        """Return the kernel of a layer with its low-rank update added."""
        variables = [layer.kernel, layer.a, layer.b]
        own = backend().of_this_process(variables)
        if own is not None:
            with keras_private.ValueScope(own):
                return view_of(layer.value())
        return self._gathered(layer.kernel, layer.value, merged=True)

    def _gathered(
        self, variable: keras.Variable, tensor: Callable[[], Any], *, merged: bool
    ) -> np.ndarray:
        if self._leads:
            (place,) = (i for i, v in enumerate(self._model.variables) if v is variable)
            self._tell([place, merged])
        return self.processes.in_time(lambda: backend().gathered(tensor()), WHAT)

    def _tell(self, request: Any) -> None:
        self._told = time.monotonic()
        self.processes.broadcast(request, WHAT)

    @contextlib.contextmanager
    def leading(self) -> Iterator[None]:
        """Surround what the first process does with the values."""
        self._leads = self.processes.several
        try:
            yield
        except BaseException:
            with contextlib.suppress(RuntimeError):  # the others may be gone
                self._release()
            raise
        self._release()

    def _release(self) -> None:
        if self._leads:
            self._tell(_END)
        self._leads = False

    def keep_waiting(self) -> None:
        """Tell the others that the first process is at work, so that they do not give up."""
        if self._leads and time.monotonic() - self._told > _BEAT:
            self._tell(_WAIT)

    def follow(self) -> None:
        """Take part in gathering, until the first process needs no more values."""
        while (request := self.processes.broadcast(None, WHAT)) != _END:
            if request == _WAIT:
                continue
            place, merged = request
            variable = self._model.variables[place]
            if merged:
                (layer,) = (la for la in low_rank_layers(self._model) if la.kernel is variable)
                self.merged(layer)
            else:
                self.of(variable)
