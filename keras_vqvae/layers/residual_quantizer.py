"""Residual quantization: each level quantizes what the levels before it left."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_vqvae import arguments, backend, clustering, estimators, search, serialization
from keras_vqvae.arguments import Tensor
from keras_vqvae.layers import wrappers
from keras_vqvae.layers.quantizer import Quantizer
from keras_vqvae.layers.quantizer_outputs import QuantizerOutputs

ADAPTED_SUMS = 4
"""How many of a beam's sums `adapt` goes on from: of 1, 2, 4 and 8 that with the least error on other vectors."""


@keras.saving.register_keras_serializable(package="keras_vqvae")
class ResidualQuantizer(Quantizer):
    """Quantizes a vector by a sum of codes, each of which quantizes what those before it left.

    `r_0 = z`, `r_(i + 1) = r_i - stop_gradient(q_i)`, and the output is the sum of the codes `q_i`, with the gradient
    copied once, however many levels there are. Each level adds its own losses on its own residual.

    Codes at fixed places (FSQ, LFQ, BSQ) get finer from level to level: vectors are bounded once, and the levels of an
    axis divide the width of one of the level before into equal parts, so that the error falls by their square.

    Args:
        quantizer: The quantizer of a level, not built: the levels are copies of it, each with a seed of its own.
        num_quantizers: Number of levels, `Q`.
        shared: Whether all levels are one and the same quantizer, of one codebook. Defaults to `False`.
        dropout: Share of the samples, from 0 to 1, that use a random number of levels in training, from 1 to all, so
            that fewer will do. The indices of the others are -1. `True` is 1. Defaults to `False`, none.
        beam_width: How many of the best sums go on at each level, in training and inference. With more than 1 the error
            is less, at that many times the cost of the search. Defaults to `1`: each level takes the nearest code.
        seed: Integer seed of the dropout. Defaults to `None`, a random one.
        **kwargs: `name`, `dtype` and `trainable`, as for every layer.

    Call arguments:
        inputs: Floats `[..., D]`, of rank 2 or more.
        mask, training, return_indices: As for every `Quantizer`.

    Output shape:
        `[..., D]`; the indices are int32 `[..., Q]`, with a further axis where the inner quantizer has one. `decode`
        takes -1 for no code: with the last columns so, it decodes to fewer levels.

    Raises:
        ValueError: If `quantizer` is not a quantizer or built already, `num_quantizers` is not positive, levels are to
            share codes that get finer, or several sums are to go on where codes stand in no codebook.

    Example:

    >>> layer = ResidualQuantizer(VectorQuantizer(num_embeddings=16), num_quantizers=4)
    >>> quantized, indices = layer(keras.random.normal((2, 5, 8)), return_indices=True)
    >>> indices.shape == (2, 5, 4), bool(keras.ops.all(layer.decode(indices) == quantized))
    (True, True)

    References:

    - [Zeghidour et al., 2021](https://arxiv.org/abs/2107.03312), section III.C
    - [Lee et al., 2022](https://arxiv.org/abs/2203.01941), shared codebooks
    - [Babenko and Lempitsky, 2014](https://doi.org/10.1109/CVPR.2014.124), section 3.2, the beam
    """

    lowest_index = -1

    def __init__(
        self,
        quantizer: Quantizer,
        num_quantizers: int,
        shared: bool = False,
        dropout: bool | float = False,
        beam_width: int = 1,
        seed: int | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.template = wrappers.template(quantizer)
        self.num_quantizers = arguments.positive_int("num_quantizers", num_quantizers, wrappers.MOST_COPIES)
        self.shared = arguments.boolean("shared", shared)
        self.dropout = wrappers.dropout_share(dropout)
        self.beam_width = arguments.positive_int("beam_width", beam_width)
        self.seed = arguments.seed(seed)
        self.quantizers = wrappers.copies(self, self.num_quantizers, shared)
        first = self.quantizers[0]
        self.num_embeddings = first.num_embeddings
        self.index_shape = (self.num_quantizers, *first.index_shape)
        self.bounded = first.bounded
        if shared and self.bounded:
            raise ValueError(
                "`shared` must be False where codes get finer from level to level. "
                f"Received: shared=True, quantizer={quantizer!r}"
            )
        if self.beam_width > 1 and not first.listed:
            raise ValueError(
                "`beam_width` must be 1 where codes stand in no codebook of which any may be taken. "
                f"Received: beam_width={beam_width}, quantizer={quantizer!r}"
            )
        self._set_depths(0)

    def _set_depths(self, first: int) -> None:
        for level, quantizer in enumerate(self.quantizers):
            quantizer.set_depth(first + level)

    def bound(self, vectors: Tensor) -> Tensor:
        return self.quantizers[0].bound(vectors)

    def set_depth(self, depth: int) -> None:
        super().set_depth(depth)
        self._set_depths(depth * self.num_quantizers)

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        self._check_input_shape(input_shape)
        for quantizer in self.quantizers:
            if not quantizer.built:
                quantizer.build((None, input_shape[-1]))
        super().build(input_shape)

    def quantize_vectors(  # type: ignore[override]  # Not `listed`: its indices are never given.
        self, vectors: Tensor, kept: Tensor, training: bool, samples: Tensor
    ) -> QuantizerOutputs:
        """As for every `Quantizer`."""
        used = wrappers.draw_used(self, vectors, samples, training)
        if self.depth is None:
            vectors = self.bound(vectors)
        rest, total = vectors, ops.zeros_like(vectors)
        best: list[tuple[Tensor, ...]] = [()] * self.num_quantizers
        if self.beam_width > 1:
            best = [(sums[:, 0],) for sums in self._search(vectors, self.num_quantizers)]
        columns, losses, updates = [], [], []
        for quantizer, use, chosen in zip(self.quantizers, used, best, strict=True):
            outputs = wrappers.quantize_used(quantizer, rest, kept, use, training, samples, *chosen)
            rest, total = rest - ops.stop_gradient(outputs.codes), total + outputs.codes
            columns.append(outputs.indices)
            losses.append(outputs.losses)
            updates += outputs.updates
        indices = ops.stack(columns, axis=1)
        updates.append((self, vectors, indices, kept))
        return QuantizerOutputs(
            lambda: estimators.straight_through(vectors, total),
            total,
            indices,
            lambda: [loss for level in losses for loss in level()],
            updates,
        )

    def _search(self, vectors: Tensor, depth: int) -> Sequence[Tensor]:
        """The indices `[N, B]` of the best sums of the first levels' codes, for each of them."""
        codebooks = [
            quantizer.lookup(ops.arange(quantizer.num_embeddings, dtype="int32"))
            for quantizer in self.quantizers[:depth]
        ]
        return search.beam_search(vectors, codebooks, self.beam_width)

    def lookup(self, indices: Tensor) -> Tensor:
        return sum(
            wrappers.lookup_used(quantizer, indices[:, level])
            for level, quantizer in enumerate(self.quantizers[: indices.shape[1]])
        )

    def adapt(self, vectors: Tensor, **keywords: Any) -> None:
        """Fills the codebooks level by level, each by k-means of what the levels before it left; see `kmeans`.

        With a beam that is what each of the best sums left, of four at most: so many times as many vectors.
        """
        if self.shared:
            raise ValueError("`adapt` needs a codebook for each level. Received: shared=True")
        vectors = ops.convert_to_numpy(vectors)
        vectors = vectors.reshape(-1, vectors.shape[-1])
        if not self.built:
            self.build(vectors.shape)
        rest = vectors.astype("float32")
        for depth, quantizer in enumerate(self.quantizers, start=1):
            quantizer.adapt(rest, **keywords)
            if self.beam_width > 1:
                rest = np.concatenate([self._rests(vectors[chunk], depth) for chunk in clustering.chunks(vectors)])
                continue
            # In place: large data is in memory twice, and no more.
            for chunk in clustering.chunks(rest):
                rest[chunk] -= ops.convert_to_numpy(wrappers.nearest(quantizer, backend.spread_rows(rest[chunk])))

    def _rests(self, vectors: np.ndarray, depth: int) -> np.ndarray:
        """What each of the best sums of the first levels' codes leaves: `[n, D]` -> `[n S, D]`."""
        vectors = backend.spread_rows(vectors.astype("float32"))
        # `[n, B]` a level -> `[n, S, levels]`
        indices = ops.stack(self._search(vectors, depth), axis=-1)[:, :ADAPTED_SUMS]
        sums = self.lookup(ops.reshape(indices, (-1, depth)))
        return ops.convert_to_numpy(ops.repeat(vectors, indices.shape[1], axis=0) - sums)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "quantizer": serialization.saved(self.template.quantizer),
            "num_quantizers": self.num_quantizers,
            "shared": self.shared,
            "dropout": self.dropout,
            "beam_width": self.beam_width,
            "seed": self.seed,
        }
