"""Cost of a training step and of a restore on a GPU, with JAX or PyTorch.

A transformer of about 100 million parameters trains in mixed precision, with a chain of five
transforms and without any; both take turns, one round after the other. Then its weights are
restored from a `.safetensors` file into the memory of the device, and compared with copying as many
bytes from the host. Every time is taken once the device is done. Printed are medians with
quartiles, and the name of the card.

    KERAS_BACKEND=jax python tests/benchmarks/gpu.py [--tiny] [--rounds 20]
        [--policy mixed_float16] [step] [restore]

Without a GPU only `--tiny` runs, which shows that the script works: its figures mean nothing.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from safetensors.numpy import save_file
from step_time import five_transforms, interleave

import keras_trainops as kt

STEP_GOAL, RESTORE_GOAL = 1.02, 1.2
BACKEND = keras.backend.backend()


def card() -> str | None:
    """Return the name of the GPU that is used; None if there is none."""
    if BACKEND == "jax":
        import jax

        device = jax.devices()[0]
        return None if device.platform == "cpu" else device.device_kind
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def synchronize(tensors: Any) -> None:
    """Wait until the device has computed these tensors."""
    if BACKEND == "jax":
        import jax

        jax.block_until_ready(tensors)
    else:
        import torch

        if torch.cuda.is_available():
            torch.cuda.synchronize()


def to_device(arrays: list[np.ndarray]) -> list[Any]:
    """Copy arrays from the host to new memory of the device."""
    if BACKEND == "jax":
        import jax

        return [jax.device_put(array, may_alias=False) for array in arrays]
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    return [torch.tensor(array, device=device) for array in arrays]


def transformer(tiny: bool) -> tuple[keras.Model, int, int]:
    """Return a decoder, the size of its vocabulary, and the length of its inputs."""
    width, depth, head, vocabulary, length = (
        (32, 2, 16, 64, 16) if tiny else (768, 12, 64, 16_384, 512)
    )
    layers = keras.layers
    tokens = keras.Input((length,), dtype="int32")
    x = layers.Embedding(vocabulary, width)(tokens)
    for _ in range(depth):
        y = layers.LayerNormalization()(x)
        y = layers.MultiHeadAttention(width // head, head)(y, y, use_causal_mask=True)
        x = layers.add([x, y])
        y = layers.LayerNormalization()(x)
        y = layers.Dense(width)(layers.Dense(4 * width, activation="gelu")(y))
        x = layers.add([x, y])
    logits = layers.Dense(vocabulary, dtype="float32")(layers.LayerNormalization()(x))
    return keras.Model(tokens, logits), vocabulary, length


class Seconds(keras.callbacks.Callback):
    """Seconds of the steps of the last epoch, once the device is done with them."""

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._start = time.perf_counter()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if batch + 1 == self.params["steps"]:
            synchronize([v.value for v in self.model.trainable_variables])
            self.seconds = (time.perf_counter() - self._start) / self.params["steps"]


def report(seconds: Mapping[str, list[float]], goal: float | None) -> None:
    """Print the table, and whether the last variant is within the goal, if there is one."""
    first = next(iter(seconds))
    print("| | ms | ratio |\n|---|---|---|")
    for name, values in seconds.items():
        pairs = zip(values, seconds[first], strict=True)
        low, middle, high = quartiles([value / base for value, base in pairs])
        milliseconds = ", ".join(f"{1e3 * q:.2f}" for q in quartiles(values))
        print(f"| {name} | {milliseconds} | {middle:.3f} ({low:.3f} to {high:.3f}) |")
    if goal is not None:
        print(f"goal {goal}: {'reached' if middle <= goal else 'missed'}")


def quartiles(values: list[float]) -> list[float]:
    return statistics.quantiles(values, n=4, method="inclusive")


def steps(rounds: int, tiny: bool, policy: str) -> None:
    """A step with the chain of five transforms, against one without any."""
    keras.mixed_precision.set_global_policy(policy)
    batch, count = (2, 4) if tiny else (16, 20)

    def variant(transforms: Any) -> Callable[[], float]:
        keras.utils.set_random_seed(1)
        net, vocabulary, length = transformer(tiny)
        model = kt.with_train_ops(net)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.AdamW(1e-4), loss, gradient_transforms=transforms)
        rng = np.random.default_rng(0)
        x = rng.integers(0, vocabulary, (batch * count, length)).astype("int32")
        callback = Seconds()

        def run() -> float:
            model.fit(x, np.roll(x, -1, 1), batch_size=batch, verbose=0, callbacks=[callback])
            return callback.seconds

        if transforms is None:
            print(f"\n{net.count_params() / 1e6:.0f} M parameters, {policy}, AdamW")
            print(f"batches of {batch} x {length} tokens; a step, quartiles:")
        return run

    variants = {"no transform": variant(None), "five transforms": variant(five_transforms())}
    report(interleave(variants, rounds, "step"), None if tiny else STEP_GOAL)
    keras.mixed_precision.set_global_policy("float32")


def restores(rounds: int, tiny: bool) -> None:
    """A restore into the memory of the device, against one copy of the same bytes."""
    model, _, _ = transformer(tiny)
    arrays = [keras.ops.convert_to_numpy(v) for v in model.variables if v.dtype == "float32"]

    def clock(run: Callable[[], Any]) -> Callable[[], float]:
        def timed() -> float:
            start = time.perf_counter()
            synchronize(run())
            return time.perf_counter() - start

        return timed

    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "model.safetensors")
        save_file(dict(zip((v.path for v in model.variables), arrays, strict=True)), path)

        def restore() -> list[Any]:
            kt.restore(model, path)
            return [v.value for v in model.variables]

        variants = {
            "copy from the host": clock(lambda: to_device(arrays)),
            "kt.restore": clock(restore),
        }
        print(f"\n{sum(a.nbytes for a in arrays) / 1e6:.0f} MB of float32; quartiles:")
        report(interleave(variants, rounds, "restore"), None if tiny else RESTORE_GOAL)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("parts", nargs="*", choices=["step", "restore", []])
    parser.add_argument("--tiny", action="store_true", help="a smoke test, on a CPU too")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--policy", default="mixed_bfloat16", help="JAX has no float16 on a CPU")
    options = parser.parse_args()
    if BACKEND not in ("jax", "torch"):
        parser.error(f"KERAS_BACKEND must be jax or torch. Received: {BACKEND}")
    name = card()
    if name is None and not options.tiny:
        print(f"No GPU is visible to {BACKEND}: nothing is measured. `--tiny` runs on a CPU.")
        return
    where = name or "the CPU (no GPU is visible: the figures mean nothing)"
    print(f"Keras {keras.__version__}, {BACKEND} {version(BACKEND)}, on {where}")
    rounds = min(options.rounds, 3) if options.tiny else options.rounds
    parts = options.parts or ["step", "restore"]
    if "step" in parts:
        steps(rounds, options.tiny, options.policy)
    if "restore" in parts:
        restores(rounds, options.tiny)


if __name__ == "__main__":
    main()
