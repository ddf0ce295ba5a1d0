from __future__ import annotations

from keras_trainops.adapt.base import Adapter
from keras_trainops.adapt.layout import Reshape, Transpose
from keras_trainops.restoring.guessing.adapters import fold_adapters


def test_paths_that_differ_in_numbers_share_a_pattern() -> None:
    paths = [f"block{i}/fc{n}/kernel" for i in (0, 1, 10) for n in (1, 2)]
    found = fold_adapters({path: Transpose() for path in paths if "fc1" in path}, paths)
    assert {pattern: repr(adapter) for pattern, adapter in found.items()} == {
        r"^block\d+/fc1/kernel$": "Transpose()"
    }


def test_a_pattern_that_would_match_others_is_not_used() -> None:
    paths = [f"block{i}/kernel" for i in range(3)]
    adapters: dict[str, Adapter | None] = {path: Transpose() for path in paths[:2]}
    found = fold_adapters({**adapters, paths[2]: None}, paths)
    assert list(found) == ["^block0/kernel$", "^block1/kernel$"]


def test_adapters_that_differ_are_kept_apart() -> None:
    paths = ["a1/kernel", "a2/kernel", "b.c/kernel"]
    adapters = {paths[0]: Transpose(), paths[1]: Reshape([2, 3]), paths[2]: Transpose()}
    found = fold_adapters(adapters, paths)
    assert {pattern: repr(adapter) for pattern, adapter in found.items()} == {
        "^a1/kernel$": "Transpose()",
        "^a2/kernel$": "Reshape([2, 3])",
        r"^b\.c/kernel$": "Transpose()",
    }
