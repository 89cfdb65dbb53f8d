"""Losses of records, computed when somebody reads them."""

import contextlib
from collections.abc import Iterator
from typing import Any

import keras
from keras import ops

from keras_vqvae.backend import backend
from keras_vqvae.layers.record import Record, apply_updates
from keras_vqvae.types import Tensor


class AddedLosses(keras.layers.Layer):
    """A layer whose losses count in evaluation and cost nothing in `predict`.

    Keras does not tell a layer whether it is evaluated or predicts. So in inference a record waits until Keras, or the
    user, collects the losses of the layer or of a model that holds it.
    """

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        # A tuple that is replaced: `torch.compile` compiles again whenever a list that Keras clears has changed.
        self._records: tuple[Record, ...] = ()
        self._deferred: list[Record] | None = None

    def add_record(self, record: Record) -> None:
        """Adds the losses of a record, in training at once, before the updates change what they read."""
        scope = backend.stateless_scope()
        if scope is None:
            self._records = (*self._records, record)
            if record.training:
                _losses_of(record)
        elif scope.collect_losses:
            for _, loss in _losses_of(record):
                self.add_loss(loss)

    @contextlib.contextmanager
    def deferred_updates(self) -> Iterator[list[Record]]:
        """Collects the records of calls instead of updating, so that the updates can come after the losses are read.

        TensorFlow's replicas need this: an update lets the other replicas run, and Keras keeps the losses of all of
        them in one list.
        """
        self._deferred = []
        try:
            yield self._deferred
        finally:
            self._deferred = None

    def apply_updates(self, record: Record) -> None:
        """Updates the quantizers of a record, or defers that."""
        if self._deferred is None:
            apply_updates(record)
        else:
            self._deferred.append(record)

    def _get_own_losses(self) -> list[Tensor]:
        # Keras collects the losses of a model from this method.
        if backend.stateless_scope() is not None:
            return super()._get_own_losses()
        tracing = backend.is_tracing()
        # Records of a finished trace hold no values.
        self._records = tuple(each for each in self._records if tracing or not backend.is_traced(each.vectors))
        return [loss for record in self._records for _, loss in _losses_of(record)]

    def _clear_losses(self) -> None:
        super()._clear_losses()
        self._records = ()


def _losses_of(record: Record) -> list[tuple[str, Tensor]]:
    if record.losses is None:
        with backend.full_precision(record.vectors):
            # Keras's own losses have this dtype, and TensorFlow cannot add others to them.
            losses = record.quantizer.all_losses(record)
            record.losses = [(name, ops.cast(loss, keras.config.floatx())) for name, loss in losses]
    return record.losses
