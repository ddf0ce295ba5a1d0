"""`.keras` files written like another one, and loaded by Keras."""

from __future__ import annotations

import os
import shutil
import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest

import keras_trainops as kt
from keras_trainops.checkpoints import ArraysCheckpoint
from keras_trainops.checkpoints.formats.keras.archive import DIRECTORY, FORMAT
from keras_trainops.checkpoints.storage.writing import UnwritableError
from tests.checkpoints.formats.hdf5.same_files import described
from tests.checkpoints.with_structure import WithStructure
from tests.helpers import assert_same, make_everything, randomise, values, weights

pytestmark = pytest.mark.once


def model(seed: int) -> keras.Model:
    """A model with assets: the vocabulary of a lookup layer."""
    words = keras.layers.StringLookup(name="words")
    words.adapt(np.array(["red", "green"]))
    keras_model = keras.Sequential(
        [words, keras.layers.Embedding(4, 4, name="table"), keras.layers.Dense(2, name="head")]
    )
    keras_model.build((None, 5))
    randomise(keras_model, seed).compile("adam", "mse")
    keras_model.optimizer.build(keras_model.trainable_variables)
    return keras_model


def values_of(path: str, like: str) -> WithStructure:
    with kt.open_checkpoint(path) as new, kt.open_checkpoint(like) as old:
        return WithStructure({key: new[key] for key in old}, old.structure())


@pytest.mark.parametrize("kind", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_writes_a_file_with_the_configuration_and_assets_of_its_source(kind: int) -> None:
    source, like = make_everything(model)
    source.save("new.keras")
    like.save("stored.keras")
    with zipfile.ZipFile("stored.keras") as old, zipfile.ZipFile("like.keras", "w", kind) as packed:
        for name in old.namelist():
            packed.writestr(name, old.read(name))
    content = values_of("new.keras", "like.keras")
    lines = FORMAT.write(Path("out.keras"), content, {key: key for key in content})
    assert lines == []
    assert sorted(os.listdir()) == ["like.keras", "new.keras", "out.keras", "stored.keras"]
    with zipfile.ZipFile("like.keras") as old, zipfile.ZipFile("out.keras") as new:
        assert new.namelist() == old.namelist()
        assert {entry.compress_type for entry in new.infolist()} == {kind}
        for entry in old.infolist():
            assert new.getinfo(entry.filename).date_time == entry.date_time
            if entry.filename != "model.weights.h5":
                assert new.read(entry.filename) == old.read(entry.filename)
        assert any("vocabulary" in name for name in new.namelist())
        old.extract("model.weights.h5", "old")
        new.extract("model.weights.h5", "new")
    assert described("old/model.weights.h5").keys() == described("new/model.weights.h5").keys()
    loaded = keras.saving.load_model("out.keras")
    assert_same(values(loaded), values(source))


def test_writes_a_directory() -> None:
    source, like = make_everything(model)
    source.save("new.keras")
    like.save("like", zipped=False)
    Path("like/empty").mkdir()
    content = values_of("new.keras", "like")
    DIRECTORY.write(Path("out"), content, {key: key for key in content})

    def files(directory: str) -> list[str]:
        return sorted(str(path.relative_to(directory)) for path in Path(directory).rglob("*"))

    assert files("out") == files("like")
    for name in ("config.json", "metadata.json"):
        assert Path("out", name).read_bytes() == Path("like", name).read_bytes()
    target = model(3)
    kt.restore(target, "out")
    assert_same(weights(target), weights(source))


def test_needs_the_source() -> None:
    model(1).save("like.keras")
    model(1).save("like", zipped=False)
    Path("out").mkdir()
    for write, like in ((FORMAT.write, "like.keras"), (DIRECTORY.write, "like")):
        content = values_of(like, like)
        keys = {key: key for key in content}
        other = {**content.structure(), ".keras": content.structure()[".keras"] | {"config": 1}}
        with pytest.raises(UnwritableError, match="is another model than it was"):
            write(Path("out/x"), WithStructure(dict(content), other), keys)
        shutil.move(like, f"{like}.moved")
        with pytest.raises(UnwritableError, match="is no longer there: the configuration"):
            write(Path("out/x"), content, keys)
        with pytest.raises(UnwritableError, match="only written like another one"):
            write(Path("out/x"), ArraysCheckpoint(dict(content), "arrays"), keys)
    assert os.listdir("out") == []


def test_copies_only_directories_of_a_model() -> None:
    model(1).save("like", zipped=False)
    content = values_of("like", "like")
    Path("home").mkdir()
    Path("home/secret").touch()

    def write(source: str) -> None:
        about = {"source": os.path.abspath(source), "config": 0}  # the checksum of nothing
        hostile = WithStructure(dict(content), {**content.structure(), ".keras": about})
        DIRECTORY.write(Path("out"), hostile, {key: key for key in content})

    with pytest.raises(UnwritableError, match="home' is no longer there"):
        write("home")
    shutil.copy("like/model.weights.h5", "home")
    with pytest.raises(UnwritableError, match=r"home' contains no config\.json"):
        write("home")
    assert not Path("out").exists()


def test_copies_nothing_from_outside_of_a_directory() -> None:
    model(1).save("like", zipped=False)
    Path("secret").write_text("x")
    Path("like/assets").mkdir(exist_ok=True)
    os.symlink(os.path.abspath("secret"), "like/assets/link")
    content = values_of("like", "like")
    with pytest.raises(kt.RestoreError, match="is a link to a place outside of"):
        DIRECTORY.write(Path("out"), content, {key: key for key in content})


def test_says_that_the_configuration_has_other_shapes() -> None:
    model(1).save("like.keras")
    with kt.open_checkpoint("like.keras") as like:
        content = WithStructure({**like, "head/bias": np.ones(7, "float32")}, like.structure())
    lines = FORMAT.write(Path("new.keras"), content, {key: key for key in content})
    assert lines == [
        "The configuration is that of the source, where 'head/bias' has the shape (2,): build the "
        "model in code, and load the weights."
    ]
