"""PyTorch state dicts (`.pt`, `.pth`), read with PyTorch's own safe unpickler.

The unpickler of `torch.load(weights_only=True)` only makes tensors and plain containers. Here it
gets storages without values, and their names lead to places in the file. So values are read on
demand, and the file is not mapped: truncating a mapped file would kill the process.

Names are kept (`layer1.0.weight`). Training programs often nest dicts; their names are joined by
`/` (`model/layer1.0.weight`). Values other than tensors are ignored.
"""

from __future__ import annotations

import io
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from keras_trainops.checkpoints.checkpoint import Checkpoint
from keras_trainops.checkpoints.format import Candidate, Format
from keras_trainops.checkpoints.formats.torch_tree import Encoder, named_tensors
from keras_trainops.checkpoints.formats.torch_writing import STRUCTURE, write
from keras_trainops.checkpoints.storage.files import MOST_METADATA, open_regular, require_file
from keras_trainops.checkpoints.storage.limits import refuse_bomb
from keras_trainops.checkpoints.storage.raw import Extent
from keras_trainops.checkpoints.storage.zip_archives import refuse_repeated, stored_place
from keras_trainops.checkpoints.training_state import by_name
from keras_trainops.errors import RestoreError

# The first bytes of files of PyTorch before 1.6: pickle protocol 2, a magic number.
_LEGACY_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_LEGACY_PROTOCOL = 1001
_PICKLE = "data.pkl"
# Dtypes that NumPy lacks: PyTorch's name, an integer dtype of the same size, the `ml_dtypes` one.
_FOREIGN = {
    "torch.bfloat16": ("int16", np.dtype(ml_dtypes.bfloat16)),
    "torch.float8_e4m3fn": ("uint8", np.dtype(ml_dtypes.float8_e4m3fn)),
    "torch.float8_e5m2": ("uint8", np.dtype(ml_dtypes.float8_e5m2)),
}


class _Place(NamedTuple):
    """The byte range of a storage in the file."""

    offset: int
    size: int


class _Storage(NamedTuple):
    """A storage, or a view of it, in bytes; `element` is the size of an element."""

    name: str
    offset: int
    size: int
    element: int


class TorchCheckpoint(Checkpoint):
    """A state dict whose tensors are read on demand."""

    format = "PyTorch state dict"

    def __init__(self, location: str) -> None:
        super().__init__(location, [location])
        require_file(location)
        read = _read_archive if zipfile.is_zipfile(location) else _read_legacy
        self._content, self._places, self._swapped = read(location)
        self._tensors = dict(named_tensors(self._content, location))
        if not self._tensors:
            raise RestoreError(f"{location!r} is a PyTorch file without any tensors.")
        self.training_state = by_name(self._tensors)
        self._file = open_regular(location)

    def _structure(self) -> Mapping[str, Any]:
        encoder = Encoder(self._content, self.location)
        return {STRUCTURE: {"tree": encoder.tree(), "omitted": encoder.omitted}}

    def _keys(self) -> Mapping[str, Any]:
        return self._tensors

    def _shape(self, key: str) -> tuple[int, ...]:
        return tuple(self._tensors[key].shape)

    def _dtype(self, key: str) -> np.dtype:
        return dtype_of(self._tensors[key])

    def _extent(self, key: str) -> Extent | None:
        tensor = self._tensors[key]
        is_transformed = tensor.is_conj() or tensor.is_neg() or not tensor.is_contiguous()
        if is_transformed or self._swapped:
            return None
        offset, _ = self._span(key)
        return Extent(self._file, offset)

    def _read(self, key: str) -> np.ndarray:
        tensor, dtype = self._tensors[key], self._dtype(key)
        offset, size = self._span(key)
        # NumPy has few operations for foreign dtypes, and all for integers of the same size.
        plain = np.dtype(_FOREIGN.get(str(tensor.dtype), (dtype,))[0])
        span = np.empty(size // dtype.itemsize, plain)
        Extent(self._file, offset).read_into(span)
        if self._swapped:
            span = span.byteswap()
        strides = [step * dtype.itemsize for step in tensor.stride()]
        array = np.lib.stride_tricks.as_strided(span, tensor.shape, strides).copy().view(dtype)
        array = array.conj() if tensor.is_conj() else array
        return -array if tensor.is_neg() else array

    def _span(self, key: str) -> tuple[int, int]:
        """Return the offset and size in bytes of a tensor's elements in the file.

        Raises:
            RestoreError: If they are not in the file, or would expand out of proportion in memory.
        """
        tensor = self._tensors[key]
        storage = _storage_of(tensor)
        if storage is None:
            raise RestoreError(
                f"{self.location!r}: {key!r} is sparse, quantized or without values, so it is not "
                "read. Save it as a plain tensor (`to_dense()`, `dequantize()`)."
            )
        place = self._places[storage.name]
        element = tensor.element_size()
        shape, strides = tuple(tensor.shape), tensor.stride()
        steps = sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
        size = element * (steps + 1) if tensor.numel() else 0
        start = tensor.storage_offset() * element
        if start + size > storage.size or storage.offset + storage.size > place.size:
            raise RestoreError(
                f"{self.location!r}: {key!r} reaches beyond the values stored for it."
            )
        refuse_bomb(f"the tensor {key!r}", tensor.numel() * element, place.size, self.location)
        return place.offset + storage.offset + start, size

    def close(self) -> None:
        self._file.close()


def dtype_of(tensor: Any) -> np.dtype:
    """Return the dtype of a PyTorch tensor as one of NumPy or `ml_dtypes`."""
    name = str(tensor.dtype)
    return _FOREIGN[name][1] if name in _FOREIGN else np.dtype(name.removeprefix("torch."))


def view_of(tensor: Any) -> np.ndarray:
    """Return a PyTorch tensor as an array, sharing its memory if possible."""
    import torch

    tensor = tensor.detach().cpu()
    if str(tensor.dtype) not in _FOREIGN:
        return tensor.resolve_conj().resolve_neg().numpy()
    integer, dtype = _FOREIGN[str(tensor.dtype)]
    return tensor.contiguous().view(getattr(torch, integer)).numpy().view(dtype)


def _recognise(candidate: Candidate) -> bool:
    """Recognise files of `torch.save`: a zip archive with `data.pkl`, or a pickle before 1.6."""
    pickled = any(Path(name).name == _PICKLE for name in candidate.members or ())
    return pickled or candidate.head.startswith(_LEGACY_MAGIC)


def _read_archive(location: str) -> tuple[Any, dict[str, _Place], bool]:
    """Return the content, the places of its storages, and True if their bytes are swapped."""
    with zipfile.ZipFile(location) as archive:
        _refuse_compressed(archive, location)
        refuse_repeated(archive, location)
        members = {member.filename: member for member in archive.infolist()}
        (root,) = {name.removesuffix(_PICKLE) for name in members if Path(name).name == _PICKLE}
        if f"{root}constants.pkl" in members:
            raise _refusal(location, "it is a TorchScript archive")
        order = members.get(f"{root}byteorder")
        swapped = order is not None and archive.read(order) != sys.byteorder.encode()
        pickled = members[f"{root}{_PICKLE}"]
        _require_size(pickled.file_size, location)
        wanted: dict[str, _Storage] = {}
        content = _unpickle(io.BytesIO(archive.read(pickled)), location, wanted)
    places = {}
    for storage in wanted.values():
        member = members.get(f"{root}data/{storage.name}")
        if member is None:
            raise RestoreError(f"{location!r}: the archive lacks the values {storage.name!r}.")
        places[storage.name] = _Place(*stored_place(location, member))
    return content, places, swapped


def _read_legacy(location: str) -> tuple[Any, dict[str, _Place], bool]:
    """Do the same for files before 1.6: five pickles, then the length and bytes of each storage."""
    places, wanted = {}, dict[str, _Storage]()
    size = require_file(location)
    with io.BufferedReader(open_regular(location)) as file:
        magic, protocol, _, content, order = (
            _unpickle(_Bounded(file, location), location, wanted) for _ in range(5)
        )
        if not isinstance(magic, int) or protocol != _LEGACY_PROTOCOL:
            raise RestoreError(f"{location!r} is a PyTorch file of an unknown version.")
        place = file.tell()
        for name in map(str, order):
            if name not in wanted:
                raise RestoreError(f"{location!r}: no tensor uses the values {name!r}.")
            file.seek(place)
            stored = int.from_bytes(file.read(8), "little", signed=True) * wanted[name].element
            if not 0 <= stored <= size - place - 8:
                raise RestoreError(f"{location!r} ends inside the values {name!r}.")
            places[name] = _Place(place + 8, stored)
            place += 8 + stored
    lost = wanted.keys() - places.keys()
    if lost:
        raise RestoreError(f"{location!r}: the file lacks the values {min(lost)!r}.")
    return content, places, sys.byteorder != "little"


class _Bounded:
    """A file for unpickling that limits the size of each read."""

    def __init__(self, file: io.BufferedReader[io.FileIO], location: str) -> None:
        self._file, self._location = file, location

    def read(self, size: int) -> bytes:
        _require_size(size, self._location)
        return self._file.read(size)

    def readline(self) -> bytes:
        return self._file.readline(MOST_METADATA)


def _require_size(size: int, location: str) -> None:
    if size > MOST_METADATA:
        raise RestoreError(f"{location!r}: its list of tensors claims {size:,} bytes.")


def _unpickle(file: Any, location: str, wanted: dict[str, _Storage]) -> Any:
    """Load plain containers of tensors without values.

    Args:
        file: The pickle.
        location: Path of the file, for messages.
        wanted: Filled with the storages that the tensors need, by name.

    Returns:
        The content of the pickle.

    Raises:
        RestoreError: If the pickle is damaged, or contains anything else.
    """
    torch, unpickler = _loader(location)

    def storage_without_values(saved: tuple[Any, ...]) -> Any:
        kind, storage_type, name, _, count, *view = saved
        if kind != "storage":
            raise RestoreError(f"{location!r} refers to {kind!r}, which is not a tensor.")
        untyped = storage_type is torch.UntypedStorage
        dtype = torch.uint8 if untyped else storage_type.dtype
        element, offset = torch.empty((), dtype=dtype).element_size(), 0
        wanted.setdefault(str(name), _Storage(str(name), 0, count * element, element))
        if view and view[0] is not None:
            _, offset, count = view[0]
        storage = torch.UntypedStorage(count * element, device="meta")
        storage._in_file = _Storage(str(name), offset * element, count * element, element)
        return torch.storage.TypedStorage(wrap_storage=storage, dtype=dtype, _internal=True)

    try:
        loader = unpickler(file, encoding="utf-8")
        loader.persistent_load = storage_without_values
        return loader.load()
    except RestoreError:
        raise
    except Exception as error:
        raise _refusal(location, str(error).partition("\n")[0]) from error


def _loader(location: str) -> tuple[Any, Any]:
    """Import PyTorch and the unpickler of `torch.load(weights_only=True)`."""
    try:
        import torch
        from torch._weights_only_unpickler import Unpickler
    except ImportError:
        raise RestoreError(
            f"Reading the PyTorch file {location!r} needs PyTorch: "
            "pip install 'keras-trainops[torch]'"
        ) from None
    return torch, Unpickler


def _storage_of(tensor: Any) -> _Storage | None:
    """Return the storage of a tensor made by `_unpickle`; None if it is not in the file."""
    import torch

    if tensor.layout != torch.strided or tensor.is_quantized:
        return None
    return getattr(tensor.untyped_storage(), "_in_file", None)


def _refusal(location: str, reason: str) -> RestoreError:
    return RestoreError(
        f"PyTorch's safe loader refuses {location!r} ({reason}). It may be damaged, or contain "
        "more than tensors: whole modules and TorchScript are programs. If you trust the file, "
        "load it in PyTorch and save its `state_dict()`."
    )


def _refuse_compressed(archive: zipfile.ZipFile, location: str) -> None:
    """Raise if a member is compressed: PyTorch never does that, a bomb does.

    Raises:
        RestoreError: If a member is compressed.
    """
    for member in archive.infolist():
        if member.compress_type != zipfile.ZIP_STORED:
            raise RestoreError(
                f"{location!r}: the member {member.filename!r} is compressed, which "
                "`torch.save` never does, so it is not read."
            )


FORMAT = Format("PyTorch state dicts", _recognise, TorchCheckpoint, (".pt", ".pth", ".bin"), write)
