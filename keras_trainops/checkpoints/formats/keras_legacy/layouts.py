"""Convert names and layouts of Keras 1 and 2 to those of Keras 3.

* The CuDNN layers of Keras 2 had their own kernel layouts, converted to those of `LSTM` and `GRU`.
* Recurrent layers had no cell before Keras 2.4: `lstm/kernel` becomes `lstm/lstm_cell/kernel`.
* Keras 1 named variables `dense_1_W`, and stored each gate of an LSTM or GRU separately.
* Theano convolves whereas TensorFlow correlates, so its kernels are flipped.

If the layout is uncertain, reading the weight raises; nothing is guessed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from keras_trainops.errors import RestoreError
from keras_trainops.numbering import stem


class Converted(NamedTuple):
    """An array computed from others.

    Attributes:
        sources: Datasets, or further `Converted` arrays.
        shape: The shape of the result.
        convert: Computes the result from the arrays of the sources.
    """

    sources: Sequence[Any]
    shape: tuple[int, ...]
    convert: Callable[..., np.ndarray]

    @property
    def dtype(self) -> np.dtype:
        """The common dtype of the sources."""
        return self.sources[0].dtype

    def read(self) -> np.ndarray:
        """Read the sources and convert them."""
        return self.convert(
            *(s.read() if isinstance(s, Converted) else s[()] for s in self.sources)
        )


_GATES = {4: "lstm_cell", 3: "gru_cell", 1: "simple_rnn_cell"}
_RECURRENT = ("kernel", "recurrent_kernel", "bias")
_LETTERS = {"W": "kernel", "U": "recurrent_kernel", "b": "bias"}
_KERAS_1_GATES = {"ifco": "lstm_cell", "zrh": "gru_cell"}  # in the order of concatenation
_KERAS_1_LEAVES = {
    **_LETTERS,
    "gamma": "gamma",
    "beta": "beta",
    "running_mean": "moving_mean",
    "running_std": "moving_variance",  # despite the name, this is the variance
    "alphas": "alpha",
}


def convert_weights(arrays: Mapping[str, Any], version: str, backend: str) -> dict[str, Any]:
    """Convert the weights of a file to the names and layouts of Keras 3.

    Args:
        arrays: Mapping from key to dataset, as in the file.
        version: The Keras version that wrote the file; empty, as for Keras 1, if unknown.
        backend: The backend that it ran on; empty if unknown.

    Returns:
        Mapping from key to dataset, or to `Converted` if the data must change.

    Raises:
        RestoreError: If two weights would get the same key.
    """
    if _release(version) < (2,):
        arrays = _from_keras_1(arrays)
    if backend == "theano":
        arrays = {key: _flipped(key, array) for key, array in arrays.items()}
    return _with_cells(arrays, had_cells=_release(version) >= (2, 4))


def _release(version: str) -> tuple[int, ...]:
    """Return `(2, 2)` for `2.2.4-tf`."""
    return tuple(int(number) for number in re.findall(r"\d+", version)[:2])


def _with_cells(arrays: Mapping[str, Any], *, had_cells: bool) -> dict[str, Any]:
    """Convert recurrent layers; `had_cells` if the version that wrote them had cells."""
    found: dict[str, Any] = {}
    for layer, leaves in _by_layer(arrays).items():
        gates = _gates(leaves)
        is_cudnn = _is_cudnn(leaves, gates)
        needs_cell = gates and (is_cudnn or (not had_cells and _lacks_a_cell(layer)))
        scope = f"{layer}/{_GATES[gates]}" if needs_cell else layer
        for leaf, array in leaves.items():
            converted = _from_cudnn(leaf, array, gates) if is_cudnn else array
            _put(found, _join(scope, leaf), converted)
    return found


def _is_cudnn(leaves: Mapping[str, Any], gates: int) -> bool:
    """Return True for layers with two biases per gate, stored as one vector."""
    if gates not in (3, 4):
        return False
    units = _shape(leaves, "recurrent_kernel")[0]
    return _shape(leaves, "bias") == (2 * gates * units,)


def _gates(leaves: Mapping[str, Any]) -> int:
    """Derive the number of gates of a recurrent layer from its shapes; 0 for other layers."""
    kernel, recurrent = _shape(leaves, "kernel"), _shape(leaves, "recurrent_kernel")
    if set(leaves) - set(_RECURRENT) or len(kernel) != 2 or len(recurrent) != 2:
        return 0
    gates, rest = divmod(recurrent[1], max(1, recurrent[0]))
    return gates if gates in _GATES and not rest and kernel[1] == recurrent[1] else 0


def _lacks_a_cell(layer: str) -> bool:
    """Return True if the variables are directly in a layer or in one of its directions."""
    above, _, last = layer.rpartition("/")
    if stem(last).endswith("cell"):
        return False
    return not above or last.startswith(("forward_", "backward_"))


def _from_cudnn(leaf: str, array: Any, gates: int) -> Converted:
    """Convert a variable of a CuDNN layer to that of the equivalent normal layer.

    Gate by gate, `W = [reshape(Wᵢᵀ)]` and `U = [Uᵢᵀ]`. The two biases of an LSTM are added; those
    of a GRU become an array of shape `(2, 3 * units)`.

    Args:
        leaf: The variable's name in its layer: "kernel", "recurrent_kernel" or "bias".
        array: The variable.
        gates: The number of gates: 4 for an LSTM, 3 for a GRU.
    """
    shape = tuple(array.shape)
    if leaf == "kernel":
        return Converted([array], shape, lambda k: _each_gate(k, gates, _from_fortran))
    if leaf == "recurrent_kernel":
        return Converted([array], shape, lambda k: _each_gate(k, gates, np.transpose))
    if gates == 4:
        return Converted([array], (shape[0] // 2,), lambda b: b.reshape(2, -1).sum(axis=0))
    return Converted([array], (2, shape[0] // 2), lambda b: b.reshape(2, -1))


def _each_gate(
    kernel: np.ndarray, gates: int, convert: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    return np.hstack([convert(gate) for gate in np.hsplit(kernel, gates)])


def _from_fortran(kernel: np.ndarray) -> np.ndarray:
    return kernel.T.reshape(kernel.shape, order="F")


def _flipped(key: str, array: Any) -> Any:
    """Flip a kernel for convolution (Theano) to one for correlation."""
    leaf, rank = key.rpartition("/")[2], len(array.shape)
    if rank < 3:
        return array
    if leaf not in ("kernel", "recurrent_kernel") or rank < 4:
        reason = f"{key!r} was written on Theano, in a layout that the file does not specify"
        return _refused(array, reason)
    space = tuple(range(rank - 2))
    return Converted([array], tuple(array.shape), lambda kernel: np.flip(kernel, space))


def _from_keras_1(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Rename `dense_1/dense_1_W` to `dense_1/kernel`, and join the gates of each layer."""
    found: dict[str, Any] = {}
    gates: dict[str, dict[str, Any]] = {}
    for key, array in arrays.items():
        layer, _, name = key.rpartition("/")
        scope, leaf, gate = _split_keras_1(layer, name)
        if gate:
            gates.setdefault(f"{scope}/{leaf}", {})[gate] = array
            continue
        is_embedding = leaf == "kernel" and scope.startswith("embedding")
        _put(found, _join(scope, "embeddings" if is_embedding else leaf), array)
    for key in found.keys() - arrays.keys():
        if key.endswith("/kernel") and len(found[key].shape) == 4:
            found[key] = _require_tensorflow_order(key, found[key], found)
    for key, by_gate in gates.items():
        for name, array in _joined(key, by_gate).items():
            _put(found, name, array)
    return found


def _join(scope: str, leaf: str) -> str:
    return f"{scope}/{leaf}" if scope else leaf


def _put(found: dict[str, Any], key: str, array: Any) -> None:
    if key in found:
        raise RestoreError(f"Two weights of the file would both be named {key!r} in Keras 3.")
    found[key] = array


def _split_keras_1(layer: str, name: str) -> tuple[str, str, str]:
    """Split a name of Keras 1 into the layer or its direction, the variable and the gate."""
    gate = re.fullmatch(r"(.+)_([WUb])_([ifcozrh])", name)
    if gate:
        base, letter, which = gate.groups()
        return _scope(layer, base), _LETTERS[letter], which
    leaf = re.fullmatch(rf"(.+?)_({'|'.join(_KERAS_1_LEAVES)})", name)
    if leaf:
        return _scope(layer, leaf[1]), _KERAS_1_LEAVES[leaf[2]], ""
    return layer, name, ""


def _scope(layer: str, base: str) -> str:
    return base if base == layer or not layer else f"{layer}/{base}"


def _require_tensorflow_order(key: str, kernel: Any, arrays: Mapping[str, Any]) -> Any:
    """Return a kernel, but refuse to read it if its axes may be in Theano's order.

    Keras 1 supported both orders. The file does not store the order; the shape of the bias may
    show it.

    Args:
        key: The key of the kernel.
        kernel: The kernel.
        arrays: The weights by key; they may include the bias of the same layer.
    """
    bias = _shape({"bias": arrays.get(f"{key.removesuffix('kernel')}bias")}, "bias")
    if bias and kernel.shape[-1] == bias[0] and kernel.shape[0] != bias[0]:
        return kernel
    reason = f"{key!r} may be in Theano's axis order; the file does not store the order"
    return _refused(kernel, reason)


def _joined(key: str, by_gate: Mapping[str, Any]) -> dict[str, Any]:
    """Concatenate the arrays of all gates, under the name of the cell."""
    scope, _, leaf = key.rpartition("/")
    for gates, cell in _KERAS_1_GATES.items():
        if set(by_gate) == set(gates):
            sources = [by_gate[gate] for gate in gates]
            *front, _ = sources[0].shape
            shape = (*front, sum(source.shape[-1] for source in sources))
            return {f"{scope}/{cell}/{leaf}": Converted(sources, shape, _concatenated)}
    return {f"{scope}/{leaf}_{gate}": array for gate, array in by_gate.items()}


def _concatenated(*arrays: np.ndarray) -> np.ndarray:
    return np.concatenate(arrays, axis=-1)


def _refused(array: Any, reason: str) -> Converted:
    def refuse(_: np.ndarray) -> np.ndarray:
        raise RestoreError(
            f"{reason}, so it is not read. Load the file in the Keras that wrote it, and save it "
            "again on TensorFlow."
        )

    return Converted([array], tuple(array.shape), refuse)


def _by_layer(arrays: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    layers: dict[str, dict[str, Any]] = {}
    for key, array in arrays.items():
        layer, _, leaf = key.rpartition("/")
        layers.setdefault(layer, {})[leaf] = array
    return layers


def _shape(arrays: Mapping[str, Any], name: str) -> tuple[int, ...]:
    array = arrays.get(name)
    return () if array is None else tuple(array.shape)
