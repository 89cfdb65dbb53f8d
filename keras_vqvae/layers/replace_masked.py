"""A value in the place of what is masked."""

from typing import Any

import keras
from keras import ops

from keras_vqvae.arguments import Tensor


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
