"""Residual quantization: each stage quantizes the residual of the stages before it."""

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_vqvae import serialization, validation
from keras_vqvae.layers import input_checks, residual_adapt, wrappers
from keras_vqvae.layers.quantizer import Quantizer
from keras_vqvae.layers.record import Record
from keras_vqvae.layers.resized import ResizableWrapper
from keras_vqvae.layers.stage_sum import StageSum
from keras_vqvae.ops import search
from keras_vqvae.types import Tensor


@keras.saving.register_keras_serializable(package="keras_vqvae")
class ResidualQuantizer(ResizableWrapper):
    """Quantizes a vector as a sum of codes: each stage quantizes the residual of the stages before it.

    With `r_0 = z`, stage `i` outputs `q_i = Q_i(r_i)`, and the next residual is `r_(i + 1) = r_i - q_i`. The output is
    the sum of the `q_i`. Gradients follow these formulas, and flow through the residuals, too. The decoder and
    the losses of later stages therefore train the projections and soft assignments inside a stage. If all stages are
    straight-through, residuals are `r_i - stop_gradient(q_i)` instead. The encoder then gets the gradient of the output
    exactly once, for any number of stages, and each stage's commitment loss reaches it in full.

    Quantizers with fixed codes (FSQ, LFQ, BSQ) get finer from stage to stage. Vectors are bounded once, and each stage
    subdivides the bins of the previous stage. For an axis with 8 levels, each stage makes the bins 8 times narrower and
    the squared error 64 times lower.

    Args:
        quantizer: The quantizer of a stage, not built. Each stage is a copy of it, with its own seed. Or a list of
            quantizers, which become the stages. They need indices of the same shape, may differ in all else, and may
            have been trained before.
        num_quantizers: Number of stages, `Q`. Defaults to `None`, the length of the list.
        shared_codebook: Whether all stages are one quantizer with one codebook. Defaults to `False`.
        quantizer_dropout: Fraction of the samples, from 0 to 1, that use only the first stages in training. For each of
            these samples, the number of stages is drawn, from 1 to all. The other stages add nothing, and have the
            index -1. Defaults to `0.0`.
        beam_width: Beam width of the search, in training and inference. A wider beam lowers the error; the cost of the
            search grows in proportion. Defaults to `1`: each stage takes the nearest code.
        seed: Integer seed of the quantizer dropout. Defaults to `None`, a random seed.
        **kwargs: `name`, `dtype` and `trainable`, as for every layer.

    Call arguments:
        inputs: Floats `[..., D]`, of rank 2 or more.
        mask, training, return_indices: As for every `Quantizer`.

    Output shape:
        `[..., D]`. The indices are int32 `[..., Q, *index_shape]` with the `index_shape` of the inner quantizer.
        `decode` reads -1 as "no code". Set the indices of the last stages to -1 to decode the first stages only.

    Raises:
        ValueError: If `quantizer` is not a quantizer, or is built already. If `num_quantizers` is not positive. If a
            stage after the first has `distance="cosine"`. If `shared_codebook=True` with fixed codes. If a list has a
            quantizer twice, or a quantizer with fixed codes. If `beam_width > 1` and a stage does not take the
            nearest code.

    Example: four stages of equal size, and three stages of decreasing size.

    >>> layer = ResidualQuantizer(VectorQuantizer(num_embeddings=16), num_quantizers=4)
    >>> quantized, indices = layer(keras.random.normal((2, 5, 8)), return_indices=True)
    >>> indices.shape == (2, 5, 4), bool(keras.ops.all(layer.decode(indices) == quantized))
    (True, True)
    >>> layer = ResidualQuantizer([VectorQuantizer(num_embeddings=size) for size in (64, 32, 16)])
    >>> layer(keras.random.normal((2, 5, 8)), return_indices=True)[1].shape == (2, 5, 3)
    True

    References:

    - [Zeghidour et al., 2021](https://arxiv.org/abs/2107.03312), section III.C
    - [Lee et al., 2022](https://arxiv.org/abs/2203.01941), shared codebooks
    - [Babenko and Lempitsky, 2014](https://doi.org/10.1109/CVPR.2014.124), section 3.2, the beam
    """

    min_index = -1

    def __init__(
        self,
        quantizer: Quantizer | Sequence[Quantizer],
        num_quantizers: int | None = None,
        shared_codebook: bool = False,
        quantizer_dropout: float = 0.0,
        beam_width: int = 1,
        seed: int | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.shared_codebook = validation.boolean("shared_codebook", shared_codebook)
        self.quantizer_dropout = validation.fraction("quantizer_dropout", quantizer_dropout)
        self.beam_width = validation.positive_int("beam_width", beam_width)
        self.seed = validation.seed(seed)
        # A list has no template, because its quantizers are the stages themselves.
        self.template: wrappers.Untracked | None = None
        if isinstance(quantizer, list | tuple):
            if num_quantizers is not None or shared_codebook:
                raise ValueError(
                    "`num_quantizers` and `shared_codebook` must be left at their defaults for a list of stages. "
                    f"Received: num_quantizers={num_quantizers!r}, shared_codebook={shared_codebook!r}"
                )
            self.quantizers = wrappers.stages(self, quantizer)
        else:
            self.template = wrappers.template(quantizer)
            number = validation.positive_int("num_quantizers", num_quantizers, wrappers.MAX_COPIES)
            self.quantizers = wrappers.copies(self, number, shared_codebook)
        self.num_quantizers = len(self.quantizers)
        self.num_embeddings = max(stage.num_embeddings for stage in self.quantizers)
        self.index_shape = (self.num_quantizers, *self.quantizers[0].index_shape)
        self.has_fixed_codes = self.quantizers[0].has_fixed_codes
        self.refines = all(stage.refines for stage in self.quantizers)
        if shared_codebook and self.has_fixed_codes:
            raise ValueError(
                "`shared_codebook` must be False for quantizers with fixed codes, which get finer from stage to stage. "
                f"Received: shared_codebook=True, quantizer={validation.shown(quantizer)}"
            )
        if self.beam_width > 1 and not all(stage.supports_beam_search for stage in self.quantizers):
            raise ValueError(
                "`beam_width > 1` ranks sums of codes by their squared error. It needs stages that take the nearest "
                "code, such as `VectorQuantizer` with a `distance` other than 'direction'. "
                f"Received: beam_width={beam_width}, quantizer={validation.shown(quantizer)}"
            )
        for stage in self.quantizers[1:]:
            wrappers.check_refines(stage)
        self._set_stages(0)

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        return wrappers.codebook_sizes(self.quantizers)

    def _set_stages(self, first: int) -> None:
        for stage, quantizer in enumerate(self.quantizers):
            quantizer.set_stage(first + stage)

    def bound(self, vectors: Tensor) -> Tensor:
        return self.quantizers[0].bound(vectors)

    def set_stage(self, stage: int) -> None:
        super().set_stage(stage)
        self._set_stages(stage * self.num_quantizers)

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        wrappers.build_once(self.quantizers, input_checks.last_axis(self, input_shape))
        super().build(input_shape)

    def copies_gradient(self, training: bool) -> bool:
        return all(quantizer.copies_gradient(training) for quantizer in self.quantizers)

    def quantize_vectors(
        self, vectors: Tensor, valid: Tensor, training: bool, batch_size: Tensor, indices: Tensor | None = None
    ) -> Record:
        """Quantizes vectors stage by stage."""
        used = wrappers.draw_used(self, vectors, batch_size, training)
        if self.stage is None:
            vectors = self.bound(vectors)
        given = [None] * self.num_quantizers if indices is None else ops.unstack(indices, axis=1)
        if indices is None and self.beam_width > 1:
            given = [sums[:, 0] for sums in self.search(vectors, self.num_quantizers)]
        copied = self.copies_gradient(training)
        total = StageSum(vectors, copied)
        parts = []
        for quantizer, use, chosen in zip(self.quantizers, used, given, strict=True):
            part = wrappers.quantize_used(quantizer, total.residual, valid, use, training, batch_size, chosen)
            total.add(part.used_codes, None if copied else part.output)
            parts.append(part)
        indices = ops.stack([part.used_indices for part in parts], axis=1)
        return Record(self, vectors, valid, indices, total.codes, training, parts, _output=total.output(training))

    def search(self, vectors: Tensor, num_stages: int) -> Sequence[Tensor]:
        """Searches for the best sums of codes of the first stages. Returns indices `[N, B]` for each of the stages."""
        codebooks = [
            quantizer.lookup(ops.arange(quantizer.num_embeddings, dtype="int32"))
            for quantizer in self.quantizers[:num_stages]
        ]
        return search.beam_search(vectors, codebooks, self.beam_width)

    def lookup(self, indices: Tensor) -> Tensor:
        return sum(
            wrappers.lookup_used(quantizer, indices[:, stage])
            for stage, quantizer in enumerate(self.quantizers[: indices.shape[1]])
        )

    def adapt(self, vectors: Tensor, **keywords: Any) -> None:
        """Initializes the codebooks stage by stage, each with k-means of the residuals of the stages before it.

        With `beam_width > 1`, a stage clusters the residuals of up to 4 of the best sums of each vector. Afterwards the
        stages are refined in turn: with the sums that the beam search finds, each code moves to the mean of the
        residuals that the other stages leave. A stage that is frozen on its own keeps its codebook.

        It takes outputs of the encoder `[..., D]`, and the other arguments of `CodebookQuantizer.adapt`.
        """
        if self.shared_codebook:
            raise ValueError(
                "`adapt` needs a codebook for each stage. Make the layer with `shared_codebook=False`. "
                "Received: shared_codebook=True"
            )
        residual_adapt.adapt(self, vectors, **keywords)

    def with_quantizers(self, quantizers: Sequence[Quantizer]) -> "ResidualQuantizer":
        if self.shared_codebook:
            raise ValueError(
                "`resize` and `prune_unused` need a codebook for each stage. Received: shared_codebook=True"
            )
        config = {**serialization.live_config(self), "quantizer": list(quantizers), "num_quantizers": None}
        layer = type(self).from_config(config)
        layer.build((None, self._dim))
        return layer

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            **self._stages_config(),
            "shared_codebook": self.shared_codebook,
            "quantizer_dropout": self.quantizer_dropout,
            "beam_width": self.beam_width,
            "seed": self.seed,
        }

    def _stages_config(self) -> dict[str, Any]:
        if self.template is None:
            return {"quantizer": [serialization.saved(stage) for stage in self.quantizers], "num_quantizers": None}
        return {"quantizer": serialization.saved(self.template.quantizer), "num_quantizers": self.num_quantizers}
