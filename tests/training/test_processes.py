"""One process, two and four train to the same numbers; and processes that differ say so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.processes.launch import run
from tests.training.process_faults import alone
from tests.training.processes import ALONE, RUNS, all_runs, of_run

Results = Sequence[Mapping[str, np.ndarray]]
FEW = ["clip and noise", "accumulation"]  # in four processes
trains = pytest.mark.backends("tensorflow", "torch")


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Results:
    directory = tmp_path_factory.mktemp("two")
    return run("tests.training.process_faults:everything", 2, directory, arguments={"parts": 2})


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> Results:
    arguments = {"parts": 4, "runs": FEW}
    directory = tmp_path_factory.mktemp("four")
    return run("tests.training.processes:all_runs", 4, directory, arguments=arguments)


def require_equal(several: Results, name: str) -> None:
    """All processes are bit-equal to each other, and to one process within 1e-6."""
    arguments = {"parts": len(several), "runs": [name]}
    alone = dict(of_run(all_runs(replace(ALONE, arguments=arguments)), name))
    first, *others = [dict(of_run(each, name)) for each in several]
    assert first.keys() == alone.keys()
    for other in others:
        for key in first:
            np.testing.assert_array_equal(other[key], first[key], err_msg=key)
    for key, value in alone.items():
        if value.dtype.kind in "US":
            assert str(first[key]) == str(value)
        else:
            np.testing.assert_allclose(first[key], value, rtol=1e-6, atol=1e-6, err_msg=key)


@trains
@pytest.mark.parametrize("name", RUNS)
def test_two_processes_train_like_one(two: Results, name: str) -> None:
    require_equal(two, name)


@trains
@pytest.mark.parametrize("name", FEW)
def test_four_processes_train_like_one(four: Results, name: str) -> None:
    require_equal(four, name)


@trains
def test_processes_agree_on_a_nan_of_one(two: Results) -> None:
    for result in two:
        assert "became NaN or infinite at step 1" in str(result["check_numerics/message"])


@trains
@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_all_skip_a_nan_of_one_in_half_precision(two: Results, name: str) -> None:
    for result in two:
        found = dict(of_run(result, name))
        assert all(np.isfinite(value).all() for value in found.values())
        assert max(int(value) for key, value in found.items() if "iteration" in key) == 6


@pytest.mark.parametrize(
    ("name", "difference"),
    [
        pytest.param(
            "class of the optimizer",
            "the classes of each optimizer: ['SGD'] in process 0, ['Adam']",
            marks=trains,
        ),
        ("momentum", "optimizer 0, momentum: 0.2 in process 0, 0.1 in process 1 of 2"),
        ("norm", "gradient transform 0, max_norm: 2.0 in process 0, 1.0 in process 1 of 2"),
        ("transforms", "the classes of each gradient transform: ['ClipByGlobalNorm', 'Clip"),
        ("updates", "update 0, decay: 0.8 in process 0, 0.9 in process 1 of 2"),
        ("epochs", "the number of epochs: 1 in process 0, 2 in process 1 of 2"),
        ("batch size", "the batch size: 8 in process 0, 16 in process 1 of 2"),
    ],
)
def test_processes_that_differ_say_in_what(two: Results, name: str, difference: str) -> None:
    for result in two:
        message = str(result[f"differing/{name}"])
        assert message.startswith(f"ValueError: The processes differ in {difference}")
        assert message.endswith("the same program, each on its part of the data.")


@pytest.mark.backends("torch")
@pytest.mark.parametrize(
    ("name", "difference"),
    [
        ("learning rate", "learning_rate: 0.2"),
        ("check_numerics", "`check_numerics`: False in process 0, True in process 1 of 2"),
        ("callbacks", "among the callbacks: [] in process 0, ['UseAverage'] in process 1 of 2"),
        ("variables", "the number of variables: 1 in process 0, 2 in process 1 of 2"),
    ],
)
def test_processes_that_differ_in_variables_say_so(
    two: Results, name: str, difference: str
) -> None:
    for result in two:
        assert difference in str(result[f"differing/{name}"])


def test_keras_may_have_numbered_layers_differently(two: Results) -> None:
    first, second = ({k: v for k, v in r.items() if k.startswith("numbered/")} for r in two)
    assert str(first.pop("numbered/name")) != str(second.pop("numbered/name"))
    assert len(first) > 4
    for name in first:
        np.testing.assert_array_equal(first[name], second[name])


@pytest.mark.parametrize("method", ["fit", "evaluate"])
def test_only_process_0_shows_progress_unless_asked(two: Results, method: str) -> None:
    first, second = two
    assert "loss" in str(first[f"printed/{method} auto"])
    assert str(second[f"printed/{method} auto"]) == ""
    assert all("loss" in str(each[f"printed/{method} asked"]) for each in two)


@pytest.mark.backends("torch")
def test_processes_with_other_weights_say_so(two: Results) -> None:
    for result in two:
        message = str(result["torch_alone/other weights"])
        assert message.startswith("ValueError: The processes differ in the value of 'one/kernel'")
        assert "Call `keras.utils.set_random_seed` with the same seed on all processes" in message


@pytest.mark.backends("torch")
def test_process_0_warns_if_all_get_the_same_batch(two: Results) -> None:
    warned = "All 2 processes got the same first batch"
    assert warned in str(two[0]["torch_alone/same batch"])
    assert warned not in str(two[1]["torch_alone/same batch"])
    assert all(warned not in str(each["torch_alone/other batch"]) for each in two)


@pytest.mark.backends("torch")
@pytest.mark.parametrize("other", ["wrapped True", "compiled before"])
def test_neither_a_wrapper_nor_the_order_changes_training(two: Results, other: str) -> None:
    for result in two:
        expected = dict(of_run(strip(two[0]), "wrapped False"))
        found = dict(of_run(strip(result), other))
        assert expected
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            np.testing.assert_array_equal(found[key], value, err_msg=key)


def strip(result: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
    return dict(of_run(result, "torch_alone"))


@pytest.mark.backends("torch")
def test_callbacks_see_the_same_logs(two: Results) -> None:
    assert [int(each["torch_alone/epochs until the stop"]) for each in two] == [2, 2]


@pytest.mark.backends("torch")
def test_processes_may_evaluate_unequal_parts(two: Results) -> None:
    for result in two:
        found, expected = (float(result[f"torch_alone/{n} parts"]) for n in ("unequal", "all"))
        assert found == pytest.approx(expected, rel=1e-6)


@pytest.mark.backends("torch")
def test_a_gradient_on_one_process_counts_for_all(two: Results) -> None:
    for result in two:
        once, twice = (result[f"torch_alone/odd {n}"] for n in ("once", "twice"))
        np.testing.assert_array_equal(once, np.full((4, 2), 2.0, "float32"))  # -4 and none
        np.testing.assert_array_equal(twice, once)  # without any gradient, no momentum either


@pytest.mark.backends("torch")
def test_buffers_of_modules_are_those_of_all(two: Results) -> None:
    for result in two:
        found, expected = (result[f"torch_alone/mean of {n}"] for n in ("buffers", "all rows"))
        np.testing.assert_allclose(found, expected, atol=1e-6)
        np.testing.assert_array_equal(found, two[0]["torch_alone/mean of buffers"])
        np.testing.assert_array_equal(result["torch_alone/mask"], [np.finfo("float32").min] * 2)


@pytest.mark.backends("torch")
@pytest.mark.parametrize(
    ("how", "first", "last"),
    [
        ("stops", "to train on a batch", "to end an epoch"),
        ("has less", "to train on a batch", "to end an epoch"),
        ("evaluates", "to end an evaluation", "to train on a batch"),
    ],
)
def test_processes_that_part_say_where_they_are(
    two: Results, how: str, first: str, last: str
) -> None:
    messages = [str(each[f"torch_alone/parts {how}"]) for each in two]
    talks = "RuntimeError: Process {} of 2 talks to the others {}, and process {} {}. All must"
    assert messages[0].startswith(talks.format(0, first, 1, last))
    assert messages[1].startswith(talks.format(1, last, 0, first))


@pytest.mark.backends("torch")
@pytest.mark.parametrize(
    ("how", "message"),
    [("fails", "OSError: no space left"), ("fails at the end", "KeyError: 'history'")],
)
def test_what_fails_in_fit_on_one_process_fails_on_all(
    two: Results, how: str, message: str
) -> None:
    first, last = (str(each[f"torch_alone/parts {how}"]) for each in two)
    kind = message.partition(":")[0]
    assert first.startswith(f"{kind}: ")
    assert "Process 1 of 2 (on " in first
    assert f"failed, and all stop. {message}" in first
    assert last == message


@pytest.mark.backends("torch")
@pytest.mark.parametrize(
    "name", ["FSDP1", "FSDP2", "a layer in FSDP2", "compiled before FSDP2", "restored"]
)
def test_fsdp_is_refused(two: Results, name: str) -> None:
    for result in two:
        message = str(result[f"torch_alone/{name}"])
        assert message.startswith("NotImplementedError: FSDP (`FullyShardedDataParallel`, ")
        assert "`DistributedDataParallel`, in which each process holds all weights" in message


@pytest.mark.backends("tensorflow")
def test_without_a_cluster_there_is_one_process() -> None:
    import tensorflow as tf

    found = alone(ALONE, tf.distribute.MultiWorkerMirroredStrategy())
    np.testing.assert_array_equal(found, [1, 1, 1])


@pytest.mark.backends("tensorflow")
def test_an_evaluator_is_alone_and_parameter_servers_are_refused(tmp_path: Path) -> None:
    (result,) = run("tests.training.process_faults:strategies", 1, tmp_path)
    np.testing.assert_array_equal(result["evaluator"], [1, 1, 1])
    for name in ("compiled", "restored"):
        message = str(result[name])
        assert message.startswith(
            "NotImplementedError: `tf.distribute.ParameterServerStrategy` is not supported"
        )
        assert "Use `tf.distribute.MultiWorkerMirroredStrategy`" in message


@pytest.mark.backends("jax")
def test_processes_that_nothing_connects_do_not_train(two: Results) -> None:
    for result in two:
        message = str(result["undistributed"])
        assert message.startswith("ValueError: `jax.distributed` runs 2 processes, but no distrib")
        assert "keras.distribution.set_distribution" in message


@pytest.mark.backends("tensorflow", "jax")
def test_files_in_another_order_are_an_error(two: Results) -> None:
    for result in two:
        (message,) = map(str, result["files/order"])
        assert message.startswith("ValueError: The processes differ in the files of the dataset")
        assert "a.txt" in message
        assert [str(text) for text in result["files/seeded"]] == ["none"]
