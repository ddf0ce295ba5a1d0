"""Write PyTorch state dicts: PyTorch lays the file out, and the values are filled in one by one."""

from __future__ import annotations

import contextlib
import os
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from keras_trainops.checkpoints.checkpoint import Checkpoint
from keras_trainops.checkpoints.formats.torch_tree import content_of
from keras_trainops.checkpoints.storage.writing import UnwritableError
from keras_trainops.checkpoints.storage.zip_archives import data_offset, set_checksums

STRUCTURE = "torch"  # the name of its entry in `Checkpoint.structure`
_ATTEMPT = 1 << 20  # bytes
_OTHER_MISTAKES = (AttributeError, KeyError, RecursionError, TypeError, ValueError)


def write(
    path: Path,
    checkpoint: Checkpoint,
    keys: Mapping[str, str],
    progress: Callable[[int], None] = lambda nbytes: None,
) -> list[str]:
    """Write tensors for `torch.load`; `Writer` describes the arguments.

    The file has the containers and plain values of a PyTorch source. Without one, and if a tensor
    is renamed into another container, it is a dict from name to tensor. Tensors that share memory
    in the source are written separately.

    Raises:
        UnwritableError: If PyTorch has no such dtype, or is missing or too old; nothing is written.
    """
    torch, fake_mode = _library()
    dtypes = {name: checkpoint.dtype(key).newbyteorder("=") for name, key in keys.items()}
    for name, dtype in dtypes.items():
        if not isinstance(getattr(torch, dtype.name, None), torch.dtype):
            raise UnwritableError(f"PyTorch has no dtype for {name!r}, which is {dtype}.")

    written: list[str] = []  # in the order of the file

    def tensor(name: str, node: Mapping[str, Any]) -> Any:
        written.append(name)
        with fake_mode:
            shape, dtype = checkpoint.shape(keys[name]), getattr(torch, dtypes[name].name)
            empty = torch.empty(shape, dtype=dtype)
        is_trained = node.get("requires_grad") is True and dtypes[name].kind not in "biu"
        if node.get("parameter") is True:
            return _Parameter(empty, is_trained)
        return empty.requires_grad_() if is_trained else empty

    content, lines = _content(checkpoint, keys, tensor, written)
    with _explained(path), torch.serialization.skip_data(materialize_fake_tensors=True):
        torch.save(content, path)
    _fill(path, [(checkpoint, keys[name], dtypes[name]) for name in written], progress)
    return lines


def _library() -> tuple[Any, Any]:
    """Import PyTorch, and make the mode in which its tensors have no memory."""
    try:
        import torch
        from torch._subclasses import FakeTensorMode
        from torch.serialization import skip_data
    except ImportError as error:
        raise UnwritableError(
            f"Writing a PyTorch file needs a recent PyTorch ({error}): "
            "pip install --upgrade 'keras-trainops[torch]'"
        ) from None
    del skip_data
    return torch, FakeTensorMode()


class _Parameter:
    """Pickled as a `torch.nn.Parameter`, which cannot be a tensor without memory."""

    def __init__(self, tensor: Any, requires_grad: bool) -> None:
        self._arguments = tensor, requires_grad

    def __reduce__(self) -> tuple[Any, ...]:
        import torch

        return torch.nn.Parameter, self._arguments


def _content(
    checkpoint: Checkpoint,
    keys: Mapping[str, str],
    tensor: Callable[[str, Mapping[str, Any]], Any],
    written: list[str],
) -> tuple[Any, list[str]]:
    """Return the content of the new file, and lines for the report."""
    structure = checkpoint.structure().get(STRUCTURE)
    reason = ""
    if structure is not None:
        names: dict[str, list[str]] = {}
        for name, key in keys.items():
            names.setdefault(key, []).append(name)
        try:
            return content_of(structure["tree"], names, tensor), _omissions(structure["omitted"])
        except UnwritableError as error:
            reason = f"The new file is a plain dict of tensors, without other values: {error}"
        except _OTHER_MISTAKES as error:
            raise UnwritableError(f"The structure of the source is damaged: {error!r}") from error
    written.clear()
    return {name: tensor(name, {}) for name in keys}, [f"{reason}."] if reason else []


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Write more to a file that PyTorch could not write, as its error does not say why.

    Raises:
        OSError: If nothing more can be written.
    """
    try:
        yield
    except RuntimeError:
        with path.open("r+b", buffering=0) as file:
            file.seek(0, os.SEEK_END)
            file.write(bytes(_ATTEMPT))
            file.write(b"\0")  # raises if the first write was cut short
        raise


def _omissions(names: Sequence[str]) -> list[str]:
    if not names:
        return []
    return [f"Left out, as they are neither tensors nor plain values: {', '.join(names)}."]


def _fill(
    path: Path,
    tensors: Sequence[tuple[Checkpoint, str, np.dtype]],
    progress: Callable[[int], None],
) -> None:
    """Write the values of tensors into a file laid out for them, with their checksums."""
    with zipfile.ZipFile(path) as archive:
        members = {member.filename.partition("/")[2]: member for member in archive.infolist()}
    checksums: dict[str, int] = {}
    with path.open("r+b") as file:
        for number, (checkpoint, key, dtype) in enumerate(tensors):
            member = members[f"data/{number}"]
            start = data_offset(file, member, str(path))
            file.seek(start)
            checksum = 0
            for piece in checkpoint.pieces(key):
                data = np.ascontiguousarray(piece, dtype).view(np.uint8).data
                file.write(data)
                checksum = zlib.crc32(data, checksum)
                progress(len(data))
            if file.tell() != start + member.file_size:
                raise UnwritableError(f"PyTorch laid out the values of {key!r} differently.")
            checksums[member.filename] = checksum
    set_checksums(path, checksums)
