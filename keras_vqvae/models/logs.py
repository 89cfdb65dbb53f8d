"""Metrics for the logs of an epoch. Several logs share one, because each metric costs a dozen operations per step."""

from collections.abc import Sequence

import keras
from keras import ops

from keras_vqvae.backend import backend
from keras_vqvae.models.moments import Moments, RunningMoments, total_variance
from keras_vqvae.types import Tensor


class Averages(keras.metrics.Metric):
    """Means of several numbers over an epoch.

    Args:
        numbers: Names of the numbers, under which they are logged.
        name: Name of the metric, which does not appear in the logs.
    """

    def __init__(self, numbers: Sequence[str], name: str):
        super().__init__(name=name)
        self.numbers = tuple(numbers)
        self.sums = self.add_variable((len(self.numbers),), "zeros", "float32", name="sums")
        self.weight = self.add_variable((), "zeros", "float32", name="weight")

    def update_state(self, values: dict[str, Tensor], weight: Tensor) -> None:
        """Adds the numbers of a batch, by name, with the weight of the batch. Missing numbers count as 0."""
        missing = ops.zeros(())
        numbers = ops.stack([ops.cast(values.get(name, missing), "float32") for name in self.numbers])
        weight = weight if isinstance(weight, int) else ops.cast(weight, "float32")
        backend.add_to(self.sums, numbers * weight)
        backend.add_to(self.weight, weight)

    def result(self) -> dict[str, Tensor]:
        means = ops.convert_to_tensor(self.sums) / backend.at_least(ops.convert_to_tensor(self.weight), 1.0)
        return {name: means[number] for number, name in enumerate(self.numbers)}


class ExplainedVariance(keras.metrics.Metric):
    """The fraction of the targets' variance that reconstructions explain over an epoch: `1 - error / variance`.

    1 is a perfect reconstruction. A constant output, the mean of the targets, has 0.

    Args:
        shapes: Shapes of the decoder's outputs, `[None, ...]`.
    """

    def __init__(self, shapes: Sequence[Sequence[int | None]], name: str = "explained_variance"):
        super().__init__(name=name)
        self.moments = RunningMoments(shapes, self._add_zeros)
        self.error = Averages(("error",), name="error")

    def _add_zeros(self, shape: Sequence[int], name: str) -> keras.Variable:
        # Every replica holds the same value.
        return self.add_variable(shape, "zeros", "float32", aggregation="mean", name=name)

    def update_state(self, batch: Sequence[Moments], error: Tensor, count: Tensor) -> None:
        """Adds a batch: the moments of the targets in all replicas, and the mean error of `count` targets."""
        self.moments.update(batch)
        self.error.update_state({"error": error}, count)

    def result(self) -> Tensor:
        variance, error = total_variance(self.moments.values()), self.error.result()["error"]
        # 0 if all targets are equal, and NaN if the error is NaN.
        return ops.where(variance > 0, 1.0 - error / variance, 0.0 * error)
