"""Arguments of Keras's methods, which users pass by position or by name."""

from __future__ import annotations

from typing import Any, NamedTuple

Call = tuple[tuple[Any, ...], dict[str, Any]]


class Argument(NamedTuple):
    """An argument of a method.

    Attributes:
        name: Its name.
        position: Its position after `self`.
        default: Its value if it is not given.
    """

    name: str
    position: int
    default: Any = None

    def of(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return its value in a call."""
        if len(args) > self.position:
            return args[self.position]
        return kwargs.get(self.name, self.default)

    def replaced(self, args: tuple[Any, ...], kwargs: dict[str, Any], value: Any) -> Call:
        """Return the arguments of a call, with another value for this one."""
        i = self.position
        if len(args) > i:
            return (*args[:i], value, *args[i + 1 :]), kwargs
        return args, {**kwargs, self.name: value}


CALLBACKS = Argument("callbacks", 5)  # of `fit`, and so are the next two
EPOCHS = Argument("epochs", 3, 1)
FIT_VERBOSE = Argument("verbose", 4, "auto")
EVALUATE_VERBOSE = Argument("verbose", 3, "auto")
