"""Registers the classes that a `.keras` file may name, once Keras is imported.

`import keras_trainops` does not import Keras. But a file with our classes must load, whichever
package is imported first.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.util
import inspect
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

_PACKAGE = "keras_trainops"
_MODULES = ("transforms", "gradients", "updates", "training.models", "training.optimizers.group")


def register_classes() -> None:
    """Import every module whose classes a saved file may name."""
    for module in _MODULES:
        importlib.import_module(f"{_PACKAGE}.{module}")


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
        if not _is_importing_ours():
            register_classes()

    loader.exec_module = load_and_register  # type: ignore[method-assign]


def _is_importing_ours() -> bool:
    """Return whether one of our modules is importing Keras.

    Its names are not defined yet then.
    """
    frame = inspect.currentframe()
    while frame is not None:
        name = str(frame.f_globals.get("__name__", ""))
        if frame.f_code.co_name == "<module>" and name.startswith(f"{_PACKAGE}."):
            return True
        frame = frame.f_back
    return False
