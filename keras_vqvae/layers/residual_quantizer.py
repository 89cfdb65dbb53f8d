"""Residual quantization: each level quantizes what the levels before it left."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_vqvae import serialization, validation
from keras_vqvae.backend import backend
from keras_vqvae.layers import wrappers
from keras_vqvae.layers.quantizer import Quantizer
from keras_vqvae.layers.quantizer_outputs import QuantizerOutputs, once
from keras_vqvae.layers.stage_sum import StageSum
from keras_vqvae.ops import clustering, search
from keras_vqvae.types import Tensor

ADAPTED_SUMS = 4
"""With a beam, `adapt` clusters what up to this many of a vector's best sums leave."""
ADAPTED_ERROR = 2.0
"""Of them, only sums whose squared error is at most this many times that of the best one."""
ADAPTED_ROUNDS = 5
"""How often `adapt` then moves the codes of every stage along the sums that the beam finds."""


@keras.saving.register_keras_serializable(package="keras_vqvae")
class ResidualQuantizer(Quantizer):
    """Quantizes a vector by a sum of codes, each of which quantizes what those before it left.

    With `r_0 = z`, stage `i` outputs `q_i = Q_i(r_i)` and leaves `r_(i + 1) = r_i - q_i`. The output is the sum of the
    `q_i`, and gradients are those of this formula: projections, soft assignments, rotations and noise inside the stages
    are trained by the decoder and by the losses of later stages. Straight-through stages copy the gradient: the encoder
    gets that of the output exactly once, however many stages there are, and each stage's commitment loss, on
    `z - stop_gradient(q_0 + ... + q_(i - 1))`, reaches the encoder in full.

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
        ValueError: If `quantizer` is not a quantizer or built already, if its `distance` is `"cosine"`, if
            `num_quantizers` is not positive, if levels are to share codes that get finer, or if `beam_width > 1` and
            the codes stand in no codebook or are compared by direction.

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
        self.num_quantizers = validation.positive_int("num_quantizers", num_quantizers, wrappers.MOST_COPIES)
        self.shared = validation.boolean("shared", shared)
        self.dropout = wrappers.dropout_share(dropout)
        self.beam_width = validation.positive_int("beam_width", beam_width)
        self.seed = validation.seed(seed)
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
                "`beam_width > 1` ranks sums of codes by their squared error. It needs a quantizer with an explicit "
                "codebook, such as `VectorQuantizer`, whose `distance` is not 'direction'. "
                f"Received: beam_width={beam_width}, quantizer={quantizer!r}"
            )
        if self.num_quantizers > 1:
            wrappers.check_refines(first)
        self.refines = first.refines
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

    def copies_gradient(self, training: bool) -> bool:
        return all(quantizer.copies_gradient(training) for quantizer in self.quantizers)

    def quantize_vectors(  # type: ignore[override]  # Not `listed`: its indices are never given.
        self, vectors: Tensor, kept: Tensor, training: bool, samples: Tensor
    ) -> QuantizerOutputs:
        """As for every `Quantizer`."""
        used = wrappers.draw_used(self, vectors, samples, training)
        if self.depth is None:
            vectors = self.bound(vectors)
        options: list[dict[str, Tensor]] = [{} for _ in self.quantizers]
        if self.beam_width > 1:
            options = [{"indices": sums[:, 0]} for sums in self._search(vectors, self.num_quantizers)]
        copied = self.copies_gradient(training)
        total = StageSum(vectors, copied)
        columns, losses, updates = [], [], []
        for quantizer, use, keywords in zip(self.quantizers, used, options, strict=True):
            outputs = wrappers.quantize_used(quantizer, total.residual, kept, use, training, samples, **keywords)
            total.add(outputs.codes, None if copied else outputs.quantized())
            columns.append(outputs.indices)
            losses.append(outputs.losses)
            updates += outputs.updates
        indices = ops.stack(columns, axis=1)
        updates.append((self, vectors, indices, kept))
        return QuantizerOutputs(
            once(lambda: total.output(training)),
            total.codes,
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
        """Fills the codebooks stage by stage, each by k-means of what the stages before it left; see `kmeans`.

        With a beam, a stage clusters what up to four of the best sums of the stages before it leave. Afterwards the
        stages are refined in turn: the codes of one move to the means of what the others leave, along the sums that the
        beam finds.
        """
        if self.shared:
            raise ValueError("`adapt` needs a codebook for each level. Received: shared=True")
        vectors = ops.convert_to_numpy(vectors)
        # A copy, which may be changed.
        vectors = vectors.reshape(-1, vectors.shape[-1]).astype("float32")
        if not self.built:
            self.build(vectors.shape)
        rest = vectors
        for depth, quantizer in enumerate(self.quantizers, start=1):
            quantizer.adapt(rest, **keywords)
            if depth < self.num_quantizers:
                rest = self._rests(vectors, rest, depth)
        if self.beam_width > 1:
            self._refine(vectors, {**keywords, "init": "codebook", "epochs": 1, "verbose": 0})

    def _rests(self, vectors: np.ndarray, rest: np.ndarray, depth: int) -> np.ndarray:
        """What the first stages leave, given what those before the last of them left: `[N, D]` -> `[M, D]`."""
        if self.beam_width > 1:
            return np.concatenate([self._near_rests(vectors[chunk], depth) for chunk in clustering.chunks(vectors)])
        # In place: large data is in memory twice, and no more. Without a beam `vectors` are not needed again.
        for chunk in clustering.chunks(rest):
            nearest = wrappers.nearest(self.quantizers[depth - 1], backend.spread_rows(rest[chunk]))
            rest[chunk] -= ops.convert_to_numpy(nearest)
        return rest

    def _near_rests(self, vectors: np.ndarray, depth: int) -> np.ndarray:
        """What the best sums of the first stages' codes leave, and those that are nearly as good: `[n, D]` -> `[m, D]`.

        The best sums alone show the next stage too little of what a beam will leave. All of a fixed number show it too
        much: of clusters, the second best sum is a code of another cluster, which no vector will use.
        """
        # `[n, S, depth]`
        indices = ops.stack(self._search(backend.spread_rows(vectors), depth), axis=-1)[:, :ADAPTED_SUMS]
        sums = ops.convert_to_numpy(self.lookup(ops.reshape(indices, (-1, depth))))
        rests = vectors[:, None] - sums.reshape(len(vectors), -1, vectors.shape[-1])
        errors = np.einsum("nsd,nsd->ns", rests, rests)
        return rests[errors <= ADAPTED_ERROR * errors[:, :1]]

    def _refine(self, vectors: np.ndarray, keywords: dict[str, Any]) -> None:
        """Moves the codes of each stage in turn, with those of the others as they are."""
        parts = list(clustering.chunks(vectors))
        for _ in range(ADAPTED_ROUNDS):
            best = [self._search(backend.spread_rows(vectors[part]), self.num_quantizers) for part in parts]
            # `[n, Q]` each
            indices = [np.stack([ops.convert_to_numpy(sums[:, 0]) for sums in found], axis=1) for found in best]
            for stage, quantizer in enumerate(self.quantizers):
                others = [np.where(np.arange(self.num_quantizers) == stage, -1, each) for each in indices]
                sums = [ops.convert_to_numpy(self.lookup(backend.spread_rows(each))) for each in others]
                quantizer.adapt(vectors - np.concatenate(sums), **keywords)

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
