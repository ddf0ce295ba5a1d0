"""Names the classes that a `.keras` file may need, once Keras is imported.

A file with our classes must load, whichever package is imported first, and without any of our
modules: `import keras_trainops` does not import Keras, and importing all classes takes longer than
everything else. So Keras gets a stand-in for each class, which imports it when a file names it.
"""

from __future__ import annotations

import ast
import importlib
import importlib.abc
import importlib.util
import sys
from collections.abc import Iterator, Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

_PACKAGE = "keras_trainops"
_ROOMS = ("gradients", "transforms", "updates")  # their classes are all that they export
_CLASSES = {  # by module
    "training.models": ("Extended", "TrainOpsModel", "TrainOpsSequential"),
    "training.optimizers.group": ("OptimizerGroup",),
    "training.optimizers.transformed": ("TransformedOptimizer",),
}
_WITHOUT_PACKAGE = ("TrainOpsModel", "TrainOpsSequential")  # in legacy `.h5` files


def register_classes() -> None:
    """Register a stand-in for each class that a saved file may name and that is not imported."""
    import keras

    registered = keras.saving.get_custom_objects()
    for module, name in _classes():
        for key in (f"{_PACKAGE}>{name}", *([name] if name in _WITHOUT_PACKAGE else [])):
            registered.setdefault(key, _Deferred(f"{_PACKAGE}.{module}", key))


def _classes() -> Iterator[tuple[str, str]]:
    for module, names in _CLASSES.items():
        yield from ((module, name) for name in names)
    for room in _ROOMS:
        yield from ((room, name) for name in _exports(room) if name[0].isupper())


def _exports(room: str) -> list[str]:
    """Return `__all__` of a package without importing it."""
    source = Path(__file__).with_name(room).joinpath("__init__.py").read_text("utf-8")
    found = (node for node in ast.parse(source).body if isinstance(node, ast.Assign))
    return next(ast.literal_eval(n.value) for n in found if ast.unparse(n.targets[0]) == "__all__")


class _Deferred:
    """Imports a registered class when Keras first uses it.

    Args:
        module: The module that registers the class.
        key: The key of the class among Keras's custom objects.
    """

    def __init__(self, module: str, key: str) -> None:
        self._module, self._key = module, key

    def __getattr__(self, attribute: str) -> Any:
        if attribute.startswith("__"):  # asked by Python, of the object itself
            raise AttributeError(attribute)
        return getattr(self._class(), attribute)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._class()(*args, **kwargs)

    def _class(self) -> Any:
        import keras

        importlib.import_module(self._module)
        registered = keras.saving.get_custom_objects().get(self._key, self)
        if registered is self:
            raise AttributeError(f"{self._module} does not register {self._key!r}.")
        return registered


def register_once_keras_is_imported() -> None:
    """Register the classes now if Keras is imported, otherwise right after that happens."""
    if "keras" in sys.modules:
        register_classes()
    else:
        sys.meta_path.insert(0, _WaitForKeras())


class _WaitForKeras(importlib.abc.MetaPathFinder):
    """Import hook that waits for Keras; removes itself when Keras is imported."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != "keras":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            _call_after(spec.loader)
        return spec


def _call_after(loader: importlib.abc.Loader) -> None:
    load = loader.exec_module

    def load_and_register(module: ModuleType) -> None:
        load(module)
        register_classes()

    loader.exec_module = load_and_register  # type: ignore[method-assign]
