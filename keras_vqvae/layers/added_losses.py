"""Losses of records, computed only when they are read."""

import contextlib
from collections.abc import Iterator
from typing import Any

import keras
from keras import ops

from keras_vqvae.backend import backend
from keras_vqvae.layers.record import Record, apply_updates
from keras_vqvae.types import Tensor


class AddedLosses(keras.layers.Layer):
    """A layer that adds losses in training and evaluation, and does not compute them in `predict`.

    Keras does not tell a layer whether `evaluate` or `predict` calls it. In inference, the layer therefore keeps its
    records, and computes their losses when the `losses` of the layer or of its model are read.
    """

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        # Each change makes a new tuple. If a list changed in place, `torch.compile` would compile again.
        self._records: tuple[Record, ...] = ()
        self._deferred: list[Record] | None = None

    def add_record(self, record: Record) -> None:
        """Adds the losses of a record. In training they are computed at once, before updates change the codebook."""
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
        """Context in which calls collect their records and do not update. Updates can then follow the losses.

        TensorFlow's replicas need this: an update lets the other replicas run, and Keras keeps the losses of all
        replicas in one list.
        """
        self._deferred = []
        try:
            yield self._deferred
        finally:
            self._deferred = None

    def apply_updates(self, record: Record) -> None:
        """Updates the quantizers of a record now, or collects the record within `deferred_updates`."""
        if self._deferred is None:
            apply_updates(record)
        else:
            self._deferred.append(record)

    def _get_own_losses(self) -> list[Tensor]:
        # Keras calls this method to collect the losses of a model.
        if backend.stateless_scope() is not None:
            return super()._get_own_losses()
        tracing = backend.is_tracing()
        # Drops records of a finished trace, whose tensors have no values.
        self._records = tuple(each for each in self._records if tracing or not backend.is_traced(each.vectors))
        return [loss for record in self._records for _, loss in _losses_of(record)]

    def _clear_losses(self) -> None:
        super()._clear_losses()
        self._records = ()


def _losses_of(record: Record) -> list[tuple[str, Tensor]]:
    if record.losses is None:
        with backend.full_precision(record.vectors):
            # Cast to the dtype of Keras's own losses, because TensorFlow cannot add other dtypes to them.
            losses = record.quantizer.all_losses(record)
            record.losses = [(name, ops.cast(loss, keras.config.floatx())) for name, loss in losses]
    return record.losses
