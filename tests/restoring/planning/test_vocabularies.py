"""Vocabularies of both sides are compared, because rows of embeddings belong to words."""

from __future__ import annotations

import re
import zipfile
from typing import Any

import keras
import numpy as np
import pytest

import keras_trainops as kt
from keras_trainops.checkpoints.checkpoint import Checkpoint
from tests.helpers import randomise, refused, value, weights

pytestmark = pytest.mark.once

OLD, NEW = ["cat", "dog", "cow"], ["cow", "dog", "cat"]


def embedded(words: Any, seed: int = 0, kind: str = "words", name: str = "words") -> keras.Model:
    """A functional model: a lookup layer, then an embedding."""
    inputs = keras.Input((2,), dtype="int64" if kind == "numbers" else "string")
    if kind == "text":
        inputs = keras.Input((1,), dtype="string")
        lookup = keras.layers.TextVectorization(vocabulary=words, name=name)
    elif kind == "numbers":
        lookup = keras.layers.IntegerLookup(vocabulary=words, name=name)
    else:
        lookup = keras.layers.StringLookup(vocabulary=words, name=name)
    size = 2 + len(words or "abc")
    outputs = keras.layers.Embedding(size, 2, name="emb")(lookup(inputs))
    return randomise(keras.Model(inputs, outputs), seed)


def adapted(words: list[str], seed: int = 0) -> keras.Model:
    """The same, with a vocabulary that Keras stores in a separate file."""
    model = embedded(None, seed)
    model.get_layer("words").set_vocabulary(words)
    return model


def source(model: keras.Model, written: str) -> Any:
    if written == "model":
        return model
    model.save("v.keras")
    if written == "v.keras":
        return written
    with zipfile.ZipFile("v.keras") as archive:
        archive.extractall("unzipped")
    return "unzipped"


WRITTEN = ["model", "v.keras", "unzipped"]


@pytest.mark.parametrize("written", WRITTEN)
@pytest.mark.parametrize("kind", ["words", "numbers", "text"])
def test_rows_of_other_words_are_refused(kind: str, written: str) -> None:
    old, new = ([7, 8, 9], [9, 8, 7]) if kind == "numbers" else (OLD, NEW)
    theirs, model = source(embedded(old, 1, kind), written), embedded(new, 2, kind)
    first, second = ("9", "7") if kind == "numbers" else ("cow", "cat")
    oov = "" if kind == "text" else ", oov=1"  # rows after those of the vocabulary
    line = (
        f"! emb/embeddings: the vocabulary of 'words' differs, first at index "
        f"{2 if kind == 'text' else 1}: '{first}' in the model, '{second}' in the source"
    )
    with refused(model, rf"(?s){line}.*kt.adapt.Rows\(old, new{oov}\)", kt.RestoreError):
        kt.restore(model, theirs)
    assert any(re.search(line, problem) for problem in kt.plan_restore(model, theirs).problems)


@pytest.mark.parametrize("written", WRITTEN)
@pytest.mark.parametrize("words", [NEW, OLD])
def test_adapted_vocabularies_are_compared(words: list[str], written: str) -> None:
    theirs, model = adapted(OLD, 1), embedded(words, 2)
    if words == NEW:
        with refused(model, "differs, first at index 1: 'cow'", kt.RestoreError):
            kt.restore(model, source(theirs, written))
        return
    kt.restore(model, source(theirs, written))
    np.testing.assert_array_equal(weights(model)[0], weights(theirs)[0])


@pytest.mark.parametrize("written", WRITTEN)
def test_the_suggested_adapter_keeps_rows_with_words(written: str) -> None:
    theirs, model = embedded(OLD, 1), embedded(NEW, 2)
    old, new = (m.get_layer("words").get_vocabulary() for m in (theirs, model))
    kt.restore(
        model,
        source(theirs, written),
        adapt={"emb/embeddings": kt.adapt.Rows(old, new, oov=1)},
    )
    for word in OLD:
        ours, other = (
            value(m.get_layer("emb").embeddings)[m.get_layer("words").get_vocabulary().index(word)]
            for m in (model, theirs)
        )
        np.testing.assert_array_equal(ours, other)


@pytest.mark.parametrize("written", WRITTEN)
def test_a_longer_vocabulary_restores(written: str) -> None:
    theirs, model = embedded(OLD, 1), embedded(OLD, 2)
    kt.restore(model, source(theirs, written))
    np.testing.assert_array_equal(weights(model)[0], weights(theirs)[0])
    longer = embedded([*OLD, "emu"], 2)
    pad = {"emb/embeddings": kt.adapt.Pad(axis=0)}
    kt.restore(longer, source(theirs, written), adapt=pad)
    np.testing.assert_array_equal(weights(longer)[0][:5], weights(theirs)[0])
    other = embedded([*NEW, "emu"], 2)
    with refused(other, "differs, first at index", kt.RestoreError):
        kt.restore(other, source(theirs, written), adapt=pad)


def test_the_only_lookup_layers_are_counterparts() -> None:
    model = embedded(NEW, 2, name="string_lookup_7")
    with refused(model, "'string_lookup_7' differs", kt.RestoreError):
        kt.restore(model, embedded(OLD, 1, name="string_lookup"))


def test_variables_without_words_are_restored() -> None:
    def model(words: list[str], seed: int) -> keras.Model:
        inputs = keras.Input((2,), dtype="string")
        x = keras.layers.StringLookup(vocabulary=words, name="words")(inputs)
        x = keras.layers.Embedding(4, 2, name="emb")(x)
        return randomise(keras.Model(inputs, keras.layers.Dense(2, name="head")(x)), seed)

    theirs, ours = model(OLD, 1), model(NEW, 2)
    report = kt.restore(ours, theirs, exclude=["emb"])
    assert len(report.restored) == 2
    with pytest.raises(kt.RestoreError, match=r"`exclude=\['emb'\]`"):
        kt.restore(ours, theirs)


@keras.saving.register_keras_serializable(package="vocabularies")
class Hidden(keras.Model):
    """A subclassed model, which has no graph."""

    def __init__(self, words: list[str], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.words = keras.layers.StringLookup(vocabulary=words, name="words")
        self.emb = keras.layers.Embedding(4, 2, name="emb")
        self.emb.build((None, 2))
        self.other = keras.layers.Embedding(9, 2, name="other")
        self.other.build((None, 2))
        self.built = True

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "words": self.words.get_vocabulary()[1:]}


def test_subclassed_models_compare_embeddings_by_size() -> None:
    theirs, model = randomise(Hidden(OLD), 1), randomise(Hidden(NEW), 2)
    with refused(model, "! .*emb/embeddings: the vocabulary of 'words'", kt.RestoreError):
        kt.restore(model, theirs)
    report = kt.restore(model, theirs, exclude=[model.emb])
    assert list(report.restored.values()) == ["other/embeddings"]


def tf_idf(words: list[str], idf: list[float], seed: int = 0) -> keras.Model:
    inputs = keras.Input((1,), dtype="string")
    layer = keras.layers.TextVectorization(
        vocabulary=words, idf_weights=idf, output_mode="tf_idf", name="words"
    )
    return randomise(keras.Model(inputs, keras.layers.Dense(2, name="head")(layer(inputs))), seed)


@pytest.mark.parametrize("written", WRITTEN)
def test_different_tf_idf_weights_are_refused(written: str) -> None:
    theirs = source(tf_idf(OLD, [1.0, 2.0, 3.0], 1), written)
    model = tf_idf(OLD, [1.0, 2.0, 4.0], 2)
    with refused(model, "! head/kernel: the tf-idf weights of 'words' differ", kt.RestoreError):
        kt.restore(model, theirs)
    model = tf_idf(NEW, [1.0, 2.0, 3.0], 2)
    with refused(model, "! head/kernel: .*differs, first at index 1", kt.RestoreError):
        kt.restore(model, theirs)
    model = tf_idf(OLD, [1.0, 2.0, 3.0], 2)
    assert len(kt.restore(model, theirs).restored) == 2


def test_planning_reads_no_tensor_without_tf_idf_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    path, model = source(embedded(OLD, 1), "v.keras"), embedded(OLD, 2)
    monkeypatch.setattr(Checkpoint, "__getitem__", lambda self, key: pytest.fail(f"read {key}"))
    assert not kt.plan_restore(model, path).problems


def test_a_layer_without_vocabulary_warns() -> None:
    model = embedded(None, 2)
    with pytest.warns(UserWarning, match="'words' .* has no vocabulary yet.*'cat'"):
        kt.restore(model, embedded(OLD, 1))
