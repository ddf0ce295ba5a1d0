"""Deep Q-learning on a grid world: an online network learns from a slowly following target network.

The trained model contains both networks: it takes transitions and returns the error of
`Q(s, a) = r + γ max Q'(s', ·)`. `TargetNetwork` makes `Q'` follow `Q` within each training step
(Mnih et al. 2015; with soft updates as in Lillicrap et al. 2016).

`python examples/dqn.py` writes `examples/output/dqn.png`: the path that the learned values take
through the grid, and the length of the path during training.
"""

from __future__ import annotations

import argparse
import os
import time
from collections import deque
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from keras import ops

import keras_trainops as kt

OUTPUT = Path(__file__).parent / "output" / "dqn.png"
GAMMA = 0.95
MOVES = np.array([(-1, 0), (1, 0), (0, -1), (0, 1)])  # up, down, left, right
GRID = (
    "S..#....",
    ".#.#.##.",
    ".#...#..",
    ".####.#.",
    "......#.",
    ".##.#.#.",
    ".#..#..G",
    "...#..#.",
)


class World:
    """A walk from S to G: a step costs 0.02, walls and borders block it, the goal gives 1."""

    def __init__(self) -> None:
        self.cells = np.array([list(row) for row in GRID])
        (self.start,), (self.goal,) = (np.argwhere(self.cells == c) for c in "SG")
        self.free = np.argwhere(self.cells != "#")

    def step(self, place: np.ndarray, action: int) -> tuple[np.ndarray, float, bool]:
        """Return the next place, the reward, and True if the goal was reached."""
        to = place + MOVES[action]
        inside = (to >= 0).all() and (to < self.cells.shape).all()
        place = to if inside and self.cells[tuple(to)] != "#" else place
        done = bool((place == self.goal).all())
        return place, 1.0 if done else -0.02, done

    def encode(self, places: np.ndarray) -> np.ndarray:
        """Return places as one-hot vectors, float32, (n, cells)."""
        index = np.ravel_multi_index(np.asarray(places).T, self.cells.shape)
        return np.eye(self.cells.size, dtype="float32")[index]

    def shortest(self) -> int:
        """Return the number of steps of the shortest path, by breadth-first search."""
        queue, seen = deque([(tuple(self.start), 0)]), {tuple(self.start)}
        while queue:
            place, steps = queue.popleft()
            if place == tuple(self.goal):
                return steps
            for action in range(4):
                to = tuple(self.step(np.array(place), action)[0])
                if to not in seen:
                    seen.add(to)
                    queue.append((to, steps + 1))
        raise ValueError("the goal cannot be reached")


class Transition(NamedTuple):
    """One step in the world."""

    place: np.ndarray
    action: int
    reward: float
    to: np.ndarray
    done: bool


def q_network(cells: int, name: str) -> keras.Model:
    """Return a network that estimates the values of the four moves."""
    inputs = keras.Input((cells,))
    x = keras.layers.Dense(64, activation="relu")(inputs)
    return keras.Model(inputs, keras.layers.Dense(4)(x), name=name)


def dqn(cells: int) -> tuple[Any, keras.Model]:
    """Return the model to train, from transitions to their errors, and its online network."""
    online, target = q_network(cells, "online"), q_network(cells, "target")
    target.trainable = False
    state, action, reward, to, going_on = (
        keras.Input(shape, name=name)
        for name, shape in (
            ("state", (cells,)),
            ("action", (4,)),
            ("reward", (1,)),
            ("next_state", (cells,)),
            ("going_on", (1,)),
        )
    )
    value = ops.sum(online(state) * action, axis=1, keepdims=True)
    best = ops.max(target(to), axis=1, keepdims=True)
    error = value - ops.stop_gradient(reward + GAMMA * going_on * best)
    model = kt.TrainOpsModel([state, action, reward, to, going_on], error, name="dqn")
    model.compile(
        keras.optimizers.Adam(2e-3),
        "huber",
        gradient_transforms=kt.transforms.ClipByGlobalNorm(10.0),
        updates=[kt.updates.LayerUpdates(), kt.updates.TargetNetwork("online", "target", tau=0.02)],
    )
    return model, online


def walk(
    world: World, values: np.ndarray, epsilon: float, rng: Any, start: Any
) -> list[Transition]:
    """Return an episode of at most 60 steps that makes the best move, or sometimes a random one.

    Args:
        world: The world.
        values: Values of all moves, (rows, columns, 4).
        epsilon: Probability of a random move.
        rng: A NumPy generator.
        start: The first place.
    """
    place, way = start, []
    for _ in range(60):
        greedy = int(values[tuple(place)].argmax())
        action = int(rng.integers(4)) if rng.random() < epsilon else greedy
        to, reward, done = world.step(place, action)
        way.append(Transition(place, action, reward, to, done))
        place = to
        if done:
            break
    return way


def batches(world: World, memory: list[Transition], rng: Any, count: int) -> list[np.ndarray]:
    """Draw transitions from the memory, and return them as inputs of the model."""
    drawn = [memory[i] for i in rng.integers(len(memory), size=count)]
    place, action, reward, to, done = (np.array(part) for part in zip(*drawn, strict=True))
    return [
        world.encode(place),
        np.eye(4, dtype="float32")[action],
        reward[:, None].astype("float32"),
        world.encode(to),
        1 - done[:, None].astype("float32"),
    ]


def values_of(world: World, online: keras.Model) -> np.ndarray:
    """Return the values of all moves at all places, (rows, columns, 4)."""
    places = np.argwhere(np.ones(world.cells.shape, bool))
    values = ops.convert_to_numpy(online(world.encode(places)))
    return values.reshape(*world.cells.shape, 4)


def draw(world: World, values: np.ndarray, lengths: list[int], output: Path) -> None:
    """Draw the grid with the best moves and the path, next to the lengths of paths."""
    figure, (grid, curve) = plt.subplots(1, 2, figsize=(10, 4.6))
    best = np.ma.masked_array(values.max(-1), world.cells == "#")
    image = grid.imshow(best, cmap="viridis")
    figure.colorbar(image, ax=grid, label="value")
    for row, column in world.free:
        down, right = MOVES[values[row, column].argmax()]
        grid.annotate(
            "",
            (column + 0.3 * right, row + 0.3 * down),
            (column - 0.3 * right, row - 0.3 * down),
            arrowprops={"arrowstyle": "->", "color": "white"},
        )
    way = walk(world, values, 0.0, np.random.default_rng(0), world.start)
    places = np.array([world.start, *(t.to for t in way)])
    grid.plot(places[:, 1], places[:, 0], color="red", linewidth=2)
    for letter, place in (("S", world.start), ("G", world.goal)):
        grid.text(place[1], place[0], letter, color="red", ha="center", va="center", weight="bold")
    grid.set_title("best moves, and the way from S to G")
    curve.plot(lengths, label="learned")
    curve.axhline(world.shortest(), linestyle="--", color="gray", label="shortest")
    curve.set_xlabel("rounds")
    curve.set_ylabel("steps from S to G (60: not reached)")
    curve.legend()
    figure.tight_layout()
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=110)
    plt.close(figure)


def main() -> None:
    """Train, print the result, and draw it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    options = parser.parse_args()
    keras.utils.set_random_seed(1)
    rng = np.random.default_rng(1)
    world = World()
    model, online = dqn(world.cells.size)
    memory: list[Transition] = []
    lengths: list[int] = []
    started = time.perf_counter()
    for i in range(options.rounds):
        values = values_of(world, online)
        lengths.append(len(walk(world, values, 0.0, rng, world.start)))
        for _ in range(8):
            start = world.free[rng.integers(len(world.free))]
            if (start != world.goal).any():
                memory += walk(world, values, max(0.1, 1 - i / 20), rng, start)
        transitions = batches(world, memory, rng, 1024)
        model.fit(transitions, np.zeros((1024, 1)), batch_size=64, verbose=0)
    values = values_of(world, online)
    way = walk(world, values, 0.0, rng, world.start)
    lengths.append(len(way))
    seconds = time.perf_counter() - started
    reached = "reached" if way[-1].done else "not reached"
    print(
        f"after {seconds:.0f} s: goal {reached} in {len(way)} steps; "
        f"the shortest way has {world.shortest()}"
    )
    draw(world, values, lengths, options.output)
    print(f"picture: {options.output}")


if __name__ == "__main__":
    main()
