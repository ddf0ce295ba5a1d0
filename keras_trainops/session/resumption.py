"""Resuming a run from its newest checkpoint."""

from __future__ import annotations

from typing import Any

from keras_trainops import keras_private
from keras_trainops.errors import RestoreError
from keras_trainops.processes import Processes
from keras_trainops.session import changes
from keras_trainops.session.callback_states import CallbackStates
from keras_trainops.session.log import SessionLog
from keras_trainops.session.progress import Ending, FitLength, Progress
from keras_trainops.session.state.data import DataPosition
from keras_trainops.session.state.restoring import restore_variables
from keras_trainops.session.state.snapshot import gradient_sums_of, variables_of
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

    def begin(self, model: Any, processes: Processes) -> tuple[float, ...]:
        """Restore the model, and let Keras's loop and the data continue from the checkpoint.

        Args:
            model: The model.
            processes: The processes of the run.

        Returns:
            The constant learning rates with which the run began.

        Raises:
            RestoreError: If the checkpoint is from another model; nothing was changed.
        """
        compiled = constant_learning_rates(model.optimizer)
        self._restore_model(model, processes)
        initial = self._record.learning_rates or compiled
        self._report_position()
        self._report_processes(processes)
        self._report_changes(compiled, initial, constant_learning_rates(model.optimizer))
        epoch = self._length.epochs if self.ending.reason else self._record.epoch
        keras_private.start_at_epoch(model, epoch)
        if self.ending.is_final:
            reason = self.ending.reason or "all epochs are trained"
            self._log.report(f"nothing is left to do: {reason}")
        elif self._data is not None:
            self._data.resume()
        return initial

    def begin_epoch(self, model: Any, callbacks: CallbackStates, processes: Processes) -> None:
        """Restore everything again after other callbacks have seen `on_epoch_begin`.

        Their changes, such as a new learning rate, already happened in the resumed run.

        Args:
            model: The model.
            callbacks: The other callbacks.
            processes: The processes of the run.
        """
        if self.within_epoch:
            if not self._restore_model(model, processes):
                self._log.report("this fit has other metrics: they start over within this epoch")
            self.restore_callbacks(callbacks)

    def restore_callbacks(self, callbacks: CallbackStates) -> None:
        """Restore the state of other callbacks."""
        for name in callbacks.restore(self._record.callbacks, self._checkpoint.arrays):
            self._log.report(f"ignored the saved state of {name}: there is no such callback")

    def _restore_model(self, model: Any, processes: Processes) -> bool:
        """Restore the model and its optimizer, and return True if the metrics were restored too."""
        with processes.agreed("to resume the model"):
            if not model.variables:
                raise RestoreError(
                    f"{model.name!r} has no variables to resume yet: call it on a batch before "
                    "`fit`, or mix in `TrainOpsMixin`."
                )
        if model.optimizer is not None and not model.optimizer.built:
            model.optimizer.build(model.trainable_variables)
        saved = self._checkpoint
        arrays = {key: saved.arrays[key] for key in saved.record.variables}
        sums = gradient_sums_of(model)
        variables = variables_of(model)
        return restore_variables(arrays, variables, str(saved.path), sums, processes)

    def _report_processes(self, processes: Processes) -> None:
        before, data = self._record.processes, self._record.data
        if before == processes.count:
            return
        self._log.report(f"trained by {before} processes before, and by {processes.count} now")
        if data is not None and data.others:
            self._log.report(
                "the processes drew different random numbers before, which cannot be continued by "
                "another number of them: the order of the data may change"
            )

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
