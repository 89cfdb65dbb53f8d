"""The weight of a reconstruction's error, by which it is balanced with the losses of a quantizer."""

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras import ops

from keras_vqvae.backend import backend
from keras_vqvae.models.moments import Moments, Pairs, RunningMoments, count_of, moments_of, total_variance
from keras_vqvae.models.targets import aligned_targets
from keras_vqvae.types import Sizes, Tensor

WEIGHT = 0.125
"""Of the error of a sample, in units of the variance, per element of its latents. See `docs/studies.md`."""
RAMP = 0.1
"""The explained fraction of a batch's variance from which on the commitment loss counts in full."""
MIN_RATIO = 1e-12
"""Variances below this fraction of the mean square are rounding of a constant."""


class Reconstruction:
    """Compares the outputs of a decoder with their targets.

    The losses of a quantizer are means over the elements of the latents. So the error of a sample is divided by their
    number, too, and by the variance of the targets, which makes it independent of their scale and size.

    Args:
        output_shapes: Shape of each output of the decoder, `[None, ...]`.
        latent_shape: Shape of the decoder's inputs, `[None, ..., D]`.
        add_weight: Makes a weight of a shape, with a name.
    """

    def __init__(self, output_shapes: Sequence[Sizes], latent_shape: Sizes, add_weight: Callable[..., keras.Variable]):
        self.output_shapes, self.latent_shape = output_shapes, latent_shape
        self.targets = RunningMoments(output_shapes, add_weight)

    def pairs(self, targets: Any, y_pred: Any) -> list[tuple[Tensor, Tensor]] | None:
        """Each output with its target in the same shape; `None` if these are not outputs of the decoder."""
        return aligned_targets(targets, y_pred, self.output_shapes)

    def moments(self, pairs: Pairs) -> list[Moments]:
        """The moments of the batch's targets."""
        return [moments_of(target, shape) for (target, _), shape in zip(pairs, self.output_shapes, strict=False)]

    def weight(
        self,
        pairs: Pairs,
        batch: Sequence[Moments],
        latents: Sizes | None,
        training: bool,
    ) -> Tensor:
        """What the mean squared error is multiplied by.

        The variance is that of the targets of training so far, these included, or in evaluation of the batch, if there
        was no training. Where all targets are equal it is their mean square.

        Args:
            pairs: Targets and outputs.
            batch: The moments of the targets, which are in those so far if `training`.
            latents: Shape of the latents of this batch, or `None`: sizes that vary are then left out.
            training: Whether this is a step of training.
        """
        variance = total_variance(batch)
        if self.targets.readable:
            so_far = total_variance(self.targets.values())
            variance = so_far if training else ops.where(so_far > 0, so_far, variance)
        square = sum(ops.mean(ops.square(ops.cast(target, "float32"))) for target, _ in pairs)
        fallback = ops.where(square > 0, square, ops.ones_like(square))
        variance = ops.where(variance > MIN_RATIO * square, variance, fallback)
        return self.factor(pairs, latents) / variance

    def withheld(self, pairs: Pairs, error: Tensor, own: Sequence[Moments], batch: Sequence[Moments]) -> Tensor:
        """The fraction of the commitment loss that is left out of a step of training.

        It is 1 where the outputs explain nothing of the batch's variance, and falls to 0 where they explain `RAMP` of
        it. A new decoder ignores the codes, so the error of the reconstruction has nearly no gradient at the encoder,
        and the commitment loss would make all vectors equal before the decoder has learned anything.

        Args:
            pairs: Targets and outputs.
            error: Their mean squared error.
            own: Moments of this replica's targets.
            batch: The moments of the targets of all replicas.
        """
        if batch[0].count is not own[0].count:
            error = backend.sum_over_replicas(own[0].count * error) / backend.at_least(batch[0].count, 1.0)
        unexplained = ops.stop_gradient(error) / backend.at_least(total_variance(batch), 1e-30)
        withheld = backend.clip(unexplained / RAMP - (1 / RAMP - 1), 0.0, 1.0)
        # A single target has no variance of which a fraction could be explained.
        count = count_of(pairs[0][0], self.output_shapes[0])
        if isinstance(count, int):
            return withheld if count > 1 else ops.zeros_like(withheld)
        return ops.where(count > 1, withheld, 0.0)

    def factor(self, pairs: Pairs, latents: Sizes | None) -> Tensor | float:
        """What the mean squared error in units of the variance is multiplied by; arguments as of `weight`."""
        outputs = self.output_shapes if latents is None else [ops.shape(output) for _, output in pairs]
        return WEIGHT * sum(map(_elements, outputs)) / _elements(latents or self.latent_shape)


def _elements(shape: Sizes) -> Tensor:
    """How many elements a sample has, as far as its sizes are known."""
    sizes = (size if isinstance(size, int) else ops.cast(size, "float32") for size in shape[1:] if size is not None)
    return functools.reduce(operator.mul, sizes, 1)
