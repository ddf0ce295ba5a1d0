from __future__ import annotations

import pytest

from keras_trainops.restoring.guessing import numbered_names

pytestmark = pytest.mark.once


def always(name: str, other: str) -> bool:
    return True


def test_partitions_start_with_the_whole_family() -> None:
    family = ["a0.b0", "a0.b1", "a1.b0"]
    parts = list(numbered_names.partitions(family))
    assert parts[0] == [family]
    assert parts[1] == [["a0.b0", "a0.b1"], ["a1.b0"]]
    assert parts[-1] == [["a0.b0"], ["a0.b1"], ["a1.b0"]]


def test_one_rule_shifts_all_numbers() -> None:
    found = numbered_names.pairings(["l.0", "l.1"], ["x1", "x2"], always)
    assert found == [{"l.0": "x1", "l.1": "x2"}]
    assert numbered_names.pairings(["l.0", "l.2"], ["x1", "x2"], always) == []


def test_numbers_may_become_constants() -> None:
    found = numbered_names.pairings(["l.0.1", "l.1.1"], ["x7_0", "x7_1"], always)
    assert found == [{"l.0.1": "x7_0", "l.1.1": "x7_1"}]


def test_pairings_contain_only_names_that_fit() -> None:
    def same_number(name: str, other: str) -> bool:
        return name[-1] == other[-1]

    part, goal = ["l.0", "l.1"], ["x0", "x1", "x2"]
    assert len(numbered_names.pairings(part, goal, always)) == 2
    assert numbered_names.pairings(part, goal, same_number) == [{"l.0": "x0", "l.1": "x1"}]


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [
        ({"a.1": "x1", "a.2": "x2"}, False),
        ({"a.1": "x2", "a.2": "x3"}, True),
        ({"a.1.5": "x5_1", "a.2.6": "x6_2"}, False),  # swapped places
        ({"dense": "dense", "dense_1": "dense_1"}, False),
        ({"dense": "dense_1", "dense_1": "dense_2"}, True),
    ],
)
def test_changed_numbers_are_recognised(pairs: dict[str, str], expected: bool) -> None:
    assert numbered_names.numbers_change(pairs) == expected


def test_words_count_in_short_and_long_form() -> None:
    assert numbered_names.common_words("attn.q", "attention_query") == 2
    assert numbered_names.common_words("encoder.fc", "decoder/dense") == 1
