"""Masks: which vectors are valid, and a value for masked positions."""

from typing import Any

import keras
from keras import ops

from keras_vqvae.backend import backend
from keras_vqvae.types import Sizes, Tensor


class ReplaceMasked(keras.layers.Layer):
    """Sets masked positions to a value. It is a layer because Keras passes masks to layers only."""

    def __init__(self, value: float, **kwargs: Any):
        super().__init__(**kwargs)
        self.value = value
        self.supports_masking = True

    def call(self, inputs: Tensor, mask: Tensor | None = None) -> Tensor:
        if mask is None:
            return inputs
        mask = ops.reshape(mask, ops.shape(mask) + (1,) * (len(inputs.shape) - len(mask.shape)))
        return ops.where(mask, inputs, self.value)


def valid_vectors(vectors: Tensor, leading: Sizes, mask: Tensor | None) -> Tensor:
    """Returns whether each vector is valid, that is finite and not masked: `[N, D]` -> booleans `[N]`.

    Args:
        vectors: `[N, D]`.
        leading: Sizes of the inputs' axes before the last, whose product is `N`.
        mask: Booleans over the first of these axes, or `None`.
    """
    # Vectors whose sum of squares overflows are not valid either: they would spoil the codebook.
    valid = backend.finite_rows(ops.stop_gradient(vectors))
    if mask is None:
        return valid
    mask = ops.cast(mask, "bool")
    sizes = zip(mask.shape, leading, strict=False)
    if len(mask.shape) > len(leading) or any(type(b) is int and a not in (None, 1, b) for a, b in sizes):
        raise ValueError(
            "`mask` must have the shape of the inputs' leading axes, or of the first of them. "
            f"Received: mask of shape {tuple(mask.shape)}, inputs of shape {(*leading, vectors.shape[-1])}"
        )
    mask = ops.reshape(mask, ops.shape(mask) + (1,) * (len(leading) - len(mask.shape)))
    return ops.logical_and(valid, ops.reshape(ops.broadcast_to(mask, leading), (-1,)))
