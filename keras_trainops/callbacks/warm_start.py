"""The warm-start callback."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras

from keras_trainops.adapt.base import Adapt
from keras_trainops.errors import RestoreError
from keras_trainops.paths import Patterns, as_list
from keras_trainops.representation import CallRepr
from keras_trainops.restoring.naming.rules import Rename
from keras_trainops.restoring.planning.options import Reaction
from keras_trainops.restoring.planning.report import RestoreReport
from keras_trainops.restoring.restore import Source, restore
from keras_trainops.session.run import run_on


class WarmStart(CallRepr, keras.callbacks.Callback):
    r"""Loads weights when training begins, before the first step: all of them, or none.

    It runs once; a second `fit` does not load again, and a run that is resumed (the optimizer has
    made updates already) skips it and says so. Lazily built models need `TrainOpsMixin`, or to be
    called on a batch before.

    Args:
        source: The path of a checkpoint (see `open_checkpoint`), a mapping from name to array, or
            another Keras model.
        rename: From checkpoint key to variable path; see `restore`.
        include: Patterns of the variables to restore; None: all.
        exclude: Patterns of the variables to leave at their initial values.
        adapt: From pattern to adapter; see `restore`.
        on_missing: "error", "warn" or "ignore"; see `restore`.
        on_unexpected: "error", "warn" or "ignore"; see `restore`.
        on_mismatch: "error", "warn" or "ignore"; see `restore`.
        include_optimizer: Whether to restore the optimizer's state as well; see `restore`.
        verbose: 1 prints the report and, where it takes long, a progress bar; 0 nothing.

    Attributes:
        report: The `RestoreReport`, None before it ran or where it was skipped.

    Raises:
        RestoreError: When training begins, if anything does not fit; no variable was changed.

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
        verbose: int = 1,
    ) -> None:
        super().__init__()
        for name, patterns in (("include", include), ("exclude", exclude)):
            try:
                as_list(patterns)
            except ValueError as error:
                raise ValueError(f"`{name}` does not fit. {error}") from error
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
            "verbose": verbose,
        }
        self._done = False

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Restores, once."""
        if self._done:
            return
        # `self.model` and no other reference: on JAX it brings the variables up to date first.
        model = self.model
        run = run_on(model)  # a session puts its state back first, wherever it stands in the list
        updates = _updates_made(model)
        if run is not None and run.resumed:
            self._skip(f"the session goes on from step {run.step}.", run.log.note)
        elif updates:
            self._skip(
                f"the optimizer has made {updates} updates, so this run is resumed and keeps its "
                "weights."
            )
        else:
            self.report = _restore(model, self._source, self._options)
            if hasattr(model, "train_ops"):  # averages and target networks start from these
                model.start_updates(anew=True)
        self._done = True

    def _skip(self, why: str, note: Callable[[str], None] = lambda message: None) -> None:
        message = f"WarmStart skipped: {why}"
        note(message)
        if self._options["verbose"]:
            print(message, flush=True)


def _updates_made(model: keras.Model) -> int:
    optimizer = getattr(model, "optimizer", None)
    if optimizer is None:
        return 0
    return int(keras.ops.convert_to_numpy(optimizer.iterations))


def _restore(model: keras.Model, source: Source, options: dict[str, Any]) -> RestoreReport:
    try:
        return restore(model, source, **options)
    except RestoreError as error:
        reason = getattr(getattr(model, "train_ops", None), "why_unbuilt", "")
        if reason and not model.weights:
            raise RestoreError(f"{error} It could not be built from its data: {reason}") from error
        raise
