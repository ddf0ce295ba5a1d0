"""State of transforms and updates: variables that are saved and resumed with the optimizer."""

from __future__ import annotations

import dataclasses
import gc
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import keras

from keras_trainops import keras_private


@dataclasses.dataclass(frozen=True)
class _Own:
    """The state of one object; replaced as a whole, so that a failed change can be undone.

    Attributes:
        variables: State variables by name.
        not_held: The `id`s of those that a skipped weight update does not restore.
        bound_to: The variables of the model it belongs to.
    """

    variables: Mapping[str, keras.Variable] = dataclasses.field(default_factory=dict)
    not_held: frozenset[int] = frozenset()
    bound_to: tuple[weakref.ref[keras.Variable], ...] = ()


class BoundToModel:
    """An object that users pass to a model, and that belongs to one model at a time.

    Subclasses need not call `super().__init__()`.

    Attributes:
        argument: The argument that users pass it as; empty if they do not pass it themselves.
    """

    argument: str = ""

    @property
    def _own(self) -> _Own:
        return self.__dict__.get("_state", _NONE)

    def _change(self, **changes: Any) -> None:
        self.__dict__["_state"] = dataclasses.replace(self._own, **changes)

    def bind_to(self, variables: Sequence[keras.Variable]) -> None:
        """Remember the model it belongs to, by the model's variables.

        Raises:
            ValueError: If it belongs to another model that still exists.
        """
        if self._belongs_to_another(variables):
            gc.collect()  # an unreachable model may still await collection
        if self._belongs_to_another(variables):
            raise ValueError(
                f"This {type(self).__name__} already belongs to another model and keeps its state. "
                "Create one for each model."
            )
        self._change(bound_to=tuple(weakref.ref(v) for v in variables))

    def is_of_its_model(self, variable: keras.Variable) -> bool:
        """Return whether a variable is one of the model that this object belongs to."""
        return any(reference() is variable for reference in self._own.bound_to)

    def _belongs_to_another(self, variables: Sequence[keras.Variable]) -> bool:
        bound_to = [reference() for reference in self._own.bound_to]
        ids = {id(v) for v in variables}
        alive = [v for v in bound_to if v is not None]
        return bool(alive) and not any(id(v) in ids for v in alive)


_NONE = _Own()


def _require_shape_of(like: keras.Variable, shape: Sequence[int] | None, name: str) -> None:
    if shape is not None and tuple(shape) != tuple(like.shape):
        raise ValueError(
            f"The state {name!r} cannot have the shape {tuple(shape)} and the layout of "
            f"{like.path!r}, whose shape is {tuple(like.shape)}: leave out `shape` or `like`."
        )


class Stateful(BoundToModel):
    """An object with its own variables, which it creates in `build`.

    Attributes:
        children: Its parts, whose state belongs to its own.
    """

    children: Sequence[Any] = ()

    def walk(self) -> Iterator[Any]:
        """Iterate over this object and all of its parts, at any depth."""
        yield self
        for child in self.children:
            yield from child.walk()

    @property
    def variables(self) -> list[keras.Variable]:
        """The state, saved and resumed with the optimizer; each variable once."""
        found: dict[int, keras.Variable] = {}
        for part in self.walk():
            found.update((id(v), v) for v in part._own.variables.values())
        return list(found.values())

    @property
    def held_variables(self) -> list[keras.Variable]:
        """State that keeps its values when a weight update is skipped."""
        not_held: set[int] = set()
        for part in self.walk():
            not_held |= part._own.not_held
        return [v for v in self.variables if id(v) not in not_held]

    def state_variable(self, name: str, **options: Any) -> keras.Variable:
        """Return the state variable of this name; create it on the first call.

        Args:
            name: Its name.
            **options: Arguments of `add_variable`, for the first call.
        """
        found = self._own.variables.get(name)
        return self.add_variable(name, **options) if found is None else found

    def add_variable(
        self,
        name: str,
        shape: Sequence[int] | None = None,
        dtype: str | None = None,
        initializer: Any = "zeros",
        held: bool = True,
        like: keras.Variable | None = None,
    ) -> keras.Variable:
        """Create a state variable; call it from `build`.

        Args:
            name: Its name; another variable of the same name is replaced.
            shape: Its shape; None for that of `like`, or a scalar.
            dtype: Its dtype; None for that of `like`, or float32.
            initializer: A Keras initializer, or the name of one.
            held: If True, it keeps its value when a transform skips the weight update.
            like: The model's variable that the state belongs to, element by element. The state is
                then sharded over devices as that variable is.

        Returns:
            The variable; assign to it in `__call__`.

        Raises:
            ValueError: If `shape` is not that of `like`.
        """
        if like is not None:
            _require_shape_of(like, shape, name)
            shape, dtype = like.shape, dtype or like.dtype
        variable = keras.Variable(
            initializer=keras.initializers.get(initializer),
            shape=tuple(shape or ()),
            dtype=dtype or "float32",
            trainable=False,
            aggregation="only_first_replica",  # all replicas compute the same value
            name=name.replace("/", "_"),
            layout=None if like is None else keras_private.layout_of(like),
        )
        self._add(name, variable)
        if not held:
            self._change(not_held=self._own.not_held | {id(variable)})
        return variable

    def _add(self, name: str, variable: keras.Variable) -> None:
        self._change(variables={**self._own.variables, name: variable})

    def use_as_state(
        self,
        variables: Iterable[keras.Variable],
        named: Mapping[str, keras.Variable] | None = None,
        held: bool = True,
    ) -> None:
        """Replace the state with existing variables.

        Args:
            variables: Variables without a name, which follow the named ones.
            named: Variables that `state_variable` returns by their names.
            held: As in `add_variable`.
        """
        numbered = {str(i): variable for i, variable in enumerate(variables)}
        state = {**(named or {}), **numbered}
        self._change(
            variables=state,
            not_held=frozenset() if held else frozenset(id(v) for v in state.values()),
        )

    def add_seed(self, seed: int) -> keras.random.SeedGenerator:
        """Create a source of random seeds whose position is a state variable."""
        generator = keras.random.SeedGenerator(seed)
        self._add("seed", generator.state)
        return generator
