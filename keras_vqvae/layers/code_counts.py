"""Counts of how often each code is chosen, for each codebook."""

import math
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_vqvae.backend import backend
from keras_vqvae.layers.record import Record
from keras_vqvae.ops import codebook
from keras_vqvae.types import Tensor

MAX_COUNTED_CODES = 1 << 24
"""A quantizer with more codes keeps no `code_counts`, unless its codes are weights."""


class CountedCodes(keras.Layer):
    """A layer that counts how often each of its codes is chosen, in the weight `code_counts`."""

    num_embeddings: int
    """Number of codes of the codebook, or of the largest codebook if there are several."""
    index_shape: tuple[int, ...] = ()
    """Shape of one vector's indices: `()`, or one axis for each nested `ResidualQuantizer` or `GroupedQuantizer`."""
    has_codebook: bool = False
    """Whether codes are weights. Weights take more memory than counts, so any number of such codes is counted."""
    codebooks: tuple[int, ...] | None = None
    """For each index of a sample, which codebook it belongs to, from 0 in the order of `codebook_shape`. `None` if each
    index has its own codebook."""
    count_in_inference: bool = False
    """Whether codes are counted in inference, too. `CodebookMonitor` sets it during an evaluation."""
    code_counts: keras.Variable | None

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self.code_counts = None

    @property
    def codebook_shape(self) -> tuple[int, ...]:
        """Leading axes of `code_counts`, with one entry for each codebook. `()` for a single codebook."""
        return self.index_shape

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """Number of codes of each codebook, in the order of `codebook_shape`."""
        return (self.num_embeddings,)

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        super().build(input_shape)
        shape = (*self.codebook_shape, self.num_embeddings)
        if self.has_codebook or math.prod(shape) <= MAX_COUNTED_CODES:
            self.code_counts = self.add_weight(shape, "zeros", backend.COUNTER, trainable=False, name="code_counts")

    def count_codes(self, indices: Tensor) -> Tensor:
        """Returns how often each code of each codebook was chosen, int32 `[*codebook_shape, num_embeddings]`.

        Args:
            indices: Integers `[..., *index_shape]`. Negative indices are not counted.
        """
        # `[..., *index_shape]` -> `[N, Q]`
        columns = math.prod(self.index_shape) if self.codebooks is None else len(self.codebooks)
        indices = ops.reshape(indices, (-1, columns))
        counts = codebook.count_columns(indices, indices >= 0, self.num_embeddings, self.codebooks)
        return ops.reshape(counts, (*self.codebook_shape, self.num_embeddings))

    def count_record(self, record: Record, parts: Sequence[Tensor | None]) -> Tensor | None:
        """Returns how often each code of a record was chosen, summed over replicas; `None` if codes are not counted.

        Args:
            record: Record of this quantizer.
            parts: Counts of the record's parts.
        """
        if not parts:
            if self.code_counts is None:
                return None
            counts = codebook.count_codes(record.indices, record.valid, self.num_embeddings)
            return backend.sum_over_replicas(counts)
        counted = [counts for counts in parts if counts is not None]
        if len(counted) < len(parts):
            return None
        # Pads the counts of smaller codebooks with zeros.
        missing = [self.num_embeddings - counts.shape[-1] for counts in counted]
        if any(missing):
            ends = [(0, 0)] * (len(counted[0].shape) - 1)
            counted = [ops.pad(each, [*ends, (0, size)]) for each, size in zip(counted, missing, strict=True)]
        shape = (*self.codebook_shape, self.num_embeddings)
        return ops.reshape(counted[0] if len(counted) == 1 else ops.stack(counted), shape)

    def reset_code_counts(self) -> None:
        """Sets `code_counts` to zero.

        Does nothing if the layer has no `code_counts`: before it is built, or with more than 2^24 codes that are not
        weights.
        """
        if self.code_counts is not None:
            self.code_counts.assign(ops.zeros(self.code_counts.shape, self.code_counts.dtype))
