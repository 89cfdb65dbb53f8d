"""Computes gradients on every backend, as NumPy arrays."""

import keras
import numpy as np
from keras import ops


def gradients(function, *arrays):
    """Returns the gradients of the scalar `function(*tensors)` with respect to each array."""
    arrays = [np.asarray(array) for array in arrays]
    if keras.backend.backend() == "jax":
        import jax

        found = jax.jit(jax.grad(function, argnums=tuple(range(len(arrays)))))(*map(ops.convert_to_tensor, arrays))
    elif keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        tensors = [tf.convert_to_tensor(array) for array in arrays]
        with tf.GradientTape() as tape:
            for tensor in tensors:
                tape.watch(tensor)
            value = function(*tensors)
        found = tape.gradient(value, tensors, unconnected_gradients="zero")
    else:
        import torch

        tensors = [ops.convert_to_tensor(array).requires_grad_() for array in arrays]
        value = function(*tensors)
        found = torch.autograd.grad(value, tensors, allow_unused=True)
        found = [torch.zeros_like(t) if g is None else g for t, g in zip(tensors, found, strict=True)]
    return [ops.convert_to_numpy(gradient) for gradient in found]


def layer_gradients(layer, inputs, cotangent, with_losses=True):
    """Differentiates `sum(layer(inputs) * cotangent) + sum(losses)` in training, by the inputs and by each weight."""
    if not layer.built:
        layer.build(inputs.shape)
    cotangent = ops.convert_to_tensor(cotangent, dtype="float32")
    trainable = [ops.convert_to_numpy(variable) for variable in layer.trainable_variables]
    fixed = [ops.convert_to_tensor(variable) for variable in layer.non_trainable_variables]

    def value(inputs, *weights):
        output, _, losses = layer.stateless_call(list(weights), fixed, inputs, training=True, return_losses=True)
        value = ops.sum(output * cotangent)
        return sum((ops.cast(loss, "float32") for loss in losses), value) if with_losses else value

    by_inputs, *by_weights = gradients(value, inputs, *trainable)
    return by_inputs, by_weights
