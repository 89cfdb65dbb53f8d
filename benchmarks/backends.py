"""Compiled functions and training steps for each backend. They return only when the device has finished."""

import os
from collections.abc import Callable

os.environ.setdefault("KERAS_BACKEND", "torch")

import keras
import numpy as np
from keras import ops

from benchmarks import timing

BACKEND = keras.backend.backend()
if BACKEND == "torch":
    import torch

    torch.set_num_threads(timing.THREADS)


def compiled(function: Callable, *arrays: np.ndarray) -> Callable[[], None]:
    """Returns `function(*arrays)` in the backend's usual mode: compiled on JAX and TensorFlow, eager on PyTorch."""
    tensors = [ops.convert_to_tensor(array) for array in arrays]
    if BACKEND == "jax":
        import jax

        traced = jax.jit(function)
        return lambda: jax.block_until_ready(traced(*tensors))
    if BACKEND == "tensorflow":
        import tensorflow as tf

        traced = tf.function(function, jit_compile=True)

        def run() -> None:
            # Copying one number to the host waits for the whole computation.
            [tf.reshape(x, (-1,))[:1].numpy() for x in tf.nest.flatten(traced(*tensors))]

        return run

    def run() -> None:
        function(*tensors)
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()

    return torch.no_grad()(run)


class Scale(keras.layers.Layer):
    """Multiplies features by trainable factors. In front of a layer, it makes gradients flow through all of it."""

    def build(self, input_shape):
        self.scale = self.add_weight(shape=input_shape[-1:], initializer="ones")

    def call(self, inputs):
        return inputs * self.scale


def training_step(layer: keras.Layer, x: np.ndarray, jit_compile: bool | str = "auto") -> Callable[[], None]:
    """Returns a training step of one layer: forward, backward and Adam update. The loss is the mean of the output."""
    model = keras.Sequential([keras.Input(x.shape[1:]), Scale(), layer])
    model.compile("adam", loss=lambda y, y_pred: ops.mean(y_pred), jit_compile=jit_compile)
    x = ops.convert_to_tensor(x)
    return lambda: model.train_on_batch(x, x)
