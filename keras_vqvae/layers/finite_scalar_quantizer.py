"""Finite scalar quantization: every axis rounded to a few levels."""

from collections.abc import Iterable
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_vqvae import validation
from keras_vqvae.backend import backend
from keras_vqvae.layers.implicit_quantizer import ImplicitQuantizer
from keras_vqvae.ops import estimators
from keras_vqvae.types import Tensor

_EPSILON = 1e-3


@keras.saving.register_keras_serializable(package="keras_vqvae")
class FiniteScalarQuantizer(ImplicitQuantizer):
    """Rounds each axis to one of a few levels between -1 and 1 (FSQ). It needs no learned codebook and no losses.

    Each axis is bounded by tanh and rounded. The gradient is copied through the rounding. The index is a mixed-radix
    number whose first digit is the least significant.

    Args:
        levels: Number of levels of each axis, at least 2. The input's last axis has `len(levels)` elements. The product
            of the levels is the number of codes, at most 2^31 - 1. Defaults to `(8, 5, 5, 5)`, 1,000 codes.
        symmetric: Whether the levels of each axis are evenly spaced from -1 to 1. With `False`, as in the paper, an
            axis with an even number of levels has one more level below 0 than above. Defaults to `False`.
        noise: Fraction of the elements, from 0 to 1, that get uniform noise in place of rounding in training. The noise
            is as wide as the distance between two levels. Defaults to `0.0`.
        seed: Integer seed of the noise. Defaults to `None`, a random seed.
        **kwargs: `name`, `dtype` and `trainable`, as for every layer.

    Call arguments:
        inputs: Floats `[..., len(levels)]`, of rank 2 or more.
        mask, training, return_indices: As for every `Quantizer`.

    Output shape:
        `[..., len(levels)]`; the indices are int32 `[...]`.

    Raises:
        ValueError: If there are fewer than 2 levels or too many codes, or the input's last axis does not fit.

    Example:

    >>> layer = FiniteScalarQuantizer(levels=(5, 3))
    >>> quantized, indices = layer(keras.random.normal((10, 2)), return_indices=True)
    >>> layer.num_embeddings, bool(keras.ops.all(layer.decode(indices) == quantized))
    (15, True)

    Reference:

    - [Mentzer et al., 2023](https://arxiv.org/abs/2309.15505)
    - [Symmetric form and noise: Parker et al., 2024](https://arxiv.org/abs/2411.19842), section 2.2
    """

    def __init__(
        self,
        levels: Iterable[int] = (8, 5, 5, 5),
        symmetric: bool = False,
        noise: float = 0.0,
        seed: int | None = None,
        **kwargs: Any,
    ):
        super().__init__(levels, most_significant_first=False, **kwargs)
        self.symmetric = validation.boolean("symmetric", symmetric)
        self.noise = validation.fraction("noise", noise)
        self.seed = validation.seed(seed)
        # Stored as tuples, because `torch.compile` does not take NumPy arrays.
        steps = np.array(self.levels, "float64")
        half = (steps - 1) * (1 + _EPSILON) / 2
        offset = np.where(steps % 2 == 0, 0.5, 0.0)
        # Bins are `1 / scale` wide, and digit 0 lies at `lowest`.
        scale = (steps - 1) / 2 if self.symmetric else np.floor(steps / 2)
        # The shift keeps 0 at 0 for even numbers of levels.
        of_bound = np.arctanh(offset / half), half / scale, offset / scale
        self._shift, self._half, self._offset = (tuple(x.tolist()) for x in of_bound)
        self._first_scale = self._scale = tuple(scale.tolist())
        self._lowest = (-1.0,) * len(self.levels)
        self._last = tuple((steps - 1).tolist())

    def set_stage(self, stage: int) -> None:
        super().set_stage(stage)
        if stage:
            self._scale = tuple(first * n**stage for first, n in zip(self._first_scale, self.levels, strict=True))
            self._lowest = tuple((1 - n) / (2 * scale) for scale, n in zip(self._scale, self.levels, strict=True))

    def bound(self, vectors: Tensor) -> Tensor:
        if self.symmetric:
            return ops.tanh(vectors)
        bounded = ops.tanh(vectors + backend.constants(self._shift, vectors)) * backend.constants(self._half, vectors)
        return bounded - backend.constants(self._offset, vectors)

    def to_digits(self, vectors: Tensor) -> Tensor:
        digits = (vectors - backend.constants(self._lowest, vectors)) * backend.constants(self._scale, vectors)
        digits = ops.floor(digits + 0.5) if self.symmetric else ops.round(digits)
        # A NaN gets digit 0. `nan_to_num` would do the same, but OpenVINO does not convert it from PyTorch.
        digits = ops.where(digits > 0.0, digits, backend.constants((0.0,), digits))
        return ops.minimum(digits, backend.constants(self._last, vectors))

    def from_digits(self, digits: Tensor) -> Tensor:
        return digits / backend.constants(self._scale, digits) + backend.constants(self._lowest, digits)

    def estimate(self, vectors: Tensor, codes: Tensor, training: bool) -> Tensor:
        rounded = estimators.straight_through(vectors, codes)
        if not (training and self.noise):
            return rounded
        drawn = keras.random.uniform((2, *ops.shape(vectors)), dtype="float32", seed=self.seed_generator)
        return ops.where(
            drawn[0] < self.noise, vectors + (drawn[1] - 0.5) / backend.constants(self._scale, vectors), rounded
        )

    def copies_gradient(self, training: bool) -> bool:
        own = type(self).estimate is not FiniteScalarQuantizer.estimate
        return self.stage is not None and not own and not (training and self.noise)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "levels": self.levels,
            "symmetric": self.symmetric,
            "noise": self.noise,
            "seed": self.seed,
        }
