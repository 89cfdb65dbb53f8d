"""Several losses of one output."""

from collections.abc import Iterable, Sequence
from typing import Any

import keras

from keras_vqvae import validation
from keras_vqvae.types import Tensor


@keras.saving.register_keras_serializable(package="keras_vqvae")
class LossSum(keras.losses.Loss):
    """A weighted sum of losses, for `compile(loss=...)`.

    Keras has one loss for each output. This one is several of them: each handles masks, `sample_weight` and its
    reduction as it does alone.

    Args:
        losses: Keras losses, such as `keras.losses.MeanSquaredError()`.
        weights: The weight of each, at least 0. Defaults to `None`, which is 1 for all.
        name: Of the loss. Defaults to `"loss_sum"`.

    Raises:
        ValueError: If `losses` are not losses, or `weights` are not as many numbers.

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
            raise ValueError(
                "`losses` must be a list of `keras.losses.Loss`: `keras.losses.MeanSquaredError()`, for example, in "
                f"place of 'mse'. Received: losses={losses!r}"
            )
        self.losses = tuple(losses)
        weights = (1.0,) * len(losses) if weights is None else tuple(weights)
        if len(weights) != len(losses):
            raise ValueError(f"`weights` must have one number for each of {len(losses)} losses. Received: {weights=}")
        self.weights = tuple(validation.non_negative("weights", weight) for weight in weights)

    def __call__(self, y_true: Tensor, y_pred: Tensor, sample_weight: Tensor | None = None) -> Tensor:
        """The weighted sum of what the losses return."""
        values = (loss(y_true, y_pred, sample_weight) for loss in self.losses)
        return sum(weight * value for weight, value in zip(self.weights, values, strict=True))

    def get_config(self) -> dict[str, Any]:
        losses = [keras.saving.serialize_keras_object(loss) for loss in self.losses]
        return {"losses": losses, "weights": self.weights, "name": self.name}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "LossSum":
        losses = [keras.saving.deserialize_keras_object(loss) for loss in config["losses"]]
        return cls(**{**config, "losses": losses})
