"""PEFT loads the low-rank updates that Keras has trained, and computes the same."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import keras
import numpy as np
import pytest

import keras_trainops as kt
from tests.helpers import numpy
from tests.real.architectures.sources import library
from tests.real.bert_model import ADAPT, RENAME, bert, hugging_face_directory
from tests.real.test_write_back import ABSENT, SENTENCES, assert_close, tokenised

pytestmark = [
    pytest.mark.once,
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning"),  # of PEFT
    pytest.mark.skipif(
        bool(ABSENT) or importlib.util.find_spec("peft") is None,
        reason=f"not installed: {', '.join([*ABSENT, 'peft'])}",
    ),
]


def test_peft_loads_the_updates_of_a_bert(tmp_path: Path) -> None:
    import torch

    load = library("transformers").AutoModel.from_pretrained  # before PEFT, which imports it
    import peft

    directory, out = hugging_face_directory(tmp_path / "minilm"), tmp_path / "adapter"
    model = bert()
    kt.restore(model, directory, rename=RENAME, adapt=ADAPT)
    tokens, mask = tokenised(directory)
    before = numpy(model([tokens, mask], training=False))
    for layer in model.layers:
        layer.trainable = layer.name == "block5_norm2"
    for number in range(6):
        for name, rank in (("query", 4), ("value", 4), ("up", 8)):
            layer = model.get_layer(f"block{number}_{name}")
            layer.trainable = True
            layer.enable_lora(rank, lora_alpha=16)
            layer.bias.trainable = False
    logits = keras.layers.Dense(2, name="head")(model.output[:, 0])
    classifier = keras.Model(model.inputs, logits)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    classifier.compile(keras.optimizers.Adam(1e-3), loss)
    classifier.fit([tokens, mask], np.array([label for _, label in SENTENCES]), verbose=0, epochs=2)
    report = kt.write_back(model, directory, out, rename=RENAME, adapt=ADAPT, lora="peft")

    assert report.notes == ("modules_to_save: encoder.layer.5.output.LayerNorm",)
    config = json.loads((out / "adapter_config.json").read_text())
    assert len(config["target_modules"]) == 18
    network = peft.PeftModel.from_pretrained(load(directory), str(out)).eval()
    with torch.no_grad():
        theirs = network(torch.tensor(tokens), attention_mask=torch.tensor(mask))
    known = mask == 1
    ours = numpy(model([tokens, mask], training=False))
    assert np.abs(ours - before)[known].max() > 0.01
    assert_close(ours[known], theirs.last_hidden_state.numpy()[known])
