"""Losses that are computed where somebody reads them."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import keras
from keras import ops

from keras_vqvae.backend import backend
from keras_vqvae.layers.quantizer_outputs import Update, apply_updates
from keras_vqvae.types import Tensor


class LazyLosses(keras.layers.Layer):
    """A layer whose losses count in evaluation, and cost nothing in `predict`.

    Keras does not tell a layer whether it is evaluated or predicts. So in inference a loss waits until Keras, or the
    user, collects the losses of the layer or of a model that holds it.
    """

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self._added_losses: tuple[tuple[Tensor, Any], ...] = ()
        self._deferred: list[Callable[[], None]] | None = None

    def add_losses(self, vectors: Tensor, losses: Callable[[], list[Tensor]], training: bool) -> None:
        """Adds what `losses()` computes from `vectors`: at once in training, before what it reads is updated."""
        scope = backend.stateless_scope()
        if scope is None:
            # In inference they wait for a reader: `predict` is none, and an entropy costs more than the search. A tuple
            # that is replaced, because `torch.compile` compiles anew whenever a list that Keras clears has changed.
            added = [(loss, [loss]) for loss in _as_added(vectors, losses)] if training else [(vectors, losses)]
            self._added_losses = (*self._added_losses, *added)
        elif scope.collect_losses:
            for loss in _as_added(vectors, losses):
                self.add_loss(loss)

    @contextlib.contextmanager
    def deferred_updates(self) -> Iterator[list[Callable[[], None]]]:
        """Within it, calls leave their updates in the list that it yields, to be made when the losses have been read.

        So replicas may take turns in an update: Keras keeps the losses of all of them in one list.
        """
        self._deferred = []
        try:
            yield self._deferred
        finally:
            self._deferred = None

    def apply_updates(self, updates: list[Update], training: bool) -> None:
        """Updates quantizers, or defers that."""
        if self._deferred is None:
            apply_updates(updates, training)
        else:
            self._deferred.append(functools.partial(apply_updates, updates, training, within_call=False))

    def _get_own_losses(self) -> list[Tensor]:
        # By this Keras collects the losses of a model.
        if backend.stateless_scope() is not None:
            return super()._get_own_losses()
        tracing = backend.is_traced(ops.zeros(()))
        # What a program was made of that is ready has no value.
        added = [entry for entry in self._added_losses if tracing or not backend.is_traced(entry[0])]
        self._added_losses = tuple((x, _as_added(x, losses) if callable(losses) else losses) for x, losses in added)
        return [loss for _, losses in self._added_losses for loss in losses]

    def _clear_losses(self) -> None:
        super()._clear_losses()
        self._added_losses = ()


def _as_added(vectors: Tensor, losses: Callable[[], list[Tensor]]) -> list[Tensor]:
    with backend.full_precision(vectors):
        # Keras's own losses are of this dtype, and TensorFlow adds no others to them.
        return [ops.cast(loss, keras.config.floatx()) for loss in losses()]
