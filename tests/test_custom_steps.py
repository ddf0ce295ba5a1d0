"""The examples of custom steps learn, and give the same numbers on the three backends."""

from __future__ import annotations

import ast
import contextlib
import importlib.util
import io
import math
import os
import re
import runpy
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.custom_step_weights import BACKENDS, names

pytestmark = pytest.mark.once

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "examples" / "custom_steps"
NAMES = names(FOLDER)
TOLERANCE = 1e-4


@contextlib.contextmanager
def from_folder() -> Iterator[None]:
    """Examples import a module next to them."""
    before = set(sys.modules)
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.syspath_prepend(str(FOLDER))
        yield
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(FOLDER)):
            del sys.modules[name]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, np.ndarray]]:
    """Weights and logs after 20 steps of each example and of the page's steps, by backend."""
    folder = tmp_path_factory.mktemp("weights")
    children = {}
    for name in BACKENDS:
        command = [sys.executable, "-m", "tests.custom_step_weights", str(folder / f"{name}.npz")]
        environment = {
            **os.environ,
            "KERAS_BACKEND": name,
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",  # the three run at the same time
            # With parallel operations TensorFlow gives other numbers (1e-3) in about one of a
            # hundred fits of a GAN, also with a step of plain Keras.
            "TF_NUM_INTEROP_THREADS": "1",
            "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".cache" / "jax"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        }
        children[name] = subprocess.Popen(
            command, env=environment, cwd=ROOT, stderr=subprocess.PIPE, text=True
        )
    for name, child in children.items():
        _, errors = child.communicate()
        assert child.returncode == 0, f"{name}: {errors[-3000:]}"
    return {name: dict(np.load(folder / f"{name}.npz")) for name in BACKENDS}


@pytest.mark.parametrize("name", NAMES)
def test_every_variable_is_the_same_on_three_backends(
    name: str, trained: dict[str, dict[str, np.ndarray]]
) -> None:
    first, *others = (
        {key: value for key, value in trained[backend].items() if key.startswith(f"{name}/")}
        for backend in BACKENDS
    )
    assert any("/log/" not in key for key in first)
    for other in others:
        assert list(other) == list(first)
        for key, value in first.items():
            limit = TOLERANCE * max(1.0, float(abs(value))) if "/log/" in key else TOLERANCE
            assert np.abs(other[key] - value).max() <= limit, key


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_page_s_keras_steps_train_as_the_one_text(
    backend: str, trained: dict[str, dict[str, np.ndarray]]
) -> None:
    found = trained[backend]
    keys = [key for key in found if key.startswith("page/own/")]
    assert len(keys) >= 4
    for key in keys:
        keras_s = found[key.replace("/own/", "/keras/")]
        np.testing.assert_allclose(found[key], keras_s, rtol=1e-6, atol=1e-7, err_msg=key)


@pytest.mark.parametrize("name", NAMES)
def test_model_and_step_have_at_most_60_lines(name: str) -> None:
    tree = ast.parse((FOLDER / f"{name}.py").read_text(encoding="utf-8"))
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    assert any("training_step" in ast.dump(node) for node in classes)
    assert sum((node.end_lineno or 0) - node.lineno + 1 for node in classes) <= 60


def numbers(pattern: str, printed: str) -> list[float]:
    """Return the numbers that a pattern finds, in order."""
    return [float(found) for found in re.findall(pattern, printed)]


def learned_to_draw(printed: str) -> bool:
    before, after, real = map(
        float, re.findall(r"digits: (\S+) before training, (\S+) after, (\S+) of", printed)[0]
    )
    return real < after < before / 2


def learned_codes(printed: str) -> bool:
    error, of_mean = map(float, re.findall(r"error: (\S+) reconstructed, (\S+) with", printed)[0])
    return error < of_mean / 2 and learned_to_draw(printed)


def learned_from_the_teacher(printed: str) -> bool:
    teacher, taught, alone = numbers(r"held-out digits: (\S+) \w+", printed)
    return teacher > taught > alone + 0.02


def learned_without_labels(printed: str) -> bool:
    before, after = numbers(r"(0\.\d+) on", printed)
    return after > before + 0.03


def learned_to_resist(printed: str) -> bool:
    robust, plain = numbers(r"attacked: (\S+),", printed)
    accuracy, _ = numbers(r"held-out digits: (\S+),", printed)
    return robust > plain + 0.3 and accuracy > 0.9


def learned_to_adapt(printed: str) -> bool:
    before, _ = numbers(r"sines: (\S+) before", printed)
    meta, plain = numbers(r"before, (\S+) after", printed)
    return meta < before / 2 and meta < plain / 1.5


def learned_in_private(printed: str) -> bool:
    private, plain = numbers(r"held-out digits: (\S+),", printed)
    (epsilon,) = numbers(r"ε = (\S+) at", printed)
    return 0.8 < private < plain and 0.5 < epsilon < 4


def learned_flat_minima(printed: str) -> bool:
    accuracy, of_sgd = numbers(r"held-out digits: (\S+),", printed)
    sharpness, sgd_sharpness = numbers(r"sharpness: (\S+),", printed)
    return accuracy > of_sgd + 0.03 and sharpness < sgd_sharpness


LEARNED: dict[str, tuple[int, Callable[[str], bool]]] = {
    "adversarial": (150, learned_to_resist),
    "byol": (400, learned_without_labels),
    "ddpm": (400, learned_to_draw),
    "distillation": (400, learned_from_the_teacher),
    "dp_sgd": (150, learned_in_private),
    "maml": (800, learned_to_adapt),
    "sam": (600, learned_flat_minima),
    "vae": (500, learned_codes),
    "wgan_gp": (200, learned_to_draw),
}


@pytest.mark.parametrize("name", NAMES)
def test_example_learns(name: str, tmp_path: Path) -> None:
    steps, learned = LEARNED[name]
    path, printed, picture = FOLDER / f"{name}.py", io.StringIO(), tmp_path / "out" / "1.png"
    draws = "picture=" in path.read_text("utf-8")
    arguments = [str(path), "--steps", str(steps), *(["--output", str(picture)] * draws)]
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed), from_folder():
        patch.setattr(sys, "argv", arguments)
        runpy.run_path(str(path), run_name="__main__")
    assert learned(printed.getvalue()), printed.getvalue()
    assert not draws or picture.read_bytes().startswith(b"\x89PNG")


def renyi_divergences(rate: float, noise: float, orders: np.ndarray) -> np.ndarray:
    """Of the sampled Gaussian mechanism, for integer orders.

    Mironov et al. 2019, "Rényi Differential Privacy of the Sampled Gaussian Mechanism", 3.3.
    """
    found = []
    for order in map(int, orders):
        terms = [
            math.log(math.comb(order, k))
            + k * math.log(rate)
            + (order - k) * math.log1p(-rate)
            + (k * k - k) / (2 * noise**2)
            for k in range(order + 1)
        ]
        found.append(np.logaddexp.reduce(terms) / (order - 1))
    return np.array(found)


@pytest.mark.parametrize(
    ("rate", "noise", "steps", "delta", "published"),
    # The tutorial of TensorFlow Privacy, "Implement Differential Privacy with TensorFlow Privacy".
    [(250 / 60000, 1.3, 15 * 240, 1e-5, 1.18), (100 / 1200, 2.0, 300, 1e-4, None)],
)
def test_the_spent_privacy_is_that_of_the_formula(
    rate: float, noise: float, steps: int, delta: float, published: float | None
) -> None:
    spec = importlib.util.spec_from_file_location("dp_sgd_example", FOLDER / "dp_sgd.py")
    assert spec is not None
    assert spec.loader is not None
    example: Any = importlib.util.module_from_spec(spec)
    with from_folder():
        spec.loader.exec_module(example)
        spent = example.spent(steps, noise, rate, delta)
    orders = np.arange(2, 64)
    divergence = steps * renyi_divergences(rate, noise, orders)
    # Mironov 2017, proposition 3; and its refinement by Canonne et al. 2020, proposition 12.
    classic = (divergence + math.log(1 / delta) / (orders - 1)).min()
    refined = divergence + np.log1p(-1 / orders) - np.log(delta * orders) / (orders - 1)
    assert spent == pytest.approx(refined.min(), rel=0.02)
    if published:
        assert classic == pytest.approx(published, abs=0.01)
