"""Huge pages for memory that a tensor is read into."""

import mmap
import re
from pathlib import Path

import numpy as np
import pytest

from keras_trainops.checkpoints.storage.pages import prefer_huge_pages

HUGE = Path("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size")
pytestmark = [
    pytest.mark.once,
    pytest.mark.skipif(not HUGE.exists(), reason="this kernel has no transparent huge pages"),
]


def new_memory(size: int) -> np.ndarray:
    return np.frombuffer(mmap.mmap(-1, size), np.uint8)


def huge_pages_asked_for(array: np.ndarray) -> int:
    """Bytes of an array in mappings that ask for huge pages."""
    begin, end = array.ctypes.data, array.ctypes.data + array.nbytes
    maps = Path("/proc/self/smaps").read_text()
    found = re.findall(r"^(\w+)-(\w+) .*\n(?:[A-Z].*\n)*?VmFlags:(.*)$", maps, re.MULTILINE)
    return sum(
        max(0, min(end, int(stop, 16)) - max(begin, int(start, 16)))
        for start, stop, flags in found
        if "hg" in flags.split()
    )


def test_huge_pages_are_asked_for_inside_of_an_array_alone():
    page = int(HUGE.read_text())
    memory = new_memory(6 * page)
    memory[:] = 7
    inner = memory[page // 2 : -page // 2]

    assert huge_pages_asked_for(memory) == 0
    prefer_huge_pages(inner)

    assert 4 * page <= huge_pages_asked_for(inner) == huge_pages_asked_for(memory) < 6 * page
    assert huge_pages_asked_for(inner) % page == 0
    assert (memory == 7).all()


def test_an_array_smaller_than_a_huge_page_is_left_alone():
    small = new_memory(1 << 16)
    prefer_huge_pages(small)
    prefer_huge_pages(np.empty(0))
    assert huge_pages_asked_for(small) == 0
