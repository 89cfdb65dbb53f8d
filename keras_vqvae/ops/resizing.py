"""Grids of other sizes: means over areas and linear interpolation along any number of axes, by products.

`keras.ops.image.resize` is for two axes, and no format but SavedModel takes all of its forms.
"""

import math

from keras import ops

from keras_vqvae.backend import backend
from keras_vqvae.types import Tensor


def _means(size: int, smaller: int) -> Tensor:
    """Weights of means over equal parts of an axis, `[smaller, size]`; an element at a border counts in parts."""
    parts = ops.arange(smaller, dtype="float32")[:, None] * (size / smaller)
    elements = ops.arange(size, dtype="float32")[None]
    overlaps = ops.minimum(parts + size / smaller, elements + 1.0) - ops.maximum(parts, elements)
    return ops.maximum(overlaps, 0.0) * (smaller / size)


def _lines(size: int, larger: int) -> Tensor:
    """Weights of linear interpolation between the middles of elements, `[larger, size]`; the outermost go on."""
    places = (ops.arange(larger, dtype="float32")[:, None] + 0.5) * (size / larger) - 0.5
    places = ops.clip(places, 0.0, size - 1.0)
    return ops.maximum(1.0 - ops.abs(places - ops.arange(size, dtype="float32")[None]), 0.0)


def resize(x: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """Gives the axes after the first other sizes, all of them smaller or all of them larger: `[N, *old, D]`.

    An axis becomes smaller by means over equal parts, and larger by linear interpolation.
    """
    shape = list(x.shape[1:])
    for axis, size in enumerate(sizes):
        old = shape[axis]
        if size != old:
            weights = _means(old, size) if size < old else _lines(old, size)
            # `[N, ..., old, ..., D]` -> `[n, old, m]` -> `[n, size, m]`
            x = backend.matmul(weights, ops.reshape(x, (-1, old, math.prod(shape[axis + 1 :]))))
            shape[axis] = size
            x = ops.reshape(x, (-1, *shape))
    return x
