"""Multi-scale quantization: a grid as a sum of codes at finer and finer resolutions."""

import itertools
import math
from collections.abc import Iterable
from typing import Any

import keras
from keras import ops

from keras_vqvae import serialization, validation
from keras_vqvae.backend import backend
from keras_vqvae.layers import wrappers
from keras_vqvae.layers.quantizer import Quantizer
from keras_vqvae.layers.record import Record
from keras_vqvae.layers.stage_sum import StageSum
from keras_vqvae.ops import losses, resizing
from keras_vqvae.types import Sizes, Tensor


@keras.saving.register_keras_serializable(package="keras_vqvae")
class MultiScaleQuantizer(Quantizer):
    """Quantizes a grid of vectors coarse to fine, each scale what those before it left: the tokenizer of VAR.

    With `r_0 = z` a scale takes the means of `r_i` over the areas of its grid, quantizes them, `q_i`, and leaves
    `r_(i + 1) = r_i - f(up(q_i))`: `up` interpolates linearly to the full grid, and `f` is the identity or, with
    `convolution`, `f(x) = x + conv(x)`. The output is the sum of the `f(up(q_i))`, and gradients are those of this
    formula. Where the quantizers are straight-through, the last scale is the full grid and there is no convolution,
    they are copied: the encoder gets that of the output exactly once, and those of all losses, as in
    `ResidualQuantizer`. Each scale adds its own losses. A convolution adds the mean of
    `(stop_gradient(z) - output)^2`.

    Codes at fixed places (FSQ, LFQ, BSQ) are the same at every scale; vectors are bounded once.

    Args:
        quantizer: The quantizer of a scale, not built: the scales have copies of it, each with a seed of its own.
        scales: The sizes of the grids, coarse to fine: integers for grids of equal sides, or tuples of one integer an
            axis. The last may be the full grid or a coarser one.
        shared_codebook: Whether all scales have one and the same quantizer, of one codebook. Defaults to `False`.
        convolution: Whether a convolution over 3 elements an axis, the same for all scales and 0 at the start, follows
            the interpolation. Defaults to `False`.
        **kwargs: `name`, `dtype` and `trainable`, as for every layer.

    Call arguments:
        inputs: Floats `[batch, *grid, D]` with a grid of 1 to 3 axes of known sizes.
        mask: Optional booleans, `[batch]` and any of the grid's axes. What is masked counts as 0 and touches nothing,
            and an area counts by the rest of it.
        training, return_indices: As for every `Quantizer`.

    Output shape:
        `[batch, *grid, D]`; the indices are int32 `[batch, L]`, `L` the cells of all scales, coarse scales first, with
        further axes where the inner quantizer has some. `decode` takes -1 for no code: with the last ones so, it
        decodes the coarse scales alone.

    Raises:
        ValueError: If `quantizer` is not a quantizer of vectors or built already, if its `distance` is `"cosine"`, or
            if `scales` do not increase, do not fit the grid's number of axes or exceed it.

    Example:

    >>> layer = MultiScaleQuantizer(VectorQuantizer(num_embeddings=16), scales=(1, 2, 4))
    >>> quantized, indices = layer(keras.random.normal((2, 4, 4, 8)), return_indices=True)
    >>> indices.shape == (2, 1 + 4 + 16), bool(keras.ops.all(layer.decode(indices) == quantized))
    (True, True)

    References:

    - [Tian et al., 2024](https://arxiv.org/abs/2404.02905), algorithms 1 and 2
    - [Siuzdak et al., 2024](https://arxiv.org/abs/2410.14411), of sound
    """

    min_index = -1
    quantizes_grids = True

    def __init__(
        self,
        quantizer: Quantizer,
        scales: Iterable[int | Iterable[int]],
        shared_codebook: bool = False,
        convolution: bool = False,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.template = wrappers.template(quantizer)
        self.scales = _check_scales(scales)
        self.shared_codebook = validation.boolean("shared_codebook", shared_codebook)
        self.convolution = validation.boolean("convolution", convolution)
        self.quantizers = wrappers.copies(self, len(self.scales), shared_codebook)
        for each in self.quantizers:
            # Bounded by this layer; a finer grid's rests do not lie within the width of a coarser one's levels.
            each.set_stage(0)
        if len(self.scales) > 1:
            wrappers.check_refines(self.quantizers[0])
        self.num_embeddings = self.quantizers[0].num_embeddings
        self.index_shape = self.quantizers[0].index_shape

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        dim = self._check_input_shape(input_shape)
        grid: Sizes = tuple(input_shape[1:-1])
        rank = len(grid)
        fits = 1 <= rank <= 3 and all(len(scale) in (1, rank) for scale in self.scales)
        self._sizes = _full_sizes(self.scales, rank)
        if not fits or None in grid or any(a > b for a, b in zip(self._sizes[-1], grid, strict=True)):
            raise ValueError(
                "`scales` must fit inputs [batch, *grid, D], with a grid of 1 to 3 axes of known sizes, and not exceed "
                f"it. Received: scales={self.scales}, input_shape={tuple(input_shape)}"
            )
        self._grid, self._cells = grid, tuple(map(math.prod, self._sizes))
        # A cell of scale `s` has the codebooks of `s`, one for each of its indices.
        inner = math.prod(self.index_shape)
        self.codebooks = tuple(
            scale * inner + book
            for scale, cells in enumerate(self._cells)
            for _ in range(cells)
            for book in range(inner)
        )
        wrappers.build_once(self.quantizers, dim)
        if self.convolution:
            self.kernel = self.add_float32("kernel", (3,) * rank + (dim, dim), trainable=True)
        super().build(input_shape)

    @property
    def codebook_shape(self) -> tuple[int, ...]:
        return (len(self.scales), *self.index_shape)

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        return wrappers.codebook_sizes(self.quantizers)

    def index_axes(self, axes: Sizes) -> Sizes:
        if tuple(axes[1:]) != self._grid:
            raise ValueError(
                f"Inputs must be [batch, *{self._grid}, D]. Received: inputs of shape {(*axes, self._dim)}"
            )
        return (axes[0], sum(self._cells))

    def vector_axes(self, axes: Sizes) -> Sizes:
        if len(axes) != 2 or axes[1] not in (None, sum(self._cells)):
            raise ValueError(
                f"`indices` must be [batch, {sum(self._cells)}] before {self.index_shape}. "
                f"Received: indices of axes {tuple(axes)}"
            )
        return (axes[0], *self._grid)

    def compute_mask(self, inputs: Tensor, previous_mask: Tensor | None) -> tuple[Tensor, None] | None:
        # Indices of several resolutions have none.
        return None if previous_mask is None else (previous_mask, None)

    def _to_grid(self, codes: Tensor, sizes: tuple[int, ...]) -> Tensor:
        """`[n cells, D]` -> `[n, *grid, D]`."""
        x = resizing.resize(ops.reshape(codes, (-1, *sizes, self._dim)), self._grid)
        if self.convolution:
            kernel = ops.convert_to_tensor(self.kernel)
            with backend.full_precision(x):
                x = x + ops.conv(x, kernel, padding="same", data_format="channels_last")
        return x

    def quantize_vectors(
        self, vectors: Tensor, valid: Tensor, training: bool, batch_size: Tensor, indices: Tensor | None = None
    ) -> Record:
        """Quantizes grids scale by scale, each scale the residuals of those before it."""
        vectors = self.quantizers[0].bound(backend.masked(vectors, valid))
        whole = (-1, *self._grid, self._dim)
        # The fraction of an area that is valid: for one element it is `1 / size` an axis at least, and less is
        # rounding.
        weights = ops.reshape(ops.cast(valid, "float32"), (*whole[:-1], 1))
        # A full grid of straight-through codes at the end makes up for all that the scales before lose.
        copied = not self.convolution and self._sizes[-1] == self._grid
        copied = copied and all(quantizer.copies_gradient(training) for quantizer in self.quantizers)
        total = StageSum(ops.reshape(vectors, whole), copied)
        given = [None] * len(self.scales) if indices is None else self._by_scale(indices)
        parts, columns = [], []
        scales = zip(self.quantizers, self._sizes, self._cells, given, strict=True)
        for quantizer, sizes, cells, chosen in scales:
            fraction = resizing.resize(weights, sizes)
            some = fraction > 0.5 / math.prod(self._grid)
            means = resizing.resize(total.residual * weights, sizes) / ops.where(
                some, fraction, ops.ones_like(fraction)
            )
            means = ops.reshape(means, (-1, self._dim))
            part = quantizer.quantize_vectors(means, ops.reshape(some, (-1,)), training, batch_size, chosen)
            codes = self._to_grid(part.codes, sizes)
            total.add(codes, None if copied else self._to_grid(part.output, sizes))
            columns.append(ops.reshape(part.indices, (-1, cells, *self.index_shape)))
            parts.append(part)
        # `[n, L, *index_shape]` -> `[n L, *index_shape]`
        indices = ops.reshape(ops.concatenate(columns, axis=1), (-1, *self.index_shape))
        codes, output = ops.reshape(total.codes, (-1, self._dim)), total.output(training)
        output = None if output is None else ops.reshape(output, (-1, self._dim))
        return Record(self, vectors, valid, indices, codes, training, parts, _output=output)

    def compute_losses(self, record: Record) -> dict[str, Tensor]:
        if not self.convolution:
            return {}
        return {"codebook_loss": losses.codebook_loss(record.vectors, record.codes, record.valid)}

    def _by_scale(self, indices: Tensor) -> list[Tensor]:
        """`[n L, *index_shape]` or `[n, L, *index_shape]` -> `[n cells, *index_shape]` for each scale."""
        indices = ops.reshape(indices, (-1, sum(self._cells), *self.index_shape))
        ends = itertools.accumulate(self._cells)
        scales = zip(self._cells, ends, strict=True)
        return [ops.reshape(indices[:, end - cells : end], (-1, *self.index_shape)) for cells, end in scales]

    def lookup(self, indices: Tensor) -> Tensor:
        scales = zip(self.quantizers, self._sizes, self._by_scale(indices), strict=True)
        grids = [self._to_grid(wrappers.lookup_used(quantizer, scale), sizes) for quantizer, sizes, scale in scales]
        return ops.reshape(sum(grids), (-1, self._dim))

    def adapt(self, vectors: Tensor, **keywords: Any) -> None:
        """Fills the codebooks scale by scale, each by k-means of what the scales before it left; see `kmeans`."""
        if self.shared_codebook:
            raise ValueError("`adapt` needs a codebook for each scale. Received: shared_codebook=True")
        rest = ops.convert_to_tensor(vectors, dtype="float32")
        if not self.built:
            self.build(tuple(rest.shape))
        for quantizer, sizes in zip(self.quantizers, self._sizes, strict=True):
            means = ops.reshape(resizing.resize(rest, sizes), (-1, self._dim))
            if not wrappers.keeps_codes(self, quantizer):
                quantizer.adapt(means, **keywords)
            rest = rest - self._to_grid(wrappers.nearest(quantizer, means), sizes)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "quantizer": serialization.saved(self.template.quantizer),
            "scales": self.scales,
            "shared_codebook": self.shared_codebook,
            "convolution": self.convolution,
        }


def _full_sizes(scales: tuple[tuple[int, ...], ...], rank: int) -> tuple[tuple[int, ...], ...]:
    """`scales` with a size for each axis."""
    return tuple(scale * rank if len(scale) == 1 else scale for scale in scales)


def _check_scales(scales: object) -> tuple[tuple[int, ...], ...]:
    """Returns the sizes of each scale, of one number for all axes or one for each, if they increase."""
    if isinstance(scales, str) or not hasattr(scales, "__iter__"):
        raise ValueError(f"`scales` must be a sequence of sizes. Received: scales={scales!r}")
    checked = tuple(
        validation.positive_ints("scales", scale)
        if hasattr(scale, "__iter__")
        else (validation.positive_int("scales", scale),)
        for scale in scales
    )
    rank = max(map(len, checked), default=0)
    full = _full_sizes(checked, rank)
    increasing = all(len(a) == len(b) and a != b and all(map(int.__le__, a, b)) for a, b in itertools.pairwise(full))
    if not 1 <= rank <= 3 or min(map(len, full)) == 0 or len(full) > wrappers.MAX_COPIES or not increasing:
        raise ValueError(
            f"`scales` must be sizes of 1 to 3 axes that increase from scale to scale. Received: scales={scales!r}"
        )
    return checked
