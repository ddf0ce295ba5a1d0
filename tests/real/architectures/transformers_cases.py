"""How a model of transformers becomes a case with a keras_hub backbone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import keras
import numpy as np

from tests.real.architectures.case import Case, Example, save_example
from tests.real.architectures.oracles import Oracle, mapped, preset_oracle, preset_target
from tests.real.architectures.sources import library, randomise, save_state

FILE = "model.safetensors"
MakeExample = Callable[[Any], Example]


def transformers_case(
    name: str,
    model: str,
    backbone: str,
    *,
    example: MakeExample | None = None,
    target: Mapping[str, Any] | Callable[[], keras.Model] | None = None,
    mapping: Mapping[str, Any] | None = None,
    oracle: Oracle = preset_oracle,
    lacks: str = "nothing",
    in_memory: bool = False,
    **config: Any,
) -> Case:
    """One model of transformers with a small configuration.

    Args:
        name: Of the case.
        model: Class of transformers.
        backbone: Class of keras_hub.
        example: Makes an example from the PyTorch model.
        target: Arguments of the backbone, or what builds the model; needed without a converter.
        mapping: Rules of `mapped`; this or an oracle is needed without a converter.
        oracle: In place of rules.
        lacks: Pattern of the variables that the file does not have.
        in_memory: Store `state_dict()`, whose names differ from those of `save_pretrained`.
        **config: Arguments of the model's configuration.
    """

    def build(directory: Path) -> keras.Model:
        import keras_hub

        if target is None:
            return preset_target(backbone, directory)
        return target() if callable(target) else getattr(keras_hub.models, backbone)(**target)

    return Case(
        name,
        "transformers",
        source=partial(_source, model, config, example, in_memory),
        target=build,
        oracle=mapped(mapping, FILE) if mapping else oracle,
        lacks=lacks,
    )


def _source(
    model: str, config: dict[str, Any], example: MakeExample | None, in_memory: bool, folder: Path
) -> Path:
    transformers = library("transformers")
    transformers.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()
    cls = getattr(transformers, model)
    network = randomise(cls(cls.config_class(**config)))
    network.save_pretrained(folder)
    if example:
        save_example(folder, example(network))
    return save_state(network, folder / "state.pt") if in_memory else folder / FILE


def tokens(network: Any, *, segments: bool = False, mask: bool = True, output: str = "") -> Example:
    """Sequence outputs of an encoder or decoder for a few tokens."""
    import torch

    rng = np.random.default_rng(1)
    shape = (2, 7)
    ids = rng.integers(5, network.config.vocab_size, shape)
    inputs = {"token_ids": ids}
    if mask:
        inputs["padding_mask"] = np.ones(shape, "int32")
    more = {}
    if segments:
        inputs["segment_ids"] = rng.integers(0, 2, shape)
        more["token_type_ids"] = torch.from_numpy(inputs["segment_ids"])
    with torch.no_grad():
        found = network.base_model(input_ids=torch.from_numpy(ids), **more)
    return Example(inputs, found.last_hidden_state.numpy(), output)


def sequences(network: Any, output: str = "decoder_sequence_output") -> Example:
    """The decoder's outputs for a few tokens of both sides."""
    import torch

    rng = np.random.default_rng(1)
    shapes = {"encoder": (2, 7), "decoder": (2, 5)}
    ids = {k: rng.integers(5, 40, shape) for k, shape in shapes.items()}
    inputs = {f"{k}_token_ids": value for k, value in ids.items()}
    inputs |= {f"{k}_padding_mask": np.ones(shape, "int32") for k, shape in shapes.items()}
    with torch.no_grad():
        found = network.base_model(
            input_ids=torch.from_numpy(ids["encoder"]),
            decoder_input_ids=torch.from_numpy(ids["decoder"]),
            output_hidden_states=True,
        )
    return Example(inputs, found.decoder_hidden_states[-1].numpy(), output)


def whole(network: Any) -> Any:
    """The model without its head."""
    return network if type(network).__name__.endswith("Model") else network.base_model


def images(network: Any, *, size: int) -> Example:
    """Outputs for every patch of two images."""
    import torch

    pixels = pictures(size)
    with torch.no_grad():
        found = whole(network)(torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy()))
    outputs = found.last_hidden_state
    if outputs.ndim == 4:
        outputs = outputs.permute(0, 2, 3, 1)
    return Example({"": pixels}, outputs.numpy())


def pictures(size: int) -> np.ndarray:
    return np.random.default_rng(1).normal(size=(2, size, size, 3)).astype("float32")


def images_and_tokens(network: Any, *, size: int, end: int = 40) -> Example:
    """How well two images go with two texts."""
    import torch

    pixels = pictures(size)
    ids = np.random.default_rng(2).integers(5, 40, (2, 13))
    ids[:, -1] = end
    with torch.no_grad():
        found = network(
            input_ids=torch.from_numpy(ids),
            pixel_values=torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy()),
        )
    return Example(
        {"images": pixels, "token_ids": ids}, found.logits_per_image.numpy(), "vision_logits"
    )
