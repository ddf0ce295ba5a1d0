"""Whose training step runs, and which of our arguments can be had with it."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import CellType, CodeType
from typing import Any

import keras

from keras_trainops.training.optimizer import engine_of
from keras_trainops.transforms.monitoring import Monitor
from keras_trainops.updates.policy import UpdatePolicy

_STEP, _MAKER = "train_step", "make_train_function"


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
        "`Monitor`": any(isinstance(transform, Monitor) for transform in transforms),
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
    if not wanted:
        return
    for method in (_STEP, _MAKER):
        for owner, function in _in_front(model, mixin, method):
            if not _may_call(function, method):
                raise _refusal(wanted, owner, method, f"have it call `super().{method}`")
    behind = own_step_behind(type(model), mixin)
    if behind is not None:
        raise _refusal(wanted, behind.__name__, _STEP, "compute the loss in `compute_loss` instead")


@contextmanager
def watched(model: Any, mixin: type, wanted: Sequence[str]) -> Iterator[None]:
    """Within it a step of the user's own that does not come to ours raises, as it is traced.

    That it mentions `super().train_step` does not mean that it calls it.
    """
    in_front = _in_front(model, mixin, _STEP) if wanted else []
    if not in_front:
        yield
        return
    owner, step, state = in_front[0][0], model.train_step, model.train_ops
    before = vars(model).get(_STEP)

    @functools.wraps(step)
    def run(*args: Any) -> Any:
        count = state.steps
        result = step(*args)
        if state.steps == count:
            raise _refusal(wanted, owner, _STEP, f"have it call `super().{_STEP}` in every step")
        return result

    vars(model)[_STEP] = run
    try:
        yield
    finally:
        del vars(model)[_STEP]
        if before is not None:
            vars(model)[_STEP] = before


def _in_front(model: Any, mixin: type, method: str) -> list[tuple[str, Any]]:
    """What comes before the mixin's method: the name of its owner, and the function."""
    order = type(model).__mro__
    owners = [(base.__name__, vars(base)) for base in order[: order.index(mixin)]]
    if method in vars(model):
        owners.insert(0, (model.name, vars(model)))
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
    names = ("__func__", "__wrapped__", "python_function", "func")
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
    what = " and ".join(wanted)
    return ValueError(
        f"{what} cannot be had with the `{method}` of {owner!r}: it takes the place of the one "
        f"that does that. Leave {'them' if len(wanted) > 1 else 'it'} out, or {advice}."
    )
