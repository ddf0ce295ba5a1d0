"""Weights that Keras has trained, in the libraries that the files come from."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import keras_trainops as kt
from tests.helpers import numpy
from tests.real.architectures.sources import library, randomise
from tests.real.bert_model import ADAPT, RENAME, bert, hugging_face_directory
from tests.test_docs import ELSEWHERE, ROOT, blocks, run_page

PACKAGES = ("torch", "torchvision", "transformers", "keras_hub")
ABSENT = [name for name in PACKAGES if importlib.util.find_spec(name) is None]

pytestmark = [
    pytest.mark.once,
    pytest.mark.skipif(bool(ABSENT), reason=f"not installed: {', '.join(ABSENT)}"),
]

TOLERANCE = 1e-4
SENTENCES = [
    ("The soup was cold and the waiter rude.", 0),
    ("A warm welcome and a wonderful evening.", 1),
    ("Never again: we waited for two hours.", 0),
    ("The best bread in town, and friendly people.", 1),
    ("My room smelled of smoke.", 0),
    ("We slept well and the view is beautiful.", 1),
]


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    yield
    keras.backend.clear_session()


def assert_close(ours: np.ndarray, theirs: np.ndarray) -> None:
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=TOLERANCE)


def tokenised(directory: Path) -> tuple[np.ndarray, np.ndarray]:
    """Token ids and mask of the sentences."""
    tokenizer = library("transformers").AutoTokenizer.from_pretrained(directory)
    batch = tokenizer([text for text, _ in SENTENCES], padding=True, return_tensors="np")
    return batch["input_ids"].astype("int32"), batch["attention_mask"].astype("int32")


def test_transformers_loads_a_trained_bert(tmp_path: Path) -> None:
    import torch

    load = library("transformers").AutoModel.from_pretrained
    directory, out = hugging_face_directory(tmp_path / "minilm"), tmp_path / "tuned"
    model = bert()
    report = kt.restore(model, directory, rename=RENAME, adapt=ADAPT)
    tokens, mask = tokenised(directory)
    before = numpy(model([tokens, mask], training=False))

    logits = keras.layers.Dense(2, name="head")(model.output[:, 0])
    classifier = keras.Model(model.inputs, logits)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    classifier.compile(keras.optimizers.Adam(1e-4), loss)
    labels = np.array([label for _, label in SENTENCES])
    classifier.fit([tokens, mask], labels, batch_size=2, verbose=0)
    kt.write_back(model, directory, out, report=report)

    ours = numpy(model([tokens, mask], training=False))
    network, loading = load(out, output_loading_info=True)
    with torch.no_grad():
        theirs = network(torch.tensor(tokens), attention_mask=torch.tensor(mask))
    known = mask == 1
    assert np.abs(ours - before)[known].max() > 0.1
    assert_close(ours[known], theirs.last_hidden_state.numpy()[known])
    assert np.array_equal(tokenised(out)[0], tokens)
    assert not loading["missing_keys"]


# From torchvision's names to those of keras.applications.
RESNET = {
    r"conv1\.weight": "conv1_conv/kernel",
    r"layer(\d)\.(\d)\.conv(\d)\.weight": r"conv\g<1+1>_block\g<2+1>_\3_conv/kernel",
    r"layer(\d)\.0\.downsample\.0\.weight": r"conv\g<1+1>_block1_0_conv/kernel",
    r"bn1\.\w+": "conv1_bn/*",
    r"layer(\d)\.(\d)\.bn(\d)\.\w+": r"conv\g<1+1>_block\g<2+1>_\3_bn/*",
    r"layer(\d)\.0\.downsample\.1\.\w+": r"conv\g<1+1>_block1_0_bn/*",
    r"fc\.\w+": "predictions/*",
}
BIASES = ".*_conv/bias"  # zero; a normalisation follows


def torch_resnet50() -> Any:
    """torchvision's network, with Keras's epsilon and place of the stride, which no file has."""
    from tests.real.architectures.vision_applications import first_strides

    network = randomise(library("torchvision").models.resnet50(num_classes=7))
    first_strides(network)
    for module in network.modules():
        if hasattr(module, "eps"):
            module.eps = 1.001e-5
    return network


def test_torchvision_loads_a_trained_resnet(tmp_path: Path) -> None:
    import torch

    file, out = tmp_path / "resnet50.pth", tmp_path / "tuned.pth"
    network = torch_resnet50()
    torch.save(network.state_dict(), file)
    model = keras.applications.ResNet50(
        weights=None, classes=7, input_shape=(64, 64, 3), classifier_activation=None
    )
    rules: dict[str, Any] = {"rename": RESNET, "adapt": kt.adapt.from_torch(model)}
    kt.restore(model, file, **rules, exclude=BIASES)
    images = np.random.default_rng(0).normal(size=(4, 64, 64, 3)).astype("float32")
    before = numpy(model(images, training=False))
    with torch.no_grad():
        assert_close(before, network(torch.tensor(images).permute(0, 3, 1, 2)).numpy())

    for variable in model.weights:
        if variable.path.endswith("_conv/bias"):
            variable.trainable = False
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(1e-3), loss)
    model.fit(images, np.arange(4), batch_size=2, verbose=0)
    report = kt.write_back(model, file, out, **rules, exclude=BIASES)

    # PyTorch counts batches for averages without a momentum; Keras has no such counter.
    assert report.copied == tuple(
        k for k in network.state_dict() if k.endswith("num_batches_tracked")
    )
    network.load_state_dict(torch.load(out), strict=True)
    ours = numpy(model(images, training=False))
    with torch.no_grad():
        theirs = network(torch.tensor(images).permute(0, 3, 1, 2)).numpy()
    assert np.abs(ours - before).max() > 1e-2
    assert_close(ours, theirs)


def test_pytorch_loads_a_trained_lstm(tmp_path: Path) -> None:
    import torch

    file, out = tmp_path / "lstm.pt", tmp_path / "tuned.pt"
    network = torch.nn.LSTM(5, 6, num_layers=2, batch_first=True, bidirectional=True)
    torch.save(network.state_dict(), file)
    layers = [
        keras.layers.Bidirectional(
            keras.layers.LSTM(6, return_sequences=True, name="lstm"), name=f"layer{i}"
        )
        for i in range(2)
    ]
    model = keras.Sequential([keras.Input((None, 5)), *layers])
    rename = {}
    for suffix, direction in (("", "forward"), ("_reverse", "backward")):
        cell = rf"layer\1/{direction}_lstm/lstm_cell"
        rename |= {
            rf"weight_ih_l(\d){suffix}": f"{cell}/kernel",
            rf"weight_hh_l(\d){suffix}": f"{cell}/recurrent_kernel",
            rf"bias_[ih]h_l(\d){suffix}": f"{cell}/bias",  # two, whose sum Keras has
        }
    report = kt.restore(model, file, rename=rename, adapt=kt.adapt.from_torch(model))
    steps = np.random.default_rng(0).normal(size=(8, 9, 5)).astype("float32")
    before = numpy(model(steps))

    model.compile(keras.optimizers.Adam(1e-2), "mse")
    model.fit(steps, np.roll(before, 1, axis=1), batch_size=2, verbose=0)
    written = kt.write_back(model, file, out, report=report)

    state = torch.load(out)
    network.load_state_dict(state, strict=True)
    ours = numpy(model(steps))
    with torch.no_grad():
        theirs = network(torch.tensor(steps))[0].numpy()
    assert np.abs(ours - before).max() > 1e-2
    assert_close(ours, theirs)
    biases = [key for key in state if key.startswith("bias_hh")]
    assert len(biases) == 4
    assert not any(state[key].any() for key in biases)  # the first of both has the sum
    assert len([note for note in written.notes if "bias_hh" in note]) == 4


@pytest.mark.filterwarnings("default")  # of keras_hub and transformers
def test_the_page_runs() -> None:
    """It is one of the documentation, which needs more packages than the others."""
    library("transformers")
    hugging_face_directory(Path("minilm"))
    page = ROOT / "docs" / ELSEWHERE
    ((_, warning),) = blocks(page, "text")
    with pytest.warns(UserWarning, match=re.escape(warning.strip())):
        run_page(page)
