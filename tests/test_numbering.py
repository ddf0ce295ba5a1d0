from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_trainops import numbering

pytestmark = pytest.mark.once


@given(st.text("ab_./012", max_size=12))
def test_texts_and_numbers_join_to_the_name(name: str) -> None:
    texts, numbers = numbering.split(name)
    assert len(texts) == len(numbers) + 1
    assert "".join(a + b for a, b in zip(texts, [*numbers, ""], strict=True)) == name
    assert all(number.isdigit() for number in numbers)


def test_families_differ_only_in_numbers() -> None:
    names = ["layer1.0.conv1", "fc", "layer2.1.conv1", "layer2.1.bn1"]
    families = [["layer1.0.conv1", "layer2.1.conv1"], ["fc"], ["layer2.1.bn1"]]
    assert numbering.by_family(names) == families


@pytest.mark.parametrize(
    ("component", "expected"),
    [("dense_4", ("dense", 4)), ("dense", ("dense", -1)), ("_5", ("_5", -1)), ("a_b", ("a_b", -1))],
)
def test_automatic_numbers_follow_an_underscore(component: str, expected: tuple[str, int]) -> None:
    assert numbering.automatic(component) == expected
    assert numbering.stem(component) == expected[0]


def test_siblings_share_everything_above_them() -> None:
    found = numbering.sibling_numbers(["a/dense_1", "a/dense_2", "a_1/dense_7"])
    assert found["a/", "dense"] == {1, 2}
    assert found["a_1/", "dense"] == {7}
    assert found["", "a"] == {-1, 1}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("net_1/dense_22/kernel", "net/dense/kernel"),
        ("optimizer/adam/dense_1_kernel_momentum", "optimizer/adam/dense_kernel_momentum"),
        ("_5/_5_3", "_5/_5"),
        ("conv2d/a_1b", "conv2d/a_1b"),
    ],
)
def test_automatic_numbers_are_left_out_within_components_too(name: str, expected: str) -> None:
    assert numbering.without_automatic(name) == expected
