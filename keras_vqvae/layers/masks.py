"""Which vectors count, and a value for masked positions."""

from typing import Any

import keras
from keras import ops

from keras_vqvae.backend import backend
from keras_vqvae.types import Sizes, Tensor


class ReplaceMasked(keras.layers.Layer):
    """Puts a value at masked positions `[batch, ...]`. A layer, because Keras gives masks to layers only."""

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
    """Returns which of the vectors `[N, D]` count, booleans `[N]`, given a mask over their `leading` axes."""
    # A sum of squares that overflows must not reach the codebook either.
    valid = backend.finite_rows(ops.stop_gradient(vectors))
    if mask is None:
        return valid
    mask = ops.cast(mask, "bool")
    sizes = zip(mask.shape, leading, strict=False)
    if len(mask.shape) > len(leading) or any(type(b) is int and a not in (None, 1, b) for a, b in sizes):
        raise ValueError(
            "`mask` must have the shape of the inputs' first axes. "
            f"Received: mask of shape {tuple(mask.shape)}, inputs of shape {(*leading, vectors.shape[-1])}"
        )
    mask = ops.reshape(mask, ops.shape(mask) + (1,) * (len(leading) - len(mask.shape)))
    return ops.logical_and(valid, ops.reshape(ops.broadcast_to(mask, leading), (-1,)))
