"""The warm-start callback."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras

from keras_trainops.adapt.base import Adapt
from keras_trainops.errors import RestoreError
from keras_trainops.paths import Patterns, as_list
from keras_trainops.processes import Processes
from keras_trainops.representation import CallRepr
from keras_trainops.restoring.loading.agreement import Who
from keras_trainops.restoring.loading.room import How
from keras_trainops.restoring.naming.rules import Rename
from keras_trainops.restoring.planning.options import Reaction
from keras_trainops.restoring.planning.report import RestoreReport
from keras_trainops.restoring.restore import Plans, Source, restore
from keras_trainops.session.session import run_on


class WarmStart(CallRepr, keras.callbacks.Callback):
    r"""Load weights when training begins, before the first step: all of them, or none.

    A second `fit` does not load them again. A resumed run, in which the optimizer has already made
    updates, skips the callback and says so. Lazily built models need `TrainOpsMixin`, or a call on
    a batch before `fit`.

    Args:
        source: The path of a checkpoint (see `open_checkpoint`), a mapping from name to array, or
            another Keras model.
        rename: Mapping from checkpoint key to variable path; see `restore`.
        include: Patterns of the variables to restore, None for all.
        exclude: Patterns of the variables to leave at their initial values.
        adapt: Mapping from pattern to adapter; see `restore`.
        on_missing: "error", "warn" or "ignore"; see `restore`.
        on_unexpected: "error", "warn" or "ignore"; see `restore`.
        on_mismatch: "error", "warn" or "ignore"; see `restore`.
        include_optimizer: If True, restore the optimizer's state as well; see `restore`.
        plan: The report of another restore, or the path of its plan; see `restore`.
        processes: "each", "first" or "alone": who reads if several processes train the model; see
            `restore`.
        memory: "auto", "bounded" or "once": whether all new values may be in memory at once; see
            `restore`.
        verbose: 1 prints the report and, if loading takes long, a progress bar; 0 prints nothing.

    Attributes:
        report: The `RestoreReport`; None until weights are loaded, and if loading was skipped.

    Raises:
        ValueError: If `include` or `exclude` is not a valid pattern.
        RestoreError: When training begins, if checkpoint and model do not match; no variable was
            changed.

    Example:
        >>> import keras_trainops as kt
        >>> start = kt.WarmStart("model.ckpt-90000", rename={"conv0/(.*)": r"stem/\1"})

    References: `assign_from_checkpoint_fn` of tf.contrib.training.
    """

    def __init__(
        self,
        source: Source,
        *,
        rename: Rename = None,
        include: Patterns = None,
        exclude: Patterns = None,
        adapt: Adapt = None,
        on_missing: Reaction | None = None,
        on_unexpected: Reaction | None = None,
        on_mismatch: Reaction = "error",
        include_optimizer: bool = False,
        plan: Plans = None,
        processes: Who = "each",
        memory: How = "auto",
        verbose: int = 1,
    ) -> None:
        super().__init__()
        for name, patterns in (("include", include), ("exclude", exclude)):
            try:
                as_list(patterns)
            except ValueError as error:
                raise ValueError(f"`{name}` is not valid. {error}") from error
        self.report: RestoreReport | None = None
        self._source = source
        self._options: dict[str, Any] = {
            "rename": rename,
            "include": include,
            "exclude": exclude,
            "adapt": adapt,
            "on_missing": on_missing,
            "on_unexpected": on_unexpected,
            "on_mismatch": on_mismatch,
            "include_optimizer": include_optimizer,
            "plan": plan,
            "processes": processes,
            "memory": memory,
            "verbose": verbose,
        }
        self._done = False

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Load the weights, unless that was done before or the run is resumed."""
        if self._done:
            return
        # Only `self.model` synchronizes the variables on JAX; another reference does not.
        model = self.model
        run = run_on(model)  # begins the session, which restores its state first
        updates = _updates_made(model)
        if run is not None and run.resumed:
            self._skip(f"the session resumes from step {run.step}.", run.log.write)
        elif updates:
            self._skip(
                f"the optimizer has made {updates} updates, so this is a resumed run, which keeps "
                "its weights."
            )
        else:
            self.report = _restore(model, self._source, self._options)
            if hasattr(model, "train_ops"):  # averages and target networks start from these
                model.start_updates(anew=True)
        self._done = True

    def _skip(self, reason: str, log: Callable[[str], None] = lambda message: None) -> None:
        message = f"WarmStart skipped: {reason}"
        log(message)
        if self._options["verbose"] and Processes(self.model).is_first:
            print(message, flush=True)


def _updates_made(model: keras.Model) -> int:
    optimizer = getattr(model, "optimizer", None)
    if optimizer is None:
        return 0
    return int(keras.ops.convert_to_numpy(optimizer.iterations))


def _restore(model: keras.Model, source: Source, options: dict[str, Any]) -> RestoreReport:
    """Restore; if the model has no variables, add the reason to the error."""
    try:
        return restore(model, source, **options)
    except RestoreError as error:
        reason = getattr(getattr(model, "train_ops", None), "why_unbuilt", "")
        if reason and not model.weights:
            raise RestoreError(f"{error} It could not be built from its data: {reason}") from error
        raise
