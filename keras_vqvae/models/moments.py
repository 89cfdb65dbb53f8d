"""Mean and variance of the targets, by which a loss is divided so that it does not depend on their scale."""

import functools
import math
import operator
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import keras
from keras import ops

from keras_vqvae.backend import backend
from keras_vqvae.types import Tensor

Pairs: TypeAlias = Sequence[tuple[Tensor, Tensor]]


class Moments(NamedTuple):
    """The number of targets of one output, their mean, and the average over elements of their variance."""

    count: Tensor
    mean: Tensor
    variance: Tensor


def moments_of(x: Tensor, shape: Sequence[int | None]) -> Moments:
    """The moments of a batch `[batch, ...]` over the axes whose size in `shape` is `None`."""
    axes = [axis for axis, size in enumerate(shape) if axis == 0 or size is None]
    x = ops.cast(x, "float32")
    count = math.prod(ops.shape(x)[axis] for axis in axes)
    count = backend.constants((count,), x)[0] if isinstance(count, int) else ops.cast(count, "float32")
    # An empty batch has mean 0.
    divisor = backend.at_least(count, 1.0)
    # Subtracts the first target, so that equal targets have a variance of exactly 0. The sum allows an empty batch.
    one = ops.sum(x[tuple(slice(1 if axis in axes else None) for axis in range(len(shape)))], axes, keepdims=True)
    x = x - one
    mean = ops.sum(x, axes, keepdims=True) / divisor
    return Moments(count, ops.squeeze(one + mean, axes), ops.mean(ops.sum(ops.square(x - mean), axes)) / divisor)


def squared_error(pairs: Pairs) -> Tensor:
    """The mean squared error of each output, summed over the outputs."""
    return sum(ops.mean(ops.square(ops.cast(y, "float32") - ops.cast(y_pred, "float32"))) for y, y_pred in pairs)


def over_replicas(own: Moments) -> Moments:
    """The moments of the targets in all replicas, given the moments in this one."""
    count = backend.sum_over_replicas(own.count)
    if count is own.count:
        return own
    divisor = backend.at_least(count, 1.0)
    mean = backend.sum_over_replicas(own.count * own.mean) / divisor
    square = own.count * (own.variance + ops.mean(ops.square(own.mean - mean)))
    return Moments(count, mean, backend.sum_over_replicas(square) / divisor)


def merged(a: Moments, b: Moments) -> Moments:
    """The moments of the union of two sets, without cancellation (Chan et al., 1979)."""
    count = a.count + b.count
    fraction = b.count / backend.at_least(count, 1.0)
    step = b.mean - a.mean
    variance = a.variance + fraction * (b.variance - a.variance + (1.0 - fraction) * ops.mean(ops.square(step)))
    return Moments(count, a.mean + fraction * step, variance)


class RunningMoments:
    """Weights with the moments of each output's targets over all batches so far.

    Args:
        shapes: Shape of each output, `[None, ...]`. Means are over the axes of size `None`.
        add_weight: A function that makes a weight, given its shape and its name.
    """

    def __init__(self, shapes: Sequence[Sequence[int | None]], add_weight: Callable[..., keras.Variable]):
        self.shapes = tuple(map(tuple, shapes))
        self._weights = []
        for number, shape in enumerate(self.shapes):
            sizes = ((), tuple(size for size in shape[1:] if size is not None), ())
            names = (f"target_{name}_{number}" for name in Moments._fields)
            self._weights.append(Moments(*map(add_weight, sizes, names)))

    def values(self) -> list[Moments]:
        return [Moments(*map(ops.convert_to_tensor, weights)) for weights in self._weights]

    def update(self, batch: Sequence[Moments]) -> None:
        """Adds a batch, unless its moments are not finite: NaN would stay in the weights for ever."""
        for weights, old, new in zip(self._weights, self.values(), batch, strict=True):
            finite = new.variance < math.inf
            for weight, value in zip(weights, merged(old, new), strict=True):
                backend.replace_where(weight, finite, value)

    def reset(self) -> None:
        for weight in (weight for weights in self._weights for weight in weights):
            weight.assign(ops.zeros(weight.shape, weight.dtype))

    @property
    def readable(self) -> bool:
        """Whether the weights have values. On JAX, they have none outside the scope of a training step."""
        return backend.has_value(self._weights[0].count)


def total_variance(moments: Sequence[Moments]) -> Tensor:
    """The sum of the variances of all outputs."""
    return functools.reduce(operator.add, (each.variance for each in moments))
