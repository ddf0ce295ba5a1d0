"""The same training on one device, on four, and in two and four processes of JAX."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from tests.processes.launch import run

pytestmark = pytest.mark.backends("jax")

MODEL = [1, 4]  # the shapes of meshes: data replicas, and parts of a variable
BOTH = [2, 2]
RUNS: dict[str, tuple[int, int, list[tuple[Any, str]]]] = {
    "one device": (1, 1, [("one", n) for n in ("chain", "mixed", "skipped", "checked", "kept")]),
    "four devices": (1, 4, [(MODEL, "chain")]),
    "two processes": (
        2,
        2,
        [
            *[(MODEL, name) for name in ("chain", "kept")],
            *[("data", name) for name in ("mixed", "skipped", "checked")],
        ],
    ),
    "four processes": (4, 1, [(BOTH, "chain"), ("data", "skipped")]),
}
SEVERAL = [name for name in RUNS if name != "one device"]
Results = list[Mapping[str, np.ndarray]]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Results]:
    found: dict[str, Results] = {}
    for name, (count, devices, runs) in RUNS.items():
        found[name] = run(
            "tests.training.jax_processes:train",
            count,
            tmp_path_factory.mktemp("processes"),
            arguments={"runs": runs},
            environment={"JAX_NUM_CPU_DEVICES": str(devices)},
        )
    return found


def value_on_one_device(results: dict[str, Results], key: str) -> np.ndarray:
    """Return what one device computed for a result, or for the shard that the result is."""
    one = {name.partition(" ")[2]: array for name, array in results["one device"][0].items()}
    key = key.partition(" ")[2]
    if key in one:
        return one[key]
    name, _, place = key.partition(" ((")
    (whole,) = (array for other, array in one.items() if other.startswith(f"{name} (("))
    return whole[tuple(slice(begin, end) for begin, end in ast.literal_eval(f"(({place}"))]


@pytest.mark.parametrize("name", SEVERAL)
def test_all_numbers_are_those_of_one_device(results: dict[str, Results], name: str) -> None:
    for result in results[name]:
        assert len(result) > 50
        for key, array in result.items():
            expected = value_on_one_device(results, key)
            if array.dtype.kind == "U":
                assert array == expected
            else:
                np.testing.assert_allclose(array, expected, rtol=1e-6, atol=1e-6, err_msg=key)


@pytest.mark.parametrize("name", SEVERAL[1:])
def test_processes_agree_bit_for_bit(results: dict[str, Results], name: str) -> None:
    """On logs, replicated values, and shards that several processes have."""
    first, *others = results[name]
    for other in others:
        shared = first.keys() & other.keys()
        assert len(shared) > 50
        for key in shared:
            assert first[key].tobytes() == other[key].tobytes(), key


@pytest.mark.parametrize("name", SEVERAL)
def test_state_has_the_layout_of_its_variable(results: dict[str, Results], name: str) -> None:
    """Each process has its shards alone, of the slots, averages, masks and accumulators too."""
    _, devices, ((mesh, _), *_) = RUNS[name]
    width = 16 // mesh[1]
    for result in results[name]:
        of_kernels = {
            key: array.shape
            for key, array in result.items()
            if key.startswith("0 chain trained ") and re.search(r"kernel|mask", key)
        }
        assert set(of_kernels.values()) == {(4, width), (width, 4)}
        # The two kernels; SGD's momentum, average and accumulator; two of transforms; the slow
        # weights and three averages; a mask.
        places = min(devices, mesh[1])
        assert len(of_kernels) == places * (2 * (1 + 3 + 2 + 4) + 1)


def test_a_bad_batch_of_one_process_is_skipped_by_all(results: dict[str, Results]) -> None:
    for name in ("two processes", "four processes"):
        for result in results[name]:
            (skips,) = (int(array) for key, array in result.items() if key.endswith(" skips"))
            assert skips == 1
    error = results["two processes"][1]["4 checked error"]
    assert str(error).startswith("The loss became NaN or infinite at step 1")


def test_a_swap_keeps_what_was_assigned_on_any_process(results: dict[str, Results]) -> None:
    """The bias changes in its last shard alone, and the whole of it is kept."""
    last = results["two processes"][1]
    (bias,) = (array for key, array in last.items() if re.match(r"1 kept \d+ b/bias \(\(3", key))
    assert bias == 7
