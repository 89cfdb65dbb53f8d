"""Small functions that several test files share."""

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
    """Compiles a model whose shapes are known, so that TensorFlow traces its training step only once.

    The step would be traced twice if it created the optimizer's variables, as it does by default in Keras. With
    `traced=False` TensorFlow runs eagerly, which saves the time of a trace: five training steps or more.
    """
    run_eagerly = keras.backend.backend() == "tensorflow" and not traced
    model.compile(*arguments, run_eagerly=run_eagerly, **keywords)
    model.optimizer.build(model.trainable_variables)
    return model


class Batches(keras.utils.PyDataset):
    """A data set that yields batches of the given arrays."""

    def __init__(self, batch_size, *arrays):
        super().__init__()
        self.batch_size, self.arrays = batch_size, arrays

    def __len__(self):
        return math.ceil(len(self.arrays[0]) / self.batch_size)

    def __getitem__(self, index):
        rows = slice(self.batch_size * index, self.batch_size * (index + 1))
        return tuple(array[rows] for array in self.arrays)


def graph(function):
    """Returns `function`, wrapped in a graph on TensorFlow."""
    if keras.backend.backend() != "tensorflow":
        return function
    import tensorflow as tf

    return tf.function(function, autograph=False)


def program(function, state):
    """Compiles `function` for many calls. `state` lists the variables that it changes."""
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
    """Returns the number of indices per vector."""
    return math.prod(layer.index_shape)


def built(layer, dim=4):
    layer.build((None, dim))
    return layer


def softmax(a):
    a = np.exp(a - a.max(-1, keepdims=True))
    return a / a.sum(-1, keepdims=True)


def set_layout(layout):
    """Shards the batch over all JAX devices, or with `"codebook"` over two groups that each shard the codebooks."""
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
