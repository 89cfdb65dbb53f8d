"""Several losses of one output."""

from collections.abc import Iterable, Sequence
from typing import Any

import keras

from keras_vqvae import validation
from keras_vqvae.types import Tensor


@keras.saving.register_keras_serializable(package="keras_vqvae")
class LossSum(keras.losses.Loss):
    """A weighted sum of losses, for `compile(loss=...)`.

    Keras takes one loss for each output, and this one combines several. Each of them handles masks, `sample_weight` and
    its own reduction as usual.

    The default loss of `VQVAE`, `"normalized_mse"`, cannot be one of them, because it depends on the model. Use
    `keras.losses.MeanSquaredError()` with the weight `n / (8 * m * v)`: `n` and `m` are the numbers of elements of a
    sample and of its latents, and `v = np.mean(np.var(x, axis=0))` for the training data `x`.

    Args:
        losses: Keras losses, such as `keras.losses.MeanSquaredError()`.
        weights: Weight of each loss, at least 0. Defaults to `None`, 1 for all.
        name: Name of the loss. Defaults to `"loss_sum"`.

    Raises:
        ValueError: If `losses` is not a list of Keras losses, or `weights` does not have one number for each.

    Example:

    >>> loss = LossSum([keras.losses.MeanSquaredError(), keras.losses.MeanAbsoluteError()], weights=[1.0, 0.5])
    >>> float(loss(np.zeros((2, 3)), np.full((2, 3), 2.0)))
    5.0
    """

    def __init__(
        self,
        losses: Sequence[keras.losses.Loss],
        weights: Iterable[float] | None = None,
        name: str = "loss_sum",
    ):
        super().__init__(name=name)
        is_list = isinstance(losses, list | tuple) and losses
        if not is_list or not all(isinstance(each, keras.losses.Loss) for each in losses):
            instead = (
                "'normalized_mse' cannot be one of them. Use `keras.losses.MeanSquaredError()` with the weight in the "
                "documentation of `LossSum`."
                if is_list and "normalized_mse" in losses
                else "For example, use `keras.losses.MeanSquaredError()` instead of 'mse'."
            )
            raise ValueError(
                f"`losses` must be a list of `keras.losses.Loss` objects. {instead} Received: losses={losses!r}"
            )
        self.losses = tuple(losses)
        weights = (1.0,) * len(losses) if weights is None else weights
        numbers = tuple(weights) if isinstance(weights, Iterable) else ()
        if len(numbers) != len(losses):
            raise ValueError(
                f"`weights` must have one number for each of the {len(losses)} losses. Received: weights={weights!r}"
            )
        self.weights = tuple(validation.non_negative("weights", weight) for weight in numbers)

    def __call__(self, y_true: Tensor, y_pred: Tensor, sample_weight: Tensor | None = None) -> Tensor:
        """Returns the weighted sum of the losses."""
        values = (loss(y_true, y_pred, sample_weight) for loss in self.losses)
        return sum(weight * value for weight, value in zip(self.weights, values, strict=True))

    def get_config(self) -> dict[str, Any]:
        losses = [keras.saving.serialize_keras_object(loss) for loss in self.losses]
        return {"losses": losses, "weights": self.weights, "name": self.name}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "LossSum":
        losses = [keras.saving.deserialize_keras_object(loss) for loss in config["losses"]]
        return cls(**{**config, "losses": losses})
