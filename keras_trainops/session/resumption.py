"""Resuming a run from its newest checkpoint."""

from __future__ import annotations

from typing import Any

from keras_trainops import keras_private
from keras_trainops.errors import RestoreError
from keras_trainops.session import changes
from keras_trainops.session.callback_states import CallbackStates
from keras_trainops.session.log import SessionLog
from keras_trainops.session.progress import Ending, FitLength, Progress
from keras_trainops.session.state.data import DataPosition
from keras_trainops.session.state.snapshot import gradient_sums_of, restore_variables, variables_of
from keras_trainops.session.storage.store import SavedStep
from keras_trainops.session.summaries import constant_learning_rates


class Resumption:
    """The continuation of a run from a checkpoint.

    Args:
        checkpoint: The checkpoint.
        length: The length of the current `fit`.
        data: The position in its data, None for a plain `keras.Model`.
        log: The log of the session.

    Attributes:
        progress: The position of the checkpoint.
        ending: Why and whether nothing is left to train.
        within_epoch: If True, the checkpoint is in the middle of an epoch, which continues there.

    Raises:
        ValueError: If the epoch of the checkpoint had more batches than it has now.
    """

    def __init__(
        self, checkpoint: SavedStep, length: FitLength, data: DataPosition | None, log: SessionLog
    ) -> None:
        self._checkpoint, self._record = checkpoint, checkpoint.record
        self._length, self._data, self._log = length, data, log
        record = checkpoint.record
        self.within_epoch = record.batch > 0 and data is not None and record.data is not None
        start = record.step - (record.batch if self.within_epoch else 0)
        self.progress = Progress(record.step, epoch_start=start)
        reason = record.ended
        if not reason and length.reaches_limit(record.step):
            reason = length.limit_reached
        self.ending = Ending(reason, is_final=bool(reason) or record.epoch >= length.epochs)
        if self.within_epoch and not self.ending.is_final:
            changes.check_enough_batches(checkpoint, length.batches)

    def begin(self, model: Any) -> tuple[float, ...]:
        """Restore the model, and let Keras's loop and the data continue from the checkpoint.

        Args:
            model: The model.

        Returns:
            The constant learning rates with which the run began.

        Raises:
            RestoreError: If the checkpoint is from another model; nothing was changed.
        """
        compiled = constant_learning_rates(model.optimizer)
        self._restore_model(model)
        initial = self._record.learning_rates or compiled
        self._report_position()
        self._report_changes(compiled, initial, constant_learning_rates(model.optimizer))
        epoch = self._length.epochs if self.ending.reason else self._record.epoch
        keras_private.start_at_epoch(model, epoch)
        if self.ending.is_final:
            reason = self.ending.reason or "all epochs are trained"
            self._log.report(f"nothing is left to do: {reason}")
        elif self._data is not None:
            self._data.resume()
        return initial

    def begin_epoch(self, model: Any, callbacks: CallbackStates) -> None:
        """Restore everything again after other callbacks have seen `on_epoch_begin`.

        Their changes, such as a new learning rate, already happened in the resumed run.

        Args:
            model: The model.
            callbacks: The other callbacks.
        """
        if self.within_epoch:
            if not self._restore_model(model):
                self._log.report("this fit has other metrics: they start over within this epoch")
            self.restore_callbacks(callbacks)

    def restore_callbacks(self, callbacks: CallbackStates) -> None:
        """Restore the state of other callbacks."""
        for name in callbacks.restore(self._record.callbacks, self._checkpoint.arrays):
            self._log.report(f"ignored the saved state of {name}: there is no such callback")

    def _restore_model(self, model: Any) -> bool:
        """Restore the model and its optimizer, and return True if the metrics were restored too."""
        if not model.variables:
            raise RestoreError(
                f"{model.name!r} has no variables to resume yet: call it on a batch before `fit`, "
                "or mix in `TrainOpsMixin`."
            )
        if model.optimizer is not None and not model.optimizer.built:
            model.optimizer.build(model.trainable_variables)
        saved = self._checkpoint
        arrays = {key: saved.arrays[key] for key in saved.record.variables}
        sums = gradient_sums_of(model)
        return restore_variables(arrays, variables_of(model), str(saved.path), sums)

    def _report_position(self) -> None:
        record = self._record
        position = f"epoch {record.epoch + 1}"
        if record.batch:
            position += f", batch {record.batch + 1}"
        self._log.report(
            f"resumed from step {record.step} ({position}) of '{self._checkpoint.path}'"
        )
        if record.batch and not self.within_epoch:
            self._log.report(
                f"epoch {record.epoch + 1} starts over, although {record.batch} of its batches "
                f"were trained: {self._why_epoch_starts_over()}"
            )

    def _why_epoch_starts_over(self) -> str:
        if self._data is None:
            return (
                "a plain keras.Model cannot resume within an epoch, "
                "`keras_trainops.with_train_ops(model)` can"
            )
        return "the checkpoint is from a plain keras.Model, which cannot resume within an epoch"

    def _report_changes(
        self, compiled: tuple[float, ...], initial: tuple[float, ...], resumed: tuple[float, ...]
    ) -> None:
        """Log changed data and learning rates; see `changes.learning_rate_changes`."""
        batch_size = None if self._data is None else self._data.epochs.batch_size
        for line in (
            *changes.data_changes(self._record, batch_size, self._length.batches),
            *changes.learning_rate_changes(compiled, initial, resumed),
        ):
            self._log.report(line)
