"""How old Keras laid out and named what Keras 3 keeps in another way.

* The CuDNN layers of Keras 2 had kernels of their own: theirs become those of `LSTM` and `GRU`.
* Recurrent layers had no cell before Keras 2.4: `lstm/kernel` is `lstm/lstm_cell/kernel` today.
* Keras 1 named variables `dense_1_W` and kept each gate of an LSTM or GRU apart.
* Theano convolves where TensorFlow correlates: its kernels are flipped.

What a file does not tell for certain is refused when it is asked for, not guessed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from keras_trainops.errors import RestoreError
from keras_trainops.numbering import stem


class Converted(NamedTuple):
    """An array made of others.

    Attributes:
        sources: What it is made of: data sets, or again such arrays.
        shape: Its shape.
        convert: Makes it of the arrays of the sources.
    """

    sources: Sequence[Any]
    shape: tuple[int, ...]
    convert: Callable[..., np.ndarray]

    @property
    def dtype(self) -> np.dtype:
        """The dtype of all sources."""
        return self.sources[0].dtype

    def read(self) -> np.ndarray:
        """Reads the sources and converts them."""
        return self.convert(
            *(s.read() if isinstance(s, Converted) else s[()] for s in self.sources)
        )


_GATES = {4: "lstm_cell", 3: "gru_cell", 1: "simple_rnn_cell"}
_RECURRENT = ("kernel", "recurrent_kernel", "bias")
_LETTERS = {"W": "kernel", "U": "recurrent_kernel", "b": "bias"}
_KERAS_1_GATES = {"ifco": "lstm_cell", "zrh": "gru_cell"}  # in the order in which they are joined
_KERAS_1_LEAVES = {
    **_LETTERS,
    "gamma": "gamma",
    "beta": "beta",
    "running_mean": "moving_mean",
    "running_std": "moving_variance",  # so it was called; it is the variance
    "alphas": "alpha",
}


def todays(arrays: Mapping[str, Any], version: str, backend: str) -> dict[str, Any]:
    """What the file holds, under today's names and in today's layouts.

    Args:
        arrays: Key to data set, as the file has them.
        version: The Keras that wrote it; empty where the file says nothing, as Keras 1 did.
        backend: The backend that it ran on; empty where the file does not say.

    Returns:
        Key to data set, or to `Converted` where the data are not what they have to be today.
    """
    if _release(version) < (2,):
        arrays = _from_keras_1(arrays)
    if backend == "theano":
        arrays = {key: _flipped(key, array) for key, array in arrays.items()}
    return _with_cells(arrays, cells=_release(version) >= (2, 4))


def _release(version: str) -> tuple[int, ...]:
    """`(2, 2)` of `2.2.4-tf`."""
    return tuple(int(number) for number in re.findall(r"\d+", version)[:2])


def _with_cells(arrays: Mapping[str, Any], *, cells: bool) -> dict[str, Any]:
    """Today's recurrent layers; `cells` says whether the writer knew them already."""
    found: dict[str, Any] = {}
    for layer, leaves in _by_layer(arrays).items():
        gates = _gates(leaves)
        cudnn = gates in (3, 4) and _shape(leaves, "bias") == (
            2 * gates * _shape(leaves, "recurrent_kernel")[0],
        )
        bare = gates and (cudnn or (not cells and _lacks_a_cell(layer)))
        scope = f"{layer}/{_GATES[gates]}" if bare else layer
        for leaf, array in leaves.items():
            today = _from_cudnn(leaf, array, gates) if cudnn else array
            _put(found, f"{scope}/{leaf}" if scope else leaf, today)
    return found


def _gates(leaves: Mapping[str, Any]) -> int:
    """How many gates a recurrent layer has, told by its shapes; 0 where it is none."""
    kernel, recurrent = _shape(leaves, "kernel"), _shape(leaves, "recurrent_kernel")
    if set(leaves) - set(_RECURRENT) or len(kernel) != 2 or len(recurrent) != 2:
        return 0
    gates, rest = divmod(recurrent[1], max(1, recurrent[0]))
    return gates if gates in _GATES and not rest and kernel[1] == recurrent[1] else 0


def _lacks_a_cell(layer: str) -> bool:
    """Whether the variables are the layer's own: in one scope, or in that of a direction."""
    above, _, last = layer.rpartition("/")
    if stem(last).endswith("cell"):
        return False
    return not above or last.startswith(("forward_", "backward_"))


def _from_cudnn(leaf: str, array: Any, gates: int) -> Converted:
    """A variable of a CuDNN layer as that of the normal layer that computes the same.

    `W = [reshape(Wᵢᵀ)]`, `U = [Uᵢᵀ]` gate by gate; the two biases of an LSTM are added, those of
    a GRU are kept as `(2, 3 units)`.
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
    """A kernel that Theano convolved with, as one to correlate with."""
    leaf, rank = key.rpartition("/")[2], len(array.shape)
    if rank < 3:
        return array
    if leaf not in ("kernel", "recurrent_kernel") or rank < 4:
        return _refused(array, f"{key!r} was written on Theano, in a layout the file does not tell")
    space = tuple(range(rank - 2))
    return Converted([array], tuple(array.shape), lambda kernel: np.flip(kernel, space))


def _from_keras_1(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """`dense_1/dense_1_W` is `dense_1/kernel`; the gates of a layer are joined to one array."""
    found: dict[str, Any] = {}
    parts: dict[str, dict[str, Any]] = {}
    for key, array in arrays.items():
        layer, _, name = key.rpartition("/")
        scope, leaf, gate = _split_keras_1(layer, name)
        if gate:
            parts.setdefault(f"{scope}/{leaf}", {})[gate] = array
        elif leaf == "kernel" and scope.startswith("embedding"):
            _put(found, f"{scope}/embeddings", array)
        else:
            _put(found, f"{scope}/{leaf}" if scope else leaf, array)
    for key in [key for key in found if key.endswith("/kernel") and key not in arrays]:
        if len(found[key].shape) == 4:
            found[key] = _only_in_todays_order(key, found[key], found)
    for key, by_gate in parts.items():
        for name, array in _joined(key, by_gate).items():
            _put(found, name, array)
    return found


def _put(found: dict[str, Any], key: str, array: Any) -> None:
    if key in found:
        raise RestoreError(f"Two weights of the file would both be called {key!r} today.")
    found[key] = array


def _split_keras_1(layer: str, name: str) -> tuple[str, str, str]:
    """The layer or its direction, the variable and the gate that a name of Keras 1 stands for."""
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


def _only_in_todays_order(key: str, kernel: Any, arrays: Mapping[str, Any]) -> Any:
    """Keras 1 kept kernels in Theano's order by option, and does not say so in the file."""
    bias = _shape({"bias": arrays.get(f"{key.removesuffix('kernel')}bias")}, "bias")
    if bias and kernel.shape[-1] == bias[0] and kernel.shape[0] != bias[0]:
        return kernel
    return _refused(kernel, f"{key!r} may be in the order of Theano, which the file does not tell")


def _joined(key: str, by_gate: Mapping[str, Any]) -> dict[str, Any]:
    """One array of those of all gates, along the last axis, under the name of its cell."""
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
