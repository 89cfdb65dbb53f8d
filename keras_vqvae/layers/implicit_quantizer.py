"""Base class of quantizers whose codes are computed from an index's digits rather than stored in a table."""

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
from keras import ops

from keras_vqvae import validation
from keras_vqvae.backend import backend
from keras_vqvae.layers import input_checks
from keras_vqvae.layers.code_counts import MAX_COUNTED_CODES
from keras_vqvae.layers.quantizer import Quantizer
from keras_vqvae.types import Tensor

MAX_REFINEMENT = 1 << 60
"""How many times finer the last stage of a residual may be than its first stage."""


class ImplicitQuantizer(Quantizer):
    """Base class of quantizers that round each axis to one of a few levels. The levels are the digits of the index.

    A subclass implements three methods. `bound(vectors)` bounds the vectors. `to_digits(vectors)` returns the level of
    each element, counted from 0, as float32 `[N, D]`. `from_digits(digits)` returns the codes of such levels.

    Each stage of a residual divides the bins of the previous stage into equal parts, with a code at the center of each.

    Args:
        levels: Number of levels of each axis, at least 2 each.
        most_significant_first: Whether the first axis is the most significant digit of the index.
    """

    def __init__(self, levels: Iterable[int], most_significant_first: bool, **kwargs: Any):
        super().__init__(**kwargs)
        self.levels = validation.positive_ints("levels", levels)
        if not self.levels or min(self.levels) < 2:
            raise ValueError(f"`levels` must be integers of at least 2. Received: levels={validation.shown(levels)}")
        self.num_embeddings = math.prod(self.levels)
        if self.num_embeddings > 2**31 - 1:
            raise ValueError(
                "The product of `levels` must be at most 2^31 - 1, for int32 indices. "
                f"Received: levels={validation.shown(levels)}"
            )
        digits = self.levels[::-1] if most_significant_first else self.levels
        basis = np.cumprod((1, *digits[:-1]))
        self._basis = tuple(basis[::-1].tolist() if most_significant_first else basis.tolist())

    has_fixed_codes = True
    _size_argument = "len(levels)"
    """Name, in error messages, of the argument that sets the size of the inputs' last axis."""

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        input_checks.last_axis(self, input_shape, self._size_argument, len(self.levels))
        super().build(input_shape)

    @property
    def codebook(self) -> Tensor:
        """All codes, `[num_embeddings, D]`."""
        if self.num_embeddings > MAX_COUNTED_CODES:
            raise ValueError(
                f"`codebook` lists all codes, and can list at most {MAX_COUNTED_CODES}. Use `decode` for the codes of "
                f"given indices. Received: num_embeddings={self.num_embeddings}"
            )
        return self.lookup(ops.arange(self.num_embeddings, dtype="int32"))

    def set_stage(self, stage: int) -> None:
        if max(self.levels) ** stage > MAX_REFINEMENT:
            raise ValueError(
                "A residual has too many stages for these `levels`: each stage is finer than the one before, and the "
                f"last one can be at most {MAX_REFINEMENT} times finer than the first. Use fewer stages. "
                f"Received: levels={self.levels}, stage={stage}"
            )
        super().set_stage(stage)

    def project(self, vectors: Tensor) -> Tensor:
        # Within a residual, the residual bounds the vectors before its first stage.
        return self.bound(vectors) if self.stage is None else vectors

    def copies_gradient(self, training: bool) -> bool:
        return self.stage is not None and type(self).estimate is Quantizer.estimate

    def choose(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        # The codes are computed from the digits. From the index it would take integer divisions, which are slow.
        digits = self.to_digits(ops.stop_gradient(vectors))
        numbers = ops.cast(digits, "int32")
        return ops.sum(numbers * backend.constants(self._basis, numbers), axis=-1), self.from_digits(digits)

    def lookup(self, indices: Tensor) -> Tensor:
        digits = ops.floor_divide(ops.expand_dims(indices, -1), backend.constants(self._basis, indices))
        return self.from_digits(ops.cast(ops.mod(digits, backend.constants(self.levels, indices)), "float32"))

    def to_digits(self, vectors: Tensor) -> Tensor:
        raise NotImplementedError

    def from_digits(self, digits: Tensor) -> Tensor:
        raise NotImplementedError
