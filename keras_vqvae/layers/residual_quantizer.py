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
from keras_vqvae.layers.record import Record
from keras_vqvae.layers.stage_sum import StageSum
from keras_vqvae.ops import clustering, search
from keras_vqvae.types import Tensor

ADAPT_BEAM_WIDTH = 4
"""With a beam, `adapt` clusters what up to this many of a vector's best sums leave."""
ADAPTED_ERROR = 2.0
"""Of them, only sums whose squared error is at most this many times that of the best one."""
ADAPTED_ROUNDS = 5
"""How often `adapt` then moves the codes of every stage along the sums that the beam finds."""


@keras.saving.register_keras_serializable(package="keras_vqvae")
class ResidualQuantizer(Quantizer):
    """Quantizes a vector by a sum of codes, stage by stage: each stage quantizes the residual of those before it.

    With `r_0 = z`, stage `i` outputs `q_i = Q_i(r_i)` and leaves `r_(i + 1) = r_i - q_i`. The output is the sum of the
    `q_i`, and gradients are those of this formula: projections, soft assignments, rotations and noise inside the stages
    are trained by the decoder and by the losses of later stages. Straight-through stages copy the gradient: the encoder
    gets that of the output exactly once, however many stages there are, and each stage's commitment loss, on
    `z - stop_gradient(q_0 + ... + q_(i - 1))`, reaches the encoder in full.

    Quantizers with fixed codes (FSQ, LFQ, BSQ) get finer from stage to stage. Vectors are bounded once, and each stage
    subdivides the bins of the previous one: an axis with 8 levels gets bins 8 times narrower, so its squared error
    falls 64-fold per stage.

    Args:
        quantizer: The quantizer of a stage, not built. The stages are copies of it, each with a seed of its own.
        num_quantizers: Number of stages, `Q`.
        shared_codebook: Whether all stages are the same quantizer, with one codebook. Defaults to `False`.
        quantizer_dropout: Fraction of the samples, from 0 to 1, that use only the first stages in training: a random
            number of them, from 1 to all. The other stages have code 0 and index -1. Defaults to `0.0`.
        beam_width: Beam width of the search, in training and inference. A wider beam lowers the error; the cost of the
            search grows in proportion. Defaults to `1`: each stage takes the nearest code.
        seed: Integer seed of the quantizer dropout. Defaults to `None`, a random one.
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

    min_index = -1

    def __init__(
        self,
        quantizer: Quantizer,
        num_quantizers: int,
        shared_codebook: bool = False,
        quantizer_dropout: float = 0.0,
        beam_width: int = 1,
        seed: int | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.template = wrappers.template(quantizer)
        self.num_quantizers = validation.positive_int("num_quantizers", num_quantizers, wrappers.MAX_COPIES)
        self.shared_codebook = validation.boolean("shared_codebook", shared_codebook)
        self.quantizer_dropout = validation.fraction("quantizer_dropout", quantizer_dropout)
        self.beam_width = validation.positive_int("beam_width", beam_width)
        self.seed = validation.seed(seed)
        self.quantizers = wrappers.copies(self, self.num_quantizers, shared_codebook)
        first = self.quantizers[0]
        self.num_embeddings = first.num_embeddings
        self.index_shape = (self.num_quantizers, *first.index_shape)
        self.has_fixed_codes = first.has_fixed_codes
        if shared_codebook and self.has_fixed_codes:
            raise ValueError(
                "`shared_codebook` must be False for quantizers with fixed codes, which get finer from stage to stage. "
                f"Received: shared_codebook=True, quantizer={quantizer!r}"
            )
        if self.beam_width > 1 and not first.supports_beam_search:
            raise ValueError(
                "`beam_width > 1` ranks sums of codes by their squared error. It needs a quantizer with an explicit "
                "codebook, such as `VectorQuantizer`, whose `distance` is not 'direction'. "
                f"Received: beam_width={beam_width}, quantizer={quantizer!r}"
            )
        if self.num_quantizers > 1:
            wrappers.check_refines(first)
        self.refines = first.refines
        self._set_stages(0)

    def _set_stages(self, first: int) -> None:
        for stage, quantizer in enumerate(self.quantizers):
            quantizer.set_stage(first + stage)

    def bound(self, vectors: Tensor) -> Tensor:
        return self.quantizers[0].bound(vectors)

    def set_stage(self, stage: int) -> None:
        super().set_stage(stage)
        self._set_stages(stage * self.num_quantizers)

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        self._check_input_shape(input_shape)
        for quantizer in self.quantizers:
            if not quantizer.built:
                quantizer.build((None, input_shape[-1]))
        super().build(input_shape)

    def copies_gradient(self, training: bool) -> bool:
        return all(quantizer.copies_gradient(training) for quantizer in self.quantizers)

    def quantize_vectors(
        self, vectors: Tensor, valid: Tensor, training: bool, batch_size: Tensor, indices: Tensor | None = None
    ) -> Record:
        """Quantizes vectors stage by stage, each stage the residuals of those before it."""
        used = wrappers.draw_used(self, vectors, batch_size, training)
        if self.stage is None:
            vectors = self.bound(vectors)
        given = [None] * self.num_quantizers if indices is None else ops.unstack(indices, axis=1)
        if indices is None and self.beam_width > 1:
            given = [sums[:, 0] for sums in self._search(vectors, self.num_quantizers)]
        copied = self.copies_gradient(training)
        total = StageSum(vectors, copied)
        parts = []
        for quantizer, use, chosen in zip(self.quantizers, used, given, strict=True):
            part = wrappers.quantize_used(quantizer, total.residual, valid, use, training, batch_size, chosen)
            total.add(part.used_codes, None if copied else part.output)
            parts.append(part)
        indices = ops.stack([part.used_indices for part in parts], axis=1)
        return Record(self, vectors, valid, indices, total.codes, training, parts, _output=total.output(training))

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
        if self.shared_codebook:
            raise ValueError("`adapt` needs a codebook for each stage. Received: shared_codebook=True")
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
        indices = ops.stack(self._search(backend.spread_rows(vectors), depth), axis=-1)[:, :ADAPT_BEAM_WIDTH]
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
            "shared_codebook": self.shared_codebook,
            "quantizer_dropout": self.quantizer_dropout,
            "beam_width": self.beam_width,
            "seed": self.seed,
        }
