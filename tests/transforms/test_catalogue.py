"""Each transform against its formula in NumPy, and optax's numbers where the semantics agree."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import optax
import pytest
from keras import ops

from keras_trainops.transforms.layouts import unit_axes
from keras_trainops.transforms.monitoring import HISTOGRAM_EDGES
from keras_trainops.transforms.scope import owners_scope, update_scope
from tests.gradients import GRADIENTS, T, close, each, run, variables
from tests.helpers import numpy, value

L = keras.layers
RNG = np.random.default_rng(1)
COLUMNS = {"kernel": (0,)}


def by_optax(transformation: Any, gradients: list[np.ndarray], weights: Any = None) -> list[Any]:
    state = transformation.init(weights if weights is not None else gradients)
    out, _ = transformation.update(gradients, state, weights)
    return [np.asarray(g, dtype="float64") for g in out]


# --- Adaptive clipping, and which part of a weight is one unit


def agc(w: np.ndarray, g: np.ndarray, axes: Any, clipping: float) -> np.ndarray:
    norm_w = np.sqrt((w**2).sum(axis=axes, keepdims=True))
    norm_g = np.sqrt((g**2).sum(axis=axes, keepdims=True))
    limit = clipping * np.maximum(norm_w, 1e-3)
    return np.where(norm_g > limit, g * limit / np.maximum(norm_g, 1e-6), g)


def test_adaptive_clip() -> None:
    g = [np.array(x) for x in GRADIENTS if x is not None]
    g[0][:, 0] *= 1e-3  # one unit that is small enough
    clipped = run(T.AdaptiveClip(0.2, axes=COLUMNS), [g[0], g[1], None, g[2]])
    ones = [np.ones_like(x) for x in g]
    expected = [agc(w, x, 0 if x.ndim == 2 else None, 0.2) for w, x in zip(ones, g, strict=True)]
    close([clipped[0], clipped[1], clipped[3]], expected)
    np.testing.assert_allclose(clipped[0][:, 0], g[0][:, 0], rtol=1e-6)
    assert np.abs(clipped[0][:, 1] - g[0][:, 1]).max() > 0.1


@pytest.mark.parametrize("shape", [(5, 3), (3, 2, 4, 5)])
def test_adaptive_clip_gives_optax_numbers_for_dense_and_convolution(shape: Any) -> None:
    layer = L.Dense(shape[-1]) if len(shape) == 2 else L.Conv2D(5, (3, 2))
    layer.build((None, *((5,) if len(shape) == 2 else (8, 8, 4))))
    clip = T.AdaptiveClip(0.01)
    with owners_scope([layer]):
        clip.build(layer.trainable_variables)
    gradients = [RNG.normal(size=v.shape).astype("float32") for v in layer.trainable_variables]
    ours = clip([ops.convert_to_tensor(g) for g in gradients], layer.trainable_variables)
    weights = [value(v) for v in layer.trainable_variables]
    close([numpy(g) for g in ours], by_optax(optax.adaptive_grad_clip(0.01), gradients, weights))


def units_by_experiment(call: Any, kernel: keras.Variable, features: int) -> np.ndarray:
    """Which output unit each element of a kernel feeds: what changes when the element does."""
    start, units = value(kernel), np.empty(kernel.shape, dtype=object)
    base = call()
    for index in np.ndindex(*kernel.shape):
        changed = start.copy()
        changed[index] += 1.0
        kernel.assign(changed)
        moved = np.abs(call() - base) > 1e-4
        axes = tuple(range(moved.ndim - features))
        units[index] = tuple(np.flatnonzero(moved.any(axis=axes).ravel()))
        assert units[index]
    kernel.assign(start)
    return units


LAYERS: dict[str, tuple[Any, tuple[int, ...], int]] = {
    "dense": (lambda: L.Dense(3), (4,), 1),
    "conv1d": (lambda: L.Conv1D(3, 2), (5, 2), 1),
    "conv2d": (lambda: L.Conv2D(3, 2), (4, 4, 2), 1),
    "conv2d grouped": (lambda: L.Conv2D(4, 2, groups=2), (4, 4, 4), 1),
    "conv3d": (lambda: L.Conv3D(3, 2), (3, 3, 3, 2), 1),
    "conv1d transposed": (lambda: L.Conv1DTranspose(3, 2), (4, 2), 1),
    "conv2d transposed": (lambda: L.Conv2DTranspose(3, 2), (3, 3, 2), 1),
    "conv3d transposed": (lambda: L.Conv3DTranspose(3, 2), (2, 2, 2, 2), 1),
    "depthwise 1d": (lambda: L.DepthwiseConv1D(2, depth_multiplier=2), (5, 3), 1),
    "depthwise 2d": (lambda: L.DepthwiseConv2D(2, depth_multiplier=2), (4, 4, 3), 1),
    "einsum": (lambda: L.EinsumDense("abc,cde->abde", (3, 2, 3)), (3, 4), 2),
    "einsum, two summed": (lambda: L.EinsumDense("abcd,cde->abe", (3, 5)), (3, 2, 2), 1),
}


def attention_parts() -> dict[str, Any]:
    attention = L.MultiHeadAttention(2, 3, name="attention")
    attention.build((None, 4, 5), (None, 4, 5))
    return {
        "query": (attention.query_dense, (4, 5), 2),
        "key": (attention.key_dense, (4, 5), 2),
        "value": (attention.value_dense, (4, 5), 2),
        "output": (attention.output_dense, (4, 2, 3), 1),
    }


@pytest.mark.parametrize("name", [*LAYERS, "query", "key", "value", "output"])
def test_a_unit_is_what_feeds_one_output_of_the_layer(name: str) -> None:
    layer, shape, features = LAYERS[name] if name in LAYERS else attention_parts()[name]
    layer = layer if isinstance(layer, L.Layer) else layer()
    x = RNG.normal(size=(2, *shape)).astype("float32")
    layer(x)
    (kernel,) = [v for v in layer.trainable_variables if v.name.endswith("kernel")]
    with owners_scope([layer]):
        (axes,) = unit_axes([kernel])
    expected = units_by_experiment(lambda: numpy(layer(x)), kernel, features)
    assert axes
    assert len({*expected.ravel()}) == expected.size // np.prod([kernel.shape[a] for a in axes])
    for index in np.ndindex(*kernel.shape):
        first = tuple(0 if axis in axes else i for axis, i in enumerate(index))
        assert expected[index] == expected[first]


def test_the_layouts_of_the_other_layers() -> None:
    inputs = keras.Input((6, 8, 2))
    x = L.SeparableConv2D(4, 3, depth_multiplier=2, name="separable")(inputs)
    x = L.BatchNormalization(name="norm")(x)
    x = L.Reshape((-1, 4))(x)
    x = L.LSTM(3, name="lstm")(x)
    words = keras.Input((4,), dtype="int32")
    y = L.Flatten()(L.Embedding(5, 3, name="words")(words))
    z = L.MultiHeadAttention(2, 3, name="attention")(inputs[:, 0], inputs[:, 0])
    x = L.Concatenate()([x, y, L.Flatten()(z)])
    model = keras.Model([inputs, words], L.Dense(1, name="head")(x))
    with owners_scope(list(model._flatten_layers())):
        axes = dict(
            zip(
                [v.path for v in model.trainable_variables],
                unit_axes(model.trainable_variables),
                strict=True,
            )
        )
    assert axes["separable/depthwise_kernel"] == (0, 1)
    assert axes["separable/pointwise_kernel"] == (0, 1, 2)
    assert axes["norm/gamma"] is None
    assert axes["lstm/lstm_cell/recurrent_kernel"] == (0,)
    assert axes["words/embeddings"] == (1,)
    assert axes["attention/query/bias"] is None
    assert axes["attention/attention_output/kernel"] == (0, 1)
    assert axes["head/kernel"] is None  # one output: all of it is one unit


def test_a_layout_that_is_not_known_must_be_given() -> None:
    made = variables()
    with pytest.raises(ValueError, match=r"'trunk/kernel' of shape \(4, 3\).*`axes=\{pat"):
        T.AdaptiveClip(0.1).build(made)
    with pytest.raises(ValueError, match=r"must be axes of the shape \(4, 3\)\. Received: \(2,\)"):
        T.Centralize(axes={"trunk/kernel": (2,), "kernel": (0,)}).build(made)
    T.Centralize(axes={".*": None}).build(made)


def test_adaptive_norm_clip_follows_its_formula() -> None:
    clip, made = T.AdaptiveNormClip(deviations=1.5, decay=0.8), variables()
    clip.build(made)
    mean = square = 0.0
    clipped = 0
    for step, size in enumerate([1, 1.2, 0.9, 1.1, 9, 1, 0.8, 5, np.inf, 1, 1.3]):
        gradients = each(lambda g, size=size: g * size)
        norm = np.sqrt(sum((g**2).sum() for g in gradients if g is not None))
        if np.isfinite(norm):
            counted = step if step < 8 else step - 1  # one norm was not finite
            decay = min(0.8, counted / (counted + 1))
            mean = decay * mean + (1 - decay) * np.log(norm + 1e-8)
            square = decay * square + (1 - decay) * np.log(norm + 1e-8) ** 2
        limit = np.exp(mean + 1.5 * np.sqrt(max(1e-8, square - mean**2)))
        factor = 1.0 if norm < limit else np.exp(mean) / norm
        clipped += factor < 0.9
        tensors = [None if g is None else ops.convert_to_tensor(g, "float32") for g in gradients]
        out = clip(tensors, made)
        if np.isfinite(norm):
            expected = [None if g is None else g * factor for g in gradients]
            close([None if g is None else numpy(g) for g in out], expected, rtol=2e-5)
    assert 2 <= clipped <= 4


# --- Centring, normalising, noise


def test_centralize() -> None:
    out = run(T.Centralize(axes=COLUMNS))
    kernels = [0, 3]
    expected = [
        g - g.mean(0) if i in kernels else g for i, g in enumerate(GRADIENTS) if g is not None
    ]
    close([g for g in out if g is not None], expected)
    given = [g.astype("float32").T for g in GRADIENTS if g is not None]
    theirs = by_optax(optax.centralize(), given)  # takes the first axis for the output
    close([g for g in out if g is not None], [g.T for g in theirs])


def test_normalize() -> None:
    norm = np.sqrt(sum((g**2).sum() for g in GRADIENTS if g is not None))
    close(run(T.Normalize(2.0)), each(lambda g: 2.0 * g / (norm + 1e-6)))
    alone = T.Normalize(2.0, scope="variable")
    close(run(alone), each(lambda g: 2.0 * g / (np.linalg.norm(g) + 1e-6)))
    given = [g.astype("float32") for g in GRADIENTS if g is not None]
    theirs = by_optax(optax.normalize_by_update_norm(scale_factor=2.0), given)
    close([g for g in run(T.Normalize(2.0)) if g is not None], theirs)


def test_noise_has_the_variance_of_its_formula_and_is_its_own_seed_s() -> None:
    variable = keras.Variable(np.zeros((200, 200)), name="kernel")
    zeros = [ops.zeros((200, 200))]

    def draws(noise: T.Noise, count: int) -> list[np.ndarray]:
        noise.build([variable])
        return [numpy(noise(zeros, [variable])[0]) for _ in range(count)]

    first = draws(T.Noise(0.04, decay=0.55, seed=1), 10)
    for step, drawn in enumerate(first):
        assert np.abs(drawn.mean()) < 0.005
        assert drawn.std() == pytest.approx(np.sqrt(0.04 / (1 + step) ** 0.55), rel=0.02)
    assert np.abs(np.corrcoef(first[0].ravel(), first[1].ravel())[0, 1]) < 0.02
    again, other = draws(T.Noise(0.04, seed=1), 1), draws(T.Noise(0.04, seed=2), 1)
    np.testing.assert_array_equal(again[0], first[0])
    assert np.abs(other[0] - first[0]).max() > 0.1
    assert T.Noise().seed != T.Noise().seed


# --- Bad gradients


def test_zero_non_finite() -> None:
    bad = [np.array([1.0, np.nan, np.inf]), np.array([[-np.inf, 2.0]])]
    made = [keras.Variable(np.zeros(g.shape), name=f"v{i}") for i, g in enumerate(bad)]
    zero = T.ZeroNonFinite()
    zero.build(made)
    out = [numpy(g) for g in zero([ops.convert_to_tensor(g, "float32") for g in bad], made)]
    close(out, [np.array([1.0, 0, 0]), np.array([[0, 2.0]])])
    only_nan = np.array([1.0, np.nan, 3.0], "float32")
    (theirs,) = by_optax(optax.zero_nans(), [only_nan])
    (ours,) = zero([ops.convert_to_tensor(only_nan)], made[:1])
    np.testing.assert_array_equal(numpy(ours), theirs)


# --- Parts, factors, norms


def test_only_sees_the_others_as_if_they_were_not_there() -> None:
    g = GRADIENTS
    trunk = np.sqrt((g[0] ** 2).sum() + (g[1] ** 2).sum())
    out = run(T.Only("trunk", T.ClipByGlobalNorm(0.5)))
    close(out, [g[0] * 0.5 / trunk, g[1] * 0.5 / trunk, None, g[3]])
    nested = T.Only(["trunk", "head"], [T.Only("head", T.Scale(2.0)), lambda g, v: g])
    close(run(nested), [g[0], g[1], None, g[3] * 2])
    assert T.Only("head", T.ClipByNorm(1.0)).clips
    with pytest.raises(ValueError, match="Pattern 'haed' matches no variable"):
        run(T.Only("haed", T.Scale(1.0)))
    with pytest.raises(ValueError, match="returned 0 gradients for 1 variables"):
        run(T.Only("head", lambda g, v: []))


def test_layerwise_decay_scales_the_step_by_timm_s_factors() -> None:
    made = variables()
    decay = T.LayerwiseDecay(0.5, ["trunk/kernel", "trunk/bias", ["unused", "head"]], min_scale=0.3)
    decay.build(made)
    assert list(decay.step_factors(made)) == [0.3, 0.5, 1.0, 1.0]
    chain = T.Chain([decay, T.ScaleStep({"head": 0.5}), T.Only("trunk", T.ScaleStep(2.0))])
    chain.build(made)
    with update_scope(lambda: 0):
        assert list(chain.step_factors(made)) == [0.6, 1.0, 1.0, 0.5]


def test_monitor_tells_norms_and_counts() -> None:
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


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: T.AdaptiveClip(0.0), r"`clipping` must be > 0. Received: clipping=0.0"),
        (lambda: T.AdaptiveClip(0.1, epsilon=-1), r"`epsilon` must be > 0. Received: epsilon=-1"),
        (lambda: T.AdaptiveNormClip(decay=1.0), r"`decay` must be at least 0 and below 1"),
        (lambda: T.AdaptiveNormClip(0), r"`deviations` must be > 0"),
        (lambda: T.Normalize(-1.0), r"`norm` must be > 0. Received: norm=-1.0"),
        (lambda: T.Normalize(scope="all"), r'`scope` must be "global" or "variable"'),
        (lambda: T.Noise(-1.0), r"`variance` must be >= 0. Received: variance=-1.0"),
        (lambda: T.Noise(seed=1.5), r"`seed` must be an integer or None"),
        (lambda: T.SkipNonFinite(-1), r"`max_consecutive` must be an integer >= 0, or None"),
        (lambda: T.SkipNonFinite(1.5), r"`max_consecutive` must be an integer >= 0, or None"),
        (lambda: T.SkipLarge(0), r"`max_norm` must be > 0"),
        (lambda: T.LayerwiseDecay(1.5, ["a"]), r"`decay` must be above 0 and at most 1"),
        (lambda: T.LayerwiseDecay(0.5, []), r"must name at least one pattern"),
        (lambda: T.Only([], T.Scale(1.0)), r"`patterns` must name variables"),
        (lambda: T.Monitor(name=""), r"`name` must be a name"),
    ],
)
def test_arguments_that_make_no_sense(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
