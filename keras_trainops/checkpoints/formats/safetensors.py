"""`.safetensors` files, read with the safetensors library."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from keras_trainops.checkpoints.checkpoint import Checkpoint
from keras_trainops.checkpoints.dtypes import nbytes
from keras_trainops.checkpoints.format import Candidate, Format
from keras_trainops.checkpoints.storage.files import load_json, open_regular, require_file
from keras_trainops.checkpoints.storage.raw import Extent
from keras_trainops.checkpoints.storage.writing import UnwritableError
from keras_trainops.checkpoints.training_state import by_name

# The header's names of dtypes.
DTYPES = {
    "F64": np.dtype("float64"),
    "F32": np.dtype("float32"),
    "F16": np.dtype("float16"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "I64": np.dtype("int64"),
    "I32": np.dtype("int32"),
    "I16": np.dtype("int16"),
    "I8": np.dtype("int8"),
    "U64": np.dtype("uint64"),
    "U32": np.dtype("uint32"),
    "U16": np.dtype("uint16"),
    "U8": np.dtype("uint8"),
    "BOOL": np.dtype("bool"),
    "C64": np.dtype("complex64"),
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
STRUCTURE = "safetensors"  # the name of its entry in `Checkpoint.structure`
_METADATA = "__metadata__"  # the only entry of the header that is not a tensor
_ALIGNMENT = 8  # bytes, of the first tensor


class SafetensorsCheckpoint(Checkpoint):
    """A `.safetensors` file; the library checks its header when it is opened.

    Args:
        location: The path, as the user gave it.
        path: Path of the file, if it is not `location`.
    """

    format = "safetensors file"

    def __init__(self, location: str, path: str | None = None) -> None:
        from safetensors import safe_open

        path = location if path is None else path
        super().__init__(location, [path])
        require_file(path)
        self._file = safe_open(path, framework="numpy")
        self._file.__enter__()
        self._slices: dict[str, Any] = {}
        self._plain = open_regular(path)
        try:
            self._offsets, self._metadata = self._read_header()
        except BaseException:
            self.close()
            raise
        self._slices |= {name: self._file.get_slice(name) for name in self._offsets}
        self.training_state = by_name(self._slices)

    def _read_header(self) -> tuple[dict[str, int], dict[str, str] | None]:
        """Return the tensors' offsets, in order, and the metadata.

        The library checks the header, but exposes neither offsets nor the order of the metadata.
        """
        length = int.from_bytes(self._plain.read(8), "little")
        header = load_json(self._plain.read(length), self.location)
        metadata = header.pop(_METADATA, None)
        ranges = {key: entry["data_offsets"] for key, entry in header.items()}
        order = sorted(ranges, key=lambda key: ranges[key])
        offsets = {key: 8 + length + ranges[key][0] for key in order}
        return offsets, metadata

    def _structure(self) -> Mapping[str, Any]:
        return {} if self._metadata is None else {STRUCTURE: {"metadata": self._metadata}}

    def _keys(self) -> Mapping[str, object]:
        return self._slices

    def _shape(self, key: str) -> tuple[int, ...]:
        return tuple(self._slices[key].get_shape())

    def _dtype(self, key: str) -> np.dtype:
        name = self._slices[key].get_dtype()
        if name not in DTYPES:
            raise TypeError(f"NumPy has no dtype for {name}")
        return DTYPES[name]

    def _extent(self, key: str) -> Extent | None:
        return Extent(self._plain, self._offsets[key])

    def _read(self, key: str) -> np.ndarray:
        return self._file.get_tensor(key)

    def close(self) -> None:
        self._slices = dict.fromkeys(self._slices)
        self._file.__exit__(None, None, None)
        self._plain.close()


def write(
    path: Path,
    checkpoint: Checkpoint,
    keys: Mapping[str, str],
    progress: Callable[[int], None] = lambda nbytes: None,
) -> None:
    """Write tensors to a `.safetensors` file; `Writer` describes the arguments.

    Raises:
        UnwritableError: See `content`; there is no file then.
    """
    pieces = content(checkpoint, keys, progress)
    with path.open("wb") as file:
        for piece in pieces:
            file.write(piece)


def content(
    checkpoint: Checkpoint,
    keys: Mapping[str, str],
    progress: Callable[[int], None] = lambda nbytes: None,
) -> Iterator[Any]:
    """Return the bytes of a `.safetensors` file, piece by piece.

    The file has the metadata of a `.safetensors` source. It has the order of `keys` if every
    tensor is then aligned; otherwise tensors with larger elements come first.

    Args:
        checkpoint: See `Writer`.
        keys: See `Writer`.
        progress: See `Writer`.

    Raises:
        UnwritableError: If the format has no such dtype, or reserves a name for its metadata.
    """
    dtypes = _writable_dtypes(checkpoint, keys)
    shapes = {name: checkpoint.shape(key) for name, key in keys.items()}
    if not _aligned(shapes, dtypes):
        order = sorted(keys, key=lambda name: dtypes[name].itemsize, reverse=True)
        shapes = {name: shapes[name] for name in order}
    header = _header(shapes, dtypes, _metadata_of(checkpoint))

    def tensors() -> Iterator[Any]:
        for name in shapes:
            for piece in checkpoint.pieces(keys[name]):
                piece = np.ascontiguousarray(piece, dtypes[name])
                yield piece.view(np.uint8).data  # ml_dtypes do not support buffers
                progress(piece.nbytes)

    return itertools.chain([len(header).to_bytes(8, "little") + header], tensors())


def _writable_dtypes(checkpoint: Checkpoint, keys: Mapping[str, str]) -> dict[str, np.dtype]:
    if _METADATA in keys:
        raise UnwritableError(
            f".safetensors cannot store a tensor named {_METADATA!r}, which is the name of its "
            "metadata. Give it another name."
        )
    dtypes = {name: checkpoint.dtype(key).newbyteorder("=") for name, key in keys.items()}
    for name, dtype in dtypes.items():
        if dtype not in _NAMES:
            raise UnwritableError(f".safetensors has no dtype for {name!r}, which is {dtype}.")
    return dtypes


def _aligned(shapes: Mapping[str, tuple[int, ...]], dtypes: Mapping[str, np.dtype]) -> bool:
    """Return True if tensors that are stored in this order begin at multiples of their itemsize."""
    place = 0
    for name, shape in shapes.items():
        if place % dtypes[name].itemsize:
            return False
        place += nbytes(shape, dtypes[name])
    return True


def _metadata_of(checkpoint: Checkpoint) -> dict[str, str] | None:
    """Return the metadata of a source of this format.

    Raises:
        UnwritableError: If a plan contains something else than texts.
    """
    metadata = checkpoint.structure().get(STRUCTURE, {}).get("metadata")
    if metadata is not None and not all(isinstance(value, str) for value in metadata.values()):
        raise UnwritableError(f".safetensors stores only texts as metadata, not {metadata}.")
    return metadata


def _header(
    shapes: Mapping[str, tuple[int, ...]],
    dtypes: Mapping[str, np.dtype],
    metadata: Mapping[str, str] | None,
) -> bytes:
    """Return the header of a file that contains the tensors one after the other."""
    header: dict[str, Any] = {} if metadata is None else {_METADATA: metadata}
    place = 0
    for name, shape in shapes.items():
        end = place + nbytes(shape, dtypes[name])
        header[name] = {
            "dtype": _NAMES[dtypes[name]],
            "shape": list(shape),
            "data_offsets": [place, end],
        }
        place = end
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    return text + b" " * (-len(text) % _ALIGNMENT)


def _recognise(candidate: Candidate) -> bool:
    """Recognise a header: its length, then JSON."""
    head = candidate.head
    return len(head) > 8 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 1 << 40


FORMAT = Format(".safetensors", _recognise, SafetensorsCheckpoint, ".safetensors", write)
