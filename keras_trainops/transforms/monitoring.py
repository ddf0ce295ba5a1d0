"""Monitoring of gradients: norms for the logs, histograms for TensorBoard."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_trainops import paths
from keras_trainops.transforms.pending import Gradients, Pending, joint_norm
from keras_trainops.transforms.rescaling import Stackable

_POSITIVE = 10.0 ** np.arange(-10, 5.5, 0.5)
HISTOGRAM_EDGES = np.concatenate([-_POSITIVE[::-1], _POSITIVE]).astype("float32")


@keras.saving.register_keras_serializable(package="keras_trainops")
class Monitor(Stackable):
    """Records the gradients at its place in the chain, and leaves them unchanged.

    In a model with `TrainOpsMixin` the L2 norms, averaged over the epoch's weight updates, appear
    in the logs of `fit` and in the history: `name` for all variables together, `name/label` for
    each group. To see the effect of a clip, put one monitor before it and one after it, with
    different names. `keras_trainops.MonitorBoard` plots the norms of each step in TensorBoard.

    The averages skip norms that are not finite; callbacks can read those from `norms`.

    Args:
        groups: Mapping from label to patterns (see `keras_trainops.paths`), or a list of patterns
            that are their own labels; None records only the norm of all.
        name: The name of the joint norm in the logs; unique in a chain.
        histogram: If True, count the elements by size as well, for `MonitorBoard`.

    Attributes:
        labels: The names in the logs: `name`, then `name/label` of each group.
        norms: Variable of shape `(labels,)`, float32: the L2 norms in the last weight update.
        counts: Variable of shape `(labels, buckets)`, float32, with `histogram=True`: the number
            of elements of the last update's gradients between the `HISTOGRAM_EDGES`. An embedding
            contributes only the rows that occur.

    Returns:
        The gradients.

    Raises:
        ValueError: If `name` is empty; at the first build, if a pattern matches no variable.

    Example:
        >>> import keras_trainops as kt
        >>> T = kt.transforms
        >>> chain = [T.Monitor(["head"], name="raw"), T.ClipByGlobalNorm(1.0), T.Monitor()]

    References: `summarize_gradients` of tf.contrib.training.create_train_op.
    """

    row_sparse = True

    def __init__(
        self,
        groups: Mapping[str, paths.Patterns] | paths.Patterns = None,
        name: str = "gradient_norm",
        histogram: bool = False,
    ) -> None:
        if not isinstance(name, str) or not name:
            raise ValueError(f"`name` must be a non-empty string. Received: name={name!r}")
        if not isinstance(groups, Mapping):
            groups = {_label(pattern): [pattern] for pattern in paths.as_list(groups)}
        self.groups = {label: paths.as_list(patterns) for label, patterns in groups.items()}
        self.name, self.histogram = name, histogram
        self.labels = [name, *(f"{name}/{label}" for label in self.groups)]

    def build(self, variables: Sequence[keras.Variable]) -> None:
        groups = [paths.selected(patterns, variables) for patterns in self.groups.values()]
        self._members = [{id(v) for v in group} for group in (variables, *groups)]
        count = len(self.labels)
        self.norms = self.add_variable("norms", (count,), held=False)
        self.fresh = self.add_variable("fresh", held=False)
        if self.histogram:
            buckets = len(HISTOGRAM_EDGES) + 1
            self.counts = self.add_variable("counts", (count, buckets), held=False)

    def kind(self, variable: keras.Variable) -> tuple[bool, ...]:
        return tuple(id(variable) in members for members in self._members)

    def changed(self, gradients: Gradients) -> Gradients:
        groups = [_gradients_of(members, gradients) for members in self._members]
        norms = [joint_norm(group) if group else 0.0 for group in groups]
        self.norms.assign(ops.stack([ops.cast(norm, "float32") for norm in norms]))
        self.fresh.assign(1.0)
        if self.histogram:
            self.counts.assign(ops.stack([_counts(group) for group in groups]))
        return gradients

    def take(self) -> tuple[Any, Any]:
        """Return the norms of the last weight update, and the weight of each in an average.

        The weights are 1 for new finite norms. They are 0 if there was no update since the last
        call, for example between the batches of an accumulation.
        """
        finite = ops.isfinite(self.norms.value)
        weights = ops.cast(finite, "float32") * self.fresh
        norms = ops.where(finite, self.norms.value, 0.0)
        self.fresh.assign(0.0)
        return norms, weights

    def get_config(self) -> dict[str, Any]:
        groups = {label: paths.serializable(group) for label, group in self.groups.items()}
        return {"groups": groups, "name": self.name, "histogram": self.histogram}


def norm_metrics(monitors: list[Monitor]) -> list[keras.metrics.Metric]:
    """Create the averages for the logs, one per label.

    Raises:
        ValueError: If two monitors share a label.
    """
    labels = list(itertools.chain.from_iterable(monitor.labels for monitor in monitors))
    twice = sorted({label for label in labels if labels.count(label) > 1})
    if twice:
        raise ValueError(
            f"Two monitors log under the same name: {', '.join(twice)}. Give each `Monitor` a "
            "unique `name`."
        )
    return [keras.metrics.Mean(name=label) for label in labels]


def _gradients_of(members: set[int], gradients: Gradients) -> list[Pending]:
    """Return the gradients, except None, of the variables with these ids."""
    return [part for part in gradients.parts if id(part.variables[0]) in members]


def _label(pattern: paths.Pattern) -> str:
    if isinstance(pattern, str):
        return pattern
    return pattern.path if isinstance(pattern, keras.Variable) else pattern.name


def _counts(gradients: Sequence[Pending]) -> Any:
    """Count the elements in each bucket; NaN counts in the last."""
    buckets = len(HISTOGRAM_EDGES) + 1
    total = ops.zeros((buckets,))
    for gradient in gradients:
        values = ops.cast(ops.reshape(gradient.value(), (-1,)), "float32")
        bucket = ops.searchsorted(ops.convert_to_tensor(HISTOGRAM_EDGES), values)
        ones = ops.ones_like(values)
        total = total + ops.segment_sum(ones, ops.cast(bucket, "int32"), num_segments=buckets)
    return total
