"""Mean and variance of the targets: what a loss that does not depend on their scale is divided by."""

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
    """Of the arrays of one output: how many, their mean, and the mean of the variances of its elements."""

    count: Tensor
    mean: Tensor
    variance: Tensor


def _axes(shape: Sequence[int | None]) -> list[int]:
    return [axis for axis, size in enumerate(shape) if axis == 0 or size is None]


def count_of(x: Tensor, shape: Sequence[int | None]) -> int | Tensor:
    """How many arrays a batch `[batch, ...]` has, one for each entry of the axes whose size in `shape` is not known."""
    return math.prod(ops.shape(x)[axis] for axis in _axes(shape))


def moments_of(x: Tensor, shape: Sequence[int | None]) -> Moments:
    """The moments of a batch `[batch, ...]`, over the axes whose size in `shape` is not known."""
    axes = _axes(shape)
    x, count = ops.cast(x, "float32"), count_of(x, shape)
    count = backend.constants((count,), x)[0] if isinstance(count, int) else ops.cast(count, "float32")
    # No sample has the mean 0.
    divisor = backend.at_least(count, 1.0)
    # Relative to one of the arrays, so that equal ones have a variance of exactly 0. It is a sum, as there may be none.
    one = ops.sum(x[tuple(slice(1 if axis in axes else None) for axis in range(len(shape)))], axes, keepdims=True)
    x = x - one
    mean = ops.sum(x, axes, keepdims=True) / divisor
    return Moments(count, ops.squeeze(one + mean, axes), ops.mean(ops.sum(ops.square(x - mean), axes)) / divisor)


def squared_error(pairs: Pairs) -> Tensor:
    """The mean squared error of pairs of targets and outputs, summed over the outputs."""
    return sum(ops.mean(ops.square(ops.cast(y, "float32") - ops.cast(y_pred, "float32"))) for y, y_pred in pairs)


def over_replicas(own: Moments) -> Moments:
    """The moments of the batches of all replicas, given this replica's."""
    count = backend.sum_over_replicas(own.count)
    if count is own.count:
        return own
    divisor = backend.at_least(count, 1.0)
    mean = backend.sum_over_replicas(own.count * own.mean) / divisor
    square = own.count * (own.variance + ops.mean(ops.square(own.mean - mean)))
    return Moments(count, mean, backend.sum_over_replicas(square) / divisor)


def merged(a: Moments, b: Moments) -> Moments:
    """The moments of two sets together, without the difference of two large numbers (Chan et al., 1979)."""
    count = a.count + b.count
    share = b.count / backend.at_least(count, 1.0)
    step = b.mean - a.mean
    variance = a.variance + share * (b.variance - a.variance + (1.0 - share) * ops.mean(ops.square(step)))
    return Moments(count, a.mean + share * step, variance)


class RunningMoments:
    """Weights that hold the moments of each output over all batches so far.

    Args:
        shapes: Shape of each output, `[None, ...]`. Means are over the axes whose size is `None`.
        add_weight: Makes a weight of a shape, with a name.
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
        """Takes in a batch, unless its moments are no numbers, which would stay for ever."""
        for weights, old, new in zip(self._weights, self.values(), batch, strict=True):
            finite = new.variance < math.inf
            for weight, value in zip(weights, merged(old, new), strict=True):
                backend.replace_where(weight, finite, value)

    def reset(self) -> None:
        for weight in (weight for weights in self._weights for weight in weights):
            weight.assign(ops.zeros(weight.shape, weight.dtype))

    @property
    def readable(self) -> bool:
        """Whether the weights have values: those of a step on JAX have none outside of its scope."""
        return backend.has_value(self._weights[0].count)


def total_variance(moments: Sequence[Moments]) -> Tensor:
    """The sum of the outputs' variances."""
    return functools.reduce(operator.add, (each.variance for each in moments))
