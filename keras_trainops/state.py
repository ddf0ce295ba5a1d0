"""State of transforms and updates: variables that are saved and resumed with the optimizer."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import keras


class Stateful:
    """Something with variables of its own, which it creates in `build`.

    Attributes:
        children: The parts that it is made of, whose state is a part of its own.
        argument: The argument that users pass it as; empty where they do not.
    """

    argument: str = ""
    children: Sequence[Any] = ()

    def walk(self) -> Iterator[Any]:
        """This and all that it is made of."""
        yield self
        for child in self.children:
            yield from child.walk()

    @property
    def variables(self) -> list[keras.Variable]:
        """The state, saved and resumed with the optimizer."""
        return [v for part in self.walk() for v in part.__dict__.get("_state", {}).values()]

    @property
    def held_variables(self) -> list[keras.Variable]:
        """What of the state stays as it is where the weight update is skipped."""
        free = {id(v) for part in self.walk() for v in part.__dict__.get("_free", ())}
        return [v for v in self.variables if id(v) not in free]

    def state_variable(self, name: str, **options: Any) -> keras.Variable:
        """The variable of the state that has this name; created where there is none."""
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
        """Creates a variable of the state; call it from `build`.

        Args:
            name: Its name, of which there is one.
            shape: Its shape.
            dtype: Its dtype.
            initializer: A Keras initializer, or the name of one.
            held: Whether it stays as it is where a transform skips the weight update.

        Returns:
            The variable; assign to it in `__call__`.
        """
        variable = keras.Variable(
            initializer=keras.initializers.get(initializer),
            shape=tuple(shape),
            dtype=dtype,
            trainable=False,
            aggregation="only_first_replica",  # all compute the same
            name=name.replace("/", "_"),
        )
        self.__dict__.setdefault("_state", {})[name] = variable
        if not held:
            self.__dict__.setdefault("_free", []).append(variable)
        return variable

    def bind_to(self, variables: Sequence[keras.Variable]) -> None:
        """Says whose variables it is built for: one model's at a time.

        Raises:
            ValueError: If it serves another model, which is still there.
        """
        if self._bound_to_others(variables):
            gc.collect()  # a model that nothing refers to may wait for it
        if self._bound_to_others(variables):
            raise ValueError(
                f"This {type(self).__name__} belongs to another model already, whose state it "
                "keeps. Make one for each model."
            )
        self.__dict__["_bound_to"] = [weakref.ref(v) for v in variables]

    def _bound_to_others(self, variables: Sequence[keras.Variable]) -> bool:
        served = [ref() for ref in self.__dict__.get("_bound_to", ())]
        ids = {id(v) for v in variables}
        alive = [v for v in served if v is not None]
        return bool(alive) and not any(id(v) in ids for v in alive)

    def use_as_state(self, variables: Iterable[keras.Variable]) -> None:
        """Makes variables that exist the state, in place of what it was."""
        self.__dict__["_state"] = {str(i): variable for i, variable in enumerate(variables)}
        self.__dict__.pop("_free", None)

    def add_seed(self, seed: int) -> keras.random.SeedGenerator:
        """Creates a source of random seeds whose state is a part of this one's."""
        generator = keras.random.SeedGenerator(seed)
        self.__dict__.setdefault("_state", {})["seed"] = generator.state
        return generator
