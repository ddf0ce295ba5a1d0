"""Suggested rules for real networks, each beside a mapping written by hand or what it computes."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import keras_trainops as kt
from examples.packages import wheel_file
from keras_trainops.restoring.naming.rules import apply_rules
from tests.helpers import assert_same, weights
from tests.real.bert_model import RENAME, WEIGHTS, bert
from tests.real.stored import assert_same_tensors

pytestmark = pytest.mark.once

LEAVES = {
    "weight": "gamma",
    "bias": "beta",
    "running_mean": "moving_mean",
    "running_var": "moving_variance",
}


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    yield
    keras.backend.clear_session()


def run(script: Path | str, *arguments: str) -> None:
    """Runs Python in a process of its own: tf-slim and tf-keras do not go with Keras 3."""
    command = [sys.executable, *((str(script),) if isinstance(script, Path) else ("-c", script))]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def pasted(suggestion: Any, model: keras.Model) -> dict[str, Any]:
    """Return the variables of a program after pasting the printed suggestion into it."""
    scope: dict[str, Any] = {"kt": kt, "model": model}
    exec(str(suggestion), scope)
    return scope


def by_hand(rules: dict[str, Any], keys: Any) -> dict[str, str]:
    renamed = apply_rules(rules, keys).renamed
    return {r.key: str(r.addresses[0]) for r in renamed if r.rule is not None and r.addresses}


def test_vgg_16_of_tf_slim(tmp_path: Path) -> None:
    run(Path(__file__).with_name("make_slim_vgg.py"), str(tmp_path))
    file, reference = tmp_path / "vgg_16.ckpt", np.load(tmp_path / "vgg_16.npz")
    model = keras.applications.VGG16(weights=None, classifier_activation=None)

    suggestion = kt.suggest_rename(model, file)

    assert str(suggestion).splitlines() == [
        "rename = {",
        "    # by names and shapes",
        r'    r"vgg_16/conv(\d+)/conv\d+_(\d+)/\w+": r"block\1_conv\2/*",',
        r'    r"vgg_16/fc(6|7)/\w+": r"fc\g<1-5>/*",',
        "    # by shapes: nothing else fits",
        r'    r"vgg_16/fc8/\w+": r"predictions/*",',
        "}",
        "adapt = {",
        r'    r"^fc\d+/kernel$": kt.adapt.Reshape(),',
        '    r"^predictions/kernel$": kt.adapt.Reshape(),',
        "}",
    ]
    code = pasted(suggestion, model)
    report = kt.restore(model, file, rename=code["rename"], adapt=code["adapt"])
    kt.write_back(model, file, tmp_path / "again.ckpt", report=report)
    assert_same_tensors(tmp_path / "again.ckpt", file, without="^global_step$")
    logits = keras.ops.convert_to_numpy(model(reference["inputs"], training=False))
    np.testing.assert_allclose(logits, reference["logits"], rtol=0, atol=1e-3)
    assert np.ptp(logits) > 10


def bottleneck(inputs: int, width: int, stride: int, downsample: bool) -> Any:
    from torch import nn

    class Bottleneck(nn.Module):
        """As in the paper and in Keras, the first convolution has the stride."""

        def __init__(self) -> None:
            super().__init__()
            sizes = [(inputs, width, 1), (width, width, 3), (width, 4 * width, 1)]
            for i, (here, there, size) in enumerate(sizes, 1):
                step = stride if i == 1 else 1
                conv = nn.Conv2d(here, there, size, step, padding=size // 2, bias=False)
                self.add_module(f"conv{i}", conv)
                self.add_module(f"bn{i}", nn.BatchNorm2d(there, eps=1.001e-5))
            if downsample:
                self.downsample = nn.Sequential(
                    nn.Conv2d(inputs, 4 * width, 1, stride, bias=False),
                    nn.BatchNorm2d(4 * width, eps=1.001e-5),
                )

        def forward(self, x: Any) -> Any:
            shortcut = self.downsample(x) if hasattr(self, "downsample") else x
            x = self.bn1(self.conv1(x)).relu()
            x = self.bn2(self.conv2(x)).relu()
            return (self.bn3(self.conv3(x)) + shortcut).relu()

    return Bottleneck()


def torch_resnet50() -> Any:
    """ResNet-50 under torchvision's names, with Keras's epsilon and place of the stride."""
    from torch import nn

    class ResNet(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1 = nn.Conv2d(3, 64, 7, 2, padding=3, bias=False)
            self.bn1 = nn.BatchNorm2d(64, eps=1.001e-5)
            self.maxpool = nn.MaxPool2d(3, 2, padding=1)
            inputs = 64
            for stage, count in enumerate((3, 4, 6, 3)):
                width, blocks = 64 << stage, []
                for i in range(count):
                    stride = 2 if stage and not i else 1
                    blocks.append(bottleneck(inputs, width, stride, downsample=not i))
                    inputs = 4 * width
                self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
            self.fc = nn.Linear(2048, 7)

        def forward(self, x: Any) -> Any:
            x = self.maxpool(self.bn1(self.conv1(x)).relu())
            for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
                x = layer(x)
            return self.fc(x.mean((2, 3)))

    return ResNet()


def resnet_by_hand(state: Any) -> dict[str, str]:
    """Return the target of each tensor, as an expert on both networks would write it."""
    pairs = {
        "conv1.weight": "conv1_conv/kernel",
        "fc.weight": "predictions/kernel",
        "fc.bias": "predictions/bias",
        **{f"bn1.{theirs}": f"conv1_bn/{ours}" for theirs, ours in LEAVES.items()},
    }
    for key in state:
        match = re.fullmatch(r"layer(\d)\.(\d)\.(\w+?)\.?(\d)\.(\w+)", key)
        if match and match[5] != "num_batches_tracked":
            stage, block, kind, number, leaf = match.groups()
            if kind == "downsample":
                kind, number = ("conv", "bn")[int(number)], "0"
            ours = "kernel" if kind == "conv" else LEAVES[leaf]
            path = f"conv{int(stage) + 1}_block{int(block) + 1}_{number}_{kind}/{ours}"
            pairs[key] = path
    return pairs


def test_a_resnet_of_pytorch(tmp_path: Path) -> None:
    import torch

    torch.manual_seed(0)
    net = torch_resnet50().eval()
    for name, tensor in net.state_dict().items():  # zeros and ones would hide a wrong restore
        if tensor.ndim == 4:
            torch.nn.init.kaiming_normal_(tensor)  # keeps the size of activations
        elif "running_var" in name or (tensor.ndim == 1 and "weight" in name):
            tensor.uniform_(0.4, 1.0)
        elif "running_mean" in name or "bias" in name:
            tensor.normal_(0, 0.1)
    torch.save(net.state_dict(), tmp_path / "resnet50.pt")
    model = keras.applications.ResNet50(
        weights=None, classes=7, input_shape=(64, 96, 3), classifier_activation=None
    )

    suggestion = kt.suggest_rename(model, tmp_path / "resnet50.pt")

    assert dict(suggestion.pairs) == resnet_by_hand(net.state_dict())
    assert len(suggestion.pairs) == 53 * (1 + 4) + 2
    assert len(suggestion.rules) == 7
    # Another normalisation of the block has the shape of the shortcut's.
    assert suggestion.by_order == (r"layer(\d+)\.0\.downsample\.1\.\w+",)
    assert suggestion.rules[r"layer(\d+)\.(\d+)\.conv(\d+)\.weight"] == (
        r"conv\g<1+1>_block\g<2+1>_\3_conv/kernel"
    )
    assert suggestion.from_torch
    assert suggestion.ambiguous == suggestion.unmatched == ()
    assert set(suggestion.missing) == {v.path for v in model.weights if "conv/bias" in v.path}
    page = Path(__file__).parents[2] / "docs" / "warm-start.md"
    assert str(suggestion) in page.read_text(encoding="utf-8")
    code = pasted(suggestion, model)
    report = kt.restore(
        model,
        tmp_path / "resnet50.pt",
        rename=code["rename"],
        adapt=code["adapt"],
        exclude=[".*_conv/bias"],  # zero in a new model
    )
    assert {key: path for path, key in report.restored.items()} == dict(suggestion.pairs)
    kt.write_back(model, tmp_path / "resnet50.pt", tmp_path / "again.pt", report=report)
    assert_same_tensors(tmp_path / "again.pt", tmp_path / "resnet50.pt")
    images = np.random.default_rng(0).normal(size=(2, 64, 96, 3)).astype("float32")
    with torch.no_grad():
        expected = net(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()
    logits = keras.ops.convert_to_numpy(model(images, training=False))
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-3)
    assert np.ptp(expected, axis=0).max() > 0.1  # the inputs matter


def test_minilm() -> None:
    """All as the rules written by hand say; what sorted names do not tell is said to be order."""
    model, file = bert(), wheel_file(*WEIGHTS)
    suggestion = kt.suggest_rename(model, file)
    with kt.open_checkpoint(file) as checkpoint:
        assert dict(suggestion.pairs) == by_hand(RENAME, checkpoint)
    assert len(suggestion.rules) == 3 + 1 + 4 + 2 + 2
    # The query, key and value of the block have the same shape.
    assert suggestion.by_order == (r"encoder\.layer\.(\d+)\.attention\.output\.dense\.\w+",)
    assert suggestion.from_torch
    assert suggestion.missing == suggestion.ambiguous == ()
    assert set(suggestion.unmatched) == {
        *("embeddings.position_ids", "pooler.dense.weight", "pooler.dense.bias")
    }


OLD_KERAS = """
import sys, numpy as np, tf_keras as keras
for _ in range(3):
    keras.layers.Dense(1), keras.layers.Conv2D(1, 1), keras.layers.BatchNormalization()
x = inputs = keras.Input((12, 9, 3))
for filters in (4, 4, 5):
    x = keras.layers.BatchNormalization()(keras.layers.Conv2D(filters, 3)(x))
x = keras.layers.Dense(7)(keras.layers.Dense(7)(keras.layers.Flatten()(x)))
model = keras.Model(inputs, x)
random = np.random.default_rng(0)
model.set_weights([random.uniform(0.1, 1, w.shape) for w in model.get_weights()])
model.save_weights(sys.argv[1])
np.savez(sys.argv[2], *model.get_weights())
"""


def test_a_keras_2_file_with_other_automatic_numbers(tmp_path: Path) -> None:
    file, values = tmp_path / "old.h5", tmp_path / "values.npz"
    run(OLD_KERAS, str(file), str(values))
    x = inputs = keras.Input((12, 9, 3))
    for filters in (4, 4, 5):
        x = keras.layers.BatchNormalization()(keras.layers.Conv2D(filters, 3)(x))
    x = keras.layers.Dense(7)(keras.layers.Dense(7)(keras.layers.Flatten()(x)))
    model = keras.Model(inputs, x)

    suggestion = kt.suggest_rename(model, file)

    assert suggestion.rules[r"conv2d_(4|5)/\w+"] == r"conv2d_\g<1-3>/*"
    assert suggestion.rules[r"dense_3/\w+"] == r"dense/*"
    assert suggestion.ambiguous == suggestion.missing == ()
    assert len(suggestion.rules) == 6
    assert len(suggestion.by_order) == 2  # two have one shape
    assert all("batch_normalization" in rule for rule in suggestion.by_order)
    report = kt.restore(model, file, rename=suggestion.rules)
    kt.write_back(model, file, tmp_path / "again.h5", report=report)
    assert_same_tensors(tmp_path / "again.h5", file)
    assert_same(weights(model), list(np.load(values).values()))
    auto = kt.plan_restore(model, file, rename="auto").restored
    assert {key: path for path, key in auto.items()} == dict(suggestion.pairs)
