"""Grids of other sizes: means over areas and linear interpolation along any number of axes, by products.

`keras.ops.image.resize` is for two axes, and no format but SavedModel takes all of its forms.
"""

import math

import numpy as np
from keras import ops

from keras_vqvae.backend import backend
from keras_vqvae.types import Tensor


def _means(size: int, smaller: int) -> np.ndarray:
    """Weights of means over equal parts of an axis, `[smaller, size]`; an element at a border counts in parts."""
    parts, elements = np.arange(smaller)[:, None] * (size / smaller), np.arange(size)
    overlaps = np.minimum(parts + size / smaller, elements + 1) - np.maximum(parts, elements)
    return np.maximum(overlaps, 0) * (smaller / size)


def _lines(size: int, larger: int) -> np.ndarray:
    """Weights of linear interpolation between the middles of elements, `[larger, size]`; the outermost go on."""
    places = np.clip((np.arange(larger)[:, None] + 0.5) * (size / larger) - 0.5, 0, size - 1)
    return np.maximum(1 - np.abs(places - np.arange(size)), 0)


def resize(x: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """Gives the axes after the first other sizes, all of them smaller or all of them larger: `[N, *old, D]`.

    An axis becomes smaller by means over equal parts, and larger by linear interpolation.
    """
    shape = list(x.shape[1:])
    for axis, size in enumerate(sizes):
        old = shape[axis]
        if size != old:
            weights = backend.array(_means if size < old else _lines, (old, size), x)
            # `[N, ..., old, ..., D]` -> `[n, old, m]` -> `[n, size, m]`
            x = backend.matmul(weights, ops.reshape(x, (-1, old, math.prod(shape[axis + 1 :]))))
            shape[axis] = size
            x = ops.reshape(x, (-1, *shape))
    return x
