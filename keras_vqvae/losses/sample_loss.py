"""Losses that compare whole samples. Keras's own losses compare elements."""

from typing import Any

import keras
from keras import ops

from keras_vqvae import validation
from keras_vqvae.backend import backend
from keras_vqvae.types import Tensor


class SampleLoss(keras.losses.Loss):
    """Base class of losses with one float32 value for each sample: `call` returns `[batch]`.

    Masked positions are set to 0 in both arguments, so that they do not differ. As in Keras's losses, the mean is over
    the valid positions of the batch: it is multiplied by the number of positions and divided by the number of valid
    ones.
    """

    def __init__(self, reduction: str | None, name: str):
        super().__init__(name=name, reduction=reduction, dtype="float32")

    def __call__(self, y_true: Tensor, y_pred: Tensor, sample_weight: Tensor | None = None) -> Tensor:
        """Returns the reduced loss, as `keras.losses.Loss` does.

        Raises:
            ValueError: If `y_true` and `y_pred` have different shapes, or `sample_weight` is not `[batch]`.
        """
        mask = backend.mask_of(y_pred)
        y_true, y_pred = ops.convert_to_tensor(y_true), ops.convert_to_tensor(y_pred)
        y_true = _aligned(y_true, y_pred)
        _check_weight(sample_weight)
        if mask is None:
            return super().__call__(y_true, y_pred, sample_weight)
        mask = ops.cast(mask, "bool")
        last = len(y_pred.shape) - len(mask.shape)
        valid = ops.reshape(mask, (*ops.shape(mask), *(1,) * last))
        value = super().__call__(_zero_unless(valid, y_true), _zero_unless(valid, y_pred), sample_weight)
        if self.reduction in (None, "none", "sum"):
            return value
        return value * ops.cast(ops.size(mask), "float32") / backend.at_least(backend.count_true(mask), 1.0)


def _zero_unless(valid: Tensor, x: Tensor) -> Tensor:
    return ops.where(valid, x, ops.zeros_like(x))


def _aligned(y_true: Tensor, y_pred: Tensor) -> Tensor:
    """Reshapes `y_true` to the shape of `y_pred`. As in Keras's losses, either may lack a last axis of size 1."""
    target, prediction = tuple(y_true.shape), tuple(y_pred.shape)
    if not validation.target_fits(target, prediction):
        raise ValueError(
            "`y_true` must have the same shape as `y_pred`. "
            f"Received: y_true of shape {target}, y_pred of shape {prediction}"
        )
    return y_true if len(target) == len(prediction) else ops.reshape(y_true, ops.shape(y_pred))


def _check_weight(sample_weight: Any) -> None:
    shape = () if sample_weight is None else tuple(ops.convert_to_tensor(sample_weight).shape)
    if len(shape) > 1 and any(size != 1 for size in shape[1:]):
        raise ValueError(
            "`sample_weight` must have one value for each sample, [batch]: this loss has no values of single elements. "
            f"Received: sample_weight of shape {shape}"
        )
