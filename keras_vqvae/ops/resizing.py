"""Resizing of grids along any number of axes: means over areas and interpolation, as matrix products.

`keras.ops.image.resize` handles two axes only, and SavedModel is the only export format with all of its modes.
"""

import functools
import math
from collections.abc import Callable

import numpy as np
from keras import ops

from keras_vqvae.backend import backend
from keras_vqvae.types import Tensor


def _nearest(distances: np.ndarray) -> np.ndarray:
    return ((distances >= -0.5) & (distances < 0.5)).astype(float)


def _linear(distances: np.ndarray) -> np.ndarray:
    return np.maximum(1 - np.abs(distances), 0)


def _cubic(distances: np.ndarray, a: float = -0.75) -> np.ndarray:
    """Returns the cubic convolution kernel of Keys, with the parameter `a` of PyTorch."""
    x = np.abs(distances)
    inner, outer = ((a + 2) * x - (a + 3)) * x**2 + 1, a * (((x - 5) * x + 8) * x - 4)
    return np.where(x <= 1, inner, np.where(x < 2, outer, 0))


KERNELS = {"nearest": (_nearest, 0), "linear": (_linear, 1), "cubic": (_cubic, 2)}
"""For each interpolation, the kernel and its reach: the number of elements on each side that have a weight."""


def check_interpolation(interpolation: object) -> str:
    """Returns `interpolation` if it is a known name."""
    if not isinstance(interpolation, str) or interpolation not in KERNELS:
        raise ValueError(f"`interpolation` must be one of {sorted(KERNELS)}. Received: interpolation={interpolation!r}")
    return interpolation


def _means(size: int, smaller: int) -> np.ndarray:
    """Returns weights `[smaller, size]` of means over equal parts of an axis. Parts contain all elements they touch."""
    parts, elements = np.arange(smaller)[:, None], np.arange(size)
    inside = (parts * size // smaller <= elements) & (elements < -(-(parts + 1) * size // smaller))
    return inside / inside.sum(axis=1, keepdims=True)


def _interpolated(kernel: Callable[[np.ndarray], np.ndarray], size: int, larger: int) -> np.ndarray:
    """Returns weights `[larger, size]` of interpolation between the centers of elements, with the ends repeated."""
    places = (2 * np.arange(larger) + 1) * size / (2 * larger) - 0.5
    weights = np.zeros((larger, size))
    for step in range(-1, 3):
        elements = np.floor(places) + step
        inside = np.clip(elements, 0, size - 1)[:, None] == np.arange(size)
        weights = weights + inside * kernel(places - elements)[:, None]
    return weights


def _phases(kernel: Callable[[np.ndarray], np.ndarray], reach: int, stride: int) -> np.ndarray:
    """Returns weights `[stride, 2 reach + 1]`, one row for each of the `stride` elements that replace an element."""
    # A row weighs the replaced element and its `reach` neighbors on each side. It is taken far from the ends.
    taps = 2 * reach + 1
    return _interpolated(kernel, taps, taps * stride)[reach * stride : (reach + 1) * stride]


# Made once, because `backend.array` caches a tensor for each function and its arguments.
_INTERPOLATED = {name: functools.partial(_interpolated, kernel) for name, (kernel, _) in KERNELS.items()}
_PHASES = {name: functools.partial(_phases, kernel, reach) for name, (kernel, reach) in KERNELS.items()}


def resize(x: Tensor, sizes: tuple[int, ...], interpolation: str = "linear") -> Tensor:
    """Resizes the axes between the first and the last: `[N, *old, D]` -> `[N, *sizes, D]`.

    A smaller size takes means over equal parts, as adaptive average pooling does. A larger size interpolates.
    """
    shape = list(x.shape[1:])
    for axis, size in enumerate(sizes):
        old = shape[axis]
        if size != old:
            weights = backend.array(_means if size < old else _INTERPOLATED[interpolation], (old, size), x)
            # `[N, ..., old, ..., D]` -> `[n, old, m]` -> `[n, size, m]`
            x = backend.matmul(weights, ops.reshape(x, (-1, old, math.prod(shape[axis + 1 :]))))
            shape[axis] = size
            x = ops.reshape(x, (-1, *shape))
    return x


def shrink(x: Tensor, strides: tuple[int, ...]) -> Tensor:
    """Takes means over blocks of `strides` elements: `[N, *sizes, D]` -> `[N, *sizes / strides, D]`.

    Sizes must be divisible by `strides`. Unlike in `resize`, sizes may be known only at run time.
    """
    for axis, stride in enumerate(strides, start=1):
        if stride > 1:
            sizes = ops.shape(x)
            x = ops.mean(ops.reshape(x, (*sizes[:axis], sizes[axis] // stride, stride, *sizes[axis + 1 :])), axis + 1)
    return x


def stretch(x: Tensor, strides: tuple[int, ...], interpolation: str) -> Tensor:
    """Replaces each element by `strides` interpolated elements: `[N, *sizes, D]` -> `[N, *sizes * strides, D]`.

    Unlike in `resize`, sizes may be known only at run time.
    """
    reach = KERNELS[interpolation][1]
    for axis, stride in enumerate(strides, start=1):
        if stride > 1:
            # `[N, ..., size, D]`, with the outermost elements repeated
            x = ops.moveaxis(x, axis, -2)
            sizes = ops.shape(x)
            ends = [x[..., :1, :]] * reach, [x[..., sizes[-2] - 1 :, :]] * reach
            padded = ops.concatenate([*ends[0], x, *ends[1]], axis=-2)
            near = [padded[..., step : sizes[-2] + step, :] for step in range(2 * reach + 1)]
            near = ops.reshape(ops.stack(near, axis=-2), (-1, len(near), sizes[-1]))
            x = backend.matmul(backend.array(_PHASES[interpolation], (stride,), x), near)
            x = ops.moveaxis(ops.reshape(x, (*sizes[:-2], sizes[-2] * stride, sizes[-1])), -2, axis)
    return x
