"""The state that the mixin keeps on a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import keras

from keras_trainops import keras_private
from keras_trainops.gradients.base import GradientSource
from keras_trainops.training.norm_logs import NormLogs
from keras_trainops.training.numerics import NumericsGuard
from keras_trainops.training.steps.logs import StepLogs
from keras_trainops.training.trainability import Trainability
from keras_trainops.updates.functions import PolicyEntry
from keras_trainops.updates.policy import UpdatePolicy

COMPILE_ARGUMENTS = ("updates", "variables_to_train", "check_numerics", "gradients")


@dataclass(frozen=True)
class Compiled:
    """The result of one `compile`; a later `compile` or `add_update` replaces it as a whole.

    Attributes:
        arguments: The `compile` arguments of the mixin that the optimizer does not keep.
        policy: The updates that run.
        numerics: The guard of `check_numerics=True`.
        need_our_step_for: The arguments that only our training step supports, as users name them.
        trainability: The layers and weights that were trainable; None before the first `compile`.
    """

    arguments: Mapping[str, Any] = field(default_factory=lambda: dict.fromkeys(COMPILE_ARGUMENTS))
    policy: UpdatePolicy = field(default_factory=lambda: UpdatePolicy(None, []))
    numerics: NumericsGuard | None = None
    need_our_step_for: tuple[str, ...] = ()
    trainability: Trainability | None = None


@dataclass
class FitState:
    """State that lasts for one `fit`.

    Attributes:
        evaluation: Returns the context for evaluations by callbacks, for example with averaged
            weights; None if there is none.
        follow_data: Called once with Keras's iterator over epochs; None if no callback follows it.
        follows: Whether a callback follows the data.
        runs: Whether a `fit` runs.
        facts: What all processes of a run must have in common, by a name for messages.
        iterator: Keras's iterator over epochs, once it is known.
        dataset: The `tf.data.Dataset` that is trained on; None for other data.
        agreed: Whether the processes have compared that.
        state_unchecked: Whether the first step is still to compare the weights of the processes.
    """

    evaluation: Callable[[], AbstractContextManager[None]] | None = None
    follow_data: Callable[[Any], None] | None = None
    follows: bool = False
    runs: bool = False
    facts: dict[str, Any] = field(default_factory=dict)
    iterator: Any = None
    dataset: Any = None
    agreed: bool = False
    state_unchecked: bool = False

    def show_data(self, iterator: Any) -> bool:
        """Pass the data to the callback that follows them, once; return whether that happened."""
        self.iterator = iterator if self.iterator is None else self.iterator
        if self.runs and iterator is not None:
            facts = keras_private.facts_of_data(iterator)
            if not facts.keys() <= self.facts.keys():  # data of a validation come later
                self.dataset = keras_private.dataset_of(iterator)
                self.facts.update(facts)
        if self.follow_data is None or iterator is None:
            return False
        follow_data, self.follow_data, self.follows = self.follow_data, None, True
        follow_data(iterator)
        return True


def no_logs() -> dict[bool, StepLogs]:
    """Return logs for a model whose steps return none but the loss."""
    return {True: StepLogs(), False: StepLogs()}


@dataclass
class TrainOps:
    """The state that the mixin keeps on a model.

    Attributes:
        registered: Updates added by `add_update`.
        compiled: The result of the last `compile`.
        norms: The norms of monitors, for the logs.
        step_logs: The other logs of a user's step: of training by True, of evaluation by False.
        probed: Which of the user's steps were run on shapes, by the same keys.
        evaluating: Whether an evaluation runs.
        fit: State that lasts for one `fit`.
        carried: Variables that steps pass on and that no layer, metric or optimizer has.
        why_unbuilt: Why the model could not be built before its first step; empty if it could.
        evaluates_all: Whether a whole `evaluate` runs, not a single batch.
        agreed: What was compiled when processes last compared what they train.
        steps: How often our step, or Keras's after it in the MRO, was run or traced.
        before_first_step: Values to restore if the first user-defined step is refused; None if
            none are needed.
    """

    registered: list[PolicyEntry] = field(default_factory=list)
    compiled: Compiled = field(default_factory=Compiled)
    norms: NormLogs = field(default_factory=NormLogs)
    step_logs: dict[bool, StepLogs] = field(default_factory=no_logs)
    probed: set[bool] = field(default_factory=set)
    evaluating: bool = False
    evaluates_all: bool = False
    agreed: Compiled | None = None
    fit: FitState = field(default_factory=FitState)
    carried: list[keras.Variable] = field(default_factory=list)
    why_unbuilt: str = ""
    steps: int = 0
    before_first_step: list[tuple[keras.Variable, Any]] | None = None

    @property
    def arguments(self) -> Mapping[str, Any]:
        """The `compile` arguments of the mixin that the optimizer does not keep."""
        return self.compiled.arguments

    @property
    def gradients(self) -> GradientSource | None:
        """The source of gradients; None for those of the loss."""
        return self.arguments["gradients"]

    @property
    def policy(self) -> UpdatePolicy:
        """The updates that run."""
        return self.compiled.policy

    @property
    def numerics(self) -> NumericsGuard | None:
        """The guard of `check_numerics=True`."""
        return self.compiled.numerics

    @contextmanager
    def evaluation(self, *, whole: bool) -> Iterator[None]:
        """Surround an evaluation, of all data or of one batch; it may happen within a `fit`."""
        before = self.evaluating, self.evaluates_all
        self.evaluating, self.evaluates_all = True, whole
        try:
            yield
        finally:
            self.evaluating, self.evaluates_all = before

    @contextmanager
    def outside_evaluation(self) -> Iterator[None]:
        """Look at the state of training, which waits while an evaluation runs."""
        before, self.evaluating = self.evaluating, False
        try:
            yield
        finally:
            self.evaluating = before

    @property
    def log_variables(self) -> list[keras.Variable]:
        """The variables of norms and logs of the step that runs.

        Those of training and of evaluation are found at different times, and the state of a
        compiled step must not change.
        """
        if self.evaluating:
            return self.step_logs[False].variables
        return [*self.norms.variables, *self.step_logs[True].variables]

    def norm_logs(self) -> dict[str, Any]:
        """Return the averages of norms; nothing in an evaluation."""
        return {} if self.evaluating else self.norms.result()

    def reset_logs(self) -> None:
        """Start new averages; in an evaluation those of training go on."""
        self.step_logs[not self.evaluating].reset()
        if not self.evaluating:
            self.norms.reset()

    def needs_our_step(self) -> bool:
        """Return whether an argument needs the mixin's training step instead of Keras's.

        The arguments that do are among `Compiled.need_our_step_for`. `Monitor` is there too, but
        not counted here: with it Keras's step works, as it calls the mixin's `compute_metrics`.
        """
        policy = self.policy
        needed = self.numerics or policy.after_weights or self.gradients is not None
        return bool(needed or not policy.keeps_layer_updates)
