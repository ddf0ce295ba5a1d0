"""PyTorch state dicts (`.pt`, `.pth`), through PyTorch's own safe loader.

`torch.load(weights_only=True)` makes nothing but tensors and plain containers. The names are kept
as they are (`layer1.0.weight`); of dicts in dicts, as training programs save them, the names are
joined by `/` (`model/layer1.0.weight`). What is no tensor is left out.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from keras_trainops.readers.base import Checkpoint, RestoreError
from keras_trainops.readers.limits import refuse_bomb
from keras_trainops.readers.training_state import by_name

# How the pickled stream of a file starts that PyTorch wrote before 1.6: protocol 2, a magic number.
_LEGACY_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
# PyTorch's name of a dtype that NumPy lacks, the integer of its size, and its dtype in `ml_dtypes`.
_FOREIGN = {
    "torch.bfloat16": ("int16", np.dtype(ml_dtypes.bfloat16)),
    "torch.float8_e4m3fn": ("uint8", np.dtype(ml_dtypes.float8_e4m3fn)),
    "torch.float8_e5m2": ("uint8", np.dtype(ml_dtypes.float8_e5m2)),
}


class TorchCheckpoint(Checkpoint):
    """A state dict; a zip file is mapped into memory, an older one is read whole."""

    format = "PyTorch state dict"

    def __init__(self, location: str) -> None:
        super().__init__(location, [location])
        self._tensors = dict(_flattened(_load(location), "", location, set()))
        if not self._tensors:
            raise RestoreError(f"{location!r} is a PyTorch file without any tensor.")
        self.training_state = by_name(self._tensors)

    def _keys(self) -> Mapping[str, Any]:
        return self._tensors

    def _shape(self, key: str) -> tuple[int, ...]:
        return tuple(self._tensors[key].shape)

    def _dtype(self, key: str) -> np.dtype:
        return dtype_of(self._tensors[key])

    def _read(self, key: str) -> np.ndarray:
        tensor = self._tensors[key]
        claimed = tensor.numel() * tensor.element_size()
        refuse_bomb(
            f"the tensor {key!r}", claimed, tensor.untyped_storage().nbytes(), self.location
        )
        return view_of(tensor).copy()

    def close(self) -> None:
        self._tensors = dict.fromkeys(self._tensors)  # the file stays mapped as long as they live


def dtype_of(tensor: Any) -> np.dtype:
    """NumPy's dtype for a tensor's, or that of `ml_dtypes`."""
    name = str(tensor.dtype)
    return _FOREIGN[name][1] if name in _FOREIGN else np.dtype(name.removeprefix("torch."))


def view_of(tensor: Any) -> np.ndarray:
    """A tensor as an array, in the tensor's own memory where that is possible."""
    import torch

    tensor = tensor.detach().cpu()
    if str(tensor.dtype) not in _FOREIGN:
        return tensor.resolve_conj().resolve_neg().numpy()
    integer, dtype = _FOREIGN[str(tensor.dtype)]
    return tensor.contiguous().view(getattr(torch, integer)).numpy().view(dtype)


def is_archive(archive: zipfile.ZipFile) -> bool:
    """Whether a zip archive is what `torch.save` writes: one directory with a `data.pkl` in it."""
    return any(Path(name).name == "data.pkl" for name in archive.namelist())


def is_legacy(head: bytes) -> bool:
    """Whether a file that starts with `head` was written by `torch.save` before 1.6."""
    return head.startswith(_LEGACY_MAGIC)


def _load(location: str) -> Any:
    try:
        import torch
    except ImportError:
        raise RestoreError(
            f"Reading the PyTorch file {location!r} needs PyTorch: "
            "pip install 'keras-trainops[torch]'"
        ) from None
    mapped = zipfile.is_zipfile(location)
    if mapped:
        _refuse_compressed(location)
    try:
        return torch.load(location, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:
        reason = str(error).partition("\n")[0]
        raise RestoreError(
            f"PyTorch's safe loader refuses {location!r} ({reason}). It may be damaged, or hold "
            "more than tensors: whole modules and TorchScript are programs. Where you trust the "
            "file, load it in PyTorch and save its `state_dict()`."
        ) from error


def _refuse_compressed(location: str) -> None:
    """PyTorch stores without compression; only a bomb is compressed.

    Raises:
        RestoreError: If a member is.
    """
    with zipfile.ZipFile(location) as archive:
        for member in archive.infolist():
            if member.compress_type != zipfile.ZIP_STORED:
                raise RestoreError(
                    f"{location!r}: the member {member.filename!r} is compressed, which "
                    "`torch.save` never does, so it is not read."
                )


def _flattened(value: Any, name: str, location: str, above: set[int]) -> Iterator[tuple[str, Any]]:
    """Names and tensors, in order. `above` are the containers that `value` lies in."""
    import torch

    if isinstance(value, torch.Tensor):
        yield name or Path(location).stem, value
        return
    if isinstance(value, Mapping):
        entries = list(value.items())
    elif isinstance(value, (list, tuple)):
        entries = list(enumerate(value))
    else:
        return
    if id(value) in above:
        raise RestoreError(f"{location!r}: {name or 'the state dict'} holds itself.")
    for key, entry in entries:
        inner = f"{name}/{key}" if name else str(key)
        yield from _flattened(entry, inner, location, above | {id(value)})


open_file = TorchCheckpoint
