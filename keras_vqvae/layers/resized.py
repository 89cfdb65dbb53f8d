"""New quantizers with another number of codes, and with the codes of a trained quantizer."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from keras import ops

from keras_vqvae import serialization, validation
from keras_vqvae.layers import wrappers
from keras_vqvae.layers.quantizer import Quantizer
from keras_vqvae.types import Tensor

Resized = tuple[Any, np.ndarray]
"""A layer, and the new index of each old code."""


def with_codes(quantizer: Any, rows: np.ndarray, num_embeddings: int) -> Resized:
    """Returns a new layer that starts with the given codes of a quantizer, and the new index of each old code.

    Args:
        quantizer: A built `CodebookQuantizer`.
        rows: Indices `[n]` of the codes to keep, with their counts and other state.
        num_embeddings: Number of codes of the new layer, at least `n`. Its initializer draws the others.

    Returns:
        `(layer, new_indices)`: the layer, built, and an int32 array `[K]` with -1 for codes that were not taken.
    """
    config = serialization.live_config(quantizer)
    config["embeddings_initializer"] = serialization.fresh_initializer(quantizer.embeddings_initializer, 0)
    layer = type(quantizer).from_config({**config, "num_embeddings": num_embeddings})
    layer.build((None, quantizer.embedding_dim))
    for old, new in zip(quantizer.weights, layer.weights, strict=True):
        values, drawn = ops.convert_to_numpy(old), ops.convert_to_numpy(new)
        # A weight has one row for each code, or its shape does not depend on the number of codes.
        new.assign(values if old.shape == new.shape else np.concatenate([values[rows], drawn[len(rows) :]]))
    new_indices = np.full(quantizer.num_embeddings, -1, "int32")
    new_indices[rows] = np.arange(len(rows))
    return layer, new_indices


def checked_counts(quantizer: Quantizer, counts: Tensor | None) -> np.ndarray:
    """Returns `counts`, or `code_counts` if they are `None`, as a checked array `[*codebook_shape, K]`."""
    shape = (*quantizer.codebook_shape, quantizer.num_embeddings)
    if not quantizer.built or quantizer.code_counts is None:
        raise ValueError(
            f"`{quantizer.name}` must be built before it is resized. Call it on data, or call `build`, first. "
            f"Received: built={quantizer.built}, code_counts={quantizer.code_counts}"
        )
    counts = ops.convert_to_numpy(quantizer.code_counts if counts is None else counts)
    if counts.shape != shape:
        raise ValueError(
            f"`counts` must have the shape {shape}, as `layer.count_codes(indices)` returns them. "
            f"Received: counts of shape {counts.shape}"
        )
    if not (counts >= 0).all():
        wrong = counts[~(counts >= 0)][:5].tolist()
        raise ValueError(f"`counts` must be numbers of at least 0. Received: counts with {wrong}")
    return counts


def used_codes(quantizer: Quantizer, counts: Tensor | None) -> np.ndarray:
    """Returns which codes have a count above 0, booleans `[*codebook_shape, K]`. Raises an error if none has."""
    used = checked_counts(quantizer, counts) > 0
    if not used.any():
        name = "code_counts" if counts is None else "counts"
        raise ValueError(
            f"`prune_unused()` needs usage counts, but `{name}` is all zeros. Train the layer, or call it with "
            "`training=True`, first. Or give `counts`, such as `layer.count_codes(indices)`. "
            f"Received: {name} of shape {used.shape}, all zeros"
        )
    return used


class ResizableWrapper(Quantizer):
    """Base class of wrappers that can be resized. A subclass sets `quantizers`, or overrides `inner_quantizers`."""

    quantizers: Any

    def inner_quantizers(self) -> Sequence[Any]:
        """Returns the quantizers that the wrapper holds."""
        return self.quantizers

    def with_quantizers(self, quantizers: Sequence[Quantizer]) -> "ResizableWrapper":
        """Returns a new wrapper, already built, with copies of the given quantizers."""
        config = {**serialization.live_config(self), "quantizer": wrappers.copy(quantizers[0], 0)}
        layer = type(self).from_config(config)
        layer.build((None, self._dim))
        for target, source in zip(layer.inner_quantizers(), quantizers, strict=True):
            target.trainable = source.trainable
            for new, old in zip(target.weights, source.weights, strict=True):
                new.assign(old)
        return layer

    def resize(self, num_embeddings: int, counts: Tensor | None = None) -> Resized:
        """Returns a new layer with another number of codes per codebook, and the new index of each old code.

        The new layer keeps all other weights.

        Args:
            num_embeddings: Number of codes of each codebook of the new layer.
            counts: How often each code was chosen, `[*codebook_shape, K]`, for example `layer.count_codes(indices)` of
                your data. Defaults to `None`: the layer's `code_counts`.

        Returns:
            `(layer, new_indices)`: the layer, built, and an int32 array `[*codebook_shape, K]` from old indices to new
            ones, with -1 for removed codes.
        """
        num_embeddings = validation.positive_int("num_embeddings", num_embeddings)
        return self._resized(lambda quantizer, own: quantizer.resize(num_embeddings, own), counts)

    def prune_unused(self, counts: Tensor | None = None) -> Resized:
        """Returns a new layer without the codes whose count is 0, and the new index of each old code.

        Args:
            counts: How often each code was chosen, `[*codebook_shape, K]`. Defaults to `None`: the layer's
                `code_counts`.

        Returns:
            `(layer, new_indices)`, as from `resize`.

        Raises:
            ValueError: If all counts of a codebook are 0.
        """
        return self._resized(lambda quantizer, own: quantizer.prune_unused(own), counts)

    def _resized(self, change: Callable[[Any, np.ndarray], Resized], counts: Tensor | None) -> Resized:
        for quantizer in self.inner_quantizers():
            if not hasattr(quantizer, "resize"):
                raise ValueError(
                    f"`{type(quantizer).__name__}` has no codebook to resize. Only a wrapper of a quantizer with a "
                    f"codebook, such as `VectorQuantizer`, can be resized. Received: quantizer={quantizer.name}"
                )
        counts = checked_counts(self, counts)
        # Residuals and groups add an axis to `codebook_shape`, with an entry for each quantizer. Projections add none.
        own = counts if len(self.codebook_shape) > len(self.inner_quantizers()[0].codebook_shape) else counts[None]
        changed = [
            change(quantizer, part[..., : quantizer.num_embeddings])
            for quantizer, part in zip(self.inner_quantizers(), own, strict=True)
        ]
        layer = self.with_quantizers([quantizer for quantizer, _ in changed])
        new_indices = np.full(own.shape, -1, "int32")
        for row, (_, found) in zip(new_indices, changed, strict=True):
            row[..., : found.shape[-1]] = found
        new_indices = new_indices.reshape(counts.shape)
        _copy_own_weights(self, layer, new_indices)
        return layer, new_indices


def _copy_own_weights(old: ResizableWrapper, new: ResizableWrapper, new_indices: np.ndarray) -> None:
    """Copies the wrapper's own weights, and the counts of the codes that are kept."""
    for source, target in zip(_own_weights(old), _own_weights(new), strict=True):
        if source is not old.code_counts:
            target.assign(source)
    if new.code_counts is not None:
        values, counts = ops.convert_to_numpy(old.code_counts), ops.convert_to_numpy(new.code_counts) * 0
        for place in zip(*np.nonzero(new_indices >= 0), strict=True):
            counts[(*place[:-1], new_indices[place])] = values[place]
        new.code_counts.assign(counts)


def _own_weights(wrapper: ResizableWrapper) -> list[Any]:
    inner = {id(weight) for quantizer in wrapper.inner_quantizers() for weight in quantizer.weights}
    return [weight for weight in wrapper.weights if id(weight) not in inner]
