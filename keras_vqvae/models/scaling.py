"""Data of a scale that no network can be trained at, such as 0.001 or 1,000."""

import itertools
import math
import weakref
from collections.abc import Iterable, Iterator
from typing import Any

import keras
import numpy as np
from keras import layers, ops

from keras_vqvae.backend import backend
from keras_vqvae.models.sources import to_numpy
from keras_vqvae.types import Data, Tensor

TRAINABLE = (1 / 16, 1.5)
"""Data whose root mean square lies between these are taken as they are, as [0, 1], [-1, 1] or standardized data.

A step of Adam changes a weight by about 0.001. Outputs far below 1/16 are lost in such steps, and weights reach outputs
far above 1.5 only after thousands of them.
"""
BROUGHT_TO = 0.1
"""The root mean square of other data within the model, up to a factor of the square root of 2."""
SCALES_ITSELF = (layers.Rescaling, layers.Normalization)
"""Networks with such a layer are made for data of one scale."""
MIN_LATENT, MAX_OUTPUT = 0.001, 0.4
"""Outside of these, networks that are given data of 0.1 scale them by operations."""
SAMPLES, NUMBERS, BATCHES = 1024, 2**22, 4
"""How many samples of arrays at most, of how many numbers, or how many batches of other sources are measured."""
TRIED = 32
"""How many samples the networks are tried with."""


@keras.saving.register_keras_serializable(package="keras_vqvae")
class DataScale(keras.layers.Layer):
    """Divides data by a number, which is a power of two so that nothing is rounded, or multiplies them by it."""

    def __init__(self, **kwargs: Any):
        super().__init__(**{**kwargs, "autocast": False})
        self.supports_masking = True

    def get_config(self) -> dict[str, Any]:
        return super().get_config()

    def build(self, input_shape: Any = None) -> None:
        weight = {"shape": (), "trainable": False, "dtype": "float32", "autocast": False}
        self.scale = self.add_weight(initializer="ones", name="scale", **weight)
        # Whether the scale is settled: it does not change once training has begun.
        self.settled = self.add_weight(initializer="zeros", name="settled", **weight)

    def call(self, inputs: Tensor, reverse: bool = False) -> Tensor:
        dtype = keras.backend.standardize_dtype(inputs.dtype)
        inputs = inputs if keras.backend.is_float_dtype(dtype) else ops.cast(inputs, self.compute_dtype)
        scale = ops.cast(self.scale, inputs.dtype)
        return inputs * scale if reverse else inputs / scale

    def compute_output_spec(self, inputs: Any, reverse: bool = False) -> keras.KerasTensor:
        dtype = keras.backend.standardize_dtype(inputs.dtype)
        return keras.KerasTensor(inputs.shape, dtype if keras.backend.is_float_dtype(dtype) else self.compute_dtype)

    def settle(self, scale: float) -> None:
        self.scale.assign(scale)
        self.settled.assign(1.0)


_SCALES: weakref.WeakKeyDictionary[keras.Layer, DataScale] = weakref.WeakKeyDictionary()


def scale_layer(encoder: keras.Layer, **kwargs: Any) -> DataScale:
    """Returns the layer that belongs to an encoder, so that it follows the encoder into another `VQVAE`."""
    if encoder not in _SCALES:
        _SCALES[encoder] = DataScale(name="data_scale", **kwargs)
        _SCALES[encoder].build()
    return _SCALES[encoder]


def settle_scale(model: Any, x: Data, y: Data = None, steps: int | None = None) -> Data:
    """Measures the scale of the data that a `VQVAE` is first trained with.

    Args:
        model: The model. Only one that reconstructs its inputs divides them by a scale.
        x: Inputs, or a source of batches.
        y: Targets. Defaults to `None`, the inputs.
        steps: How many batches may be read. Defaults to `None`, any number.

    Returns:
        `x`, from which nothing is missing.
    """
    layer = model.data_scale
    if ops.convert_to_numpy(layer.settled):
        return x
    pairs, x = _first_batches(x, y, min(steps or BATCHES, BATCHES))
    if not model.built and pairs:
        model(keras.tree.map_structure(lambda leaf: leaf[:1], pairs[0][0]))
    found = 1.0
    if model._parts.reconstructs and model._parts.autoencodes and all(_same(*pair) for pair in pairs):
        batches = [inputs for inputs, _ in pairs]
        if model.preprocessing is not None:
            batches = [to_numpy(model.preprocessing(inputs, training=False)) for inputs in batches]
        measured = _scale_of(batches)
        if measured is None:
            # Silence tells nothing.
            return x
        if measured != 1.0 and not _scales_itself(model.encoder, model.decoder, batches[0][:TRIED], measured):
            found = measured
    layer.settle(ops.convert_to_numpy(backend.of_first_replica(ops.convert_to_tensor(found, "float32"))))
    return x


def _scale_of(batches: Iterable[np.ndarray]) -> float | None:
    """Returns the number that data should be divided by, 1 in most cases; `None` if there are none but zeros."""
    squares = [np.square(x[np.isfinite(x)], dtype="float64") for x in batches]
    mean = np.concatenate(squares).mean() if sum(map(len, squares)) else 0.0
    if not mean:
        return None
    size = math.sqrt(mean)
    return 1.0 if TRAINABLE[0] <= size <= TRAINABLE[1] else 2.0 ** round(math.log2(size / BROUGHT_TO))


def _first_batches(x: Data, y: Data, number: int) -> tuple[list[tuple[Any, Any]], Data]:
    """Returns pairs of inputs and targets, `None` if there are none, and `x`, from which nothing is missing.

    Of arrays it takes samples at equal distances, and of other sources the first batches.
    """
    if all(hasattr(leaf, "shape") for leaf in keras.tree.flatten(x)):
        length = min((len(leaf) for leaf in keras.tree.flatten(x)), default=0)
        size = max((math.prod(leaf.shape[1:]) for leaf in keras.tree.flatten(x)), default=1)
        rows = np.linspace(0, length - 1, min(length, SAMPLES, 1 + NUMBERS // max(size, 1))).astype(int)
        return [(_arrays(x, rows), _arrays(y, rows))], x
    if isinstance(x, keras.utils.PyDataset):
        batches = [x[each] for each in range(number if x.num_batches is None else min(x.num_batches, number))]
    else:
        batches = list(itertools.islice(x, number))
        if isinstance(x, Iterator):
            x = _again(batches, x)
    pairs = [keras.utils.unpack_x_y_sample_weight(batch)[:2] for batch in batches]
    return [tuple(map(_arrays, pair)) for pair in pairs], x


def _arrays(x: Any, rows: Any = slice(None)) -> Any:
    return None if x is None else keras.tree.map_structure(lambda leaf: to_numpy(leaf)[rows], x)


def _again(batches: list[Any], rest: Iterator[Any]) -> Iterator[Any]:
    # Keras takes generators only, not other iterators.
    yield from batches
    yield from rest


def _same(x: Any, y: Any) -> bool:
    """Whether targets are the inputs."""
    return y is None or (not keras.tree.is_nested(y) and x.shape == y.shape and np.array_equal(x, y, equal_nan=True))


def _scales_itself(encoder: keras.Layer, decoder: keras.Layer, x: np.ndarray, scale: float) -> bool:
    """Whether networks are made for `x`, rather than for data that are divided by `scale`."""
    own = [layer for part in (encoder, decoder) for layer in part._flatten_layers()]
    if any(isinstance(layer, SCALES_ITSELF) for layer in own) or not encoder.trainable_variables:
        return True
    vectors = encoder(ops.convert_to_tensor((x / scale).astype("float32")), training=False)
    outputs = decoder(vectors, training=False)
    return _size(vectors) < MIN_LATENT or _size(outputs) > MAX_OUTPUT


def _size(x: Tensor) -> float:
    """The root mean square."""
    return math.sqrt(ops.convert_to_numpy(ops.mean(ops.square(ops.cast(x, "float32")))))
