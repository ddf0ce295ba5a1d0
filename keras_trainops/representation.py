"""Objects whose `repr` is the call that creates them."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras

_MAX_LENGTH = 300  # characters of one argument


class CallRepr:
    """Base class that records the constructor's arguments and shows them in its `repr`."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "__init__" in cls.__dict__:
            setattr(cls, "__init__", _recording(cls.__dict__["__init__"]))  # noqa: B010

    def __repr__(self) -> str:
        name = type(self).__name__
        args, kwargs = self.__dict__.get("_made_with", ((), {}))
        if not args and not kwargs and type(self).__init__ is object.__init__:
            return f"{name}()"
        signature = inspect.signature(type(self).__init__)
        bound = signature.bind_partial(self, *args, **kwargs)
        bound.apply_defaults()
        texts: list[str] = []
        for argument, value in list(bound.arguments.items())[1:]:
            texts += _argument_texts(self, signature.parameters[argument], value)
        return f"{name}({', '.join(texts)})"


def _recording(init: Callable[..., None]) -> Callable[..., None]:
    """Wrap an `__init__` so that the outermost one records its arguments."""

    @functools.wraps(init)
    def recording(self: Any, *args: Any, **kwargs: Any) -> None:
        self.__dict__.setdefault("_made_with", (args, kwargs))
        init(self, *args, **kwargs)

    return recording


def _argument_texts(owner: CallRepr, parameter: inspect.Parameter, value: Any) -> list[str]:
    if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
        return [argument_repr(each) for each in value]
    if parameter.kind is inspect.Parameter.VAR_KEYWORD:
        return [f"{key}={argument_repr(each)}" for key, each in value.items()]
    if isinstance(value, dict) and "class_name" in value:  # serialised, from a saved file
        value = getattr(owner, parameter.name, value)
    return [f"{parameter.name}={argument_repr(value)}"]


def argument_repr(value: Any) -> str:
    """Return the text of an argument: functions and variables by name, arrays by shape."""
    text = _text(value)
    return text if len(text) <= _MAX_LENGTH else f"{text[: _MAX_LENGTH - 1]}…"


def _text(value: Any) -> str:
    if isinstance(value, CallRepr):
        return repr(value)
    if type(value) in (list, tuple):
        return _sequence_text(value)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_text(k)}: {_text(v)}" for k, v in value.items()) + "}"
    if isinstance(value, keras.Variable):
        return f"<{value.path}>"
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"<{type(value).__name__} of shape {value.shape} and dtype {value.dtype}>"
    if inspect.isroutine(value) or isinstance(value, type):
        return str(getattr(value, "__qualname__", value)).rpartition("<locals>.")[2]
    return _object_text(value)


def _sequence_text(values: Sequence[Any]) -> str:
    inside = ", ".join(map(_text, values))
    if isinstance(values, list):
        return f"[{inside}]"
    return f"({inside},)" if len(values) == 1 else f"({inside})"


def _object_text(value: Any) -> str:
    """Return an object's own `repr` or, if it has none, its configuration."""
    default: Any = object.__repr__
    if type(value).__repr__ is default and hasattr(value, "get_config"):
        config = ", ".join(f"{key}={_text(each)}" for key, each in value.get_config().items())
        return f"{type(value).__name__}({config})"
    return repr(value)
