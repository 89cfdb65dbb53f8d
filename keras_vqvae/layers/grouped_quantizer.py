"""Product quantization: equal slices of the last axis, each with a quantizer of its own."""

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_vqvae import serialization, validation
from keras_vqvae.layers import wrappers
from keras_vqvae.layers.quantizer import Quantizer
from keras_vqvae.layers.quantizer_outputs import QuantizerOutputs
from keras_vqvae.types import Tensor


@keras.saving.register_keras_serializable(package="keras_vqvae")
class GroupedQuantizer(Quantizer):
    """Cuts the last axis into equal groups and quantizes each by a quantizer of its own.

    Its losses are the means of those of the groups.

    Args:
        quantizer: The quantizer of a group, not built: the groups have copies of it, each with a seed of its own.
        num_groups: Number of groups, `G`, which must divide the input's last axis.
        dropout: Share of the samples, from 0 to 1, that use a random number of groups in training, from 1 to all, so
            that the first of them will do. The others are 0, their indices -1. `True` is 1. Defaults to `False`, none.
        seed: Integer seed of the dropout. Defaults to `None`, a random one.
        **kwargs: `name`, `dtype` and `trainable`, as for every layer.

    Call arguments:
        inputs: Floats `[..., D]`, of rank 2 or more.
        mask, training, return_indices: As for every `Quantizer`.

    Output shape:
        `[..., D]`; the indices are int32 `[..., G]`, with further axes where the inner quantizer has some. `decode`
        takes -1 for no code.

    Raises:
        ValueError: If `quantizer` is not a quantizer or built already, or `num_groups` does not divide the last axis.

    Example: residual quantization of two groups.

    >>> inner = ResidualQuantizer(FiniteScalarQuantizer(levels=(5, 5, 5, 5)), num_quantizers=3)
    >>> layer = GroupedQuantizer(inner, num_groups=2)
    >>> quantized, indices = layer(keras.random.normal((2, 5, 8)), return_indices=True)
    >>> indices.shape == (2, 5, 2, 3)
    True

    Reference:

    - [Jegou et al., 2011](https://doi.org/10.1109/TPAMI.2010.57)
    """

    lowest_index = -1

    def __init__(
        self,
        quantizer: Quantizer,
        num_groups: int,
        dropout: bool | float = False,
        seed: int | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.template = wrappers.template(quantizer)
        self.num_groups = validation.positive_int("num_groups", num_groups, wrappers.MOST_COPIES)
        self.quantizers = wrappers.copies(self, self.num_groups)
        self.num_embeddings = self.quantizers[0].num_embeddings
        self.index_shape = (self.num_groups, *self.quantizers[0].index_shape)
        self.dropout = wrappers.dropout_share(dropout)
        self.seed = validation.seed(seed)
        self.bounded = self.quantizers[0].bounded
        self.refines = self.quantizers[0].refines

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        dim = self._check_input_shape(input_shape)
        if dim % self.num_groups:
            raise ValueError(
                "`num_groups` must divide the input's last axis. "
                f"Received: num_groups={self.num_groups}, input_shape={tuple(input_shape)}"
            )
        for quantizer in self.quantizers:
            quantizer.build((None, dim // self.num_groups))
        super().build(input_shape)

    def bound(self, vectors: Tensor) -> Tensor:
        groups = zip(self.quantizers, ops.split(vectors, self.num_groups, axis=-1), strict=True)
        return ops.concatenate([quantizer.bound(group) for quantizer, group in groups], axis=-1)

    def set_depth(self, depth: int) -> None:
        super().set_depth(depth)
        for quantizer in self.quantizers:
            quantizer.set_depth(depth)

    def copies_gradient(self, training: bool) -> bool:
        return all(quantizer.copies_gradient(training) for quantizer in self.quantizers)

    def quantize_vectors(  # type: ignore[override]  # Not `listed`: its indices are never given.
        self, vectors: Tensor, kept: Tensor, training: bool, samples: Tensor
    ) -> QuantizerOutputs:
        """As for every `Quantizer`."""
        used = wrappers.draw_used(self, vectors, samples, training)
        groups = zip(self.quantizers, ops.split(vectors, self.num_groups, axis=-1), used, strict=True)
        parts = [
            wrappers.quantize_used(quantizer, group, kept, use, training, samples) for quantizer, group, use in groups
        ]
        indices = ops.stack([part.indices for part in parts], axis=1)
        return QuantizerOutputs(
            lambda: ops.concatenate([part.quantized() for part in parts], axis=-1),
            ops.concatenate([part.codes for part in parts], axis=-1),
            indices,
            lambda: [loss / self.num_groups for part in parts for loss in part.losses()],
            [update for part in parts for update in part.updates] + [(self, vectors, indices, kept)],
        )

    def lookup(self, indices: Tensor) -> Tensor:
        return ops.concatenate(
            [wrappers.lookup_used(quantizer, indices[:, i]) for i, quantizer in enumerate(self.quantizers)], axis=-1
        )

    def adapt(self, vectors: Tensor, **keywords: Any) -> None:
        """Fills the codebook of each group by k-means; see `kmeans`."""
        vectors = ops.convert_to_numpy(vectors)
        if not self.built:
            self.build(vectors.shape)
        for quantizer, group in zip(self.quantizers, np.split(vectors, self.num_groups, axis=-1), strict=True):
            quantizer.adapt(group, **keywords)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "quantizer": serialization.saved(self.template.quantizer),
            "num_groups": self.num_groups,
            "dropout": self.dropout,
            "seed": self.seed,
        }
