"""What was restored goes back, byte for byte; what has changed is there, and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import keras_trainops as kt
from tests.helpers import assert_same, randomise, two_layers, value, weights
from tests.writing.helpers import (
    BFLOAT16,
    RENAME,
    arrays_in,
    assert_equal_files,
    network,
    rules,
    saved,
    tensors,
)


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "float64", BFLOAT16])
def test_what_was_not_trained_is_byte_equal(suffix: str, dtype: Any) -> None:
    if suffix == ".npz" and dtype is BFLOAT16:
        dtype = ">f4"  # NumPy has no bfloat16, but a byte order
    theirs, model = saved(f"theirs{suffix}", tensors(dtype=dtype)), network()
    kt.restore(model, theirs, **rules(model))
    before = weights(model)
    report = kt.write_back(model, theirs, f"ours{suffix}", **rules(model))
    assert_equal_files(f"ours{suffix}", theirs, without=("global_step",))
    assert_same(weights(model), before)
    assert report.copied == ("enc.rotary.table",)
    assert report.left_out == ("global_step",)
    assert set(report.written) == {*tensors()} - {"enc.rotary.table", "global_step"}
    assert report.missing == report.notes == ()


def test_new_values_are_restored_from_the_new_file() -> None:
    theirs, model = saved("theirs.safetensors"), network()
    kt.write_back(model, theirs, "ours.safetensors", **rules(model))
    other = network(seed=2)
    kt.restore(other, "ours.safetensors", **rules(other))
    assert_same(weights(other), weights(model))
    np.testing.assert_array_equal(
        arrays_in("ours.safetensors")["enc.rotary.table"], tensors()["enc.rotary.table"]
    )


@pytest.mark.once
def test_a_trained_model_goes_back_in_the_precision_of_the_source() -> None:
    theirs, model = saved("theirs.safetensors", tensors(dtype="float16")), network()
    kt.restore(model, theirs, **rules(model))
    model.compile(keras.optimizers.SGD(0.01), "mse")
    model.fit(np.ones((4, 4, 6)), np.zeros((4, 4, 5)), verbose=0)
    kt.write_back(model, theirs, "ours.safetensors", **rules(model))
    found = arrays_in("ours.safetensors")["head.weight"]
    assert found.dtype == "float16"
    np.testing.assert_array_equal(found, value(model.get_layer("head").kernel).T.astype("float16"))
    assert (found != tensors(dtype="float16")["head.weight"]).any()


@pytest.mark.once
def test_a_report_a_warm_start_and_a_plan_stand_for_the_rules() -> None:
    theirs, model = saved("theirs.safetensors"), network()
    start = kt.WarmStart(theirs, **rules(model), verbose=0)
    with pytest.raises(ValueError, match="a `WarmStart` that has loaded its weights"):
        kt.write_back(model, theirs, "ours.safetensors", report=start)
    model.compile(keras.optimizers.SGD(0.0), "mse")
    model.fit(np.ones((4, 4, 6)), np.zeros((4, 4, 5)), verbose=0, callbacks=[start])
    assert start.report is not None
    start.report.save("plan.json")
    for number, report in enumerate((start, start.report, "plan.json")):
        kt.write_back(model, theirs, f"{number}.safetensors", report=report)
        assert_equal_files(f"{number}.safetensors", theirs, without=("global_step",))
    with pytest.raises(ValueError, match=r"A plan decides .* so it excludes `rename`"):
        kt.write_back(model, theirs, "x.npz", report=start, rename=RENAME)


@pytest.mark.once
def test_a_plan_stands_for_a_source_that_is_gone() -> None:
    theirs, model = saved("theirs.safetensors"), network()
    kt.restore(model, theirs, **rules(model)).save("plan.json")
    wanted = arrays_in(theirs)
    Path(theirs).unlink()
    message = "the plan has no values: enc.rotary.table. Pass the original file as `like`"
    with pytest.raises(kt.RestoreError, match=message):
        kt.write_back(model, "plan.json", "ours.safetensors")
    with pytest.warns(UserWarning, match=r"the plan has no values: enc\.rotary\.table"):
        kt.write_back(model, "plan.json", "w.safetensors", on_unexpected="warn")
    report = kt.write_back(model, "plan.json", "ours.safetensors", on_unexpected="ignore")
    assert report.left_out == ("global_step", "enc.rotary.table")
    found = arrays_in("ours.safetensors")
    assert [*found] == [k for k in wanted if k not in report.left_out]
    assert all(found[key].tobytes() == wanted[key].tobytes() for key in found)
    with pytest.raises(ValueError, match="it excludes `adapt`"):
        kt.write_back(model, "plan.json", "x.npz", adapt=kt.adapt.from_torch(model))
    kt.write_back(model, "plan.json", "ours.npz", on_unexpected="ignore", exclude="head")
    assert "head.weight" not in arrays_in("ours.npz")


@pytest.mark.once
def test_excluded_variables_are_copied() -> None:
    theirs, model = saved("theirs.npz"), network()
    report = kt.write_back(model, theirs, "ours.npz", exclude="head", **rules(model))
    assert report.copied == ("head.weight", "head.bias", "enc.rotary.table")
    found = arrays_in("ours.npz")
    np.testing.assert_array_equal(found["head.bias"], tensors()["head.bias"])
    assert (found["enc.norm.bias"] != tensors()["enc.norm.bias"]).all()
    kt.write_back(model, theirs, "norm.npz", include="norm", **rules(model))
    changed = {k for k, v in arrays_in("norm.npz").items() if (v != tensors()[k]).any()}
    assert changed == {"enc.norm.weight", "enc.norm.bias"}


@pytest.mark.once
def test_variables_without_a_key_would_be_lost() -> None:
    theirs, model = saved("theirs.npz"), network()
    fewer = {**RENAME, r"head\.(weight|bias)": None}
    options = {**rules(model), "rename": fewer}
    with pytest.raises(kt.RestoreError, match=r"(?s)missing: head/\{bias,kernel\};.*exclude="):
        kt.write_back(model, theirs, "ours.npz", **options)
    report = kt.write_back(model, theirs, "a.npz", on_missing="ignore", **options)
    assert report.missing == ("head/kernel", "head/bias")
    assert "not written" in str(report)
    with pytest.warns(
        UserWarning, match=r"head/\{bias,kernel\}; no key leads there, so their values"
    ):
        kt.write_back(model, theirs, "b.npz", on_missing="warn", **options)
    with pytest.raises(kt.RestoreError, match=r"\+ without a variable: enc\.rotary\.table"):
        kt.write_back(model, theirs, "c.npz", on_unexpected="error", **rules(model))


@pytest.mark.once
def test_the_ending_selects_another_format() -> None:
    theirs, model = saved("theirs.npz"), network()
    kt.restore(model, theirs, **rules(model))
    kt.write_back(model, theirs, "ours.safetensors", **rules(model))
    assert arrays_in("ours.safetensors").keys() == tensors().keys() - {"global_step"}
    kt.write_back(model, theirs, "no_ending", **rules(model))
    assert_equal_files("no_ending", theirs, without=("global_step",))
    kt.write_back(model, tensors(), "of_arrays.npz", **rules(model))
    assert_equal_files("of_arrays.npz", theirs, without=("global_step",))
    with pytest.raises(ValueError, match=r"has no format that can be written\. Let `out` end in"):
        kt.write_back(model, tensors(), "of_arrays", **rules(model))


@pytest.mark.once
def test_several_variables_share_a_tensor() -> None:
    model = network()
    fused = tensors()
    for leaf in ("weight", "bias"):
        parts = [fused.pop(f"enc.attn.{name}.{leaf}") for name in ("query", "key", "value")]
        fused[f"enc.attn.in_proj_{leaf}"] = np.concatenate(parts)
    paths = [f"attention/{name}" for name in ("query", "key", "value")]
    options = {
        "adapt": kt.adapt.from_torch(model),
        "rename": {
            r"enc\.attn\.in_proj_weight": [f"{path}/kernel" for path in paths],
            r"enc\.attn\.in_proj_bias": [f"{path}/bias" for path in paths],
            **RENAME,
        },
    }
    options["rename"].pop(next(iter(RENAME)))
    theirs = saved("theirs.npz", fused)
    kt.restore(model, theirs, **options)
    report = kt.write_back(model, theirs, "ours.npz", **options)
    assert_equal_files("ours.npz", theirs, without=("global_step",))
    assert report.written["enc.attn.in_proj_bias"] == " + ".join(f"{path}/bias" for path in paths)
    randomise(model, 3)
    kt.write_back(model, theirs, "key.npz", include="attention/key", **options)
    found, wanted = (
        arrays_in("key.npz")["enc.attn.in_proj_weight"],
        fused["enc.attn.in_proj_weight"],
    )
    assert (found[6:12] != wanted[6:12]).all()
    np.testing.assert_array_equal(found[:6], wanted[:6])
    np.testing.assert_array_equal(found[12:], wanted[12:])
    kt.restore(model, theirs, **options).save("plan.json")
    Path(theirs).unlink()
    with pytest.raises(kt.RestoreError, match=r"the model has only a part of it.*`exclude=`"):
        kt.write_back(model, "plan.json", "x.npz", include="attention/key", on_unexpected="ignore")


@pytest.mark.once
def test_several_tensors_make_a_variable() -> None:
    model = keras.Sequential([keras.Input((5, 3)), keras.layers.GRU(4, name="gru")])
    randomise(model, 0)
    rng = np.random.default_rng(0)
    theirs = saved(
        "theirs.npz",
        {
            "weight_ih_l0": rng.normal(size=(12, 3)).astype("float32"),
            "weight_hh_l0": rng.normal(size=(12, 4)).astype("float32"),
            "bias_ih_l0": rng.normal(size=12).astype("float32"),
            "bias_hh_l0": rng.normal(size=12).astype("float32"),
        },
    )
    rename = {
        "weight_ih_l0": "gru/gru_cell/kernel",
        "weight_hh_l0": "gru/gru_cell/recurrent_kernel",
        "bias_.h_l0": "gru/gru_cell/bias",
    }
    options: dict[str, Any] = {"rename": rename, "adapt": kt.adapt.from_torch(model)}
    kt.restore(model, theirs, **options)
    kt.write_back(model, theirs, "ours.npz", **options)
    assert_equal_files("ours.npz", theirs)


def lstm() -> tuple[keras.Model, dict[str, Any], str]:
    model = keras.Sequential([keras.Input((5, 3)), keras.layers.LSTM(4, name="lstm")])
    rng = np.random.default_rng(0)
    shapes = {"weight_ih_l0": (16, 3), "weight_hh_l0": (16, 4), "bias_ih_l0": 16, "bias_hh_l0": 16}
    arrays = {key: rng.normal(size=shape).astype("float32") for key, shape in shapes.items()}
    rename = {
        "weight_ih_l0": "lstm/lstm_cell/kernel",
        "weight_hh_l0": "lstm/lstm_cell/recurrent_kernel",
        "bias_.h_l0": "lstm/lstm_cell/bias",
    }
    options = {"rename": rename, "adapt": kt.adapt.from_torch(model)}
    return model, options, saved("theirs.npz", arrays)


@pytest.mark.once
def test_a_sum_that_has_not_changed_keeps_its_terms() -> None:
    model, options, theirs = lstm()
    kt.restore(model, theirs, **options)
    report = kt.write_back(model, theirs, "ours.npz", **options)
    assert_equal_files("ours.npz", theirs)
    assert report.notes == ()


@pytest.mark.once
def test_a_sum_that_has_changed_goes_to_the_first_term() -> None:
    model, options, theirs = lstm()
    report = kt.restore(model, theirs, **options)
    report.save("plan.json")
    bias = model.weights[2]
    bias.assign(np.arange(16.0))
    written = kt.write_back(model, theirs, "ours.npz", **options)
    found = arrays_in("ours.npz")
    np.testing.assert_array_equal(found["bias_ih_l0"], np.arange(16.0))
    np.testing.assert_array_equal(found["bias_hh_l0"], np.zeros(16))
    np.testing.assert_array_equal(found["weight_ih_l0"], arrays_in(theirs)["weight_ih_l0"])
    assert written.notes == (
        "bias_ih_l0 + bias_hh_l0: made from 'sequential/lstm/lstm_cell/bias' by the inverse of "
        "Sum(), which is not exact",
    )
    Path(theirs).unlink()  # without values, nothing tells whether the sum has changed
    assert kt.write_back(model, "plan.json", "planned.npz").notes == written.notes
    assert_equal_files("planned.npz", "ours.npz")


@pytest.mark.once
def test_norms_stored_minus_one_are_exact_unless_they_changed() -> None:
    model = keras.Sequential([keras.Input((64,)), keras.layers.RMSNormalization(name="norm")])
    array = np.random.default_rng(0).normal(0, 0.3, 64).astype("float32")
    theirs = saved("theirs.npz", {"norm.weight": array})
    options: dict[str, Any] = {
        "rename": {"norm.weight": "norm/scale"},
        "adapt": {"norm/scale": kt.adapt.Add(1)},
    }
    kt.restore(model, theirs, **options)
    kt.write_back(model, theirs, "same.npz", **options)
    assert_equal_files("same.npz", theirs)
    model.weights[0].assign(value(model.weights[0]) * 2)
    report = kt.write_back(model, theirs, "ours.npz", **options)
    found = arrays_in("ours.npz")["norm.weight"]
    np.testing.assert_allclose(found + 1, (array + 1) * 2, atol=1.2e-7)
    assert "by the inverse of Add(1), which is not exact" in report.notes[0]


@pytest.mark.once
def test_a_callable_has_no_inverse() -> None:
    model = two_layers()
    theirs = saved("theirs.npz", {"a": np.ones((4, 3), "float32"), "b": np.ones((4, 3), "float32")})
    options: dict[str, Any] = {
        "rename": {"a|b": "trunk/kernel"},
        "adapt": {"trunk/kernel": lambda a, b: a},
        "include": "trunk/kernel",
    }
    kt.restore(model, theirs, **options)
    kt.write_back(model, theirs, "ours.npz", **options)  # nothing has changed
    assert_equal_files("ours.npz", theirs)
    randomise(model, 1)
    with pytest.raises(kt.RestoreError, match=r"the inverse of a callable is unknown.*`exclude=`"):
        kt.write_back(model, theirs, "new.npz", **options)
    assert not Path("new.npz").exists()


@pytest.mark.once
def test_the_report_is_a_table_and_plain_data() -> None:
    theirs, model = saved("theirs.npz"), network()
    report = kt.write_back(model, theirs, "ours.npz", **rules(model))
    text = str(report)
    assert "'network' to 'ours.npz' like 'theirs.npz' (NumPy .npz archive): wrote 12 of" in text
    assert "enc.rotary.table" in text
    assert "global_step" in text
    assert "<pre" in report._repr_html_()
    plain = report.to_dict()
    assert plain["written"]["head.bias"] == "head/bias"
    assert plain["adapted"]["head.weight"] == "Transpose()"
    assert plain["bytes"] == sum(a.nbytes for a in arrays_in("ours.npz").values())
    assert repr(report).startswith("<WriteReport 'network' to 'ours.npz'")


@pytest.mark.once
def test_verbose_prints_the_report(capsys: pytest.CaptureFixture[str]) -> None:
    theirs, model = saved("theirs.npz"), network()
    kt.write_back(model, theirs, "ours.npz", **rules(model))
    assert capsys.readouterr().out == ""
    report = kt.write_back(model, theirs, "more.npz", verbose=1, **rules(model))
    assert capsys.readouterr().out == f"{report}\n"
