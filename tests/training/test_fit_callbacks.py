from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import keras
import pytest

from keras_trainops.training.batch_callbacks import BatchCallbacks
from keras_trainops.training.fit_callbacks import evaluation_context, wrapped_fit
from tests.training.optimizers.kinds import X, Y, net


class Records(keras.callbacks.Callback):
    """A wrapper that notes when it is entered, and adds a callback of its own."""

    def __init__(self, log: list[str]) -> None:
        super().__init__()
        self.log, self.added = log, keras.callbacks.Callback()

    @contextmanager
    def wrap_fit(self, model: Any, callbacks: list[Any]) -> Iterator[list[Any]]:
        self.log.append(f"{type(self).__name__} begins")
        try:
            yield [*callbacks, self.added]
        finally:
            self.log.append(f"{type(self).__name__} ends")


class Follows(Records):
    def follow_data(self, iterator: Any) -> None:
        self.log.append("data")

    def on_train_begin(self, logs: Any = None) -> None:
        self.log.append("training")


def test_wrappers_surround_the_whole_fit() -> None:
    log: list[str] = []
    model, callbacks = net(), [Follows(log), Records(log)]
    model.compile("sgd", "mse")
    model.fit(X, Y, verbose=0, callbacks=callbacks)
    assert log == [
        *("Records begins", "Follows begins", "data", "training"),
        *("Follows ends", "Records ends"),
    ]
    assert model.train_ops.fit.follow_data is None
    assert not model.train_ops.fit.follows
    with (
        pytest.raises(RuntimeError, match="stop"),
        wrapped_fit(model, (), {"callbacks": [*callbacks]}),
    ):
        raise RuntimeError("stop")
    assert log[-2:] == ["Follows ends", "Records ends"]


@pytest.mark.parametrize("as_keyword", [True, False])
def test_arranged_callbacks_replace_the_given_ones(as_keyword: bool) -> None:
    wrapper = Records([])
    args = () if as_keyword else (X, Y, 8, 1, 0, wrapper, 0.5)
    kwargs = {"callbacks": wrapper, "epochs": 2} if as_keyword else {}
    with wrapped_fit(net(), args, kwargs) as (new_args, new_kwargs):
        callbacks = new_kwargs["callbacks"] if as_keyword else new_args[5]
        assert isinstance(callbacks, BatchCallbacks)
        assert callbacks.callbacks[:2] == [wrapper, wrapper.added]
        assert as_keyword or new_args[6] == 0.5
        assert not as_keyword or new_kwargs["epochs"] == 2
        assert len(new_args) == len(args)


def test_a_users_callback_list_gets_its_callbacks_back() -> None:
    wrapper, model = Records([]), net()
    users_list = keras.callbacks.CallbackList([wrapper], add_history=True, model=model)
    before = users_list.callbacks
    with wrapped_fit(model, (), {"callbacks": users_list}) as (_, kwargs):
        assert kwargs["callbacks"] is users_list
        assert users_list.callbacks[-1] is wrapper.added
        assert wrapper.added.model is model
    assert users_list.callbacks is before
    assert wrapper.added not in before


@pytest.mark.parametrize("kind", [Records, Follows])
def test_refuses_two_wrappers_of_one_kind(kind: type[Records]) -> None:
    model, log = net(), []
    model.compile("sgd", "mse")
    names = f"{kind.__name__} and {kind.__name__}"
    with pytest.raises(ValueError, match=f"may contain only one of these: {names}"):
        model.fit(X, Y, verbose=0, callbacks=[kind(log), kind(log)])
    assert log == []


def test_refuses_layers_among_callbacks() -> None:
    arguments = {"callbacks": [keras.callbacks.Callback(), keras.layers.Dense(2)]}
    with (
        pytest.raises(ValueError, match="`callbacks` must be Keras callbacks"),
        wrapped_fit(net(), (), arguments),
    ):
        pass


def test_evaluations_happen_in_the_context_of_the_fit() -> None:
    entered = []

    @contextmanager
    def evaluation() -> Iterator[None]:
        entered.append(1)
        yield

    with evaluation_context(evaluation, {}):
        assert entered == [1]
    validation = keras.callbacks.CallbackList([])
    for context in (
        evaluation_context(evaluation, {"callbacks": validation}),
        evaluation_context(None, {}),
    ):
        with context:
            assert entered == [1]


def test_fits_without_wrappers_pass_their_arguments_on() -> None:
    model, own = net(), keras.callbacks.Callback()
    args, users_list = (X, Y), keras.callbacks.CallbackList([own], model=model)
    with wrapped_fit(model, args, {"callbacks": users_list, "epochs": 2}) as given:
        assert given == (args, {"callbacks": users_list, "epochs": 2})
        assert users_list.callbacks == [own]
    with wrapped_fit(model, args, {"callbacks": [own], "verbose": 0}) as (given_args, kwargs):
        assert given_args is args
        first, history = kwargs["callbacks"].callbacks
        assert first is own
        assert isinstance(history, keras.callbacks.History)
        assert kwargs["verbose"] == 0
