from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pytest

import keras_trainops as kt
from keras_trainops.processes import Processes
from keras_trainops.session.state import snapshot
from keras_trainops.session.state.restoring import _shares
from tests.helpers import assert_same, refused, two_layers
from tests.session.replica_runs import runs_of
from tests.session.small_runs import fit, steps


def test_refuses_the_checkpoint_of_another_model() -> None:
    fit("run")
    before = {p: p.read_bytes() for p in Path("run/checkpoints").rglob("*") if p.is_file()}
    keras.backend.clear_session()
    inputs = keras.Input((4,))
    x = keras.layers.Dense(5, name="trunk")(inputs)
    other = kt.TrainOpsModel(inputs, keras.layers.Dense(2, name="top")(x), name="other")
    other.compile(keras.optimizers.Adam(0.01), "mse")
    other.optimizer.build(other.trainable_variables)
    message = (
        r"(?s)Cannot resume from '.*step-0000000020': it was saved from another model.*"
        r"- head/bias: float32 \(2,\).*\+ top/bias: float32 \(2,\).*"
        r"! trunk/kernel: float32 \(4, 5\) in the model, float32 \(4, 3\) saved.*nothing was ch"
    )
    with refused(other, message, kt.RestoreError):
        fit("run", other)
    assert {p: p.read_bytes() for p in before} == before
    assert steps("run") == [20]
    fit("run")  # the lock was released


def test_refuses_the_checkpoint_of_another_optimizer() -> None:
    fit("run")
    model = kt.with_train_ops(two_layers(1, name="small"))
    model.compile("sgd", "mse")
    with pytest.raises(kt.RestoreError, match=r"- optimizer/adam/trunk_kernel_momentum"):
        fit("run", model)


def test_accepts_layers_that_keras_renumbered() -> None:
    def numbered() -> keras.Model:
        inputs = keras.Input((4,))
        model = kt.TrainOpsModel(inputs, keras.layers.Dense(2)(inputs))
        model.compile("adam", "mse")
        return model

    first = fit("run", numbered())
    second = fit("run", numbered())
    assert first.layers[-1].name != second.layers[-1].name
    assert_same(second.get_weights(), first.get_weights())


@pytest.mark.parametrize("options", [{}, {"run_eagerly": True}, {"jit_compile": True}], ids=str)
def test_values_stay_while_training_goes_on(
    options: dict[str, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    if keras.backend.backend() == "torch" and "jit_compile" in options:
        pytest.skip("compiling takes a minute")
    monkeypatch.setattr(snapshot, "_COPIED", 4)  # elements: several threads copy
    inputs = keras.Input((3,), dtype="int32")
    x = keras.layers.BatchNormalization()(keras.layers.Embedding(9, 4)(inputs))
    model = kt.TrainOpsModel(inputs, keras.layers.Dense(1)(x))
    model.compile("adam", "mse", **options)
    tokens = np.arange(24).reshape(8, 3) % 9

    def train() -> None:
        model.fit(tokens, np.ones((8, 3, 1)), epochs=2, verbose=0)

    train()
    variables = snapshot.variables_of(model)
    values = {key: np.array(variable) for key, variable in variables.items()}
    taken = snapshot.HostCopy().take(variables, [], Processes())
    train()
    model.layers[1].embeddings.assign(np.zeros((9, 4)))
    assert list(taken) == list(values)
    assert_same(list(taken.values()), list(values.values()))
    assert not any(np.array_equal(values[v.path], v) for v in model.trainable_variables)


@pytest.mark.backends("tensorflow")
@pytest.mark.parametrize("kind", ["summed", "clipped"])
def test_resumes_within_an_accumulation_on_replicas(kind: str) -> None:
    runs = runs_of(kind)
    one, two = runs["one"], runs["two"]
    assert (len(one), len(two)) == (4, 8)
    for key, value in one.items():
        np.testing.assert_allclose(two[key], value, atol=1e-6)
    assert_same(list(runs["2 then 2"].values()), list(two.values()))
    for others in ("2 then 1", "1 then 2"):  # the sum of the gradients is preserved
        for key, value in runs[others].items():
            np.testing.assert_allclose(value, two[key], atol=1e-6)


@pytest.mark.backends("tensorflow")
def test_replicas_of_a_plain_model_keep_their_statistics() -> None:
    runs = runs_of("plain")
    two = runs["two"]
    assert not np.array_equal(two["norm/moving_mean/0"], two["norm/moving_mean/1"])
    assert_same(list(runs["2 then 2"].values()), list(two.values()))
    for name in ("moving_mean", "moving_variance"):
        mean = (two[f"norm/{name}/0"] + two[f"norm/{name}/1"]) / 2
        np.testing.assert_allclose(runs["2 then 1"][f"norm/{name}/0"], mean, rtol=1e-6)


@pytest.mark.once
def test_shares_of_a_sum_add_up_to_it() -> None:
    total = np.array([5, 4], "int32")
    first, second = (_shares(total, 2, 4, is_first) for is_first in (True, False))
    assert [share.tolist() for share in (*first, *second)] == [[2, 1], [1, 1], [1, 1], [1, 1]]
    (share,) = _shares(np.array(1.0, "float32"), 1, 2, False)
    assert (share.dtype, float(share)) == (np.dtype("float32"), 0.5)
