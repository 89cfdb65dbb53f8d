"""The logs of an epoch. Several share a metric, because each metric costs a dozen operations in every step."""

from collections.abc import Sequence

import keras
from keras import ops

from keras_vqvae.backend import backend
from keras_vqvae.models.moments import Moments, RunningMoments, total_variance
from keras_vqvae.types import Tensor


class Averages(keras.metrics.Metric):
    """Means of several numbers over an epoch.

    Args:
        numbers: Their names, which are those of the logs.
        name: Of the metric, which is in no log.
    """

    def __init__(self, numbers: Sequence[str], name: str):
        super().__init__(name=name)
        self.numbers = tuple(numbers)
        self.sums = self.add_variable((len(self.numbers),), "zeros", "float32", name="sums")
        self.weight = self.add_variable((), "zeros", "float32", name="weight")

    def update_state(self, values: dict[str, Tensor], weight: Tensor) -> None:
        """Takes in numbers by their names, those of a batch of a weight. Those that are missing count as 0."""
        missing = ops.zeros(())
        numbers = ops.stack([ops.cast(values.get(name, missing), "float32") for name in self.numbers])
        weight = weight if isinstance(weight, int) else ops.cast(weight, "float32")
        backend.add_to(self.sums, numbers * weight)
        backend.add_to(self.weight, weight)

    def result(self) -> dict[str, Tensor]:
        means = ops.convert_to_tensor(self.sums) / backend.at_least(ops.convert_to_tensor(self.weight), 1.0)
        return {name: means[number] for number, name in enumerate(self.numbers)}


class ExplainedVariance(keras.metrics.Metric):
    """The fraction of the targets' variance that reconstructions explain: 1 minus error / variance, over an epoch.

    1 is perfect. 0 is what the mean of the targets would have, element by element: codes that carry nothing.

    Args:
        shapes: Shapes of the outputs, as of `RunningMoments`.
    """

    def __init__(self, shapes: Sequence[Sequence[int | None]], name: str = "explained_variance"):
        super().__init__(name=name)
        self.moments = RunningMoments(shapes, self._add_zeros)
        self.error = Averages(("error",), name="error")

    def _add_zeros(self, shape: Sequence[int], name: str) -> keras.Variable:
        # Equal in all replicas.
        return self.add_variable(shape, "zeros", "float32", aggregation="mean", name=name)

    def update_state(self, batch: Sequence[Moments], error: Tensor, count: Tensor) -> None:
        """Takes in a batch: the moments of the targets of all replicas, and the error of `count` targets."""
        self.moments.update(batch)
        self.error.update_state({"error": error}, count)

    def result(self) -> Tensor:
        variance, error = total_variance(self.moments.values()), self.error.result()["error"]
        # Of equal targets nothing is explained. If the error is no number, neither is this.
        return ops.where(variance > 0, 1.0 - error / variance, 0.0 * error)
