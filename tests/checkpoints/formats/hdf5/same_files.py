"""Compare two HDF5 files entry by entry."""

from __future__ import annotations

from typing import Any

import h5py
import numpy as np


def described(path: str) -> dict[str, Any]:
    """Everything in a file: types and values of attributes and datasets, by path."""
    with h5py.File(path, "r") as file:
        found = {"/": attributes(file)}

        def visit(name: str, item: Any) -> None:
            found[name] = attributes(item)
            if isinstance(item, h5py.Dataset):
                bits = np.asarray(item[()]).tobytes()
                kind = item.id.get_type().encode()
                found[name] |= {"": (item.shape, kind, item.compression, bits)}

        file.visititems(visit)
    return found


def attributes(item: Any) -> dict[str, Any]:
    found = {}
    for name in item.attrs:
        kind = item.attrs.get_id(name).get_type()
        found[name] = (kind.encode(), np.asarray(item.attrs[name]).tolist())
    return found
