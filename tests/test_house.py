"""The house rules of docs/architecture.md, read from the source."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import keras_trainops

pytestmark = pytest.mark.once

HOUSE = Path(keras_trainops.__file__).parent
FILES = sorted(path.relative_to(HOUSE) for path in HOUSE.rglob("*.py"))

# What each room may import of ours, beside itself. A room imports only rooms above it.
ALLOWED: dict[str, set[str]] = {
    "paths": set(),
    "errors": set(),
    "values": {"backends", "processes"},
    "state": {"keras_private"},
    "scalars": set(),
    "numbering": set(),
    "representation": set(),
    "keras_private": set(),
    "arguments": {"state"},
    "trees": set(),
    "backends": {"keras_private", "trees"},
    "processes": {"backends", "errors"},
    "checkpoints": {"errors", "numbering"},
    "weight_names": {"checkpoints", "paths", "keras_private"},
    "transforms": {
        *("backends", "keras_private", "paths"),
        *("state", "arguments", "scalars", "representation"),
    },
    "gradients": {"transforms", "state", "arguments", "scalars", "representation"},
    "updates": {
        *("backends", "keras_private", "paths"),
        *("state", "arguments", "scalars", "representation", "values", "processes"),
    },
    "training": {
        "processes",
        *("transforms", "updates", "gradients", "backends", "keras_private"),
        *("paths", "state", "arguments", "values", "trees", "numbering"),
    },
    "registration": set(),
    "adapt": {
        "weight_names",
        "keras_private",
        "paths",
        "layouts",
    },  # for `from_torch` alone, lazily
    "layouts": {"adapt", "weight_names", "keras_private", "paths"},
    "restoring": {
        *("layouts", "adapt", "checkpoints", "weight_names", "backends", "keras_private"),
        *("paths", "errors", "numbering", "values", "processes"),
    },
    "writing": {
        *("restoring", "layouts", "adapt", "checkpoints", "keras_private"),
        *("weight_names", "paths", "errors", "values", "backends", "processes"),
    },
    "session": {
        *("training", "backends", "processes", "keras_private", "checkpoints"),
        *("errors", "numbering", "values"),
    },
    "callbacks": {
        *("restoring", "adapt", "session", "training", "transforms", "updates"),
        *("paths", "errors", "scalars", "representation", "values", "processes"),
    },
    "cli": {
        "checkpoints",
        "restoring",
        "writing",
        "weight_names",
        "errors",
        "values",
        "registration",
        "keras_trainops",
    },
    "__main__": {"cli"},
}
HEAVY = {"tensorflow", "tensorboardX", "tensorstore", "jax", "torch", "orbax", "tf_keras"}


def room(path: Path) -> str:
    return path.parts[0].removesuffix(".py")


def imports(path: Path, *, top_level: bool = False, typing: bool = True) -> set[str]:
    """Full names of the imported modules."""
    tree = ast.parse((HOUSE / path).read_text(encoding="utf-8"))
    names: set[str] = set()
    nodes = tree.body if top_level else list(ast.walk(tree))
    if not typing:
        guards = [n for n in nodes if isinstance(n, ast.If) and "TYPE_CHECKING" in ast.dump(n.test)]
        hidden = {id(inner) for guard in guards for body in guard.body for inner in ast.walk(body)}
        nodes = [node for node in nodes if id(node) not in hidden]
    for node in nodes:
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
    assert rooms <= ALLOWED[room(path)] | {room(path)}


@pytest.mark.parametrize("path", FILES, ids=str)
def test_backends_are_imported_where_they_are_needed(path: Path) -> None:
    heavy = {name.split(".")[0] for name in imports(path, top_level=True)} & HEAVY
    assert not heavy or (room(path) == "backends" and heavy == {path.stem.partition("_")[0]})


def test_no_file_asks_which_backend_runs() -> None:
    """It asks the backend itself, as `backends.backend()` returns it."""
    questions = ("keras.backend.backend()", "keras.config.backend()")
    sources = {path: (HOUSE / path).read_text("utf-8") for path in FILES}
    asking = {p for p, source in sources.items() if any(text in source for text in questions)}
    assert asking == {Path("backends/__init__.py")}


@pytest.mark.parametrize("path", FILES, ids=str)
def test_keras_src_is_imported_in_one_room_only(path: Path) -> None:
    private = {name for name in imports(path) if name.startswith("keras.src")}
    assert not private or room(path) == "keras_private"


def test_private_names_of_others_stay_in_two_rooms() -> None:
    """Of Keras, TensorFlow and the rest: a name with an underscore that no file of ours defines."""
    trees = {path: ast.parse((HOUSE / path).read_text("utf-8")) for path in FILES}
    ours = {"_asdict", "_fields", "_replace"}  # public in NamedTuple
    ours = ours.union(*(defined(tree) for tree in trees.values()))
    for path, tree in trees.items():
        if room(path) not in ("keras_private", "backends"):
            assert not private_names(tree) - ours, path


def defined(tree: ast.Module) -> set[str]:
    """Names of classes and functions, and names and attributes that are assigned."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            names.add(node.attr)
    return names


def private_names(tree: ast.Module) -> set[str]:
    """Names of attributes that begin with an underscore, as text in `getattr` too."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            names.add(node.attr)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "hasattr"):
            names |= {str(arg.value) for arg in node.args if isinstance(arg, ast.Constant)}
    return {name for name in names if name.startswith("_") and not name.endswith("__")}


def test_only_the_package_imports_guesses() -> None:
    """Restoring works without them; only `rename="auto"` asks for one."""
    guessing = "keras_trainops.restoring.guessing"
    importing = {p for p in FILES if any(name.startswith(guessing) for name in imports(p))}
    others = {path for path in importing if "guessing" not in path.parts}
    assert others == {Path("__init__.py"), Path("restoring/planning/plan.py")}


def test_no_files_import_each_other() -> None:
    """Imports inside functions count; imports for type checkers alone do not."""
    names = {module_name(path) for path in FILES}
    waiting = {module_name(path): imports(path, typing=False) for path in FILES}
    graph = {
        name: {known for full in found if (known := longest_known(full, names)) not in ("", name)}
        for name, found in waiting.items()
    }
    while free := [name for name, needed in graph.items() if not needed & graph.keys()]:
        for name in free:
            del graph[name]
    assert not graph, f"These import each other, or something that does: {sorted(graph)}"


def module_name(path: Path) -> str:
    return ".".join(["keras_trainops", *path.with_suffix("").parts]).removesuffix(".__init__")


def longest_known(full: str, names: set[str]) -> str:
    """The module that `from module import name`, written as `module.name`, imports."""
    while full and full not in names:
        full = full.rpartition(".")[0]
    return full


def test_rooms_are_small_and_named() -> None:
    for path in FILES:
        assert len((HOUSE / path).read_text(encoding="utf-8").splitlines()) <= 400, path
        assert path.stem != "utils", path


def test_public_names_are_explicit_and_few() -> None:
    assert len(keras_trainops.__all__) <= 28
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
    for name in set(keras_trainops.__all__) - {
        "adapt",
        "callbacks",
        "checkpoints",
        "gradients",
        "transforms",
        "updates",
    }:
        assert re.search(rf"^\.\. auto\w+:: {name}$", page, re.MULTILINE), name
    for room in (keras_trainops.checkpoints, keras_trainops.callbacks):
        for name in room.__all__:
            assert re.search(rf"(:: |:: .*\.|members:.* ){name}\b", page), name


def test_importing_the_package_imports_no_optional_library() -> None:
    code = (
        "import sys, keras; before = set(sys.modules); import keras_trainops; "
        "print(sorted({m.split('.')[0] for m in set(sys.modules) - before}))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    imported = set(ast.literal_eval(run.stdout.strip().splitlines()[-1]))
    assert not imported & {"safetensors", "rich", "tf_keras", "torch", "jax", "scipy"}


def test_importing_the_package_alone_imports_no_keras() -> None:
    code = (
        "import sys, keras_trainops; keras_trainops.open_checkpoint; print('keras' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"


@pytest.mark.parametrize(
    "code",
    ["import keras, keras_trainops", "import keras_trainops as kt; kt.transforms; import keras"],
)
def test_saved_classes_are_registered_with_keras(code: str) -> None:
    code += "; found = keras.saving.get_registered_object('keras_trainops>TransformedOptimizer')"
    code += "; print(found.from_config.__self__)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "keras_trainops.training.optimizers.transformed" in run.stdout
