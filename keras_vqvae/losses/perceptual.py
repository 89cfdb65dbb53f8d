"""A loss that compares samples by the features of a network."""

import base64
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_vqvae import validation
from keras_vqvae.losses.sample_loss import SampleLoss
from keras_vqvae.ops.spectrogram import channels_first
from keras_vqvae.types import Tensor

RELATIVE_FLOOR = 1e-6
"""Added to squared norms of features, as a fraction of their mean: features much shorter than the mean stay near 0."""


@keras.saving.register_keras_serializable(package="keras_vqvae")
class PerceptualLoss(SampleLoss):
    """The distance between samples in the features of a network, such as a classifier.

    If details are uncertain, the squared error of pixels is smallest for a blurred image. The features of a classifier
    distinguish sharp and blurred textures. At each layer `l`, the feature vectors `f_l` of all positions are divided by
    their norm, and the value of a sample is

        sum_l  mean over positions  |f_l / |f_l| - f'_l / |f'_l||^2

    so that each layer contributes 0 to 4. This is LPIPS without learned weights. It works best when added to a loss of
    the pixels: see `LossSum`.

    The loss has a frozen copy of `features`, up to the given layers, which runs in inference mode. Its weights are not
    among the weights of the model that is compiled with the loss. They are saved in the loss's config as float32 in
    base64, so a `.keras` file of that model loads without further arguments. They add 4/3 of their size to the file.

    Distances are computed in float32, and features in the dtype of `features`. If the predictions have a mask, masked
    positions are set to 0 in both samples, and the mean is over the valid positions. `sample_weight` has one value for
    each sample.

    Args:
        features: A functional or sequential Keras model with one input. It receives the samples unchanged. If it needs
            another scale, size or number of channels, make the conversion its first layers.
        layers: Names of the layers of `features` whose outputs are compared. Defaults to `None`, the model's outputs.
        reduction: As for every Keras loss. Defaults to `"sum_over_batch_size"`.
        name: Name of the loss. Defaults to `"perceptual_loss"`.

    Call arguments:
        y_true: Samples of the shape that `features` takes.
        y_pred: Their reconstructions, of the same shape.
        sample_weight: `[batch]`, optional.

    Raises:
        ValueError: If `features` is not such a model, lacks one of `layers`, or does not take inputs of the shape of
            `y_pred`.

    Example:

    >>> images = np.random.default_rng(0).normal(size=(2, 8, 8, 1))
    >>> classifier = keras.Sequential([
    ...     keras.Input((8, 8, 1)),
    ...     keras.layers.Conv2D(4, 3, activation="relu", name="edges"),
    ...     keras.layers.Conv2D(8, 3, activation="relu", name="shapes"),
    ...     keras.layers.Flatten(),
    ...     keras.layers.Dense(10),
    ... ])
    >>> loss = PerceptualLoss(classifier, layers=["edges", "shapes"])
    >>> float(loss(images, images)), bool(loss(images, images[::-1]) > 0)
    (0.0, True)

    Reference:

    - [Zhang et al., 2018](https://arxiv.org/abs/1801.03924), equation 1 with weights of 1
    """

    def __init__(
        self,
        features: keras.Model,
        layers: Sequence[str] | None = None,
        reduction: str | None = "sum_over_batch_size",
        name: str = "perceptual_loss",
    ):
        super().__init__(reduction, name)
        self.features = _frozen_copy(features, layers)

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        """Returns the distances `[batch]`."""
        expected, shape = self.features.input_shape, tuple(y_pred.shape)
        if not validation.shapes_fit(expected, shape):
            raise ValueError(
                "`features` must take inputs of the shape of `y_pred`. Add layers at its start that convert them, for "
                f"example `keras.layers.Resizing`. Received: features.input_shape={expected}, y_pred of shape {shape}"
            )
        targets, features = (
            keras.tree.flatten(self.features(samples, training=False))
            for samples in (ops.stop_gradient(y_true), y_pred)
        )
        return sum(_distance(*pair) for pair in zip(targets, features, strict=True))

    def get_config(self) -> dict[str, Any]:
        return {
            "features": keras.saving.serialize_keras_object(self.features),
            "weights": [_encoded(weight) for weight in self.features.get_weights()],
            **super().get_config(),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "PerceptualLoss":
        config = dict(config)
        features = keras.saving.deserialize_keras_object(config.pop("features"))
        shapes = [weight.shape for weight in features.weights]
        features.set_weights([_decoded(*pair) for pair in zip(config.pop("weights"), shapes, strict=True)])
        return cls(features, **config)


def _frozen_copy(features: Any, layers: Sequence[str] | None) -> keras.Model:
    """Returns a functional model from the input to the outputs of the layers, with a copy of the weights."""
    if not isinstance(features, keras.Model) or len(getattr(features, "inputs", None) or ()) != 1:
        raise ValueError(
            "`features` must be a functional model, or a built sequential model, with one input. "
            f"Received: features={features!r}"
        )
    outputs = features.outputs
    if layers is not None:
        known = {layer.name: layer for layer in features.layers}
        is_list = isinstance(layers, Sequence) and not isinstance(layers, str) and layers
        if not is_list or any(name not in known for name in layers):
            raise ValueError(
                f"`layers` must be a list with names of layers of `features`, such as {list(known)[:10]}. "
                f"Received: layers={layers!r}"
            )
        outputs = [known[name].output for name in layers]
    part = keras.Model(features.inputs, outputs, name=features.name)
    copy = keras.models.clone_model(part, clone_function=_copied)
    copy.set_weights(part.get_weights())
    copy.trainable = False
    return copy


def _copied(layer: keras.Layer) -> keras.Layer:
    # Safe, because this `Lambda` already exists: `load_model` has refused or trusted its function.
    trusted = {"safe_mode": False} if isinstance(layer, keras.layers.Lambda) else {}
    return type(layer).from_config(layer.get_config(), **trusted)


def _distance(target: Tensor, features: Tensor) -> Tensor:
    """Returns the squared distances `[batch]` between normalized features, averaged over the positions."""
    target, features = ops.cast(target, "float32"), ops.cast(features, "float32")
    rank = len(features.shape)
    axis = 1 if channels_first() else rank - 1
    lengths = ops.sum(ops.square(target), axis=axis, keepdims=True)
    positions = tuple(range(1, rank))
    floor = RELATIVE_FLOOR * ops.mean(lengths, axis=positions, keepdims=True) + 1e-20
    units = [
        each * ops.rsqrt(ops.sum(ops.square(each), axis=axis, keepdims=True) + floor) for each in (target, features)
    ]
    distances = ops.sum(ops.square(units[0] - units[1]), axis=axis, keepdims=True)
    return ops.mean(distances, axis=positions)


def _encoded(weight: np.ndarray) -> str:
    return base64.b64encode(np.asarray(weight, "<f4").tobytes()).decode()


def _decoded(text: str, shape: tuple[int, ...]) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text, validate=True), "<f4").reshape(shape)
