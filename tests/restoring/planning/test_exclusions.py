from __future__ import annotations

import pytest

from keras_trainops.restoring.planning.exclusions import exclude_patterns

pytestmark = pytest.mark.once


def test_patterns_match_only_failing_paths() -> None:
    paths = [f"{layer}/{leaf}" for layer in "abc" for leaf in ("kernel", "bias", "lora")]
    assert exclude_patterns({"a/kernel", "a/bias", "a/lora"}, paths) == ["a"]
    assert exclude_patterns({"a/lora", "b/lora", "c/lora"}, paths) == ["lora"]
    assert exclude_patterns({"a/kernel"}, paths) == ["a/kernel"]
    assert exclude_patterns({"d/w"}, ["d/w", "x/d/w"]) == ["^d/w$"]
    many = {f"x{i}/w" for i in range(20)}
    assert exclude_patterns(many, [*many, *(f"x{i}/v" for i in range(20))]) == ["w"]
    assert exclude_patterns(many, [*many, "w", *(f"x{i}/v" for i in range(20))]) == []
