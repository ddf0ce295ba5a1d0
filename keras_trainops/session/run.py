"""The training of one `fit` in a log directory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras

from keras_trainops import keras_private
from keras_trainops.session.agreement import Agreement, Wishes
from keras_trainops.session.callback_states import CallbackStates
from keras_trainops.session.interruption import Interruption, SessionInterrupted
from keras_trainops.session.log import SessionLog
from keras_trainops.session.progress import Ending, FitLength, Progress
from keras_trainops.session.resumption import Resumption
from keras_trainops.session.state.data import DataPosition
from keras_trainops.session.state.data_order import order_warning
from keras_trainops.session.state.record import DataState, Record, with_others
from keras_trainops.session.state.snapshot import variables_of
from keras_trainops.session.storage.directory import LogDirectory
from keras_trainops.session.summaries import Summaries, constant_learning_rates


class Run:
    """The training of one `fit`, saved to a log directory and resumed from it.

    A *step* is one trained batch. The state of a run is saved between two steps, or after the last
    step of an epoch once all callbacks have seen its end. Creating a run restores the model, so
    create it before anything else uses the model.

    Args:
        directory: The open log directory.
        data: The position in the data, None for a plain `keras.Model`.
        get_model: Function that returns the model, synchronized with the training loop; this takes
            time on JAX.
        params: The parameters of `fit` that Keras gives to callbacks.

    Attributes:
        resumed: If True, the run continues an earlier one.

    Raises:
        RestoreError: If the checkpoint is from another model; nothing was changed.
        ValueError: If the epoch of the checkpoint had more batches than it has now; nothing was
            changed.
    """

    def __init__(
        self,
        directory: LogDirectory,
        data: DataPosition | None,
        get_model: Callable[[], Any],
        params: Mapping[str, Any],
    ) -> None:
        self._directory, self._data = directory, data
        self._get_model, self._model = get_model, get_model()
        self._length = FitLength.of(self._model, params, directory.settings)
        if directory.checkpoint is None:
            self._resumption: Resumption | None = None
            self._progress, self._ending = Progress(), Ending()
            self._learning_rates = constant_learning_rates(self._model.optimizer)
            self.log.report(f"started in '{directory.settings.logdir}'")
        else:
            with directory.processes.agreed("to resume the run"):
                self._resumption = Resumption(directory.checkpoint, self._length, data, self.log)
            self._progress, self._ending = self._resumption.progress, self._resumption.ending
            self._learning_rates = self._resumption.begin(self._model, directory.processes)
        directory.on_close(lambda: keras_private.start_at_epoch(self._model, None))
        self.resumed = self._resumption is not None
        self._callbacks = CallbackStates(())
        self._interruption = Interruption()
        self._interruption.listen()
        directory.on_close(self._interruption.stop_listening)
        self._agreement = Agreement(directory.processes, directory.saver.until_due)
        self._summaries = Summaries(directory.settings, self.step, self.log, directory.processes)
        directory.on_close(self._summaries.close)
        self._report_data_order()
        directory.saver.start(self.step, variables_of(self._model))

    @property
    def step(self) -> int:
        """Number of steps trained by all runs on the directory."""
        return self._progress.step

    @property
    def log(self) -> SessionLog:
        """The log of the session."""
        return self._directory.log

    def _report_data_order(self) -> None:
        reason = None if self._data is None else order_warning(self._data.epochs)
        if reason:
            self.log.report(f"a resumed run may not see the same batches: {reason}")

    def track_callbacks(self, callbacks: Sequence[keras.callbacks.Callback]) -> None:
        """Save the state of other callbacks too, and restore it.

        Args:
            callbacks: The other callbacks, after their `on_train_begin`.
        """
        self._callbacks = CallbackStates(callbacks)
        if self._resumption is not None:
            self._resumption.restore_callbacks(self._callbacks)

    def begin_epoch(self, epoch: int) -> None:
        """Handle the beginning of an epoch, after all other callbacks."""
        self._progress.epoch = epoch
        if self._resumption is not None:
            self._resumption.begin_epoch(self._model, self._callbacks, self._directory.processes)
            self._resumption = None
        self._directory.forget_checkpoint()

    def before_batch(self, batch: int) -> None:
        """Handle the moment between two steps.

        Args:
            batch: The next batch, the first of a block of `steps_per_execution`.

        Raises:
            SessionInterrupted: If a SIGTERM has arrived; a checkpoint is written first.
        """
        self._progress.begin_batch(batch)
        self._stop_at_limit()
        if not batch:
            return
        if self._summaries.is_due(self.step):
            model = self._get_model()
            self._summaries.write(model, model.get_metrics_result(), self.step)
        do = self._agreement.between_steps(self.step, self._wishes)
        if do.interrupt and self._has_more():
            self._save_and_interrupt(self._progress.epoch, batch)
        if do.save and self._data is not None and self._has_more():
            self._save(self._progress.epoch, batch, announced=True)

    def _wishes(self) -> Wishes:
        return Wishes(
            save=self._directory.saver.is_due(self.step),
            interrupt=self._interruption.requested,
            stop=bool(self._model.stop_training),
        )

    def _stop_at_limit(self) -> None:
        """Stop training after the next block, if it reaches `stop_at_step`."""
        batch, length = self._progress.batch, self._length
        block = length.batches_until(batch + length.block) - batch
        if length.reaches_limit(self.step + block):
            self._ending.at_limit = self._model.stop_training = True

    def _has_more(self) -> bool:
        return self._data is None or self._data.epochs.has_more()

    def after_batches(self) -> None:
        """Handle the moment after an epoch's last step, before its validation.

        Must also be called before other callbacks see the end of an epoch.
        """
        if self._ending.is_final:
            return
        trained = self._trained_batches()
        self._progress.step = self._progress.epoch_start + trained
        within_epoch = trained != self._length.batches and self._has_more()
        if self._ending.at_limit and within_epoch:
            self._ending.is_final = True
            self._save(self._progress.epoch, trained, announced=False)

    def _trained_batches(self) -> int:
        """Return the number of batches that were trained in this epoch."""
        if self._data is None or self._model.stop_training:
            return self._length.batches_until(self._progress.batch + self._length.block)
        return self._length.batches_until(self._data.epochs.trained)

    def end_epoch(self, epoch: int, logs: Mapping[str, Any]) -> None:
        """Handle the end of an epoch, after all other callbacks.

        Args:
            epoch: The epoch that ends.
            logs: Its loss and metrics.

        Raises:
            SessionInterrupted: If a SIGTERM has arrived; a checkpoint is written first.
        """
        self._write_epoch_summaries(logs)
        if self._ending.is_final:
            return
        self._progress.end_epoch()
        do = self._agreement.at_end_of_epoch(self.step, self._wishes)
        self._model.stop_training = do.stop
        if self._model.stop_training and not self._ending.at_limit:
            self._ending.reason = f"a callback stopped training in epoch {epoch + 1}"
        is_last = epoch + 1 >= self._length.epochs
        if do.interrupt and not is_last:
            self._save_and_interrupt(epoch + 1, 0)
        is_over = is_last or self._ending.at_limit or bool(self._ending.reason)
        if is_over or do.save:
            self._save(epoch + 1, 0, announced=False)

    def _write_epoch_summaries(self, logs: Mapping[str, Any]) -> None:
        """Write the metrics of the validation, and all others if they are due."""
        validation = {k: v for k, v in logs.items() if k.startswith("val_")}
        if self._summaries.is_due(self.step):
            others = {k: v for k, v in logs.items() if k not in validation and k != "learning_rate"}
            self._summaries.write(self._get_model(), others, self.step)
        self._summaries.write_logs(validation, self.step)

    def _save(self, epoch: int, batch: int, announced: bool) -> None:
        """Save a checkpoint; see `DataPosition.state` for the arguments."""
        callbacks, arrays = self._callbacks.state()
        record = Record(
            step=self.step,
            epoch=epoch,
            batch=batch,
            ended=self._ending.reason,
            batches=self._length.batches,
            learning_rates=self._learning_rates,
            callbacks=callbacks,
            variables=(),
            data=self._data_state(epoch, batch, announced),
        )
        self._directory.saver.save(self._get_model(), record, arrays, self._summaries.flush)

    def _data_state(self, epoch: int, batch: int, announced: bool) -> DataState | None:
        if self._data is None:
            return None
        return with_others(self._data.state(epoch, batch, announced), self._directory.processes)

    def _save_and_interrupt(self, epoch: int, batch: int) -> None:
        self._save(epoch, batch, announced=batch > 0)
        self._directory.saver.finish()
        raise SessionInterrupted(self.step)

    def end(self) -> None:
        """Handle the regular end of training.

        Raises:
            OSError: If the final checkpoint could not be written.
        """
        self._directory.saver.finish()
        if self._ending.at_limit:
            self._ending.reason = self._length.limit_reached
        reason = self._ending.reason or f"all {self._length.epochs} epochs are trained"
        self.log.report(f"stopped at step {self.step}: {reason}")
