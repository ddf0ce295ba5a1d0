"""`Rows`, compared with TensorFlow's own warm start from the same files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_trainops as kt
from tests.adapt.helpers import one_variable, restored
from tests.helpers import refused, two_layers, value, weights

OLD = ["mercury", "venus", "mars", "earth"]
NEW = ["venus", "jupiter", "mercury", "saturn", "mars"]
TABLE = np.arange(12, dtype="f4").reshape(4, 3) + 1


def vocabularies() -> tuple[str, str]:
    Path("old.txt").write_text("\n".join(OLD) + "\n", encoding="utf-8")
    Path("new.txt").write_text("\n".join(NEW), encoding="utf-8")
    return "old.txt", "new.txt"


def checkpoint(array: np.ndarray) -> str:
    """Write the array as `table` into a TF1 checkpoint, and return its path."""
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        tf.compat.v1.get_variable("table", initializer=array)
        session.run(tf.compat.v1.global_variables_initializer())
        return tf.compat.v1.train.Saver().save(session, "old/model.ckpt")


def by_tensorflow(source: str, shape: tuple[int, int], **options: Any) -> np.ndarray:
    """Return what `tf.compat.v1.train.warm_start` makes of a `VocabInfo`."""
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        table = tf.compat.v1.get_variable("table", shape)
        info = tf.compat.v1.train.VocabInfo(
            **options, backup_initializer=lambda shape, **_: tf.fill(shape, -5.0)
        )
        tf.compat.v1.train.warm_start(
            source, vars_to_warm_start="table", var_name_to_vocab_info={"table": info}
        )
        session.run(tf.compat.v1.global_variables_initializer())
        return session.run(table)


def table_values(
    source: Any, shape: tuple[int, ...], adapter: Any
) -> tuple[np.ndarray, np.ndarray]:
    """Return the table before and after a restore."""
    embedding = keras.layers.Embedding(*shape, name="e")
    model = keras.Sequential([keras.Input((2,), dtype="int32"), embedding])
    before = value(embedding.embeddings)
    kt.restore(model, source, rename={"table": "e/embeddings"}, adapt={"e": adapter})
    return before, value(embedding.embeddings)


@pytest.mark.parametrize(
    ("axis", "oov", "old_size", "new_size"),
    [(0, 0, None, 5), (0, 2, None, 5), (0, 1, 2, 5), (0, 0, None, 3), (1, 0, None, 5)],
)
def test_moves_rows_and_columns_like_tensorflow(
    axis: int, oov: int, old_size: int | None, new_size: int
) -> None:
    old, new = vocabularies()
    array = TABLE if axis == 0 else np.ascontiguousarray(TABLE.T)
    shape = (new_size + oov, 3) if axis == 0 else (3, new_size)
    source = checkpoint(array)
    expected = by_tensorflow(
        source,
        shape,
        new_vocab=new,
        new_vocab_size=new_size,
        num_oov_buckets=oov,
        old_vocab=old,
        old_vocab_size=old_size or -1,
        axis=axis,
    )
    assert (expected == -5).any()
    adapter = kt.adapt.Rows(old, new, axis, -5.0, oov, old_size, new_size)
    _, found = table_values(source, shape, adapter)
    np.testing.assert_array_equal(found, expected)


def test_new_entries_keep_their_values_without_default() -> None:
    before, after = table_values({"table": TABLE}, (6, 3), kt.adapt.Rows(OLD, NEW, oov=1))
    np.testing.assert_array_equal(after[[0, 2, 4]], TABLE[[1, 0, 2]])
    np.testing.assert_array_equal(after[[1, 3, 5]], before[[1, 3, 5]])


def test_rows_and_columns_in_one_chain() -> None:
    """Rows and columns of new entries keep the variable's values."""
    words = kt.adapt.Rows(OLD, NEW)
    classes = kt.adapt.Rows(["good", "better", "best"], ["best", "fine", "good"], axis=1)
    before, after = table_values({"table": TABLE}, (5, 3), [words, classes])
    expected = before.copy()
    expected[np.ix_([0, 2, 4], [0, 2])] = TABLE[np.ix_([1, 0, 2], [2, 0])]
    np.testing.assert_array_equal(after, expected)


def test_new_entries_get_the_default() -> None:
    missing = [1, 3]
    initializer = keras.initializers.GlorotUniform(seed=3)
    defaults = {
        "mean": TABLE.mean(0),
        "ones": 1.0,
        7.5: 7.5,
        (1.0, 2.0, 3.0): [1.0, 2.0, 3.0],
        # The initializer gets the whole shape, so that its scale is that of the layer.
        initializer: keras.ops.convert_to_numpy(initializer((5, 3)))[missing],
    }
    old = OLD[:3]  # all of them are in NEW
    defaults["mean"] = TABLE[:3].mean(0)
    for default, expected in defaults.items():
        adapter = kt.adapt.Rows(old, NEW, default=default)
        _, after = table_values({"table": TABLE[:3]}, (5, 3), adapter)
        np.testing.assert_allclose(after[missing], np.broadcast_to(expected, (2, 3)), rtol=1e-6)
        np.testing.assert_array_equal(after[[0, 2, 4]], TABLE[[1, 0, 2]])


def test_moves_classes_of_a_head_by_name() -> None:
    model = two_layers()
    before = weights(model)
    classes = ["cat", "dog", "cow"], ["cow", "emu"]
    arrays = {"head/kernel": np.arange(9.0).reshape(3, 3), "head/bias": np.arange(3.0)}
    adapt = {"head": kt.adapt.Rows(*classes, axis=-1)}
    report = kt.restore(model, arrays, adapt=adapt)
    head = model.get_layer("head")
    np.testing.assert_array_equal(value(head.kernel)[:, 0], [2, 5, 8])
    np.testing.assert_array_equal(value(head.kernel)[:, 1], before[2][:, 1])
    np.testing.assert_array_equal(value(head.bias), [2, before[3][1]])
    assert report.adapted["head/bias"] == "Rows(1 of 2 slices carried over, axis=-1)"


def test_reads_windows_files_arrays_and_lookup_layers() -> None:
    Path("dos.txt").write_bytes("a\r\nü\r\n".encode())
    assert "2 of 2" in repr(kt.adapt.Rows(Path("dos.txt"), ["ü", "a"]))
    assert "1 of 3" in repr(kt.adapt.Rows(np.array([3, 5]), [5, 7, 9]))
    lookups = [keras.layers.StringLookup(vocabulary=words) for words in (OLD, NEW)]
    adapter = kt.adapt.Rows(*(lookup.get_vocabulary() for lookup in lookups))
    # One of the 4 is the slice of unknown words.
    assert repr(adapter) == "Rows(4 of 6 slices carried over, axis=0)"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((["a", "b", "a"], ["a"]), "`old_vocabulary` must have distinct entries.*'a' at 0 and 2"),
        ((["a"], ["b", "b"]), "`new_vocabulary` must have distinct entries.*'b' at 0 and 1"),
        ((["a", "b"], ["c"]), r"entries in common. Received: \['a', 'b'\] and \['c'\]"),
        ((np.array([["a"], ["b"]]), ["a"]), "`old_vocabulary` must be a list of"),
        (("nowhere.txt", ["c"]), "`old_vocabulary` cannot be read.*nowhere.txt"),
        ((["a"], ["a"], 0, None, -1), "`oov` must be .* oov=-1"),
        ((["a"], ["a"], 0, "men"), "`default` must be None, a number.* default='men'"),
        ((["a"], ["a"], 0, None, 0, 2), "`old_size` must be one of 1 … 1.*old_size=2"),
    ],
)
def test_rejects_invalid_arguments(arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kt.adapt.Rows(*arguments)


@pytest.mark.parametrize(
    ("adapter", "message"),
    [
        (
            kt.adapt.Rows(["a", "b", "c"], ["a"]),
            "has 1 entries, 1 with oov=0, but .* has 3",
        ),
        (
            kt.adapt.Rows(["a", "b"], ["a", "b"], axis=7),
            "`axis` must be one of the 2 axes .*axis=7",
        ),
        (kt.adapt.Rows(["a", "b", "c", "d"], ["a", "b"]), "has 4 entries, but axis 0 .* 3 slices"),
        (
            kt.adapt.Rows(["a", "b", "c"], ["a", "y", "z"], default=[1.0, 2.0]),
            r"`default` must have shape \(2, 4\).*shape \(2,\)",
        ),
    ],
)
def test_rejects_tensors_of_another_length(adapter: Any, message: str) -> None:
    model = two_layers()
    arrays = {"table": np.ones((3, 4))}
    with refused(model, rf"\(3, 2\) in the model, \(3, 4\) under key 'table'; Rows.*{message}"):
        kt.restore(model, arrays, rename={"table": "head/kernel"}, adapt={"head": adapter})


def test_mean_of_masked_elements_is_masked() -> None:
    chain = [
        kt.adapt.Rows(["a", "b"], ["a", "new", "b"]),
        kt.adapt.Rows(["x", "y"], ["x", "y", "z"], axis=1, default="mean"),
    ]
    found = restored(np.array([[1.0, 3.0], [2.0, 6.0]]), one_variable((3, 3)), chain)
    np.testing.assert_array_equal(found, [[1, 3, 2], [7, 7, 7], [2, 6, 4]])
