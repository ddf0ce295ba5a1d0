"""Objects whose `repr` is the call that makes them."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import keras

_LONGEST = 300  # characters of one argument


class CallRepr:
    """Keeps the arguments it was made with, and shows them: a subclass needs no `repr`."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "__init__" in cls.__dict__:
            setattr(cls, "__init__", _keeping(cls.__dict__["__init__"]))  # noqa: B010

    def __repr__(self) -> str:
        args, kwargs = self.__dict__.get("_made_with", ((), {}))
        if not args and not kwargs and type(self).__init__ is object.__init__:
            return f"{type(self).__name__}()"
        signature = inspect.signature(type(self).__init__)
        bound = signature.bind_partial(self, *args, **kwargs)
        bound.apply_defaults()
        parts: list[str] = []
        for name, value in list(bound.arguments.items())[1:]:
            kind = signature.parameters[name].kind
            if kind is inspect.Parameter.VAR_POSITIONAL:
                parts += map(argument_repr, value)
            elif kind is inspect.Parameter.VAR_KEYWORD:
                parts += [f"{key}={argument_repr(v)}" for key, v in value.items()]
            else:
                if isinstance(value, dict) and "class_name" in value:  # out of a saved file
                    value = getattr(self, name, value)
                parts.append(f"{name}={argument_repr(value)}")
        return f"{type(self).__name__}({', '.join(parts)})"


def _keeping(make: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(make)
    def keeping(self: Any, *args: Any, **kwargs: Any) -> None:
        self.__dict__.setdefault("_made_with", (args, kwargs))
        make(self, *args, **kwargs)

    return keeping


def argument_repr(value: Any) -> str:
    """A value as a `repr` shows it: functions and variables by name, arrays by form."""
    text = _text(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def _text(value: Any) -> str:
    if isinstance(value, CallRepr):
        return repr(value)
    if isinstance(value, (list, tuple)) and type(value) in (list, tuple):
        inside = ", ".join(map(_text, value))
        if isinstance(value, list):
            return f"[{inside}]"
        return f"({inside},)" if len(value) == 1 else f"({inside})"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_text(k)}: {_text(v)}" for k, v in value.items()) + "}"
    if isinstance(value, keras.Variable):
        return f"<{value.path}>"
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"<{type(value).__name__} of shape {value.shape} and dtype {value.dtype}>"
    if inspect.isroutine(value) or isinstance(value, type):
        return str(getattr(value, "__qualname__", value)).rpartition("<locals>.")[2]
    plain: Any = object.__repr__
    if type(value).__repr__ is plain and hasattr(value, "get_config"):
        config = ", ".join(f"{key}={_text(v)}" for key, v in value.get_config().items())
        return f"{type(value).__name__}({config})"
    return repr(value)
