"""Adapters from the tensor layouts of PyTorch's layers to those of the same layers in Keras."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import keras
from keras import layers

from keras_trainops import keras_private
from keras_trainops.adapt.base import Adapter
from keras_trainops.layouts.groups import Fusible, fusible
from keras_trainops.layouts.kinds import Layout, Linear, Vector
from keras_trainops.layouts.layers import layouts_of
from keras_trainops.layouts.torch_adapters import FromTorch
from keras_trainops.paths import exact_pattern
from keras_trainops.weight_names import model_weights


def from_torch(model: keras.layers.Layer | Iterable[keras.layers.Layer]) -> dict[str, Adapter]:
    """Return adapters from the tensor layouts of PyTorch to those of a model's layers.

    Adapters convert layouts, not names: rename rules assign keys to variables. Other rules for the
    same variables take precedence, in any order, as in `{**from_torch(model), "head": ...}`.

    * `Dense`, from `Linear` or a 1x1 convolution: transposes the weight. If the inputs are the
      flattened features of a convolution, it also reorders them, because PyTorch flattens channels
      first and Keras last; so are the scales and offsets of a normalization of such features. A
      convolution whose window covers all features will do too.
    * `Conv1D` to `Conv3D` and `Conv1DTranspose` to `Conv3DTranspose`: moves the spatial axes of the
      kernel before its two channel axes. A window of size 1 may come from a `Linear`.
    * `DepthwiseConv1D`, `2D`, from a convolution with one group per channel: converts (channels ·
      multiplier, 1, space) into (space, channels, multiplier). `SeparableConv1D`, `2D`: does the
      same, and converts the kernel of the second convolution as above.
    * `LSTM`, `SimpleRNN` and their cells: transposes weights and adds `bias_ih` and `bias_hh`.
    * `GRU`, `GRUCell`: transposes weights, stacks `bias_ih` and `bias_hh` in this order, and
      reorders gates.
    * `EinsumDense`, from `Linear`: transposes the weight and splits it into the axes of the
      equation.
    * `MultiHeadAttention`, `GroupQueryAttention`, and layers with projections named `query`, `key`
      and `value` (also `q_proj`, `key_dense` …): does the same for each projection. A fused query,
      key and value is split if its name tells the order of the parts, as `in_proj_weight`, `Wqkv`
      and `self_attn.qkv_proj` do.
    * `LayerNormalization` over several axes: moves the channels last. `PReLU`: reshapes the weight.
    * Matrices that `enable_lora` adds, from `lora_A` and `lora_B`: transposes them.
    * `ReversibleEmbedding`, from an untied `Linear`: transposes `reverse_embeddings`.
    * `Embedding` and all other normalizations differ in names only.
    * Variables of other layers: keeps the tensor if its shape fits; transposes a matrix, or a stack
      of matrices with one per expert, if only that fits. Keys of one tensor per expert are stacked.

    Lead two keys to the bias of a recurrent layer; their names identify them, so the order of the
    rename rules does not matter. Lead the key of a fused query, key and value to a list of three
    paths. Some tensors are rejected, because their layout is ambiguous; write your own entry for
    them: fused tensors whose name does not tell the order of their parts, such as
    `query_key_value`; square tensors of GPT-2's `Conv1D`; and tensors of layers not listed here, if
    two axes have equal length.

    A layer after a convolution and `Flatten`, with pooling, activations and dropout in between, is
    recognised in functional and sequential models only. Elsewhere, and if input images are
    flattened directly, add `channels_first_flatten`. The computations of the layers are not
    compared: epsilons, paddings and activations must agree.

    Args:
        model: A built model or layer, or several layers.

    Returns:
        A mapping for `adapt=`, from patterns, each the whole path of a variable, to adapters.

    Raises:
        ValueError: If `model` contains anything but layers, a layer without variables, or a GRU
            with `reset_after=False`, which PyTorch does not have.

    Example:
        >>> import keras, keras_trainops as kt
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="head")])
        >>> list(kt.adapt.from_torch(model).values())
        [Transpose()]

    References: the documentation of `torch.nn`.
    """
    roots: list[Any] = [model] if isinstance(model, keras.layers.Layer) else list(model)
    adapters: dict[str, Adapter] = {}
    for root in roots:
        if not isinstance(root, keras.layers.Layer) or not root.weights:
            raise ValueError(
                "`model` must be a model or layers that have variables: call it on a batch first. "
                f"Received: {root!r}"
            )
        adapter_of = torch_layouts(root)
        for path, variable in model_weights(root):
            if id(variable) in adapter_of:
                adapters[exact_pattern(path)] = adapter_of[id(variable)]
    return adapters


def torch_layouts(root: keras.layers.Layer) -> dict[int, FromTorch]:
    """Return the adapters for the variables of a layer and its sublayers, by `id(variable)`.

    Raises:
        ValueError: If PyTorch does not have one of the layers.
    """
    _require_torch_cells(root)
    layouts, places, owners = layouts_of(root), fusible(root), _owners(root)
    return {
        number: _adapter(layout, owners.get(number, repr(root.name)), places.get(number), layouts)
        for number, layout in layouts.items()
        if number in places or _may_differ(layout)
    }


def _adapter(
    layout: Layout, owner: str, place: Fusible | None, layouts: dict[int, Layout]
) -> FromTorch:
    """Return the adapter of one variable.

    Args:
        layout: Layout of the variable.
        owner: Its layer, in words.
        place: Its place among query, key and value, if it has one.
        layouts: All layouts, by `id(variable)`.
    """
    if place is not None and all(number in layouts for number in place.members):
        members = [layouts[number] for number in place.members]
        return FromTorch(layout, owner, members, place.place)
    if isinstance(layout, Linear) and len(layout.outputs) > 1:
        return FromTorch(layout, owner, [layout] * 3)
    return FromTorch(layout, owner)


def _may_differ(layout: Layout) -> bool:
    """Return True if PyTorch may store the tensor in another way than Keras."""
    return not isinstance(layout, Vector) or bool(layout.torch_steps())


def _owners(root: keras.layers.Layer) -> dict[int, str]:
    """Return the innermost layer of each variable, in words."""
    owners: dict[int, str] = {}
    for layer in keras_private.all_layers(root):
        name = f"{layer.name!r} ({type(layer).__name__})"
        owners |= dict.fromkeys(map(id, keras_private.own_variables(layer)), name)
    return owners


def _require_torch_cells(root: keras.layers.Layer) -> None:
    for layer in keras_private.all_layers(root):
        if isinstance(layer, layers.GRUCell) and layer.built and not layer.reset_after:
            raise ValueError(
                f"{layer.name!r} has reset_after=False, but PyTorch's GRU resets after the "
                "product, so its weights mean something else. Build the layer with "
                "reset_after=True"
            )
