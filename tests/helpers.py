"""What several tests need."""

import math

import keras
import numpy as np
from keras import ops


def numpy(value):
    return ops.convert_to_numpy(value)


def draw(*shape, seed=0, dtype="float32"):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def weights(layer):
    return {variable.path: numpy(variable).copy() for variable in layer.variables}


def assert_same_weights(before, after):
    assert before.keys() == after.keys()
    for path in before:
        np.testing.assert_array_equal(after[path], before[path], err_msg=path)


def compiled(model, *arguments, traced=True, **keywords):
    """Compiles a model whose shapes are known, so that TensorFlow traces its step once.

    If the optimizer's variables are made in the step, as Keras does, it is traced twice. Where a test is not of what
    a trace changes, TensorFlow need not trace at all, which takes it as long as five steps or more.
    """
    run_eagerly = keras.backend.backend() == "tensorflow" and not traced
    model.compile(*arguments, run_eagerly=run_eagerly, **keywords)
    model.optimizer.build(model.trainable_variables)
    return model


class Batches(keras.utils.PyDataset):
    """A data set of batches of arrays."""

    def __init__(self, batch_size, *arrays):
        super().__init__()
        self.batch_size, self.arrays = batch_size, arrays

    def __len__(self):
        return math.ceil(len(self.arrays[0]) / self.batch_size)

    def __getitem__(self, index):
        rows = slice(self.batch_size * index, self.batch_size * (index + 1))
        return tuple(array[rows] for array in self.arrays)


def graph(function):
    """`function`, on TensorFlow as a graph."""
    if keras.backend.backend() != "tensorflow":
        return function
    import tensorflow as tf

    return tf.function(function, autograph=False)


def program(function, state):
    """`function`, which is called a thousand times, compiled; `state` are the variables that it changes."""
    if keras.backend.backend() != "jax":
        return graph(function)
    import jax

    @jax.jit
    def compiled(values):
        with keras.StatelessScope(state_mapping=zip(state, values, strict=True)) as scope:
            result = function()
        return result, [scope.get_current_value(variable) for variable in state]

    def call():
        result, values = compiled([variable.value for variable in state])
        for variable, value in zip(state, values, strict=True):
            variable.assign(value)
        return result

    return call


def restore(layer, values):
    for variable in layer.variables:
        variable.assign(values[variable.path])


def losses_of(layer, inputs, mask=None):
    layer(inputs, mask=None if mask is None else ops.convert_to_tensor(mask), training=True)
    return [numpy(loss) for loss in layer.losses]


def books(layer):
    """How many indices a vector has."""
    return math.prod(layer.index_shape)


def built(layer, dim=4):
    layer.build((None, dim))
    return layer


def softmax(a):
    a = np.exp(a - a.max(-1, keepdims=True))
    return a / a.sum(-1, keepdims=True)


def set_layout(layout):
    """Spreads the batch over all devices of JAX, or over two groups of them that each hold the codebooks."""
    if layout == "data":
        keras.distribution.set_distribution(keras.distribution.DataParallel())
    elif layout == "codebook":
        devices = keras.distribution.list_devices()
        mesh = keras.distribution.DeviceMesh((2, len(devices) // 2), ("batch", "codes"), devices)
        weights = keras.distribution.LayoutMap(mesh)
        weights[".*codebook"] = ("codes", None)
        weights[".*ema_counts"] = ("codes",)
        distribution = keras.distribution.ModelParallel(layout_map=weights, batch_dim_name="batch")
        keras.distribution.set_distribution(distribution)
