"""The weight of the reconstruction error, which balances it with the losses of the quantizer."""

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras import ops

from keras_vqvae.backend import backend
from keras_vqvae.models.moments import Moments, Pairs, RunningMoments, moments_of, total_variance
from keras_vqvae.models.targets import aligned_targets
from keras_vqvae.types import Sizes, Tensor

WEIGHT = 0.125
"""Weight of the squared error summed over a sample, in units of the variance and per element of the latents.

Measured in `docs/studies/loss-balance.md`.
"""
RAMP = 0.1
"""Fraction of the variance that outputs must explain before the commitment loss counts in full."""
MIN_RATIO = 1e-12
"""A variance below this fraction of the mean square is rounding error: the targets are constant."""


class Reconstruction:
    """Compares the outputs of a decoder with their targets.

    The losses of a quantizer are means over the elements of the latents. Therefore the squared error of a sample is
    also divided by the number of these elements. It is divided by the variance of the targets as well, so that it does
    not depend on the scale of the data.

    Args:
        output_shapes: Shape of each output of the decoder, `[None, ...]`.
        latent_shape: Shape of the decoder's inputs, `[None, ..., D]`.
        add_weight: A function that makes a weight, given its shape and its name.
    """

    def __init__(self, output_shapes: Sequence[Sizes], latent_shape: Sizes, add_weight: Callable[..., keras.Variable]):
        self.output_shapes, self.latent_shape = output_shapes, latent_shape
        self.targets = RunningMoments(output_shapes, add_weight)

    def pairs(self, targets: Any, y_pred: Any) -> list[tuple[Tensor, Tensor]] | None:
        """Pairs of targets and outputs of the same shape, or `None` if `y_pred` are not the decoder's outputs."""
        return aligned_targets(targets, y_pred, self.output_shapes)

    def moments(self, pairs: Pairs) -> list[Moments]:
        """The moments of the targets of a batch."""
        return [moments_of(target, shape) for (target, _), shape in zip(pairs, self.output_shapes, strict=False)]

    def variance(self, pairs: Pairs, batch: Sequence[Moments], training: bool) -> Tensor:
        """The variance by which the mean squared error is divided.

        It is the variance of all targets of training so far. Before any training, evaluation takes the variance of the
        batch. If all targets are equal, their mean square takes its place.

        Args:
            pairs: Targets and outputs.
            batch: The moments of the targets. In training, they have already been added to the moments so far.
            training: Whether this is a training step.
        """
        variance = total_variance(batch)
        if self.targets.readable:
            so_far = total_variance(self.targets.values())
            variance = so_far if training else ops.where(so_far > 0, so_far, variance)
        square = sum(ops.mean(ops.square(ops.cast(target, "float32"))) for target, _ in pairs)
        fallback = ops.where(square > 0, square, ops.ones_like(square))
        return ops.where(variance > MIN_RATIO * square, variance, fallback)

    def withheld(self, error: Tensor, count: Tensor, all_counts: Tensor, variance: Tensor) -> Tensor:
        """The fraction of the commitment loss that a training step leaves out.

        It is 1 if the outputs explain nothing of the variance, and falls to 0 when they explain `RAMP` of it. A new
        decoder ignores the codes, so the encoder has nearly no gradient from the reconstruction. The commitment loss
        would make all vectors equal before the decoder has learned anything.

        Args:
            error: Mean squared error of this replica.
            count: Number of targets of this replica.
            all_counts: Number of targets of all replicas. It is `count` itself if there is one replica.
            variance: As `variance` returns it.
        """
        if all_counts is not count:
            error = backend.sum_over_replicas(count * error) / backend.at_least(all_counts, 1.0)
        return backend.clip(ops.stop_gradient(error) / variance / RAMP - (1 / RAMP - 1), 0.0, 1.0)

    def factor(self, pairs: Pairs, latents: Sizes | None) -> Tensor | float:
        """The weight of the mean squared error in units of the variance.

        Args:
            pairs: Targets and outputs.
            latents: Shape of the latents of this batch, or `None`: only the fixed sizes of the latents are then
                counted.
        """
        outputs = self.output_shapes if latents is None else [ops.shape(output) for _, output in pairs]
        return WEIGHT * sum(map(_elements, outputs)) / _elements(latents or self.latent_shape)


def _elements(shape: Sizes) -> Tensor:
    """The number of elements of a sample: the product of its known sizes."""
    sizes = (size if isinstance(size, int) else ops.cast(size, "float32") for size in shape[1:] if size is not None)
    return functools.reduce(operator.mul, sizes, 1)
