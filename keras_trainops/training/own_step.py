"""Whose training step runs, and which of our arguments can be had with it."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import CellType, CodeType
from typing import Any

import keras

from keras_trainops.backends import backend
from keras_trainops.training.optimizer import engine_of
from keras_trainops.transforms.monitoring import Monitor
from keras_trainops.updates.policy import UpdatePolicy
from keras_trainops.values import copy_of

_STEP = "train_step"
_MONITOR = "`Monitor`"
_APPLY = "have it apply gradients with `self.optimizer`"
# The methods of the mixin's that must be reached, also by those who override them.
_NEEDED = (_STEP, "make_train_function")
_NEEDED_BY_MONITORS = (
    "compute_metrics",
    "get_metrics_result",
    "reset_metrics",
    "metrics_variables",
)


def own_step_behind(cls: type, mixin: type) -> type | None:
    """The class behind the mixin with a training step that is not Keras's; None: there is none.

    Such a step ends in Keras's own at most, never in ours.
    """
    behind = cls.__mro__[cls.__mro__.index(mixin) + 1 :]
    owner = next(base for base in behind if _STEP in vars(base))
    return None if owner in keras.Model.__mro__ else owner


def wants_our_step(
    policy: UpdatePolicy, arguments: Mapping[str, Any], optimizer: Any
) -> tuple[str, ...]:
    """What a user asks for that only our training step can do, in the user's words.

    Gradient transforms and `variables_to_train` are not of it: they hold in every step that uses
    `self.optimizer` and `self.trainable_variables`, as Keras's do.
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


def refuse_without_our_step(model: Any, mixin: type, wanted: Sequence[str]) -> None:
    """Checks that our training step runs where something is asked for that only it can do.

    Args:
        model: A model with the mixin.
        mixin: `TrainOpsMixin`.
        wanted: The arguments, as the user knows them.

    Raises:
        ValueError: If a training step, or what compiles it, of the user's own keeps ours from
            running; the message names its class.
    """
    needs = [(_NEEDED, list(wanted)), (_NEEDED_BY_MONITORS, [w for w in wanted if w == _MONITOR])]
    for methods, asked in needs:
        for method in methods if asked else ():
            for owner, function in _in_front(model, mixin, method):
                if not _may_call(function, method):
                    raise _refusal(asked, owner, method, f"have it call `super().{method}`")
    behind = own_step_behind(type(model), mixin)
    if wanted and behind is not None:
        owner = f"class {behind.__name__!r}"
        raise _refusal(wanted, owner, _STEP, "compute the loss in `compute_loss` instead")


@contextmanager
def watched(model: Any, mixin: type, wanted: Sequence[str], *, whole: bool) -> Iterator[None]:
    """Raise where a step of the user's own does not do what the arguments of `compile` rest on.

    It must come to ours where something is wanted that only ours can do: that it mentions
    `super().train_step` does not mean that it calls it. And it must apply gradients with the
    model's optimizer where that transforms them. A compiled step shows both as it is traced. One
    that runs eagerly may leave some batches without an update: `fit` looks at it in the end.

    Args:
        model: A model with the mixin.
        mixin: `TrainOpsMixin`.
        wanted: The arguments that need our step, as the user knows them.
        whole: Whether it is a whole `fit`, and no single batch.

    Raises:
        ValueError: If the step does not; the message names its class.
    """
    in_front, behind = _in_front(model, mixin, _STEP), own_step_behind(type(model), mixin)
    owner = in_front[0][0] if in_front else f"class {behind.__name__!r}" if behind else ""
    engine, state = engine_of(model.optimizer), model.train_ops
    transforming = engine if owner and engine is not None and engine.chain.transforms else None
    if not (wanted and in_front) and transforming is None:
        yield
        return
    step = model.train_step
    of_object, eager = vars(model).get(_STEP), backend().runs_eagerly(model)
    ran, refused = 0, False

    def applied() -> int:
        return 0 if transforming is None else transforming.applied

    def refuse_unused() -> None:
        raise _refusal(["`gradient_transforms`"], owner, _STEP, _APPLY)

    @functools.wraps(step)
    def run(*args: Any) -> Any:
        nonlocal ran, refused
        count, before = state.steps, applied()
        result = step(*args)
        ran, refused = ran + 1, True
        if wanted and state.steps == count:
            raise _refusal(wanted, owner, _STEP, f"have it call `super().{_STEP}` in every step")
        if transforming is not None and not eager and applied() == before:
            refuse_unused()
        refused, state.before = False, None
        return result

    before_all = applied()
    vars(model)[_STEP], state.before = run, []
    try:
        yield
        unscaled = model.optimizer is transforming  # a loss scale may have skipped all updates
        if whole and eager and ran and unscaled and applied() == before_all:
            refuse_unused()
    except BaseException:
        if refused:
            for variable, value in state.before or []:
                variable.assign(value)
            model.train_function = None
        raise
    finally:
        del vars(model)[_STEP]
        state.before = None
        if of_object is not None:
            vars(model)[_STEP] = of_object


def remember(model: Any) -> None:
    """Keeps what there is before the first step, where `watched` may have to put it back."""
    state = model.train_ops
    if state.before is not None:
        optimizer = model.optimizer.variables if model.optimizer is not None else []
        variables = [*model.variables, *optimizer, *model.metrics_variables]
        state.before = [(variable, copy_of(variable)) for variable in variables]


def _in_front(model: Any, mixin: type, method: str) -> list[tuple[str, Any]]:
    """What comes before the mixin's method: the name of its owner, and the function."""
    order = type(model).__mro__
    owners = [(f"class {base.__name__!r}", vars(base)) for base in order[: order.index(mixin)]]
    if method in vars(model):
        owners.insert(0, (f"the model {model.name!r}", vars(model)))
    return [(name, attributes[method]) for name, attributes in owners if method in attributes]


def _may_call(function: Any, method: str) -> bool:
    """Whether a method may call the one that it overrides: its code names it, or holds it.

    What has no code to look at may.
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
                return True  # `original = model.train_step`, held by what took its place
            if id(inner) not in seen:
                seen.add(id(inner))
                todo.append(inner)
    return not has_code


def _wrapped(function: Any) -> list[Any]:
    """What a bound method, a decorated function, a `tf.function` or a partial is made of."""
    names = ("__func__", "__wrapped__", "python_function", "func", "fget")
    return [getattr(function, name) for name in names if hasattr(function, name)]


def _held(function: Any) -> list[Any]:
    """The functions that a closure refers to."""
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
