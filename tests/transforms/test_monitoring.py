from __future__ import annotations

import numpy as np
import pytest
from keras import ops

from keras_trainops.transforms.monitoring import HISTOGRAM_EDGES, norm_metrics
from tests.helpers import numpy, value
from tests.transforms.gradients import GRADIENTS, T, close, variables


def test_monitor_records_norms_and_counts() -> None:
    monitor, made = T.Monitor({"t": "trunk", "h": ["head"]}, name="n", histogram=True), variables()
    monitor.build(made)
    gradients = [None if g is None else g.astype("float32") for g in GRADIENTS]
    out = monitor([None if g is None else ops.convert_to_tensor(g) for g in gradients], made)
    close([None if g is None else numpy(g) for g in out], gradients)
    present = [g for g in gradients if g is not None]
    groups = [present, present[:2], present[2:]]
    assert monitor.labels == ["n", "n/t", "n/h"]
    norms = [np.sqrt(sum((g.astype("float64") ** 2).sum() for g in group)) for group in groups]
    np.testing.assert_allclose(value(monitor.norms), norms, rtol=1e-6)
    edges = np.concatenate([[-np.inf], HISTOGRAM_EDGES, [np.inf]])
    for counts, group in zip(value(monitor.counts), groups, strict=True):
        flat = np.concatenate([g.ravel() for g in group])
        np.testing.assert_array_equal(counts, np.histogram(flat, edges)[0])
    norms, weights = monitor.take()
    np.testing.assert_array_equal(numpy(weights), [1, 1, 1])
    np.testing.assert_array_equal(numpy(monitor.take()[1]), [0, 0, 0])  # taken already


def test_rejects_an_empty_name() -> None:
    with pytest.raises(ValueError, match=r"`name` must be a non-empty string"):
        T.Monitor(name="")


def test_rejects_equal_labels_of_two_monitors() -> None:
    with pytest.raises(ValueError, match=r"Two monitors log under the same name: gradient_norm\."):
        norm_metrics([T.Monitor(), T.Monitor(["head"])])
