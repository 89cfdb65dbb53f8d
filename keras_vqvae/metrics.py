"""Keras metrics of how well a codebook is used, streamed over the indices of an epoch."""

from typing import Any

import keras
from keras import ops

from keras_vqvae import arguments, codebook
from keras_vqvae.arguments import Tensor


class _CodeCounts(keras.metrics.Metric):
    """Counts the codes that `update_state` is given; a negative index is none."""

    def __init__(self, num_embeddings: int, name: str | None = None, dtype: Any = None):
        super().__init__(name=name, dtype=dtype)
        self.num_embeddings = arguments.positive_int("num_embeddings", num_embeddings)
        # Integers: a float32 count stands still at 2^24.
        self.counts = self.add_variable(shape=(self.num_embeddings,), initializer="zeros", dtype="int32", name="counts")

    def update_state(self, indices: Tensor) -> None:
        indices = ops.reshape(ops.convert_to_tensor(indices, dtype="int32"), (-1,))
        self.counts.assign_add(codebook.count_codes(ops.maximum(indices, 0), indices >= 0, self.num_embeddings))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "num_embeddings": self.num_embeddings}


@keras.saving.register_keras_serializable(package="keras_vqvae")
class CodebookPerplexity(_CodeCounts):
    """The effective number of codes in use: the exponential of the entropy of how often each is chosen.

    It lies between 1, a single code, and `num_embeddings`, uniform use; 0 before the first update.

    Args:
        num_embeddings: Number of codes.
        name: Defaults to `"perplexity"`.

    Example:

    >>> metric = CodebookPerplexity(num_embeddings=8)
    >>> metric.update_state([0, 1, 2, 3])
    >>> round(float(metric.result()), 4)
    4.0
    """

    def __init__(self, num_embeddings: int, name: str = "perplexity", dtype: Any = None):
        super().__init__(num_embeddings, name, dtype)

    def result(self) -> Tensor:
        counts = ops.cast(self.counts, "float32")
        total = ops.sum(counts)
        shares = counts / ops.maximum(total, 1.0)
        # 0 log 0 is 0.
        entropy = -ops.sum(shares * ops.log(ops.where(shares > 0, shares, 1.0)))
        return ops.where(total > 0, ops.exp(entropy), 0.0)


@keras.saving.register_keras_serializable(package="keras_vqvae")
class CodebookUsage(_CodeCounts):
    """The share of the codes that were chosen at least once, between 0 and 1.

    Args:
        num_embeddings: Number of codes.
        name: Defaults to `"codebook_usage"`.

    Example:

    >>> metric = CodebookUsage(num_embeddings=8)
    >>> metric.update_state([0, 1, 1, 3, -1])
    >>> float(metric.result())
    0.375
    """

    def __init__(self, num_embeddings: int, name: str = "codebook_usage", dtype: Any = None):
        super().__init__(num_embeddings, name, dtype)

    def result(self) -> Tensor:
        return ops.mean(ops.cast(ops.convert_to_tensor(self.counts) > 0, "float32"))
