"""Scales data that networks cannot be trained with as they are, such as data around 0.001 or 1,000."""

import math
import weakref
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
from keras import layers, ops

from keras_vqvae.models.sources import first_batches, to_numpy
from keras_vqvae.types import Data, Tensor

TRAINABLE = (1 / 16, 1.5)
"""Data whose root mean square lies in this range are not scaled: data in [0, 1] or [-1, 1], or standardized data.

A step of Adam changes a weight by about 0.001. This is too coarse for outputs far below 1/16, and outputs far above 1.5
take thousands of steps.
"""
BROUGHT_TO = 0.1
"""Root mean square to which other data are scaled, within a factor of sqrt(2)."""
MAX_EXPONENT = 100
"""Largest absolute exponent of the scale. Squares of larger data overflow in float32."""
MIN_LATENT, MAX_OUTPUT = 0.001, 0.4
"""For data of RMS 0.1: smallest RMS of the latents, and largest RMS of the outputs, of networks that do not rescale."""
TRAINED = ("bias", "beta", "moving_mean")
"""Names of weights that are zero until they are trained."""
SAMPLES, NUMBERS = 1024, 2**22
"""About how many samples of an array are measured at most, and how many elements in total."""
TRIED = 32
"""Number of samples with which the networks are tried."""


@keras.saving.register_keras_serializable(package="keras_vqvae")
class DataScale(keras.layers.Layer):
    """Divides data by a scale, or multiplies them by it. The scale is a power of 2, so that nothing is rounded."""

    def __init__(self, **kwargs: Any):
        super().__init__(**{**kwargs, "autocast": False})
        self.supports_masking = True

    def get_config(self) -> dict[str, Any]:
        # Without this method, Keras refuses to serialize a layer that was made with a `DTypePolicy`.
        return super().get_config()

    def build(self, input_shape: Any = None) -> None:
        weight = {"shape": (), "trainable": False, "dtype": "float32", "autocast": False}
        self.scale = self.add_weight(initializer="ones", name="scale", **weight)
        # 1 once the scale is settled. It does not change after training has begun.
        self.settled = self.add_weight(initializer="zeros", name="settled", **weight)

    def call(self, inputs: Tensor, reverse: bool = False) -> Tensor:
        dtype = keras.backend.standardize_dtype(inputs.dtype)
        # In float32, because float16 cannot hold every scale.
        inputs = ops.cast(inputs, "float32")
        outputs = inputs * self.scale if reverse else inputs / self.scale
        return ops.cast(outputs, dtype if keras.backend.is_float_dtype(dtype) else self.compute_dtype)

    def compute_output_spec(self, inputs: Any, reverse: bool = False) -> keras.KerasTensor:
        dtype = keras.backend.standardize_dtype(inputs.dtype)
        return keras.KerasTensor(inputs.shape, dtype if keras.backend.is_float_dtype(dtype) else self.compute_dtype)

    def settle(self, scale: float) -> None:
        self.scale.assign(scale)
        self.settled.assign(1.0)


_SCALES: weakref.WeakKeyDictionary[keras.Layer, DataScale] = weakref.WeakKeyDictionary()


def scale_layer(encoder: keras.Layer, **kwargs: Any) -> DataScale:
    """Returns the scale of an encoder. It is stored by encoder, so that another `VQVAE` with this encoder shares it."""
    if encoder not in _SCALES:
        _SCALES[encoder] = DataScale(name="data_scale", **kwargs)
        _SCALES[encoder].build()
    return _SCALES[encoder]


def settle_scale(model: Any, x: Data, y: Data = None) -> Data:
    """Measures the scale of a model's first training data, and sets the model's scale once.

    Args:
        model: A `VQVAE`. Its inputs are scaled only if it reconstructs them.
        x: Inputs, or a source of batches.
        y: Targets. Defaults to `None`, the inputs.

    Returns:
        `x`, or an equivalent generator if `x` is one, because its first batch has been read.
    """
    if x is None or ops.convert_to_numpy(model.data_scale.settled):
        return x
    (inputs, targets), x = _first_samples(x, y)
    if inputs is None:
        return x
    if not model.built:
        model(keras.tree.map_structure(lambda leaf: leaf[:1], inputs))
    found = 1.0
    # A subclass may take more inputs than its encoder does.
    if model._parts.reconstructs and (model.preprocessing is not None or not keras.tree.is_nested(inputs)):
        encoded = inputs if model.preprocessing is None else to_numpy(model.preprocessing(inputs, training=False))
        measured = scale_of(encoded) if _same(encoded, targets) else 1.0
        if measured is None:
            # Data that are all 0 have no scale.
            return x
        if measured != 1.0 and _can_be_scaled(model, inputs, encoded[:TRIED], measured):
            found = measured
    model.data_scale.settle(found)
    return x


def scale_of(x: np.ndarray) -> float | None:
    """Returns the number by which data should be divided, usually 1, or `None` if no element is finite and nonzero.

    Zeros are ignored, so that sparse data in [0, 1] are not scaled. The largest 0.1% of the elements are clipped.
    """
    sizes = np.abs(x[np.isfinite(x) & (x != 0)].astype("float64"))
    if not len(sizes):
        return None
    size = math.sqrt(np.mean(np.square(np.minimum(sizes, np.quantile(sizes, 0.999)))))
    exponent = round(math.log2(size / BROUGHT_TO))
    return 1.0 if TRAINABLE[0] <= size <= TRAINABLE[1] or abs(exponent) > MAX_EXPONENT else 2.0**exponent


def _first_samples(x: Data, y: Data) -> tuple[tuple[Any, Any], Data]:
    """Returns `((inputs, targets), x)`: some samples as arrays, or `None` if there are none, and the complete source.

    The samples are evenly spaced if `x` is an array. Otherwise they are the first batch.
    """
    leaves = keras.tree.flatten(x)
    if all(hasattr(leaf, "shape") for leaf in leaves):
        length = min((leaf.shape[0] for leaf in leaves if len(leaf.shape)), default=0)
        size = max((math.prod(leaf.shape[1:]) for leaf in leaves), default=1)
        rows = slice(0, length, max(length // min(SAMPLES, 1 + NUMBERS // max(size, 1)), 1))
        return (_arrays(x, rows), _arrays(y, rows)) if length else (None, None), x
    batches = list(first_batches(x, 1))
    if isinstance(x, Iterator):
        x = _again(batches, x)
    # Batches of a distributed data set are not arrays.
    if not batches or not all(hasattr(leaf, "__array__") for leaf in keras.tree.flatten(batches[0])):
        return (None, None), x
    inputs, targets, _ = keras.utils.unpack_x_y_sample_weight(batches[0])
    return (_arrays(inputs), _arrays(targets)), x


def _arrays(x: Any, rows: slice = slice(None)) -> Any:
    def array(leaf: Any) -> np.ndarray:
        leaf = leaf[rows]
        return to_numpy(leaf.toarray() if hasattr(leaf, "toarray") else leaf)

    return None if x is None else keras.tree.map_structure(array, x)


def _again(batches: list[Any], rest: Iterator[Any]) -> Iterator[Any]:
    # A generator, because Keras does not accept other iterators.
    yield from batches
    yield from rest


def _same(x: np.ndarray, y: Any) -> bool:
    """Whether the targets, or one of several targets, equal the inputs."""
    if y is None:
        return True
    return any(leaf.shape == x.shape and np.array_equal(x, leaf, equal_nan=True) for leaf in keras.tree.flatten(y))


def _can_be_scaled(model: Any, inputs: Any, encoded: np.ndarray, scale: float) -> bool:
    """Whether the networks are untrained, and do not scale data themselves."""
    own = [layer for part in (model.encoder, model.decoder) for layer in part._flatten_layers()]
    if any(map(_is_bound_to_a_scale, own)):
        return False
    # A subclass's `call` may change the inputs, or call the encoder without `autoencode`.
    given = model.encoded_inputs(keras.tree.map_structure(lambda leaf: leaf[:TRIED], inputs))
    if len(given) != 1 or not np.allclose(given[0], encoded, rtol=0.01, equal_nan=True):
        return False
    scaled = np.where(np.isfinite(encoded), encoded, 0.0) / scale
    vectors = model.encoder(ops.convert_to_tensor(scaled.astype("float32")), training=False)
    outputs = model.decoder(vectors, training=False)
    return _size(vectors) >= MIN_LATENT and _size(outputs) <= MAX_OUTPUT


def _is_bound_to_a_scale(layer: keras.Layer) -> bool:
    """Whether a layer expects data of a particular scale, or has been trained."""
    if isinstance(layer, layers.Rescaling | layers.Normalization):
        return True
    if isinstance(layer, layers.Masking):
        return layer.mask_value != 0
    frozen = not layer.trainable and bool(layer.weights)
    return frozen or any(np.any(ops.convert_to_numpy(weight)) for weight in layer.weights if weight.name in TRAINED)


def _size(x: Tensor) -> float:
    """The root mean square."""
    return math.sqrt(ops.convert_to_numpy(ops.mean(ops.square(ops.cast(x, "float32")))))
