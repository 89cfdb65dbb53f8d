"""Keras metrics of codebook usage, computed from the indices of an epoch."""

import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import keras
from keras import ops

from keras_vqvae import validation
from keras_vqvae.backend import backend
from keras_vqvae.ops import codebook
from keras_vqvae.types import Tensor

DType: TypeAlias = str | keras.DTypePolicy | None
SMALLEST = 1e-37
"""A lower bound of fractions, so that their logarithm is finite."""


def _entropy(counts: Tensor) -> tuple[Tensor, Tensor]:
    """Returns, for each codebook, the entropy of its counts in nats and their sum: `[..., K]` -> `[...]`, `[...]`."""
    counts = ops.cast(counts, "float32")
    total = ops.sum(counts, axis=-1, keepdims=True)
    fractions = counts / backend.at_least(total, 1.0)
    # 0 log 0 is 0. All terms are at most 0, so the absolute value negates their sum without giving -0.
    terms = fractions * ops.log(backend.at_least(fractions, SMALLEST))
    return ops.abs(ops.sum(terms, axis=-1)), total[..., 0]


def perplexity(counts: Tensor) -> Tensor:
    """Returns the exponential of the entropy of each codebook's counts: `[..., K]` -> `[...]`."""
    entropy, total = _entropy(counts)
    # The perplexity of `n` counts is at most `n`. Without counts it is 0.
    return ops.minimum(ops.exp(entropy), total)


def usage(counts: Tensor, sizes: Sequence[int] = ()) -> Tensor:
    """Returns the fraction of each codebook's codes that have a count above 0: `[..., K]` -> `[...]`.

    `sizes` has the number of codes of each codebook, if not all have `K`.
    """
    used = ops.cast(ops.convert_to_tensor(counts) > 0, "float32")
    if len(set(sizes)) < 2:
        return ops.mean(used, axis=-1)
    return ops.sum(used, axis=-1) / ops.reshape(ops.convert_to_tensor(sizes, "float32"), used.shape[:-1])


def summary(counts: Tensor, sizes: Sequence[int] = (), samples: Tensor | None = None) -> dict[str, Tensor]:
    """Returns the logs of codebooks with counts `[..., K]`: `perplexity`, `codebook_usage` and `bits_per_index`.

    With several codebooks, these are means, and `min_perplexity` and `min_codebook_usage` are the values of the worst
    one. If `samples`, the number of samples, is given, `bits_per_sample` is the size of a sample's indices after
    entropy coding, summed over the codebooks.
    """
    counts = ops.convert_to_tensor(counts)
    entropy, totals = _entropy(counts)
    each = {"perplexity": ops.minimum(ops.exp(entropy), totals), "codebook_usage": usage(counts, sizes)}
    bits = entropy * (1 / math.log(2))
    found = each | {"bits_per_index": bits}
    if len(entropy.shape):
        found = {name: ops.mean(values) for name, values in found.items()}
    if samples is not None:
        bits = bits * totals / backend.at_least(ops.cast(samples, "float32"), 1.0)
        found["bits_per_sample"] = ops.sum(bits) if len(entropy.shape) else bits
    if math.prod(entropy.shape) > 1:
        found |= {f"min_{name}": ops.min(values) for name, values in each.items()}
    return found


class CodebookSummary(keras.metrics.Metric):
    """The `summary` of a quantizer's codebooks over an epoch: one metric with several results, which counts codes once.

    Args:
        shape: Shape of the counts, `[..., K]`.
        sizes: Number of codes of each codebook.
        name: Name of the metric, which does not appear in the logs. Defaults to `"codebooks"`.
    """

    def __init__(self, shape: tuple[int, ...], sizes: tuple[int, ...], name: str = "codebooks", dtype: DType = None):
        super().__init__(name=name, dtype=dtype)
        self._sizes = sizes
        # Integers, because a float32 cannot count beyond 2^24.
        self.counts = self.add_variable(shape=shape, initializer="zeros", dtype=backend.COUNTER, name="counts")
        self.samples = self.add_variable(shape=(), initializer="zeros", dtype=backend.COUNTER, name="samples")

    def update_state(self, counts: Tensor, samples: Tensor) -> None:
        backend.add_counts(self.counts, counts)
        backend.add_counts(self.samples, samples)

    def result(self) -> dict[str, Tensor]:
        return summary(self.counts, self._sizes, self.samples)


class _CodeCounts(keras.metrics.Metric):
    """Base class of metrics that count the codes passed to `update_state`. Negative indices are ignored."""

    log_name: str

    def __init__(
        self,
        num_embeddings: int | Sequence[int],
        num_codebooks: int | Sequence[int] = 1,
        reduction: str = "mean",
        name: str | None = None,
        dtype: DType = None,
    ):
        super().__init__(name=name or ("min_" if reduction == "min" else "") + self.log_name, dtype=dtype)
        self._codebooks = codebook.codebooks_in_turn(num_codebooks)
        self._sizes = validation.codebook_sizes(num_embeddings, max(self._codebooks) + 1)
        self.num_embeddings = self._sizes if hasattr(num_embeddings, "__iter__") else self._sizes[0]
        self.num_codebooks = num_codebooks if isinstance(num_codebooks, int) else tuple(num_codebooks)
        if reduction not in ("mean", "min"):
            raise ValueError(f"`reduction` must be 'mean' or 'min'. Received: reduction={reduction!r}")
        self.reduction = reduction
        # Integers, because a float32 cannot count beyond 2^24.
        self.counts = self.add_variable(
            shape=(len(self._sizes), max(self._sizes)), initializer="zeros", dtype=backend.COUNTER, name="counts"
        )

    def update_state(self, indices: Tensor) -> None:
        # `[..., Q]` -> `[N, Q]` -> `[C, K]`
        indices = ops.reshape(ops.convert_to_tensor(indices, dtype="int32"), (-1, len(self._codebooks)))
        counts = codebook.count_columns(indices, indices >= 0, max(self._sizes), self._codebooks)
        backend.add_counts(self.counts, counts)

    def _reduced(self, values: Tensor) -> Tensor:
        return ops.min(values) if self.reduction == "min" else ops.mean(values)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "num_embeddings": self.num_embeddings,
            "num_codebooks": self.num_codebooks,
            "reduction": self.reduction,
        }


@keras.saving.register_keras_serializable(package="keras_vqvae")
class CodebookPerplexity(_CodeCounts):
    """The effective number of codes in use: how many equally likely codes would have the same entropy.

    It lies between 1, if a single code is used, and `num_embeddings`, if all are used equally often. It is 0 before the
    first update.

    Args:
        num_embeddings: Number of codes of each codebook: one integer for all, or a sequence of one for each.
        num_codebooks: Number of codebooks, if the last axes of the indices have one index for each. Otherwise a
            sequence: how many indices of a sample belong to each codebook, such as `(1, 4, 16)` for the scales of a
            `MultiScaleQuantizer`. Defaults to `1`.
        reduction: `"mean"` over the codebooks, or `"min"`, the value of the worst. Defaults to `"mean"`.
        name: Name of the metric. Defaults to `"perplexity"`, or `"min_perplexity"`.
        dtype: Dtype of the metric, as for every Keras metric. Defaults to `None`.

    Example:

    >>> metric = CodebookPerplexity(num_embeddings=8)
    >>> metric.update_state([0, 1, 2, 3])
    >>> round(float(metric.result()), 4)
    4.0
    """

    log_name = "perplexity"

    def result(self) -> Tensor:
        return self._reduced(perplexity(self.counts))


@keras.saving.register_keras_serializable(package="keras_vqvae")
class CodebookUsage(_CodeCounts):
    """The fraction of the codes that were chosen at least once, between 0 and 1.

    Args:
        num_embeddings: Number of codes of each codebook: one integer for all, or a sequence of one for each.
        num_codebooks: Number of codebooks, if the last axes of the indices have one index for each. Otherwise a
            sequence: how many indices of a sample belong to each codebook, such as `(1, 4, 16)` for the scales of a
            `MultiScaleQuantizer`. Defaults to `1`.
        reduction: `"mean"` over the codebooks, or `"min"`, the value of the worst. Defaults to `"mean"`.
        name: Name of the metric. Defaults to `"codebook_usage"`, or `"min_codebook_usage"`.
        dtype: Dtype of the metric, as for every Keras metric. Defaults to `None`.

    Example:

    >>> metric = CodebookUsage(num_embeddings=8)
    >>> metric.update_state([0, 1, 1, 3, -1])
    >>> float(metric.result())
    0.375
    """

    log_name = "codebook_usage"

    def result(self) -> Tensor:
        return self._reduced(usage(self.counts, self._sizes))
