"""`keras-trainops inspect FILE`: list the tensors of a checkpoint."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from keras_trainops.checkpoints.checkpoint import Checkpoint
from keras_trainops.checkpoints.dtypes import is_real
from keras_trainops.checkpoints.open import open_checkpoint
from keras_trainops.checkpoints.statistics import Statistics, statistics
from keras_trainops.cli.output import (
    FILE_HELP,
    print_columns,
    print_json,
    progress_bar,
    size_text,
)

_HEADINGS = ("minimum", "maximum", "mean", "std", "NaN", "infinite")


def add(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "inspect",
        parents=[common],
        help="list the tensors of a checkpoint",
        description="Lists keys, shapes, dtypes and sizes as a tree, without reading a tensor.",
    )
    parser.add_argument("file", metavar="FILE", help=FILE_HELP)
    parser.add_argument(
        "--stats",
        action="store_true",
        help="read the tensors, one at a time: show minimum, maximum, mean and standard deviation "
        "of the finite values, and count the others",
    )
    parser.add_argument(
        "--depth", type=_depth, metavar="N", help="show N levels of the tree, and the totals below"
    )
    parser.set_defaults(run=_run)


def _depth(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"must be a whole number > 0, not {text!r}")
    return int(text)


def _run(options: argparse.Namespace) -> int:
    with open_checkpoint(options.file) as checkpoint:
        found = _statistics(checkpoint) if options.stats else {}
        if options.json:
            print_json(_document(checkpoint, found))
        else:
            print(_title(checkpoint))
            _print_tree(checkpoint, found if options.stats else None, options.depth)
    return 0


def _statistics(checkpoint: Checkpoint) -> dict[str, Statistics]:
    """Compute the statistics of all tensors of real numbers."""
    keys = [key for key in checkpoint if is_real(checkpoint.dtype(key))]
    found = {}
    with progress_bar(sum(checkpoint.nbytes(key) for key in keys), "reading") as progress:
        for key in keys:
            found[key] = statistics(_reported_pieces(checkpoint, key, progress))
    return found


def _reported_pieces(
    checkpoint: Checkpoint, key: str, progress: Callable[[int], None]
) -> Iterator[Any]:
    for piece in checkpoint.pieces(key):
        yield piece
        progress(piece.nbytes)


def _document(checkpoint: Checkpoint, found: Mapping[str, Statistics]) -> dict[str, Any]:
    tensors = [
        {
            "key": key,
            "shape": list(checkpoint.shape(key)),
            "dtype": checkpoint.dtype(key).name,
            "bytes": checkpoint.nbytes(key),
            "training_state": key in checkpoint.training_state,
        }
        | ({"statistics": found[key]._asdict()} if key in found else {})
        for key in checkpoint
    ]
    return {"location": checkpoint.location, "format": checkpoint.format, "tensors": tensors}


def _title(checkpoint: Checkpoint) -> str:
    state = len(checkpoint.training_state)
    total = size_text(sum(checkpoint.nbytes(key) for key in checkpoint))
    return (
        f"{checkpoint.location}: {checkpoint.format}, {len(checkpoint) - state} weights and "
        f"{_count(state)} of training state, {total}"
    )


@dataclass
class _Node:
    """A node of the tree: a common part of keys, or a key.

    Attributes:
        children: The nodes below, by label.
        key: The key that ends here, if any.
        tensors, bytes: Totals of the tensors at and below the node.
    """

    children: dict[str, _Node] = field(default_factory=dict)
    key: str | None = None
    tensors: int = 0
    bytes: int = 0


def _print_tree(
    checkpoint: Checkpoint, found: Mapping[str, Statistics] | None, depth: int | None
) -> None:
    extra = () if found is None else _HEADINGS
    rows = [("", "shape", "dtype", "size", *extra, "")]
    for text, node in _lines(_tree(checkpoint), depth):
        key, blank = node.key, ("",) * len(extra)
        if key is None:
            rows.append((text, "", "", size_text(node.bytes), *blank, _count(node.tensors)))
            continue
        values = blank if found is None or key not in found else _texts(found[key])
        note = "training state" if key in checkpoint.training_state else ""
        shape, dtype = str(checkpoint.shape(key)), checkpoint.dtype(key).name
        rows.append((text, shape, dtype, size_text(node.bytes), *values, note))
    print_columns(rows, right=range(3, 4 + len(extra)))


def _count(tensors: int) -> str:
    return f"{tensors} tensor" if tensors == 1 else f"{tensors} tensors"


def _texts(found: Statistics) -> tuple[str, ...]:
    numbers = found[:4]
    texts = ["" if number is None else f"{number:.4g}" for number in numbers]
    return (*texts, *(str(count) if count else "" for count in found[4:]))


def _tree(checkpoint: Checkpoint) -> _Node:
    """Arrange the keys in a tree by their components, which end in `/` or `.`."""
    root = _Node()
    for key in checkpoint:
        node, size = root, checkpoint.nbytes(key)
        for part in re.split(r"(?<=[/.])(?=.)", key):
            node = node.children.setdefault(part, _Node())
            node.tensors, node.bytes = node.tensors + 1, node.bytes + size
        if node.children or node.key is not None:  # such as `a/` beside `a/b`
            node = node.children.setdefault("", _Node(tensors=1, bytes=size))
        node.key = key
    return root


def _lines(node: _Node, depth: int | None, guide: str = "") -> Iterator[tuple[str, _Node]]:
    """Yield the lines of the tree below a node: the text and its node.

    Args:
        node: The root.
        depth: The number of levels to show; None for all.
        guide: Indentation of the lines.
    """
    children = list(node.children.items())
    for i, (label, child) in enumerate(children):
        last = i == len(children) - 1
        while child.key is None and len(child.children) == 1:
            ((part, child),) = child.children.items()
            label += part
        yield f"{guide}{'└─ ' if last else '├─ '}{label}", child
        if depth is None or depth > 1:
            deeper = None if depth is None else depth - 1
            yield from _lines(child, deeper, guide + ("   " if last else "│  "))
