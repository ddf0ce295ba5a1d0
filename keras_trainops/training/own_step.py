"""Steps of the user's own: whose training step runs, and which arguments it can serve."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import CellType, CodeType
from typing import Any

import keras

from keras_trainops.backends import backend
from keras_trainops.training.optimizers.transformed import TransformedOptimizer, engine_of
from keras_trainops.transforms.monitoring import Monitor
from keras_trainops.updates.policy import UpdatePolicy
from keras_trainops.values import copy_of

_STEP = "train_step"
_MONITOR = "`Monitor`"
_APPLY = "have it apply gradients with `self.optimizer`"
# Methods of the mixin that must be reached, also by classes that override them.
_NEEDED = (_STEP, "make_train_function")
_NEEDED_BY_MONITORS = (
    "compute_metrics",
    "get_metrics_result",
    "reset_metrics",
    "metrics_variables",
)


def own_step_behind(cls: type, mixin: type) -> type | None:
    """Return the class behind the mixin whose training step is not Keras's; None if none has one.

    Such a step calls Keras's own at most, never ours.
    """
    behind = cls.__mro__[cls.__mro__.index(mixin) + 1 :]
    owner = next(base for base in behind if _STEP in vars(base))
    return None if owner in keras.Model.__mro__ else owner


def arguments_that_need_it(
    policy: UpdatePolicy, arguments: Mapping[str, Any], optimizer: Any
) -> tuple[str, ...]:
    """Return the arguments that only our training step can serve, as users name them.

    Gradient transforms and `variables_to_train` are not among them: they hold in every step that
    uses `self.optimizer` and `self.trainable_variables`, as Keras's do.

    Args:
        policy: The updates.
        arguments: The `compile` arguments of the mixin.
        optimizer: The optimizer, with its transforms.
    """
    engine = engine_of(optimizer)
    transforms = engine.chain.walk() if engine is not None else ()
    asked = {
        "`updates`": arguments["updates"] is not None,
        "what `add_update` registered": arguments["updates"] is None and policy.after_weights,
        "`check_numerics`": arguments["check_numerics"],
        _MONITOR: any(isinstance(transform, Monitor) for transform in transforms),
    }
    return tuple(name for name, is_asked in asked.items() if is_asked)


def refuse_without_our_step(model: Any, mixin: type, needed_by: Sequence[str]) -> None:
    """Raise if a step of the user's own keeps ours from running although an argument needs it.

    Args:
        model: A model with the mixin.
        mixin: `TrainOpsMixin`.
        needed_by: The arguments that need our step, as users name them.

    Raises:
        ValueError: If a training step, or a method that compiles it, replaces ours; the message
            names its class.
    """
    monitors = [argument for argument in needed_by if argument == _MONITOR]
    for methods, asked in ((_NEEDED, list(needed_by)), (_NEEDED_BY_MONITORS, monitors)):
        for method in methods if asked else ():
            for owner, function in _in_front(model, mixin, method):
                if not _may_call(function, method):
                    raise _refusal(asked, owner, method, f"have it call `super().{method}`")
    behind = own_step_behind(type(model), mixin)
    if needed_by and behind is not None:
        owner = f"class {behind.__name__!r}"
        raise _refusal(needed_by, owner, _STEP, "compute the loss in `compute_loss` instead")


@contextmanager
def watched(model: Any, mixin: type, needed_by: Sequence[str], *, whole: bool) -> Iterator[None]:
    """Raise if a step of the user's own does not do what the arguments of `compile` rest on.

    It must call ours if an argument needs it: mentioning `super().train_step` is not calling it.
    And it must apply gradients with the model's optimizer if that transforms them. A compiled step
    shows both as it is traced. A step that runs eagerly may leave some batches without an update:
    it is judged at the end of `fit`.

    Args:
        model: A model with the mixin.
        mixin: `TrainOpsMixin`.
        needed_by: The arguments that need our step, as users name them.
        whole: Whether this is a whole `fit`, not a single batch.

    Raises:
        ValueError: If the step does not; the message names its class.
    """
    in_front = _in_front(model, mixin, _STEP)
    behind = own_step_behind(type(model), mixin)
    owner = in_front[0][0] if in_front else f"class {behind.__name__!r}" if behind else ""
    transforming = _transforming(model.optimizer) if owner else None
    if not (needed_by and in_front) and transforming is None:
        yield
        return
    watch = _Watch(model, owner, needed_by, transforming)
    of_object = vars(model).get(_STEP)
    vars(model)[_STEP] = watch.around(model.train_step)
    model.train_ops.before_first_step = []
    try:
        yield
        if whole:
            watch.refuse_if_unused()
    except BaseException:
        watch.undo_refused_step()
        raise
    finally:
        del vars(model)[_STEP]
        model.train_ops.before_first_step = None
        if of_object is not None:
            vars(model)[_STEP] = of_object


def _transforming(optimizer: Any) -> TransformedOptimizer | None:
    engine = engine_of(optimizer)
    return engine if engine is not None and engine.chain.transforms else None


class _Watch:
    """Watches a step of the user's own while it trains.

    Args:
        model: A model with the mixin.
        owner: The owner of the step, for messages.
        needed_by: The arguments that need our step.
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
        """Return the step, followed by the checks that a traced or eager call allows."""
        state = self._model.train_ops

        @functools.wraps(step)
        def run(*args: Any) -> Any:
            count, applied = state.steps, self._applied()
            result = step(*args)
            self._steps, self._refused = self._steps + 1, True
            if self._needed_by and state.steps == count:
                advice = f"have it call `super().{_STEP}` in every step"
                raise _refusal(self._needed_by, self._owner, _STEP, advice)
            if self._transforming is not None and not self._eager and self._applied() == applied:
                raise self._unused()
            self._refused, state.before_first_step = False, None
            return result

        return run

    def refuse_if_unused(self) -> None:
        """Raise if no eager step applied gradients with the optimizer that transforms them."""
        unscaled = self._model.optimizer is self._transforming  # a loss scale may skip all updates
        if unscaled and self._eager and self._steps and self._applied() == self._applied_before:
            raise self._unused()

    def undo_refused_step(self) -> None:
        """Restore the values before the first step, if that one was refused."""
        if self._refused:
            for variable, value in self._model.train_ops.before_first_step or []:
                variable.assign(value)
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
        state.before_first_step = [(variable, copy_of(variable)) for variable in variables]


def _in_front(model: Any, mixin: type, method: str) -> list[tuple[str, Any]]:
    """Return the functions that come before the mixin's method, each with its owner's name."""
    order = type(model).__mro__
    owners = [(f"class {base.__name__!r}", vars(base)) for base in order[: order.index(mixin)]]
    if method in vars(model):
        owners.insert(0, (f"the model {model.name!r}", vars(model)))
    return [(name, attributes[method]) for name, attributes in owners if method in attributes]


def _may_call(function: Any, method: str) -> bool:
    """Return whether a method may call the one it overrides: its code names it, or holds it.

    Anything without code to look at may.
    """
    todo, seen, has_code = [function], {id(function)}, False
    while todo:
        each = todo.pop()
        code = getattr(each, "__code__", None)
        if code is not None:
            has_code = True
            if _names(code, method):
                return True
        for inner in (*_wrapped(each), *_held(each)):
            if getattr(inner, "__name__", "") == method and hasattr(inner, "__self__"):
                return True  # `original = model.train_step`, held by its replacement
            if id(inner) not in seen:
                seen.add(id(inner))
                todo.append(inner)
    return not has_code


def _wrapped(function: Any) -> list[Any]:
    """Return the functions inside a bound method, a decorator, a `tf.function` or a partial."""
    names = ("__func__", "__wrapped__", "python_function", "func", "fget")
    return [getattr(function, name) for name in names if hasattr(function, name)]


def _held(function: Any) -> list[Any]:
    """Return the functions that a closure refers to."""
    cells = getattr(function, "__closure__", None) or ()
    contents = [c.cell_contents for c in cells if c != CellType()]  # an empty one has none
    return [each for each in contents if hasattr(each, "__code__")]


def _names(code: CodeType, method: str) -> bool:
    inner = [constant for constant in code.co_consts if isinstance(constant, CodeType)]
    return method in code.co_names or any(_names(each, method) for each in inner)


def _refusal(wanted: Sequence[str], owner: str, method: str, advice: str) -> ValueError:
    what, several = " and ".join(wanted), len(wanted) > 1
    return ValueError(
        f"{what} cannot be had with the `{method}` of {owner}, which replaces the one that "
        f"{'they need' if several else 'it needs'}. Leave {'them' if several else 'it'} out, or "
        f"{advice}."
    )
