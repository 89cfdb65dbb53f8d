"""Keras metrics of how well a codebook is used, streamed over the indices of an epoch."""

from typing import Any, TypeAlias

import keras
from keras import ops

from keras_vqvae import arguments, backend, codebook
from keras_vqvae.arguments import Tensor

DType: TypeAlias = str | keras.DTypePolicy | None


def perplexity(counts: Tensor) -> Tensor:
    """The exponential of the entropy of `counts / sum(counts)`, the mean over all codebooks: `[..., K]` -> a scalar."""
    counts = ops.cast(counts, "float32")
    total = ops.sum(counts, axis=-1, keepdims=True)
    shares = counts / ops.maximum(total, 1.0)
    # 0 log 0 is 0.
    entropy = -ops.sum(shares * ops.log(ops.where(shares > 0, shares, 1.0)), axis=-1)
    return ops.mean(ops.where(total[..., 0] > 0, ops.exp(entropy), 0.0))


def usage(counts: Tensor) -> Tensor:
    """The share of the codes with a count above 0: `[..., K]` -> a scalar."""
    return ops.mean(ops.cast(ops.convert_to_tensor(counts) > 0, "float32"))


class _CodeCounts(keras.metrics.Metric):
    """Counts the codes that `update_state` is given, but for negative indices."""

    def __init__(self, num_embeddings: int, num_codebooks: int = 1, name: str | None = None, dtype: DType = None):
        super().__init__(name=name, dtype=dtype)
        self.num_embeddings = arguments.positive_int("num_embeddings", num_embeddings)
        self.num_codebooks = arguments.positive_int("num_codebooks", num_codebooks)
        # Integers: a float32 count stands still at 2^24.
        self.counts = self.add_variable(
            shape=(self.num_codebooks, self.num_embeddings), initializer="zeros", dtype=backend.COUNTER, name="counts"
        )

    def update_state(self, indices: Tensor) -> None:
        # `[..., Q]` -> `[N, Q]` -> `[Q, K]`
        indices = ops.reshape(ops.convert_to_tensor(indices, dtype="int32"), (-1, self.num_codebooks))
        backend.add_counts(self.counts, codebook.count_columns(indices, indices >= 0, self.num_embeddings))

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "num_embeddings": self.num_embeddings,
            "num_codebooks": self.num_codebooks,
        }


@keras.saving.register_keras_serializable(package="keras_vqvae")
class CodebookPerplexity(_CodeCounts):
    """The effective number of codes in use: the exponential of the entropy of how often each is chosen.

    It lies between 1, a single code, and `num_embeddings`, uniform use; 0 before the first update.

    Args:
        num_embeddings: Number of codes, of each codebook.
        num_codebooks: How many codebooks, of which the mean is taken; the last axes of the indices have this size.
            Defaults to `1`.
        name: Defaults to `"perplexity"`.

    Example:

    >>> metric = CodebookPerplexity(num_embeddings=8)
    >>> metric.update_state([0, 1, 2, 3])
    >>> round(float(metric.result()), 4)
    4.0
    """

    def __init__(self, num_embeddings: int, num_codebooks: int = 1, name: str = "perplexity", dtype: DType = None):
        super().__init__(num_embeddings, num_codebooks, name, dtype)

    def result(self) -> Tensor:
        return perplexity(self.counts)


@keras.saving.register_keras_serializable(package="keras_vqvae")
class CodebookUsage(_CodeCounts):
    """The share of the codes that were chosen at least once, between 0 and 1.

    Args:
        num_embeddings: Number of codes, of each codebook.
        num_codebooks: How many codebooks, of which the mean is taken; the last axes of the indices have this size.
            Defaults to `1`.
        name: Defaults to `"codebook_usage"`.

    Example:

    >>> metric = CodebookUsage(num_embeddings=8)
    >>> metric.update_state([0, 1, 1, 3, -1])
    >>> float(metric.result())
    0.375
    """

    def __init__(self, num_embeddings: int, num_codebooks: int = 1, name: str = "codebook_usage", dtype: DType = None):
        super().__init__(num_embeddings, num_codebooks, name, dtype)

    def result(self) -> Tensor:
        return usage(self.counts)
