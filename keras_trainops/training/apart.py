"""Processes that their engine keeps apart, as PyTorch does: one state and one log for all of them.

Each process has metrics of its own data, and layers assign what they see of them. Here both become
those of all data, the same on all processes, so that a callback decides the same on each of them.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import keras
from keras import ops

from keras_trainops import keras_private
from keras_trainops.backends import backend
from keras_trainops.processes import Processes, settled
from keras_trainops.training.agreement import require_same_state
from keras_trainops.training.call_arguments import Argument, Call
from keras_trainops.training.train_ops import FitState


def printed_once(
    model: Any, args: tuple[Any, ...], kwargs: dict[str, Any], verbose: Argument
) -> Call:
    """Return the arguments of a call that shows its progress on process 0, unless users chose.

    Args:
        model: The model.
        args: The positional arguments.
        kwargs: The other arguments.
        verbose: The argument that turns it off.
    """
    if verbose.of(args, kwargs) != "auto" or Processes(model).is_first:
        return args, kwargs
    return verbose.replaced(args, kwargs, 0)


def train_function_of_all(
    function: Callable[..., Any], model: Any, *, shares_state: bool
) -> Callable[..., Any]:
    """Wrap a compiled training step: state and logs of all processes.

    Args:
        function: The step.
        model: The model.
        shares_state: Whether the step itself averages what layers assign.
    """
    state: list[Any] = []  # beside variables, as the first steps found it

    @functools.wraps(function)
    def run(*args: Any) -> Any:
        if not backend().keeps_processes_apart():
            return function(*args)
        Processes(model).meet_meanwhile("to train on a batch")
        try:
            require_same_state(model, *args)
            metrics = _Metrics(model, training=True)
            if len(state) < 2:  # the first step may build layers
                state.append(backend().state_beside_variables(model))
            with backend().averaging_changes(state[-1]):
                logs = function(*args)
            if not shares_state:
                _average_state_of_layers(model)
            return metrics.of_all(logs)
        except Exception as error:
            settled(error)  # the others may wait anywhere in the step
            raise

    return run


def test_function_of_all(function: Callable[..., Any], model: Any) -> Callable[..., Any]:
    """Wrap a compiled step of evaluation: logs of all processes.

    `evaluate` adds up at its end instead: processes may have different numbers of batches.
    """

    @functools.wraps(function)
    def run(*args: Any) -> Any:
        if not backend().keeps_processes_apart() or model.train_ops.evaluates_all:
            return function(*args)
        Processes(model).meet("to evaluate on a batch")
        metrics = _Metrics(model, training=False)
        return metrics.of_all(function(*args))

    return run


def logs_of_all(model: Any, logs: Any) -> Any:
    """Return the logs of an epoch, or of a whole evaluation, which began with new metrics.

    The logs of an epoch are those of its steps, which all processes have. They meet, as those that
    have more batches must not take others' messages for those of a step.
    """
    evaluates = model.train_ops.evaluates_all
    if not backend().keeps_processes_apart():
        return logs
    Processes(model).meet("to end an evaluation" if evaluates else "to end an epoch")
    if not evaluates:
        return logs
    return _Metrics(model, training=False, since_reset=True).of_all(logs)


@contextlib.contextmanager
def whole_fit(model: Any, state: FitState) -> Iterator[None]:
    """Surround a `fit`: if it fails on one process, it fails on all.

    Args:
        model: The model.
        state: The state that the `fit` starts with.
    """
    processes, model.train_ops.fit = Processes(model), state
    try:
        with processes.failing_together("after a failure in `fit`"):
            yield
            processes.meet("to end `fit`")
    finally:
        model.train_ops.fit = FitState()


def whole_evaluation(model: Any) -> contextlib.AbstractContextManager[None]:
    """Surround an `evaluate`: if it fails on one process, it fails on all."""
    return Processes(model).failing_together("after a failure in `evaluate`")


class _Metrics:
    """The metrics of a model before a step, or since their last reset.

    Keras's metrics consist of sums, and what a step adds to them is summed up over processes. Then
    they are the same on all processes.

    Args:
        model: The model.
        training: Whether the step trains.
        since_reset: Whether all that metrics contain is to be summed up.
    """

    def __init__(self, model: Any, *, training: bool, since_reset: bool = False) -> None:
        self._model, self._training = model, training
        variables = [] if since_reset else self._variables()
        self._before = {id(v): ops.copy(v.value) for v in variables}

    def _variables(self) -> list[keras.Variable]:
        state = self._model.train_ops
        found = [v for metric in self._model.metrics for v in metric.variables]
        found += state.step_logs[self._training].variables
        found += state.norms.variables if self._training else []
        return [v for v in found if v.aggregation == "sum"]

    def of_all(self, logs: Any) -> Any:
        """Add up over processes what has been added since then, and return the logs of all."""
        with backend().no_gradients():
            variables = self._variables()
            before = [self._before.get(id(v), ops.zeros_like(v.value)) for v in variables]
            added = [v.value - old for v, old in zip(variables, before, strict=True)]
            of_all = backend().sum_over_processes(added)
            for variable, old, new in zip(variables, before, of_all, strict=True):
                variable.assign(old + new)
            return self._logs(logs)

    def _logs(self, logs: Any) -> Any:
        """Return logs, from the metrics where they have one, else means over processes."""
        if not isinstance(logs, dict):
            return logs
        model = self._model
        of_step = model.train_ops.step_logs[self._training].result()
        results = {**model.get_metrics_result(), **of_step}
        others = [name for name in logs if name not in results]
        values = [ops.convert_to_tensor(logs[name]) for name in others]
        means = dict(zip(others, backend().mean_over_replicas(values), strict=True))
        return {name: results[name] if name in results else means[name] for name in logs}


def _average_state_of_layers(model: Any) -> None:
    variables = keras_private.state_of_layers(model)
    values = backend().mean_over_replicas([v.value for v in variables])
    for variable, value in zip(variables, values, strict=True):
        if value is not variable.value:
            variable.assign(value)
