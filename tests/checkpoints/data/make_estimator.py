"""Write `estimator/` in this directory: the export of an Estimator and its last checkpoint.

    pip install tensorflow-cpu==2.15.1    # the last TensorFlow with Estimators, in Python 3.11
    python tests/checkpoints/data/make_estimator.py

The values are those of `estimator.npz`, read by the Estimator itself.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import numpy as np
import tensorflow as tf

HERE = Path(__file__).parent


def data() -> tf.data.Dataset:
    features = {"x": np.random.default_rng(0).normal(size=(32, 4)).astype("float32")}
    return tf.data.Dataset.from_tensor_slices((features, np.arange(32) % 3)).batch(8)


def main() -> None:
    tf.random.set_seed(0)
    with tempfile.TemporaryDirectory() as directory:
        estimator = tf.estimator.DNNClassifier(
            [5],
            [tf.feature_column.numeric_column("x", shape=[4])],
            n_classes=3,
            model_dir=directory,
            optimizer=lambda: tf.keras.optimizers.legacy.Adam(0.01),
        )
        estimator.train(data)
        receiver = tf.estimator.export.build_parsing_serving_input_receiver_fn(
            {"x": tf.io.FixedLenFeature([4], tf.float32)}
        )
        exported = estimator.export_saved_model(str(Path(directory, "export")), receiver)
        shutil.copytree(exported.decode(), HERE / "estimator", dirs_exist_ok=True)
        for file in Path(directory).glob("model.ckpt-4.*"):
            if file.suffix != ".meta":
                shutil.copy(file, HERE / "estimator")
        np.savez(
            HERE / "estimator.npz",
            **{name: estimator.get_variable_value(name) for name in estimator.get_variable_names()},
        )


if __name__ == "__main__":
    main()
