"""One `fit` on a log directory: what happens when."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras

from keras_trainops import keras_private
from keras_trainops.errors import RestoreError
from keras_trainops.session import changes, forks
from keras_trainops.session.callback_states import Neighbours
from keras_trainops.session.data import DataPosition
from keras_trainops.session.interruption import Interruption, SessionInterrupted
from keras_trainops.session.lock import DirectoryLock
from keras_trainops.session.log import SessionLog
from keras_trainops.session.record import Record
from keras_trainops.session.saver import Saver
from keras_trainops.session.snapshot import gradient_sums_of, put_back, variables_of
from keras_trainops.session.store import SavedStep
from keras_trainops.session.summaries import Summaries, saved_learning_rates

# The sessions of models that are about to train or training.
_SESSIONS: weakref.WeakKeyDictionary[Any, Callable[[], Run]] = weakref.WeakKeyDictionary()


@dataclass(frozen=True)
class Settings:
    """The arguments of a `TrainingSession`."""

    logdir: Path
    save_seconds: float | None
    save_steps: int | None
    summary_steps: int | None
    keep: int
    stop_at_step: int | None
    verbose: int


class Run:
    """One `fit` on a log directory.

    A *step* is one batch that was trained on. The state of a run is taken between two of them, and
    after the last of an epoch when all callbacks have seen its end.

    Args:
        settings: What the user asked for.

    Attributes:
        step: The steps until now, of all runs on the directory.
        resumed: Whether it goes on where another stood.
        is_open: Whether it has the directory.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.step = 0
        self.resumed = False
        self.log = SessionLog(settings.logdir / "session.log", settings.verbose)
        self._lock = DirectoryLock(settings.logdir / "session.lock", self.close)
        self._saver = Saver(
            settings.logdir / "checkpoints",
            settings.keep,
            settings.save_seconds,
            settings.save_steps,
            self.log,
            self._lock.require_held,
        )
        self._interruption = Interruption()
        self._summaries: Summaries | None = None
        self._checkpoint: SavedStep | None = None
        self._data: DataPosition | None = None
        self._neighbours = Neighbours([])
        self._begun = self.is_open = False
        self._stopping = self._stopped = False
        self._ended = ""

    def open(self) -> None:
        """Takes the directory, and reads what the last run left.

        Raises:
            RuntimeError: If another run has it.
            OSError: If there are checkpoints and all are damaged.
        """
        self.settings.logdir.mkdir(parents=True, exist_ok=True)
        self._lock.acquire()
        self.is_open = True
        forks.let_go_in_children(self._let_go)
        self._checkpoint = self._saver.read()
        self.resumed = self._checkpoint is not None

    def see_data(self, iterator: Any) -> None:
        """Follows the data, so that they can go on in the middle of an epoch."""
        known = None if self._checkpoint is None else self._checkpoint.record.data
        self._data = DataPosition(iterator, known)

    def begin(self, get_model: Callable[[], Any], params: Mapping[str, Any]) -> None:
        """Puts the state back, before anything else sees the model.

        Args:
            get_model: Gives the model with its state brought up to date, which costs on JAX.
            params: What Keras tells callbacks of the `fit`.

        Raises:
            RestoreError: If the checkpoint is of another model; nothing was changed.
            ValueError: If the epoch that it stands in had more batches; nothing was changed.
        """
        if self._begun:
            return
        self._get_model, self._model = get_model, get_model()
        self._epochs, self._batches = params["epochs"], params["steps"]
        self._block = self._model.steps_per_execution
        self._epoch = self._batch = self._epoch_start = 0
        self._within = False  # the resumed run stood within an epoch, which goes on there
        self._learning_rates = saved_learning_rates(self._model.optimizer)
        if self._checkpoint is None:
            self.log.say(f"started in '{self.settings.logdir}'")
        else:
            self._resume(self._checkpoint)
        self._begun = True
        self._summary_step = self.step
        self._interruption.listen()
        self._open_summaries()
        doubt = None if self._data is None else self._data.doubt()
        if doubt:
            self.log.say(f"a resumed run may not see the same batches: {doubt}")
        self._saver.start(self.step, variables_of(self._model))

    def _resume(self, checkpoint: SavedStep) -> None:
        record, model = checkpoint.record, self._model
        self.step, epoch, batch = record.step, record.epoch, record.batch
        within = batch > 0 and self._data is not None and record.data is not None
        stop = self.settings.stop_at_step
        if record.ended:
            self._ended = record.ended
        elif stop is not None and self.step >= stop:
            self._ended = f"stop_at_step={stop} is reached"
        self._stopped = bool(self._ended) or epoch >= self._epochs
        if within and not self._stopped:
            changes.refuse_fewer_batches(checkpoint, self._batches)
        self._put_back()
        self._within = within
        self._epoch_start = self.step - (batch if self._within else 0)
        where = f"epoch {epoch + 1}" + (f", batch {batch + 1}" if batch else "")
        self.log.say(f"resumed from step {self.step} ({where}) of '{checkpoint.path}'")
        if batch and not self._within:
            why = "the checkpoint is of a plain keras.Model, which cannot go on within an epoch"
            if self._data is None:
                why = (
                    "a plain keras.Model cannot go on within an epoch, "
                    "`keras_trainops.with_train_ops(model)` can"
                )
            self.log.say(
                f"epoch {epoch + 1} starts over, with weights that have seen {batch} of its "
                f"batches: {why}"
            )
        self._say_what_differs(record)
        keras_private.start_at_epoch(model, self._epochs if self._ended else epoch)
        if self._stopped:
            self.log.say(f"nothing is left to do: {self._ended or 'all epochs are trained'}")
        elif self._data is not None:
            self._data.resume()

    def _say_what_differs(self, record: Record) -> None:
        size = None if self._data is None else self._data.epochs.batch_size
        asked, used = self._learning_rates, saved_learning_rates(self._model.optimizer)
        self._learning_rates = record.learning_rates or asked
        for line in (
            *changes.of_data(record, size, self._batches),
            *changes.of_learning_rates(asked, self._learning_rates, used),
        ):
            self.log.say(line)

    def _put_back(self) -> None:
        assert self._checkpoint is not None
        model, saved = self._model, self._checkpoint
        if not model.variables:
            raise RestoreError(
                f"{model.name!r} has no variables yet to resume: call it on a batch before `fit`, "
                "or mix in `TrainOpsMixin`."
            )
        if model.optimizer is not None and not model.optimizer.built:
            model.optimizer.build(model.trainable_variables)
        arrays = {key: saved.arrays[key] for key in saved.record.variables}
        sums = gradient_sums_of(model)
        same = put_back(arrays, variables_of(model), str(saved.path), sums)
        if not same and self._within:
            self.log.say("the metrics are others than they were: they start anew in this epoch")

    def start_neighbours(self, callbacks: Sequence[keras.callbacks.Callback]) -> None:
        """Gives other callbacks their state back, after they were told that training begins."""
        self._neighbours = Neighbours(callbacks)
        self._neighbours.start()
        self._put_neighbours_back()

    def _put_neighbours_back(self) -> None:
        if self._checkpoint is not None:
            states = self._checkpoint.record.callbacks
            for name in self._neighbours.restore(states, self._checkpoint.arrays):
                self.log.say(f"the state of {name} is left out: there is no such callback now")

    def begin_epoch(self, epoch: int) -> None:
        """After all callbacks were told of a new epoch."""
        self._epoch = epoch
        if self._within:  # what they did then, they had done before in the run that is resumed
            self._put_back()
            self._put_neighbours_back()
            self._within = False
        self._checkpoint = None  # nothing of it is needed any more

    def before_batch(self, batch: int) -> None:
        """Between two steps, of which the next is the first of a block.

        Raises:
            SessionInterrupted: After a SIGTERM, when a checkpoint was written.
        """
        self._batch, self.step = batch, self._epoch_start + batch
        block = self._block if self._batches is None else min(self._block, self._batches - batch)
        stop = self.settings.stop_at_step
        if stop is not None and self.step + block >= stop:
            self._stopping = self._model.stop_training = True
        if not batch:
            return
        every = self.settings.summary_steps
        if every and self.step // every > self._summary_step // every and self._summaries:
            model = self._get_model()
            self._write_summaries(model, model.get_metrics_result())
        if self._interruption.requested and self._has_more():
            self._stop_interrupted(self._epoch, batch)
        if self._data is not None and self._saver.is_due(self.step) and self._has_more():
            self._save(self._epoch, batch, announced=True)

    def _has_more(self) -> bool:
        return self._data is None or self._data.epochs.has_more()

    def after_batches(self) -> None:
        """After an epoch's last step, before a validation and before callbacks are told."""
        if self._stopped:
            return
        stopped = self._model.stop_training
        last = self._batch + self._block
        trained = last if stopped or self._data is None else self._data.epochs.trained
        trained = trained if self._batches is None else min(trained, self._batches)
        self._trained = trained
        self.step = self._epoch_start + trained
        in_the_middle = trained != self._batches and self._has_more()
        if self._stopping and in_the_middle:
            self._stopped = True
            self._save(self._epoch, trained, announced=False)

    def end_epoch(self, epoch: int, logs: Mapping[str, Any]) -> None:
        """After all callbacks were told of an epoch's end.

        Raises:
            SessionInterrupted: After a SIGTERM, when a checkpoint was written.
        """
        if self._summaries is not None:
            self._write_epoch(logs)
        if self._stopped:
            return
        self._epoch_start = self.step
        last = epoch + 1 >= self._epochs
        if self._model.stop_training and not self._stopping:
            self._ended = f"a callback stopped training in epoch {epoch + 1}"
        if self._interruption.requested and not last:
            self._stop_interrupted(epoch + 1, 0)
        if last or self._ended or self._stopping or self._saver.is_due(self.step):
            self._save(epoch + 1, 0, announced=False)

    def _save(self, epoch: int, batch: int, announced: bool) -> None:
        callbacks, arrays = self._neighbours.state()
        data = None if self._data is None else self._data.state(epoch, batch, announced)

        def record(variables: Sequence[str]) -> Record:
            return Record(
                self.step,
                epoch,
                batch,
                self._ended,
                self._batches,
                self._learning_rates,
                callbacks,
                tuple(variables),
                data,
            )

        def prepare() -> None:
            if self._summaries is not None:
                self._summaries.flush()

        self._saver.save(self._get_model(), record, arrays, prepare)

    def _stop_interrupted(self, epoch: int, batch: int) -> None:
        self._save(epoch, batch, announced=batch > 0)
        self._saver.finish()
        raise SessionInterrupted(self.step)

    def _open_summaries(self) -> None:
        if self.settings.summary_steps is None:
            return
        try:
            self._summaries = Summaries(self.settings.logdir, self.step, self.log)
        except ImportError:
            self.log.say("no summaries: pip install 'keras-trainops[tensorboard]'")

    def _write_summaries(self, model: Any, logs: Mapping[str, Any]) -> None:
        if self._summaries is not None:
            self._summaries.write(model, logs, self.step)
            self._summary_step = self.step

    def _write_epoch(self, logs: Mapping[str, Any]) -> None:
        """What is due at the end of an epoch, and always what a validation gave."""
        assert self._summaries is not None
        every = self.settings.summary_steps or 1
        validation = {k: v for k, v in logs.items() if k.startswith("val_")}
        if self.step // every > self._summary_step // every:
            training = {
                k: v for k, v in logs.items() if k not in validation and k != "learning_rate"
            }
            self._write_summaries(self._get_model(), training)
        self._summaries.write_logs(validation, self.step)

    def end(self) -> None:
        """When training ends as it should.

        Raises:
            OSError: If the final checkpoint could not be written.
        """
        self._saver.finish()
        if self._stopping:
            self._ended = f"stop_at_step={self.settings.stop_at_step} is reached"
        why = self._ended or f"all {self._epochs} epochs are trained"
        self.log.say(f"stopped at step {self.step}: {why}")

    def close(self, error: BaseException | None = None) -> None:
        """Gives everything back, whatever became of the run."""
        if not self.is_open:
            return
        self._let_go()
        saved = self._saver.close()
        self._interruption.stop_listening()
        if self._summaries is not None:
            self._summaries.close()
        if self._begun:
            keras_private.start_at_epoch(self._model, None)
        if error is not None:
            self.log.say(f"stopped because of {type(error).__name__}: {error} ({saved})")
        self._lock.release()

    def _let_go(self) -> None:
        """Ends it without a word, as in a forked process: the directory is not its own."""
        self.is_open = False
        forks.forget(self._let_go)


def announce(model: Any, begin: Callable[[], Run] | None) -> None:
    """Lets callbacks that come earlier in the list know that a model has a session.

    Args:
        model: The model.
        begin: Begins the session, if it has not begun, and gives its run; None: it is over.
    """
    if begin is None:
        _SESSIONS.pop(model, None)
    else:
        _SESSIONS[model] = begin


def run_on(model: Any) -> Run | None:
    """The run that trains a model within a session, with its state put back; None without one."""
    begin = _SESSIONS.get(model)
    return None if begin is None else begin()
