"""User-defined training steps: which step runs, and which arguments it supports."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import CellType, CodeType
from typing import Any

import keras

from keras_trainops import keras_private
from keras_trainops.backends import backend
from keras_trainops.training.optimizers.group import OptimizerGroup, monitors_of
from keras_trainops.training.optimizers.transformed import TransformedOptimizer, transformed_in
from keras_trainops.training.steps.texts import EVALUATION, TRAINING, has_own_text
from keras_trainops.updates.policy import UpdatePolicy
from keras_trainops.values import assign_copies, copies_of

_STEP, _MAKE = "train_step", "make_train_function"
_MONITOR = "`Monitor`"
_REGISTERED = "Updates registered with `add_update`"
_APPLY = "have it apply gradients with `self.optimizer`"
# Methods of the mixin that must be reached, also by classes that override them.
_OUR_STEP, _OUR_NORMS = (_STEP, _MAKE), ("reset_metrics", "metrics_variables")
_LOG = ("compute_metrics", "get_metrics_result")  # they return the norms of monitors


def own_step_after_mixin(cls: type, mixin: type) -> type | None:
    """Return the class after the mixin in the MRO that defines its own training step.

    None if none does. Such a step can call Keras's step, but never the mixin's.
    """
    after = cls.__mro__[cls.__mro__.index(mixin) + 1 :]
    owner = next(base for base in after if _STEP in vars(base))
    return None if owner in keras.Model.__mro__ else owner


def needs_ours(model: Any) -> bool:
    """Return whether a model needs `training_step` instead of Keras's training step."""
    return (
        has_own_text(model, TRAINING)
        or isinstance(model.optimizer, OptimizerGroup)
        or model.train_ops.needs_our_step()
        or backend().needs_our_step(model)
    )


def require_evaluation(model: Any) -> None:
    """Check that a model with its own `training_step` can be evaluated by Keras's step.

    Raises:
        ValueError: If it has no loss that Keras could compute.
    """
    cls, methods = type(model), ("call", "compute_loss")
    computes = any(getattr(cls, each) is not getattr(keras.Model, each) for each in methods)
    owners = [base for base in cls.__mro__ if base not in keras.Model.__mro__]
    if sum("test_step" in vars(base) for base in owners) > 1:  # not only the mixin
        return
    if has_own_text(model, TRAINING) and not computes and not keras_private.has_loss(model):
        raise ValueError(
            f"{type(model).__name__!r} trains with its own `{TRAINING}`, and there is no loss to "
            f"evaluate it with. Define `{EVALUATION}(self, step, data)`, which returns logs in the "
            "same way; or pass `loss=` to `compile`."
        )


def replaces_ours(model: Any, mixin: type) -> bool:
    """Return whether a Keras training step of the user's runs instead of the mixin's.

    If its code mentions `super().train_step`, it is taken to call it.

    Args:
        model: A model with the mixin.
        mixin: `TrainOpsMixin`.
    """
    overrides = [function for _, function in _overrides(model, mixin, _STEP)]
    return (
        any(not _may_call(function, _STEP) for function in overrides)
        or own_step_after_mixin(type(model), mixin) is not None
    )


def methods_needed(
    model: Any, mixin: type, policy: UpdatePolicy, arguments: Mapping[str, Any], optimizer: Any
) -> dict[str, tuple[str, ...]]:
    """Return the methods of the mixin that arguments need, by the arguments as users name them.

    Gradient transforms and `variables_to_train` need none: they work in every step that uses
    `self.optimizer` and `self.trainable_variables`, as Keras's do. So does the check of gradients,
    in a Keras training step of the user's.

    Args:
        model: A model with the mixin.
        mixin: `TrainOpsMixin`.
        policy: The updates.
        arguments: The `compile` arguments of the mixin.
        optimizer: The optimizer, with its transforms.
    """
    check = (_MAKE,) if replaces_ours(model, mixin) else _OUR_STEP
    asked = {
        "`updates`": (arguments["updates"] is not None, _OUR_STEP),
        _REGISTERED: (arguments["updates"] is None and policy.after_weights, _OUR_STEP),
        "`check_numerics`": (arguments["check_numerics"], check),
        "`gradients`": (arguments["gradients"] is not None, _OUR_STEP),
        "`optimizers`": (isinstance(optimizer, OptimizerGroup), _OUR_STEP),
        _MONITOR: (monitors_of(optimizer), _OUR_NORMS),
    }
    return {name: methods for name, (is_asked, methods) in asked.items() if is_asked}


def need_our_step(needed: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """Return the arguments that only the mixin's training step supports.

    Args:
        needed: The methods that arguments need, as `methods_needed` returns them.
    """
    return tuple(name for name, methods in needed.items() if _STEP in methods)


def refuse_without_methods(model: Any, mixin: type, needed: Mapping[str, Sequence[str]]) -> None:
    """Raise if a user-defined method replaces one of the mixin's that an argument needs.

    Args:
        model: A model with the mixin.
        mixin: `TrainOpsMixin`.
        needed: The methods that arguments need, as `methods_needed` returns them.

    Raises:
        ValueError: If a method of the user's never calls the mixin's; the message names its class.
    """
    for method in (*_OUR_STEP, *_OUR_NORMS):
        asked = [name for name, methods in needed.items() if method in methods]
        for owner, function in _overrides(model, mixin, method) if asked else ():
            if not _may_call(function, method):
                raise _refusal(asked, owner, method, f"have it call `super().{method}`")
    after, stepping = own_step_after_mixin(type(model), mixin), need_our_step(needed)
    if stepping and after is not None:
        owner = f"class {after.__name__!r}"
        raise _refusal(stepping, owner, _STEP, "compute the loss in `compute_loss` instead")


@contextmanager
def watched(model: Any, mixin: type, needed_by: Sequence[str], *, whole: bool) -> Iterator[None]:
    """Raise if a user-defined step does not do what the `compile` arguments require.

    If an argument needs the mixin's step, it must actually call it; mentioning `super().train_step`
    is not enough. If the model's optimizer transforms gradients, it must apply them with that
    optimizer. A compiled step is checked while it is traced. An eager step may leave some batches
    without an update, so its use of the optimizer is checked at the end of `fit`. The norms of
    monitors are added to the logs of a step that does not return them.

    Args:
        model: A model with the mixin.
        mixin: `TrainOpsMixin`.
        needed_by: The arguments that need the mixin's step, as users name them.
        whole: True for a whole `fit`, False for a single batch.

    Raises:
        ValueError: If the step does not; the message names its class.
    """
    overrides = _overrides(model, mixin, _STEP)
    after = own_step_after_mixin(type(model), mixin)
    owner = overrides[0][0] if overrides else f"class {after.__name__!r}" if after else ""
    transforming = _transforming(model.optimizer) if owner else None
    own_logs = owner or any(_overrides(model, mixin, method) for method in _LOG)
    loses_norms = model.train_ops.norms.monitors and own_logs
    if not (needed_by and overrides) and transforming is None and not loses_norms:
        yield
        return
    watch = _Watch(model, owner, needed_by, transforming)
    model.train_ops.before_first_step = []
    try:
        with keras_private.shadowed(model, _STEP, watch.around(model.train_step)):
            yield
        if whole:
            watch.refuse_if_unused()
    except BaseException:
        watch.undo_refused_step()
        raise
    finally:
        model.train_ops.before_first_step = None


def _transforming(optimizer: Any) -> TransformedOptimizer | None:
    transformed = transformed_in(optimizer)
    return transformed if transformed is not None and transformed.chain.transforms else None


class _Watch:
    """Watches a user-defined step while it trains.

    Args:
        model: A model with the mixin.
        owner: The owner of the step, for messages.
        needed_by: The arguments that need the mixin's step.
        transforming: The optimizer that transforms gradients; None if none does.
    """

    def __init__(
        self,
        model: Any,
        owner: str,
        needed_by: Sequence[str],
        transforming: TransformedOptimizer | None,
    ) -> None:
        self._model, self._owner, self._needed_by = model, owner, needed_by
        self._transforming = transforming
        self._eager = backend().runs_eagerly(model)
        self._applied_before = self._applied()
        self._steps = 0
        self._refused = False

    def around(self, step: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap the step with the checks that are possible after a traced or an eager call."""
        state = self._model.train_ops

        @functools.wraps(step)
        def run(*args: Any) -> Any:
            count, applied, logged = state.steps, self._applied(), state.norms.updates
            result = step(*args)
            self._steps, self._refused = self._steps + 1, True
            if self._needed_by and state.steps == count:
                advice = f"have it call `super().{_STEP}` in every step"
                raise _refusal(self._needed_by, self._owner, _STEP, advice)
            if self._transforming is not None and not self._eager and self._applied() == applied:
                raise self._unused()
            self._refused, state.before_first_step = False, None
            if state.norms.monitors and not self._logs_norms(result, logged):
                result = backend().with_logs(self._model, result, state.norms.updated)
            return result

        return run

    def _logs_norms(self, result: Any, updates: int) -> bool:
        """Return whether a step has updated the norms and returned them in its logs."""
        norms = self._model.train_ops.norms
        logs = result[0] if isinstance(result, tuple) else result
        return norms.updates > updates and norms.names <= set(logs)

    def refuse_if_unused(self) -> None:
        """Raise if no eager step applied gradients with the optimizer that transforms them."""
        unscaled = self._model.optimizer is self._transforming  # a loss scale may skip all updates
        if unscaled and self._eager and self._steps and self._applied() == self._applied_before:
            raise self._unused()

    def undo_refused_step(self) -> None:
        """Restore the values before the first step, if that one was refused."""
        if self._refused:
            for variable, copies in self._model.train_ops.before_first_step or []:
                assign_copies(variable, copies)
            self._model.train_function = None

    def _applied(self) -> int:
        return 0 if self._transforming is None else self._transforming.applied

    def _unused(self) -> ValueError:
        return _refusal(["`gradient_transforms`"], self._owner, _STEP, _APPLY)


def remember(model: Any) -> None:
    """Keep the values before the first step, if `watched` may have to restore them."""
    state = model.train_ops
    if state.before_first_step is not None:
        optimizer = model.optimizer.variables if model.optimizer is not None else []
        variables = [*model.variables, *optimizer, *model.metrics_variables]
        state.before_first_step = [(variable, copies_of(variable)) for variable in variables]


def _overrides(model: Any, mixin: type, method: str) -> list[tuple[str, Any]]:
    """Return the functions that override the mixin's method, each with its owner's name.

    Args:
        model: A model with the mixin. Its own attributes come first, then its classes.
        mixin: `TrainOpsMixin`.
        method: Name of the method.
    """
    order = type(model).__mro__
    owners = [(f"class {base.__name__!r}", vars(base)) for base in order[: order.index(mixin)]]
    if method in vars(model):
        owners.insert(0, (f"the model {model.name!r}", vars(model)))
    return [(name, attributes[method]) for name, attributes in owners if method in attributes]


def _may_call(function: Any, method: str) -> bool:
    """Return whether a method may call the one it overrides.

    It may if its code mentions that method or its closure refers to it. Assume True if there is no
    code to inspect.
    """
    todo, seen, has_code = [function], {id(function)}, False
    while todo:
        each = todo.pop()
        code = getattr(each, "__code__", None)
        if code is not None:
            has_code = True
            if _names(code, method):
                return True
        for inner in (*_wrapped(each), *_closed_over(each)):
            if getattr(inner, "__name__", "") == method and hasattr(inner, "__self__"):
                return True  # `original = model.train_step` in the replacement's closure
            if id(inner) not in seen:
                seen.add(id(inner))
                todo.append(inner)
    return not has_code


def _wrapped(function: Any) -> list[Any]:
    """Return the functions inside a bound method, a decorator, a `tf.function` or a partial."""
    names = ("__func__", "__wrapped__", "python_function", "func", "fget")
    return [getattr(function, name) for name in names if hasattr(function, name)]


def _closed_over(function: Any) -> list[Any]:
    """Return the functions that a closure refers to."""
    cells = getattr(function, "__closure__", None) or ()
    contents = [c.cell_contents for c in cells if c != CellType()]  # an empty one has none
    return [each for each in contents if hasattr(each, "__code__")]


def _names(code: CodeType, method: str) -> bool:
    inner = [constant for constant in code.co_consts if isinstance(constant, CodeType)]
    return method in code.co_names or any(_names(each, method) for each in inner)


def _refusal(wanted: Sequence[str], owner: str, method: str, advice: str) -> ValueError:
    """Return the error for a method that replaces the one that arguments need.

    Args:
        wanted: The arguments, as users name them.
        owner: The class or model that has the method.
        method: Name of the method.
        advice: The alternative to leaving the arguments out.
    """
    what, several = " and ".join(wanted), len(wanted) > 1 or _REGISTERED in wanted
    return ValueError(
        f"{what} cannot be used with the `{method}` of {owner}, which replaces the method that "
        f"{'they need' if several else 'it needs'}. Leave {'them' if several else 'it'} out, or "
        f"{advice}."
    )
