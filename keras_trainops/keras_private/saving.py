"""Private Keras API of saving and cloning.

`tests/test_keras_private.py` tests the behaviour that each use relies on.
"""

from __future__ import annotations

import functools
import os
import types
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import keras
from keras.src.backend.common import global_state
from keras.src.models import cloning
from keras.src.saving import saving_lib
from keras.src.saving.keras_saveable import KerasSaveable
from keras.src.utils import file_utils, naming

from keras_trainops.keras_private.model import all_layers


def serialized_function(function: Callable[..., Any]) -> Any:
    """Return a function as a saved configuration stores it: by its registered name.

    Raises:
        ValueError: If it is not registered; a file with it could not be loaded.
    """
    name = keras.saving.get_registered_name(function)
    own = str(getattr(function, "__module__", "")).startswith("keras.")
    if not own and keras.saving.get_registered_object(name) is not function:
        raise ValueError(
            f"The function {name!r} cannot be saved: a file stores a function's name, and this one "
            "is not registered. Register it, before saving and before loading, with "
            "`keras.saving.register_keras_serializable(package=...)(function)`, or save the "
            "weights alone with `save_weights`."
        )
    return keras.saving.serialize_keras_object(function)


class SavedEntry(NamedTuple):
    """One value that Keras's saving walk stores for a model.

    Attributes:
        group: The owner's place in the weights file, such as `layers/dense_1`.
        key: The name inside the owner's `vars` group, such as `0`.
        value: The stored value: a `keras.Variable`, unless the layer overrides saving.
    """

    group: str
    key: str
    value: Any


class SavingWalk(NamedTuple):
    """The values Keras would write for a model.

    Attributes:
        owners: The name of the layer that each group belongs to.
        entries: The values, in the order of the walk.
        groups: The group of each layer, by its `id`.
    """

    owners: dict[str, str]
    entries: list[SavedEntry]
    groups: dict[int, str]


class _RecordingStore(saving_lib.H5IOStore):
    """A weights store that records values instead of writing them to a file."""

    def __init__(self) -> None:  # the base class would open a file
        self.walk = SavingWalk({}, [], {})
        self._group = ""
        self._keys: set[str] = set()

    def __bool__(self) -> bool:
        return True

    def make(self, path: str, metadata: dict[str, str] | None = None) -> _RecordingStore:
        self._group, self._keys = path, set()
        if metadata:
            self.walk.owners[path] = metadata["name"]
        return self

    def __setitem__(self, key: str, value: Any) -> None:
        self._keys.add(key)
        self.walk.entries.append(SavedEntry(self._group, key, value))

    def __len__(self) -> int:
        return len(self._keys)

    def keys(self) -> Iterator[str]:
        return iter(self._keys)

    def belongs_to(self, saveable: int) -> None:
        """Record the layer that the last group belongs to."""
        self.walk.groups.setdefault(saveable, self._group)


class _Visited(set[int]):
    """The layers that the walk visited: each is added right after its group was made."""

    def __init__(self, store: _RecordingStore, skipped: set[int]) -> None:
        super().__init__(skipped)
        self._store = store

    def add(self, saveable: int) -> None:
        super().add(saveable)
        self._store.belongs_to(saveable)


class _Attributes:
    """The attributes of layers that Keras visits, in its order.

    Keras lists and sorts all names of a layer before it leaves out those that every layer has: most
    of them. Here, the names of a class are listed once per walk.
    """

    def __init__(self) -> None:
        self._of_classes: dict[type, set[str]] = {}

    def __call__(self, saveable: Any) -> Iterator[tuple[str, Any]]:
        kind = saveable._obj_type()
        if kind in ("Sequential", "Functional"):
            yield "layers", saveable.layers
        names = self._names(saveable, saving_lib.get_attr_skipset(kind))
        own = (name for name in names if not name.startswith("__"))
        for name in sorted(own, key=saving_lib._name_key):
            try:
                value = getattr(saveable, name)
            except Exception:  # as Keras does: a property may need a state that there is not
                continue
            yield name, value

    def _names(self, saveable: Any, skipped: set[str]) -> set[str]:
        """Return what `dir` does, without `skipped`."""
        cls: Any = type(saveable)
        if cls.__dir__ is not object.__dir__:  # as that of PyTorch's modules
            return set(dir(saveable)).difference(skipped)
        if cls not in self._of_classes:
            self._of_classes[cls] = set(type.__dir__(cls)).difference(skipped)
        return set(vars(saveable)).difference(skipped).union(self._of_classes[cls])


def _leads_on(value: Any, visited: set[int]) -> bool:
    """Return False if Keras would not find anything new at the value of an attribute.

    A functional model has its layers in several lists, and each takes longer than this. Older
    versions of Keras look into sets, too.
    """
    if isinstance(value, KerasSaveable):
        return id(value) not in visited
    if not isinstance(value, (list, dict, tuple, set)):
        return False
    inside = value.values() if isinstance(value, dict) else value
    return any(
        id(each) not in visited
        if isinstance(each, KerasSaveable)
        else isinstance(each, (list, dict, tuple, set))
        for each in inside
    )


# Replace the helpers that Keras calls for each layer: `join` need not check for remote paths, as
# groups of a file never are, and the name of a class is converted only once.
_FASTER = {
    "file_utils": types.SimpleNamespace(**{**vars(file_utils), "join": os.path.join}),
    "naming": types.SimpleNamespace(
        **{**vars(naming), "to_snake_case": functools.cache(naming.to_snake_case)}
    ),
}


def _save_state(attributes: _Attributes, visited: set[int]) -> Callable[..., None]:
    """Return Keras's function, which visits only what leads on among `attributes`.

    It is a copy with names of its own, as other threads may save with the original meanwhile.
    """

    def walk_saveable(saveable: Any) -> Iterator[tuple[str, Any]]:
        return (each for each in attributes(saveable) if _leads_on(each[1], visited))

    names = {**vars(saving_lib), **_FASTER, "_walk_saveable": walk_saveable}
    for name in ("_save_state", "_save_container_state"):
        original = names[name]
        names[name] = types.FunctionType(
            original.__code__, names, name, original.__defaults__, original.__closure__
        )
    return names["_save_state"]


def saving_walk(model: keras.Model) -> SavingWalk:
    """Run Keras's saving walk over `model`, and record where each variable would go.

    The optimizer is left out: its variables are not weights, and Keras would copy each one.
    """
    for kind in {layer._obj_type() for layer in all_layers(model)}:
        # Keras looks the set up under this name but stores it under another, so it rebuilds it for
        # each layer.
        global_state.set_global_attribute(
            f"saving_attr_skiplist_{kind}", saving_lib.get_attr_skipset(kind)
        )
    store = _RecordingStore()
    visited = _Visited(store, {id(getattr(model, "optimizer", None))})
    save_state = _save_state(_Attributes(), visited)
    save_state(model, store, None, inner_path="", visited_saveables=visited)
    return store.walk


def keep_in_clones(kind: Any, extend: Callable[[keras.Model], keras.Model]) -> None:
    """Make `keras.models.clone_model` extend the clones of models of this kind.

    Keras clones any sequential model as a `keras.Sequential`, and a functional model with its own
    constructor as a plain functional one, then compiles the clone as the model was compiled. There
    is no hook. Other models are cloned as before.

    Args:
        kind: The class of the models to extend.
        extend: Extends a clone in place and returns it.
    """
    for name in ("_clone_sequential_model", "_clone_functional_model"):
        setattr(cloning, name, _extending(getattr(cloning, name), kind, extend))


def _extending(
    clone: Callable[..., Any], kind: Any, extend: Callable[[keras.Model], keras.Model]
) -> Callable[..., Any]:
    @functools.wraps(clone)
    def extending(model: Any, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(model, kind):
            return clone(model, *args, **kwargs)
        compiled, model.compiled = model.compiled, False
        try:
            cloned = extend(clone(model, *args, **kwargs))
        finally:
            model.compiled = compiled
        if compiled:
            cloned.compile_from_config(model.get_compile_config())
        return cloned

    return extending
