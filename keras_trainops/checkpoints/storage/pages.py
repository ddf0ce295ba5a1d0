"""Have the operating system map large arrays in few pages."""

from __future__ import annotations

import ctypes
import functools
import mmap
from collections.abc import Callable

import numpy as np

from keras_trainops.checkpoints.storage.files import read_file
from keras_trainops.errors import RestoreError

_SIZE = "/sys/kernel/mm/transparent_hugepage/hpage_pmd_size"  # bytes of a huge page


def prefer_huge_pages(array: np.ndarray) -> None:
    """Ask for huge pages where an array is not in memory yet; do nothing if there are none.

    Linux maps new memory page by page at the first write to each. With pages of 4 kB that takes
    longer than to read as many bytes from the page cache. NumPy asks for huge pages itself, other
    libraries do not.

    Args:
        array: A contiguous array. Its values are not changed.
    """
    advise, page = _madvise()
    begin = -(-array.ctypes.data // page) * page
    end = (array.ctypes.data + array.nbytes) // page * page
    if advise is not None and begin < end:
        advise(begin, end - begin, mmap.MADV_HUGEPAGE)  # if it fails, the pages are small


@functools.cache
def _madvise() -> tuple[Callable[[int, int, int], int] | None, int]:
    """Return the function of the C library, or None, and the bytes of a huge page."""
    try:
        page = int(read_file(_SIZE))
        advise = ctypes.CDLL(None).madvise
    except (OSError, ValueError, AttributeError, RestoreError):
        return None, 1  # not Linux, or built without huge pages
    advise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return advise, page
