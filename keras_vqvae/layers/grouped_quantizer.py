"""Product quantization: equal slices of the last axis, each with its own quantizer."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_vqvae import serialization, validation
from keras_vqvae.layers import input_checks, wrappers
from keras_vqvae.layers.codebook_quantizer import CodebookQuantizer
from keras_vqvae.layers.quantizer import Quantizer
from keras_vqvae.layers.record import Record
from keras_vqvae.layers.resized import ResizableWrapper, used_codes
from keras_vqvae.ops import search
from keras_vqvae.types import Tensor


@keras.saving.register_keras_serializable(package="keras_vqvae")
class GroupedQuantizer(ResizableWrapper):
    """Splits the last axis into equal groups, and quantizes each group with its own quantizer.

    The losses are means over the groups.

    Args:
        quantizer: The quantizer of a group, not built. Each group has a copy of it, with its own seed.
        num_groups: Number of groups, `G`, which must divide the input's last axis.
        quantizer_dropout: Fraction of the samples, from 0 to 1, that use only the first groups in training. For each of
            these samples, the number of groups is drawn, from 1 to all. The other groups output zeros, and have the
            index -1. Defaults to `0.0`.
        seed: Integer seed of the quantizer dropout. Defaults to `None`, a random seed.
        **kwargs: `name`, `dtype` and `trainable`, as for every layer.

    Call arguments:
        inputs: Floats `[..., D]`, of rank 2 or more.
        mask, training, return_indices: As for every `Quantizer`.

    Output shape:
        `[..., D]`. The indices are int32 `[..., G, *index_shape]` with the `index_shape` of the inner quantizer.
        `decode` reads -1 as "no code".

    Raises:
        ValueError: If `quantizer` is not a quantizer, or is built already. If `num_groups` does not divide the last
            axis.

    Example: residual quantization of two groups.

    >>> inner = ResidualQuantizer(FiniteScalarQuantizer(levels=(5, 5, 5, 5)), num_quantizers=3)
    >>> layer = GroupedQuantizer(inner, num_groups=2)
    >>> quantized, indices = layer(keras.random.normal((2, 5, 8)), return_indices=True)
    >>> indices.shape == (2, 5, 2, 3)
    True

    Reference:

    - [Jegou et al., 2011](https://doi.org/10.1109/TPAMI.2010.57)
    """

    min_index = -1

    def __init__(
        self,
        quantizer: Quantizer,
        num_groups: int,
        quantizer_dropout: float = 0.0,
        seed: int | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.template = wrappers.template(quantizer)
        self.num_groups = validation.positive_int("num_groups", num_groups, wrappers.MAX_COPIES)
        self.quantizers = wrappers.copies(self, self.num_groups)
        self.num_embeddings = self.quantizers[0].num_embeddings
        self.index_shape = (self.num_groups, *self.quantizers[0].index_shape)
        self.quantizer_dropout = validation.fraction("quantizer_dropout", quantizer_dropout)
        self.seed = validation.seed(seed)
        self.has_fixed_codes = self.quantizers[0].has_fixed_codes
        self.refines = self.quantizers[0].refines

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        return wrappers.codebook_sizes(self.quantizers)

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        dim = input_checks.last_axis(self, input_shape)
        if dim % self.num_groups:
            raise ValueError(
                f"The inputs' last axis, {dim}, must be divisible by `num_groups`. "
                f"Received: num_groups={self.num_groups}, input_shape={tuple(input_shape)}"
            )
        for quantizer in self.quantizers:
            quantizer.build((None, dim // self.num_groups))
        super().build(input_shape)

    def bound(self, vectors: Tensor) -> Tensor:
        groups = zip(self.quantizers, ops.split(vectors, self.num_groups, axis=-1), strict=True)
        return ops.concatenate([quantizer.bound(group) for quantizer, group in groups], axis=-1)

    def set_stage(self, stage: int) -> None:
        super().set_stage(stage)
        for quantizer in self.quantizers:
            quantizer.set_stage(stage)

    def copies_gradient(self, training: bool) -> bool:
        return all(quantizer.copies_gradient(training) for quantizer in self.quantizers)

    def quantize_vectors(
        self, vectors: Tensor, valid: Tensor, training: bool, batch_size: Tensor, indices: Tensor | None = None
    ) -> Record:
        """Quantizes each group of dimensions with its own quantizer."""
        used = wrappers.draw_used(self, vectors, batch_size, training)
        parts = ops.split(vectors, self.num_groups, axis=-1)
        given = self._search(parts) if indices is None else ops.unstack(indices, axis=1)
        groups = zip(self.quantizers, parts, used, given, strict=True)
        parts = [
            wrappers.quantize_used(quantizer, group, valid, use, training, batch_size, chosen)
            for quantizer, group, use, chosen in groups
        ]
        indices = ops.stack([part.used_indices for part in parts], axis=1)
        codes = ops.concatenate([part.used_codes for part in parts], axis=-1)
        return Record(self, vectors, valid, indices, codes, training, parts)

    def _search(self, groups: Sequence[Tensor]) -> Sequence[Tensor | None]:
        """Returns the indices of all groups from one search, or `None` for each group if that is not possible."""
        first = self.quantizers[0]
        if not isinstance(first, CodebookQuantizer) or not first.searches_nearest:
            return [None] * self.num_groups
        return search.search_groups(groups, [quantizer.codebook for quantizer in self.quantizers])

    def compute_output(self, record: Record) -> Tensor:
        if self.copies_gradient(record.training) and record.parts[0].used is None:
            return super().compute_output(record)
        return ops.concatenate([part.output for part in record.parts], axis=-1)

    def all_losses(self, record: Record) -> list[tuple[str, Tensor]]:
        return [(name, loss / self.num_groups) for name, loss in super().all_losses(record)]

    def lookup(self, indices: Tensor) -> Tensor:
        return ops.concatenate(
            [wrappers.lookup_used(quantizer, indices[:, i]) for i, quantizer in enumerate(self.quantizers)], axis=-1
        )

    def adapt(self, vectors: Tensor, **keywords: Any) -> None:
        """Initializes the codebook of each group with k-means. A group that is frozen on its own keeps its codebook.

        It takes outputs of the encoder `[..., D]`, and the other arguments of `CodebookQuantizer.adapt`.
        """
        vectors = ops.convert_to_numpy(input_checks.vectors_to_adapt(self, vectors))
        for quantizer, group in zip(self.quantizers, np.split(vectors, self.num_groups, axis=-1), strict=True):
            if not wrappers.keeps_codes(self, quantizer):
                quantizer.adapt(group, **keywords)

    def prune_unused(self, counts: Tensor | None = None) -> tuple["GroupedQuantizer", np.ndarray]:
        """Returns a new layer without unused codes, and the new index of each old code.

        All groups get the same number of codes: the largest number of used codes in any group.

        Args:
            counts: How often each code was chosen, `[G, K]`. Defaults to `None`: the layer's `code_counts`.

        Returns:
            `(layer, new_indices)`, as from `resize`.

        Raises:
            ValueError: If all counts are 0.
        """
        return self.resize(int(np.max(np.sum(used_codes(self, counts), axis=-1))), counts)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "quantizer": serialization.saved(self.template.quantizer),
            "num_groups": self.num_groups,
            "quantizer_dropout": self.quantizer_dropout,
            "seed": self.seed,
        }
