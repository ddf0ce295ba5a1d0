"""Cost of a training step, compared with stock Keras and with optax (JAX) or tf_slim (TensorFlow).

Everything is paired: a round runs every variant once, one after the other in one process, the next
round in the opposite order; the first round is dropped. Printed are medians: of the seconds, and of
the rounds' ratios to the variant in the first row, with their quartiles. "Keras again" is that
variant a second time: the distance of its ratio from 1 is noise.

    python tests/benchmarks/step_time.py [--quick] [--case mlp] [step] [executions] [average]
        [first-fit] [optax] [slim]
"""

from __future__ import annotations

import argparse
import functools
import gc
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, TypeVar

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from tqdm import tqdm

import keras_trainops as kt

T = TypeVar("T")

CLIP, FIVE = "ClipByGlobalNorm", "five transforms"
STEP_TARGETS = {CLIP: 1.00, FIVE: 1.03}
FIRST_FIT_TARGETS = {"tensorflow": 0.5, "jax": 1.0}
BACKEND = keras.backend.backend()


@dataclass(frozen=True)
class Case:
    """A model to train.

    Attributes:
        build: Makes it, as stock Keras.
        shape: The shape of one input.
        steps: Steps in a timed epoch.
        rounds: Timed epochs of each variant.
        first_fits: Timed first fits of each variant.
        has_statistics: Whether layers update statistics.
    """

    build: Callable[[], keras.Model]
    shape: tuple[int, ...]
    steps: int
    rounds: int
    first_fits: int
    has_statistics: bool = False

    def data(self, steps: int) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and targets for so many steps of a batch of 16."""
        rng = np.random.default_rng(0)
        count = 16 * steps
        x = rng.normal(size=(count, *self.shape)).astype("float32")
        return x, rng.normal(size=(count, 10)).astype("float32")


def mlp() -> keras.Model:
    """A small MLP, in which the step's own cost is not hidden by arithmetic."""
    x = inputs = keras.Input((64,))
    for i in range(4):
        x = keras.layers.Dense(64, activation="relu", name=f"dense{i}")(x)
    return keras.Model(inputs, keras.layers.Dense(10, name="head")(x))


def residual() -> keras.Model:
    """150 residual blocks: many small variables."""
    x = inputs = keras.Input((64,))
    for i in range(150):
        x = keras.layers.add([x, keras.layers.Dense(64, activation="relu", name=f"dense{i}")(x)])
    return keras.Model(inputs, keras.layers.Dense(10, name="head")(x))


def large() -> keras.Model:
    """1 GB of parameters: how often memory is passed over decides."""
    x = inputs = keras.Input((8192,))
    for i in range(4):
        x = keras.layers.Dense(8192, activation="relu", name=f"dense{i}")(x)
    return keras.Model(inputs, keras.layers.Dense(10, name="head")(x))


def mobilenet() -> keras.Model:
    """A real network, with batch norm."""
    return keras.applications.MobileNetV2(
        input_shape=(96, 96, 3), weights=None, classes=10, classifier_activation=None
    )


CASES = {
    "tensorflow": {
        "mlp": Case(mlp, (64,), steps=400, rounds=24, first_fits=20),
        "residual": Case(residual, (64,), steps=25, rounds=16, first_fits=5),
        "mobilenet": Case(
            mobilenet, (96, 96, 3), steps=4, rounds=10, first_fits=3, has_statistics=True
        ),
        "large": Case(large, (8192,), steps=2, rounds=5, first_fits=1),
    },
    "jax": {
        "mlp": Case(mlp, (64,), steps=400, rounds=40, first_fits=20),
        "residual": Case(residual, (64,), steps=50, rounds=20, first_fits=8),
        "mobilenet": Case(
            mobilenet, (96, 96, 3), steps=1, rounds=8, first_fits=2, has_statistics=True
        ),
        "large": Case(large, (8192,), steps=2, rounds=5, first_fits=1),
    },
}


def five_transforms() -> list[kt.transforms.GradientTransform]:
    """A long chain."""
    t = kt.transforms
    return [
        t.ZeroNonFinite(),
        t.Centralize(),
        t.Scale(2.0),
        t.ClipByNorm(1.0),
        t.ClipByGlobalNorm(1.0),
    ]


def stock(build: Callable[[], keras.Model], loss: Any = "mse", **options: Any) -> keras.Model:
    """The model as Keras trains it."""
    keras.utils.set_random_seed(1)
    model = build()
    model.compile(keras.optimizers.Adam(**(options or {"global_clipnorm": 1.0})), loss)
    return model


def ours(
    build: Callable[[], keras.Model],
    transforms: Any,
    loss: Any = "mse",
    epsilon: float = 1e-7,
    **arguments: Any,
) -> keras.Model:
    """The same model as this library trains it."""
    keras.utils.set_random_seed(1)
    model = kt.with_train_ops(build())
    optimizer = keras.optimizers.Adam(epsilon=epsilon)
    model.compile(optimizer, loss, gradient_transforms=transforms, **arguments)
    return model


class Seconds(keras.callbacks.Callback):
    """Seconds of the last epoch: not of `fit`, which idles after it."""

    def on_epoch_begin(self, epoch: int, logs: object = None) -> None:
        self._started = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: object = None) -> None:
        self.seconds = time.perf_counter() - self._started


class FirstStep(keras.callbacks.Callback):
    """When training began, and when its first step was done."""

    def on_train_begin(self, logs: object = None) -> None:
        self.began = time.perf_counter()

    def on_train_batch_end(self, batch: int, logs: object = None) -> None:
        self.done = time.perf_counter()


def epoch_in_fit(model: keras.Model, x: Any, y: Any, batch_size: int = 16) -> float:
    """Trains an epoch."""
    timer = Seconds()
    model.fit(x, y, batch_size=batch_size, shuffle=False, verbose=0, callbacks=[timer])
    return timer.seconds


def interleave(runs: Mapping[str, Callable[[], T]], rounds: int, label: str) -> dict[str, list[T]]:
    """Return the results of all rounds by the name of the variant."""
    results: dict[str, list[T]] = {name: [] for name in runs}
    progress = tqdm(total=(rounds + 1) * len(runs), desc=label, leave=False)
    for i in range(rounds + 1):
        for name in list(runs) if i % 2 else reversed(list(runs)):
            gc.collect()
            results[name].append(runs[name]())
            progress.update()
        if i == 0:
            gc.freeze()  # the traced models are many objects to look through
    progress.close()
    gc.unfreeze()
    return {name: values[1:] for name, values in results.items()}


def table(
    title: str,
    seconds: Mapping[str, Sequence[float]],
    steps: int = 0,
    targets: dict[str, float] | None = None,
) -> None:
    """Prints a row per variant, beside the first."""
    (reference, base), *_ = seconds.items()
    print(f"\n{title}, {len(base)} rounds")
    unit, scale = ("µs a step", 1e6 / steps) if steps else ("s", 1.0)
    print(f"  {'':34s} {unit:>10s}   ratio  (quartiles)     target")
    for name, times in seconds.items():
        row = f"  {name:34s} {scale * statistics.median(times):10.{0 if steps else 3}f}"
        if name != reference:
            ratios = [t / b for t, b in zip(times, base, strict=True)]
            low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
            row += f"   {middle:.3f}  ({low:.3f} to {high:.3f})"
            target = (targets or {}).get(name)
            if target is not None:
                verdict = "reached" if middle <= target else "missed"
                row += f"  {target:.2f} {verdict}"
        print(row, flush=True)


def fresh() -> None:
    """Forgets models and compiled functions."""
    keras.backend.clear_session()
    if BACKEND == "jax":
        import jax

        jax.clear_caches()


def steps_in_fit(name: str, case: Case, rounds: int) -> None:
    """Seconds of a step in `fit`."""
    fresh()
    x, y = case.data(case.steps)
    models = {
        "Keras, global_clipnorm": stock(case.build),
        "Keras again": stock(case.build),
        CLIP: ours(case.build, kt.transforms.ClipByGlobalNorm(1.0)),
        FIVE: ours(case.build, five_transforms()),
    }
    if BACKEND == "tensorflow" and case.has_statistics:
        models[f"{CLIP}, LayerUpdates"] = ours(
            case.build, kt.transforms.ClipByGlobalNorm(1.0), updates=[kt.updates.LayerUpdates()]
        )
    jit = models[CLIP].jit_compile
    runs = {key: functools.partial(epoch_in_fit, model, x, y) for key, model in models.items()}
    seconds = interleave(runs, rounds, f"step, {name}")
    title = f"Step in fit: {name}, batch 16, {case.steps} steps an epoch, jit_compile={jit}"
    table(title, seconds, case.steps, STEP_TARGETS)


def executions(name: str, case: Case, rounds: int) -> None:
    """Seconds of a step in `fit` that makes ten steps in one execution."""
    fresh()
    x, y = case.data(10 * (case.steps // 10))

    def at_once(model: keras.Model) -> keras.Model:
        model.steps_per_execution = 10
        return model

    models = {
        "Keras, global_clipnorm": at_once(stock(case.build)),
        "Keras again": at_once(stock(case.build)),
        CLIP: at_once(ours(case.build, kt.transforms.ClipByGlobalNorm(1.0))),
        FIVE: at_once(ours(case.build, five_transforms())),
        "Keras, steps_per_execution=1": stock(case.build),
    }
    runs = {key: functools.partial(epoch_in_fit, model, x, y) for key, model in models.items()}
    seconds = interleave(runs, rounds, f"executions, {name}")
    table(f"Step in fit with steps_per_execution=10: {name}, batch 16", seconds, len(x) // 16)


def averages(name: str, case: Case, rounds: int) -> None:
    """Seconds of a step in `fit` that keeps an average of the weights."""
    fresh()
    x, y = case.data(case.steps)
    updates = [kt.updates.LayerUpdates(), kt.updates.MovingAverage(0.99)]
    models = {
        "Keras, use_ema": stock(case.build, use_ema=True, ema_momentum=0.99),
        "Keras again": stock(case.build, use_ema=True, ema_momentum=0.99),
        "MovingAverage": ours(case.build, None, updates=updates),
    }
    runs = {key: functools.partial(epoch_in_fit, model, x, y) for key, model in models.items()}
    seconds = interleave(runs, rounds, f"average, {name}")
    table(f"Step in fit with averages: {name}, batch 16", seconds, case.steps)


def first_fits(name: str, case: Case, rounds: int) -> None:
    """Seconds of tracing and compiling, and a step: of new models every time."""
    x, y = case.data(1)

    def first(make: Callable[[], keras.Model]) -> tuple[float, float]:
        fresh()
        gc.collect()
        model, timer = make(), FirstStep()
        called = time.perf_counter()
        model.fit(x, y, batch_size=16, verbose=0, callbacks=[timer])
        return timer.done - called, timer.done - timer.began

    def stock_with_slots() -> keras.Model:
        model = stock(case.build)
        model.optimizer.build(model.trainable_variables)
        return model

    makes = {
        "Keras, global_clipnorm": lambda: stock(case.build),
        CLIP: lambda: ours(case.build, kt.transforms.ClipByGlobalNorm(1.0)),
    }
    if BACKEND == "tensorflow":  # where Keras traces twice, if the first trace makes the slots
        makes["Keras, optimizer built before"] = stock_with_slots
    runs = {key: functools.partial(first, make) for key, make in makes.items()}
    both = interleave(runs, rounds, f"first fit, {name}")
    for i, since in enumerate(("the call of fit", "on_train_begin")):
        table(
            f"First fit: {name}, from {since} to the end of the first step",
            {key: [pair[i] for pair in pairs] for key, pairs in both.items()},
            targets={CLIP: FIRST_FIT_TARGETS[BACKEND]},
        )


def beside_optax(rounds: int) -> None:
    """The MLP's step in a bare loop of jitted JAX, the chain being optax's, and ours."""
    import jax
    import optax

    # Not `optax.centralize`, which averages over the last axes of a Keras kernel, not the first.
    centralize = optax.stateless_with_tree_map(
        lambda g, _: g - jax.numpy.mean(g, axis=0, keepdims=True) if g.ndim > 1 else g
    )
    zero_non_finite = optax.stateless_with_tree_map(  # `optax.zero_nans` keeps infinities
        lambda g, _: jax.numpy.where(jax.numpy.isfinite(g), g, 0.0)
    )
    clip_by_norm = optax.stateless_with_tree_map(
        lambda g, _: g / jax.numpy.maximum(jax.numpy.sqrt(jax.numpy.sum(g * g)), 1.0)
    )
    chains = {
        "scale, clip_by_global_norm": (
            [optax.scale(1.0), optax.clip_by_global_norm(1.0)],
            lambda: [kt.transforms.Scale(1.0), kt.transforms.ClipByGlobalNorm(1.0)],
        ),
        FIVE: (
            [
                zero_non_finite,
                centralize,
                optax.scale(2.0),
                clip_by_norm,
                optax.clip_by_global_norm(1.0),
            ],
            five_transforms,
        ),
    }
    fresh()
    case = CASES["jax"]["mlp"]
    x, y = case.data(case.steps)
    batches = [
        (jax.device_put(a), jax.device_put(b))
        for a, b in zip(np.split(x, case.steps), np.split(y, case.steps), strict=True)
    ]
    for name, (theirs, transforms) in chains.items():
        # Keras's ε is not quite where optax has it: so small that it does not matter.
        model = ours(mlp, transforms(), epsilon=1e-12)
        weights = [jax.numpy.array(v.value) for v in model.trainable_variables]
        loops = {
            "optax, bare loop": optax_loop([*theirs, optax.adam(1e-3, eps=1e-12)], weights),
            "ours, bare loop": keras_loop(model),
            "Keras, global_clipnorm, bare loop": keras_loop(stock(mlp)),
        }
        note = likeness(*list(loops.values())[:2], batches[:10])
        runs = {key: functools.partial(loop.epoch, batches) for key, loop in loops.items()}
        runs["ours, fit"] = functools.partial(epoch_in_fit, ours(mlp, transforms()), x, y)
        runs["Keras, global_clipnorm, fit"] = functools.partial(epoch_in_fit, stock(mlp), x, y)
        table(f"Beside optax: mlp, {name}", interleave(runs, rounds, "optax"), case.steps)
        print(note)
    print(
        "  A bare loop calls one jitted step after the other on batches that are on the device. "
        "Ours\n  and Keras's is `model.train_function`, which keeps the loss metric, too; fit adds "
        "callbacks\n  and the data pipeline to it."
    )


@dataclass(frozen=True)
class Loop:
    """A training loop.

    Attributes:
        weights: Gives the weights.
        epoch: Trains on batches, and gives the seconds that it took.
    """

    weights: Callable[[], Sequence[Any]]
    epoch: Callable[[Sequence[Any]], float]


def likeness(first: Loop, second: Loop, batches: Sequence[Any]) -> str:
    """Trains both a little, and tells by how much their weights then differ."""
    before = [np.array(w) for w in first.weights()]
    first.epoch(batches)
    second.epoch(batches)
    after = [np.array(w) for w in first.weights()]
    apart = [a - np.array(b) for a, b in zip(after, second.weights(), strict=True)]
    moved = [a - b for a, b in zip(after, before, strict=True)]
    share = np.sqrt(sum((d**2).sum() for d in apart) / sum((d**2).sum() for d in moved))
    return f"  The first two after {len(batches)} steps: {share:.1%} apart of the way they went."


def optax_loop(chain: Sequence[Any], weights: Sequence[Any]) -> Loop:
    """Trains the MLP with optax and nothing else."""
    import jax
    import optax

    optimizer = optax.chain(*chain)

    def loss_of(weights: Sequence[Any], x: Any, y: Any) -> Any:
        *hidden, (kernel, bias) = zip(weights[::2], weights[1::2], strict=True)
        for w, b in hidden:
            x = jax.nn.relu(x @ w + b)
        return jax.numpy.mean(jax.numpy.square(x @ kernel + bias - y))

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state: Any, x: Any, y: Any) -> Any:
        weights, slots = state
        loss, gradients = jax.value_and_grad(loss_of)(weights, x, y)
        steps, slots = optimizer.update(gradients, slots, weights)
        return (optax.apply_updates(weights, steps), slots), loss

    state = (list(weights), optimizer.init(list(weights)))

    def epoch(batches: Sequence[Any]) -> float:
        nonlocal state
        started = time.perf_counter()
        for batch in batches:
            state, _ = step(state, *batch)
        jax.block_until_ready(state)
        return time.perf_counter() - started

    return Loop(lambda: state[0], epoch)


def keras_loop(model: keras.Model) -> Loop:
    """Trains with the jitted step that `fit` calls, without `fit`."""
    import jax

    x, y = CASES["jax"]["mlp"].data(1)
    model.fit(x, y, verbose=0, epochs=0)  # makes the train function, the slots and the metrics
    groups = (
        model.trainable_variables,
        model.non_trainable_variables,
        model.optimizer.variables,
        model.metrics_variables,
    )
    state: Any = tuple([jax.numpy.array(v.value) for v in group] for group in groups)

    def epoch(batches: Sequence[Any]) -> float:
        nonlocal state
        started = time.perf_counter()
        iterator = iter(batches)
        for _ in batches:
            _, state = model.train_function(state, iterator)
        jax.block_until_ready(state)
        return time.perf_counter() - started

    return Loop(lambda: state[0], epoch)


def cnn() -> keras.Model:
    """A small CNN for digits."""
    x = inputs = keras.Input((28, 28, 1))
    for i, filters in enumerate((16, 32)):
        conv = keras.layers.Conv2D(filters, 3, 2, "same", activation="relu", name=f"conv{i}")
        x = conv(x)
    x = keras.layers.Flatten(name="flatten")(x)
    return keras.Model(inputs, keras.layers.Dense(10, name="head")(x))


def beside_slim(rounds: int, steps: int = 200, batch_size: int = 32) -> None:
    """The CNN's step with `tf_slim.learning.create_train_op` in a graph and session, and ours."""
    fresh()
    rng = np.random.default_rng(0)
    x = rng.normal(size=(batch_size * steps, 28, 28, 1)).astype("float32")
    y = rng.integers(0, 10, size=(batch_size * steps,))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model = ours(cnn, kt.transforms.ClipByNorm(1.0), loss)
    compiled = ours(cnn, kt.transforms.ClipByNorm(1.0), loss, jit_compile=True)
    slim = slim_loop(model.get_weights(), x, y, batch_size)
    fit = functools.partial(epoch_in_fit, x=x, y=y, batch_size=batch_size)
    few = 10 * batch_size
    ours_once = Loop(model.get_weights, lambda _: epoch_in_fit(model, x[:few], y[:few], batch_size))
    note = likeness(slim, ours_once, range(10))
    runs = {
        "tf_slim, sess.run": lambda: slim.epoch(range(steps)),
        f"ours, fit, jit_compile={model.jit_compile}": functools.partial(fit, model),
        "ours, fit, jit_compile=True": functools.partial(fit, compiled),
        "Keras, clipnorm, fit": functools.partial(fit, stock(cnn, loss, clipnorm=1.0)),
    }
    title = f"Beside tf_slim: CNN, batch {batch_size}, ClipByNorm"
    table(title, interleave(runs, rounds, "tf_slim"), steps)
    print(
        f"{note}\n  A session runs the train op on batches of a tf.data pipeline; fit adds "
        "callbacks and the loss metric."
    )


def slim_loop(weights: Sequence[np.ndarray], x: Any, y: Any, batch_size: int) -> Loop:
    """Trains the CNN as users of slim do: graph, session, train op."""
    import tensorflow as tf
    import tf_slim as slim
    from tensorflow.python.framework import ops

    ops.IndexedSlices = tf.IndexedSlices  # where tf_slim 1.1 looks for it to clip gradients
    with tf.Graph().as_default():
        batches = tf.data.Dataset.from_tensor_slices((x, y)).batch(batch_size, drop_remainder=True)
        batches = batches.repeat().prefetch(tf.data.AUTOTUNE)
        hidden, labels = tf.compat.v1.data.make_one_shot_iterator(batches).get_next()
        variables = [
            tf.compat.v1.get_variable(f"w{i}", initializer=w, use_resource=True)
            for i, w in enumerate(weights)
        ]
        *convs, (kernel, bias) = zip(variables[::2], variables[1::2], strict=True)
        for w, b in convs:
            hidden = tf.nn.relu(tf.nn.bias_add(tf.nn.conv2d(hidden, w, 2, "SAME"), b))
        logits = tf.reshape(hidden, (batch_size, -1)) @ kernel + bias
        loss = tf.reduce_mean(
            tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=logits)
        )
        optimizer = tf.compat.v1.train.AdamOptimizer(1e-3, epsilon=1e-7)
        train_op = slim.learning.create_train_op(loss, optimizer, clip_gradient_norm=1.0)
        session = tf.compat.v1.Session()
        session.run(tf.compat.v1.global_variables_initializer())

    def epoch(batches: Sequence[Any]) -> float:
        started = time.perf_counter()
        for _ in batches:
            session.run(train_op)
        return time.perf_counter() - started

    return Loop(lambda: session.run(variables), epoch)


def main() -> None:
    sections = {
        "tensorflow": ["step", "average", "first-fit", "slim"],
        # On JAX plain Keras cannot train again after a fit with `use_ema`.
        "jax": ["step", "executions", "first-fit", "optax"],
    }
    cases = CASES[BACKEND]
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("sections", nargs="*", help=f"of {', '.join(sections[BACKEND])}")
    parser.add_argument("--case", action="append", choices=cases, help="default: all")
    parser.add_argument("--quick", action="store_true", help="a smoke test: mlp only, few rounds")
    parser.add_argument("--rounds", type=int, help="of everything")
    options = parser.parse_args()
    chosen = options.sections or sections[BACKEND]
    if not set(chosen) <= set(sections[BACKEND]):
        parser.error(f"on {BACKEND} the sections are: {', '.join(sections[BACKEND])}")
    names = options.case or (["mlp"] if options.quick else list(cases))

    def rounds(usual: int) -> int:
        return options.rounds or (min(usual, 5) if options.quick else usual)

    beside = {"tensorflow": "tf_slim", "jax": "optax"}[BACKEND]
    packages = ["keras", BACKEND, beside, "numpy", "keras_trainops"]
    print(", ".join(f"{p} {version(p)}" for p in packages))
    load = " ".join(f"{value:.1f}" for value in os.getloadavg())
    print(f"{os.cpu_count()} cores, load average {load}; {', '.join(chosen)}: {', '.join(names)}")
    for name in names:
        if "step" in chosen:
            steps_in_fit(name, cases[name], rounds(cases[name].rounds))
        if "executions" in chosen and cases[name].steps >= 10:
            executions(name, cases[name], rounds(cases[name].rounds))
        if "average" in chosen:
            averages(name, cases[name], rounds(cases[name].rounds))
        if "first-fit" in chosen:
            first_fits(name, cases[name], rounds(cases[name].first_fits))
    if "optax" in chosen:
        beside_optax(rounds(40))
    if "slim" in chosen:
        beside_slim(rounds(20))


if __name__ == "__main__":
    main()
