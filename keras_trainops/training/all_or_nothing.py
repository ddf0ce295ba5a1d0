"""Undo changes of attributes if a block fails."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def all_or_nothing(*objects: Any) -> Iterator[None]:
    """Give each object its attributes back if the block fails.

    The values are the same objects as before; plain lists and dictionaries among them get their
    content back.
    """
    before = [(vars(each), dict(vars(each))) for each in objects]
    values = list(itertools.chain.from_iterable(attributes.values() for _, attributes in before))
    contents = [(value, copy.copy(value)) for value in values if type(value) in (list, dict)]
    try:
        yield
    except BaseException:
        for now, attributes in before:
            now.clear()
            now.update(attributes)
        for container, content in contents:
            container.clear()
            container.extend(content) if isinstance(container, list) else container.update(content)
        raise
