"""The house rules of docs/architecture.md, read from the source."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import keras_trainops

HOUSE = Path(keras_trainops.__file__).parent
FILES = sorted(path.relative_to(HOUSE) for path in HOUSE.rglob("*.py"))

# What each room may import of ours.
ALLOWED = {
    "_keras": set(),
    "_keras_data": set(),
    "_keras_graph": {"_keras"},
    "_keras_optimizers": {"_keras"},
    "numbers": set(),
    "paths": set(),
    "state": set(),
    "shown": set(),
    "slots": {"state"},
    "readers": {"readers"},
    "writers": {"writers", "readers"},
    "transforms": {"transforms", "paths", "numbers", "state", "shown", "slots", "_keras"},
    "updates": {"updates", "paths", "numbers", "state", "shown", "slots", "_keras"},
    "training": {
        *("training", "transforms", "updates"),
        *("paths", "state", "slots", "_keras", "_keras_optimizers"),
    },
    "naming": {"readers", "paths", "_keras"},
    "adapt": {"adapt", "naming", "paths", "_keras", "_keras_graph"},
    "restoring": {
        *("restoring", "adapt", "readers", "naming"),
        *("paths", "state", "_keras", "_keras_graph"),
    },
    "session": {
        *("session", "readers", "training", "transforms"),
        *("state", "_keras", "_keras_data"),
    },
    "callbacks": {
        *(
            "callbacks",
            "restoring",
            "adapt",
            "readers",
            "session",
            "training",
            "transforms",
            "updates",
        ),
        *("paths", "numbers", "state", "shown"),
    },
    "cli": {"cli", "readers", "writers", "restoring", "naming", "state", "keras_trainops"},
    "__main__": {"cli"},
}
HEAVY = {"tensorflow", "tensorboardX", "tensorstore", "jax", "torch", "orbax", "tf_keras"}


def room(path: Path) -> str:
    return path.parts[0].removesuffix(".py")


def imports(path: Path, *, top_level: bool = False) -> set[str]:
    """Full names of the imported modules."""
    tree = ast.parse((HOUSE / path).read_text(encoding="utf-8"))
    names: set[str] = set()
    for node in tree.body if top_level else ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("path", [p for p in FILES if p != Path("__init__.py")], ids=str)
def test_imports_go_one_way(path: Path) -> None:
    own = {name for name in imports(path) if name.startswith("keras_trainops")}
    rooms = {name.split(".")[1] if "." in name else name for name in own}
    assert rooms <= ALLOWED[room(path)]


@pytest.mark.parametrize("path", FILES, ids=str)
def test_backends_and_optional_libraries_are_imported_where_they_are_needed(path: Path) -> None:
    heavy = {name.split(".")[0] for name in imports(path, top_level=True)} & HEAVY
    backend_file = path.parts[:2] == ("training", "steps") and path.stem != "__init__"
    assert not heavy or (backend_file and heavy == {path.stem})


@pytest.mark.parametrize("path", FILES, ids=str)
def test_keras_src_is_imported_in_one_file_only(path: Path) -> None:
    private = {name for name in imports(path) if name.startswith("keras.src")}
    assert not private or path == Path("_keras.py")


def test_rooms_are_small_and_named() -> None:
    for path in FILES:
        assert len((HOUSE / path).read_text(encoding="utf-8").splitlines()) <= 400, path
        assert path.stem != "utils", path


def test_public_names_are_explicit_and_few() -> None:
    assert len(keras_trainops.__all__) <= 20
    assert sorted(keras_trainops.__all__) == keras_trainops.__all__
    assert all(hasattr(keras_trainops, name) for name in keras_trainops.__all__)


def test_dir_shows_the_public_names_alone() -> None:
    assert dir(keras_trainops) == sorted(["__version__", *keras_trainops.__all__])


def test_no_public_name_hides_a_room() -> None:
    """`import keras_trainops.x.y as z` looks `x` up in the package."""
    for path in FILES:
        rooms = [part for part in path.with_suffix("").parts if part != "__init__"]
        if "__main__" in rooms:
            continue
        importlib.import_module(".".join(["keras_trainops", *rooms]))
        found: object = keras_trainops
        for part in rooms:
            found = getattr(found, part)
        assert isinstance(found, ModuleType), path


def test_every_public_name_stands_in_the_api_pages() -> None:
    page = (HOUSE.parent / "docs" / "api.rst").read_text(encoding="utf-8")
    for name in set(keras_trainops.__all__) - {"transforms", "updates"}:
        assert name in page


def test_importing_the_package_imports_no_optional_library() -> None:
    code = (
        "import sys, keras; before = set(sys.modules); import keras_trainops; "
        "print(sorted({m.split('.')[0] for m in set(sys.modules) - before}))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    imported = set(ast.literal_eval(run.stdout.strip().splitlines()[-1]))
    assert not imported & {"safetensors", "rich", "tf_keras", "torch", "jax", "scipy"}
