"""Multi-scale quantization: a grid as a sum of codes at increasing resolutions."""

import math
from collections.abc import Iterable
from typing import Any

import keras
from keras import ops

from keras_vqvae import serialization, validation
from keras_vqvae.backend import backend
from keras_vqvae.layers import input_checks, wrappers
from keras_vqvae.layers.grids import FixedGrids, StridedGrids
from keras_vqvae.layers.quantizer import Quantizer
from keras_vqvae.layers.record import Record
from keras_vqvae.layers.scale_convolutions import ScaleConvolutions
from keras_vqvae.layers.stage_sum import StageSum
from keras_vqvae.ops import losses, resizing
from keras_vqvae.types import Sizes, Tensor


@keras.saving.register_keras_serializable(package="keras_vqvae")
class MultiScaleQuantizer(Quantizer):
    """Quantizes a grid of vectors coarse to fine: each scale quantizes the residual of the scales before it.

    With `r_0 = z`, scale `i` averages `r_i` over the areas of its cells, and quantizes the means to codes `q_i`. The
    residual is `r_(i + 1) = r_i - f_i(up(q_i))`. Here `up` interpolates to the full grid, and `f_i` is the identity or,
    with `convolution`, `f_i(x) = x + conv(x)`. The output is the sum of the `f_i(up(q_i))`. Each scale adds its own
    losses. A convolution adds the mean of `(stop_gradient(z) - output)^2`.

    Gradients follow these formulas, with one exception. The encoder gets the gradient of the output exactly once if the
    quantizers are straight-through, the last scale is the full grid, and there is no convolution.

    `scales` sets the sizes of the grids, for inputs of one size. `strides` sets the sizes of their cells, for inputs of
    any size. If a scale does not divide the grid, areas overlap: an area contains all elements that its cell touches.
    Quantizers with fixed codes (FSQ, LFQ, BSQ) have the same codes at every scale. Vectors are bounded once.

    Args:
        quantizer: The quantizer of a scale, not built. Each scale has a copy of it, with its own seed.
        scales: Sizes of the grids, coarse to fine. A size is an integer for all axes, or a tuple with one integer for
            each axis. The last grid may be the full grid or coarser. Defaults to `None`: `strides` must be given.
        shared_codebook: Whether all scales share one quantizer and its codebook. Defaults to `False`.
        convolution: Whether a convolution with a kernel of 3 elements per axis follows the interpolation. Kernel and
            bias start at 0. `True` is one convolution for all scales. A sequence assigns a convolution to each scale by
            number: `(0, 0, 1)` is one for the first two scales and another for the third. Defaults to `False`.
        strides: Sizes of a cell in elements of the full grid, coarse to fine, such as `(8, 4, 2, 1)`. A size is an
            integer for all axes, or a tuple with one integer for each axis. Each size is a multiple of the next one.
            Defaults to `None`: `scales` must be given.
        interpolation: `"linear"`, `"cubic"`, or `"nearest"`, which repeats elements. On grids with two axes, `"linear"`
            is bilinear and `"cubic"` is bicubic. Defaults to `"linear"`.
        **kwargs: `name`, `dtype` and `trainable`, as for every layer.

    Call arguments:
        inputs: Floats `[batch, *grid, D]` with a grid of 1 to 3 axes, whose sizes are known unless there are `strides`.
        mask: Optional booleans `[batch]`, or `[batch, ...]` over the first axes of the grid. Masked positions are
            excluded from losses, statistics and the mean of an area.
        training, return_indices: As for every `Quantizer`.

    Output shape:
        `[batch, *grid, D]`. With `scales`, the indices are int32 `[batch, L]`, where `L` is the number of cells of all
        scales. With `strides`, they are int32 `[batch, *coarsest, C]`, where `coarsest` is the grid divided by the
        first stride, rounded up, and `C` is the number of cells of all scales in a coarsest cell. For strides
        `(4, 2, 1)` and 100 elements, the shape is `[batch, 25, 1 + 2 + 4]`. Indices of coarse scales come first. The
        axes of the inner quantizer's `index_shape` follow.

        `decode` reads -1 as "no code". Set the indices of fine scales to -1 to decode the coarse scales only. With
        `strides`, `decode` returns whole coarsest cells, so its output is longer than inputs that the first stride does
        not divide.

    Raises:
        ValueError: If `quantizer` is not a quantizer of vectors, is built already, or has `distance="cosine"`. If
            `scales` do not increase, have another number of axes than the grid, or exceed it. If a stride is not a
            multiple of the next one. If both `scales` and `strides` are given, or neither.

    Example:

    >>> layer = MultiScaleQuantizer(VectorQuantizer(num_embeddings=16), scales=(1, 2, 4))
    >>> quantized, indices = layer(keras.random.normal((2, 4, 4, 8)), return_indices=True)
    >>> indices.shape == (2, 1 + 4 + 16), bool(keras.ops.all(layer.decode(indices) == quantized))
    (True, True)
    >>> sound = MultiScaleQuantizer(VectorQuantizer(num_embeddings=16), strides=(4, 2, 1), interpolation="nearest")
    >>> [tuple(sound.encode(keras.random.normal((2, steps, 8))).shape) for steps in (100, 8)]
    [(2, 25, 7), (2, 2, 7)]

    References:

    - [Tian et al., 2024](https://arxiv.org/abs/2404.02905), algorithms 1 and 2
    - [Siuzdak et al., 2024](https://arxiv.org/abs/2410.14411), for sound
    """

    min_index = -1
    quantizes_grids = True

    def __init__(
        self,
        quantizer: Quantizer,
        scales: Iterable[int | Iterable[int]] | None = None,
        shared_codebook: bool = False,
        convolution: bool | Iterable[int] = False,
        strides: Iterable[int | Iterable[int]] | None = None,
        interpolation: str = "linear",
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.template = wrappers.template(quantizer)
        if (scales is None) == (strides is None):
            given = f"scales={validation.shown(scales)}, strides={validation.shown(strides)}"
            raise ValueError(f"Give either `scales` or `strides`. Received: {given}")
        self._grids = StridedGrids(strides) if scales is None else FixedGrids(scales)
        number = len(self._grids.given)
        self.shared_codebook = validation.boolean("shared_codebook", shared_codebook)
        self.scales = None if scales is None else self._grids.given
        self.strides = None if strides is None else self._grids.given
        self._convolutions = ScaleConvolutions(convolution, number)
        self.convolution = self._convolutions.given
        self.interpolation = resizing.check_interpolation(interpolation)
        self.quantizers = wrappers.copies(self, number, shared_codebook)
        for each in self.quantizers:
            # Stage 0 for all: codes do not get finer, as residuals need not fit into the bins of the scale before.
            each.set_stage(0)
        if number > 1:
            wrappers.check_refines(self.quantizers[0])
        self.num_embeddings = self.quantizers[0].num_embeddings
        self.index_shape = self.quantizers[0].index_shape

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        dim = input_checks.last_axis(self, input_shape)
        self._grids.build(input_shape)
        # Each cell of a scale uses the codebooks of that scale, one for each index of the cell.
        inner = math.prod(self.index_shape)
        self.codebooks = tuple(
            scale * inner + book
            for scale, cells in enumerate(self._grids.cells)
            for _ in range(cells)
            for book in range(inner)
        )
        wrappers.build_once(self.quantizers, dim)
        self._convolutions.build(self, len(input_shape) - 2, dim)
        super().build(input_shape)

    @property
    def codebook_shape(self) -> tuple[int, ...]:
        return (len(self.quantizers), *self.index_shape)

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        return wrappers.codebook_sizes(self.quantizers)

    def index_axes(self, axes: Sizes) -> Sizes:
        return self._grids.index_axes(axes)

    def vector_axes(self, axes: Sizes) -> Sizes:
        return self._grids.vector_axes(axes)

    def compute_mask(self, inputs: Tensor, previous_mask: Tensor | None) -> tuple[Tensor, None] | None:
        # Indices have several resolutions, which one mask cannot describe.
        return None if previous_mask is None else (previous_mask, None)

    def _means(self, x: Tensor, weights: Tensor, scale: int) -> tuple[Tensor, Tensor]:
        """Returns the means of `x` `[n, *grid, D]` over the areas of a scale, and whether each area has any weight.

        The means are weighted by `weights` `[n, *grid, 1]`.
        """
        fraction = self._grids.shrink(weights, scale)
        some = fraction > 0
        means = self._grids.shrink(x * weights, scale) / ops.where(some, fraction, ops.ones_like(fraction))
        return means, ops.reshape(some, (-1,))

    def _to_grid(self, codes: Tensor, scale: int) -> Tensor:
        """Interpolates and refines codes, `f_i(up(q_i))`: `[n, *s, D]` -> `[n, *grid, D]`."""
        return self._convolutions.refine(self, self._grids.stretch(codes, scale, self.interpolation), scale)

    def quantize_vectors(
        self, vectors: Tensor, valid: Tensor, training: bool, batch_size: Tensor, indices: Tensor | None = None
    ) -> Record:
        """Quantizes grids `[batch, *grid, D]` scale by scale."""
        shape = ops.shape(vectors)
        flat = self.quantizers[0].bound(backend.masked(ops.reshape(vectors, (-1, self._dim)), valid))
        weights = self._grids.filled(ops.reshape(ops.cast(valid, "float32"), (*shape[:-1], 1)))
        # If the last scale is the full grid, it quantizes the whole remaining residual. The gradient is then a copy.
        copied = not self._convolutions and self._grids.end_full
        copied = copied and all(quantizer.copies_gradient(training) for quantizer in self.quantizers)
        total = StageSum(self._grids.filled(ops.reshape(flat, shape)), copied)
        given = [None] * len(self.quantizers) if indices is None else self._by_scale(indices)
        parts, columns = [], []
        for scale, (quantizer, chosen) in enumerate(zip(self.quantizers, given, strict=True)):
            means, some = self._means(total.residual, weights, scale)
            sizes = ops.shape(means)
            chosen = None if chosen is None else ops.reshape(chosen, (-1, *self.index_shape))
            means = ops.reshape(means, (-1, self._dim))
            part = quantizer.quantize_vectors(means, some, training, batch_size, chosen)
            codes = self._to_grid(ops.reshape(part.codes, sizes), scale)
            total.add(codes, None if copied else self._to_grid(ops.reshape(part.output, sizes), scale))
            columns.append(ops.reshape(part.indices, (*sizes[:-1], math.prod(self.index_shape))))
            parts.append(part)
        # `[n, ..., I]` -> `[N, *index_shape]`
        indices = ops.reshape(self._grids.join(columns), (-1, *self.index_shape))
        codes, output = self._cropped(total.codes, shape), total.output(training)
        output = None if output is None else self._cropped(output, shape)
        return Record(self, flat, valid, indices, codes, training, parts, _output=output)

    def _cropped(self, x: Tensor, shape: Sizes) -> Tensor:
        """Removes the padding of a grid: `[n, *padded, D]` -> `[N, D]` for inputs of `shape`."""
        if any(own is None or own != size for own, size in zip(x.shape[1:-1], shape[1:-1], strict=True)):
            x = x[(slice(None), *(slice(0, size) for size in shape[1:-1]))]
        return ops.reshape(x, (-1, self._dim))

    def compute_losses(self, record: Record) -> dict[str, Tensor]:
        if not self._convolutions:
            return {}
        return {"codebook_loss": losses.codebook_loss(record.vectors, record.codes, record.valid)}

    def _by_scale(self, indices: Tensor) -> list[Tensor]:
        """Splits indices, as `encode` returns them, by scale: `[n, *s, I]` each."""
        axes = ops.shape(indices)[: len(indices.shape) - len(self.index_shape)]
        return self._grids.split(ops.reshape(indices, (*axes, math.prod(self.index_shape))))

    def lookup(self, indices: Tensor) -> Tensor:
        grids = []
        for scale, (quantizer, chosen) in enumerate(zip(self.quantizers, self._by_scale(indices), strict=True)):
            codes = wrappers.lookup_used(quantizer, ops.reshape(chosen, (-1, *self.index_shape)))
            grids.append(self._to_grid(ops.reshape(codes, (*ops.shape(chosen)[:-1], self._dim)), scale))
        return ops.reshape(sum(grids), (-1, self._dim))

    def adapt(self, vectors: Tensor, **keywords: Any) -> None:
        """Initializes each scale's codebook with k-means of residuals. Arguments as for `CodebookQuantizer.adapt`."""
        if self.shared_codebook:
            raise ValueError("`adapt` needs a codebook for each scale. Received: shared_codebook=True")
        vectors = ops.convert_to_tensor(input_checks.vectors_to_adapt(self, vectors), dtype="float32")
        self.index_axes(tuple(vectors.shape[:-1]))
        residual = self._grids.filled(vectors)
        weights = self._grids.filled(ops.ones((*vectors.shape[:-1], 1)))
        for scale, quantizer in enumerate(self.quantizers):
            means, some = self._means(residual, weights, scale)
            sizes, means = ops.shape(means), ops.reshape(means, (-1, self._dim))
            if not wrappers.keeps_codes(self, quantizer):
                # k-means leaves out vectors that are not finite.
                quantizer.adapt(ops.where(some[:, None], means, math.nan), **keywords)
            residual = residual - self._to_grid(ops.reshape(wrappers.nearest(quantizer, means), sizes), scale)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "quantizer": serialization.saved(self.template.quantizer),
            "scales": self.scales,
            "shared_codebook": self.shared_codebook,
            "convolution": self.convolution,
            "strides": self.strides,
            "interpolation": self.interpolation,
        }
