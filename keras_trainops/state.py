"""State of transforms and updates: variables that are saved and resumed with the optimizer."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import keras


class BoundToModel:
    """An object that users pass to a model, and that serves one model at a time.

    Subclasses need not call `super().__init__()`.

    Attributes:
        argument: The argument that users pass it as; empty if they do not pass it themselves.
    """

    argument: str = ""

    def bind_to(self, variables: Sequence[keras.Variable]) -> None:
        """Remember the model it serves, by the model's variables.

        Raises:
            ValueError: If it serves another model that still exists.
        """
        if self._serves_others(variables):
            gc.collect()  # an unreachable model may still await collection
        if self._serves_others(variables):
            raise ValueError(
                f"This {type(self).__name__} belongs to another model already, whose state it "
                "keeps. Make one for each model."
            )
        self.__dict__["_bound_to"] = [weakref.ref(v) for v in variables]

    def _serves_others(self, variables: Sequence[keras.Variable]) -> bool:
        served = [reference() for reference in self.__dict__.get("_bound_to", ())]
        ids = {id(v) for v in variables}
        alive = [v for v in served if v is not None]
        return bool(alive) and not any(id(v) in ids for v in alive)


class Stateful(BoundToModel):
    """An object with variables of its own, which it creates in `build`.

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
        """The state, saved and resumed with the optimizer."""
        found: list[keras.Variable] = []
        for part in self.walk():
            found += part.__dict__.get("_state", {}).values()
        return found

    @property
    def held_variables(self) -> list[keras.Variable]:
        """State that keeps its values when a weight update is skipped."""
        not_held: set[int] = set()
        for part in self.walk():
            not_held.update(map(id, part.__dict__.get("_not_held", ())))
        return [v for v in self.variables if id(v) not in not_held]

    def state_variable(self, name: str, **options: Any) -> keras.Variable:
        """Return the state variable of this name; create it on the first call.

        Args:
            name: Its name.
            **options: Arguments of `add_variable`, for the first call.
        """
        found = self.__dict__.get("_state", {}).get(name)
        return self.add_variable(name, **options) if found is None else found

    def add_variable(
        self,
        name: str,
        shape: Sequence[int] = (),
        dtype: str = "float32",
        initializer: Any = "zeros",
        held: bool = True,
    ) -> keras.Variable:
        """Create a state variable; call it from `build`.

        Args:
            name: Its name; another variable of the same name is replaced.
            shape: Its shape.
            dtype: Its dtype.
            initializer: A Keras initializer, or the name of one.
            held: If True, it keeps its value when a transform skips the weight update.

        Returns:
            The variable; assign to it in `__call__`.
        """
        variable = keras.Variable(
            initializer=keras.initializers.get(initializer),
            shape=tuple(shape),
            dtype=dtype,
            trainable=False,
            aggregation="only_first_replica",  # all replicas compute the same value
            name=name.replace("/", "_"),
        )
        self.__dict__.setdefault("_state", {})[name] = variable
        if not held:
            self.__dict__.setdefault("_not_held", []).append(variable)
        return variable

    def use_as_state(self, variables: Iterable[keras.Variable]) -> None:
        """Replace the state with existing variables."""
        self.__dict__["_state"] = {str(i): variable for i, variable in enumerate(variables)}
        self.__dict__.pop("_not_held", None)

    def add_seed(self, seed: int) -> keras.random.SeedGenerator:
        """Create a source of random seeds whose position is a state variable."""
        generator = keras.random.SeedGenerator(seed)
        self.__dict__.setdefault("_state", {})["seed"] = generator.state
        return generator
