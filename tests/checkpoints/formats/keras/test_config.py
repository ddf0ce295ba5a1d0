from __future__ import annotations

import pytest

from keras_trainops.checkpoints.formats.keras.config import owners_from_config

pytestmark = pytest.mark.once


def layer(class_name: str, name: str, **config: object) -> dict[str, object]:
    return {"class_name": class_name, "config": {"name": name, **config}}


def test_names_the_groups_of_a_configuration() -> None:
    operation = {"class_name": "Dense", "module": "keras.src.ops.fake", "config": {"name": "op"}}
    cells = [layer("LSTMCell", "one"), layer("LSTMCell", "two")]
    stack = layer("RNN", "rnn", cell=layer("StackedRNNCells", "stack", cells=cells))
    both = layer("Bidirectional", "both", layer=layer("GRU", "g"), backward_layer=layer("GRU", "h"))
    model = layer(
        "Functional", "m", layers=[layer("Dense", "a"), operation, layer("Dense", "b"), stack, both]
    )
    assert owners_from_config(model) == {
        "layers/dense": "a",
        "layers/dense_1": "b",
        "layers/rnn": "rnn",
        "layers/rnn/cell": "stack",
        "layers/rnn/cell/cells/lstm_cell": "one",
        "layers/rnn/cell/cells/lstm_cell_1": "two",
        "layers/bidirectional": "both",
        "layers/bidirectional/forward_layer": "forward_g",
        "layers/bidirectional/forward_layer/cell": "gru_cell",
        "layers/bidirectional/backward_layer": "backward_h",
        "layers/bidirectional/backward_layer/cell": "gru_cell",
    }


@pytest.mark.parametrize("bad", [None, 3, [], {}, {"config": 1}, {"config": {"layers": [1, None]}}])
def test_ignores_an_invalid_configuration(bad: object) -> None:
    assert owners_from_config(bad) == {}
