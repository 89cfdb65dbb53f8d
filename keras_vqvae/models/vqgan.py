"""A VQ-VAE with a discriminator that judges its reconstructions."""

from typing import Any

import keras
from keras import ops

from keras_vqvae import validation
from keras_vqvae.backend import backend
from keras_vqvae.layers.quantizer import Quantizer
from keras_vqvae.models import game
from keras_vqvae.models.logs import Averages
from keras_vqvae.models.step import total
from keras_vqvae.models.vqvae import VQVAE
from keras_vqvae.types import Data, Sizes, Tensor

GENERATOR_LOSS, DISCRIMINATOR_LOSS = "generator_loss", "discriminator_loss"
GAME = (GENERATOR_LOSS, DISCRIMINATOR_LOSS, "real_accuracy", "fake_accuracy")
"""Names of the logs of the two players, generator and discriminator."""
FEATURE_LOSS = "feature_loss"
"""Logged if the discriminator returns features."""
MAX_START = 2**24
"""Largest number up to which a float32 counts steps one by one."""


@keras.saving.register_keras_serializable(package="keras_vqvae")
class VQGAN(VQVAE):
    """A `VQVAE` with a discriminator, for sharp reconstructions.

    A decoder whose only loss is the squared error blurs the details that the codes do not determine. Here, a
    discriminator learns to tell reconstructions from data, and the decoder learns to make reconstructions that pass for
    data. `fit` trains both in each step, with one loss. For the discriminator `D`, data `x` and reconstructions `r`:

        loss of VQVAE - adversarial_weight * mean(D(r)) + mean(relu(1 - D(x))) + mean(relu(1 + D(r)))

    The second term has a gradient for the encoder and the decoder only. The last two terms, the hinge loss, have a
    gradient for the discriminator only, so `adversarial_weight` does not affect its training.

    A discriminator may also return features, the activations `f` of its hidden layers. The decoder then learns to match
    them, too, which makes training robust: the second term becomes

        adversarial_weight * (-mean(D(r)) + mean over f of mean(|f(r) - f(x)|) / mean(|f(x)|))

    In addition to the logs of `VQVAE` there are:

    - `generator_loss`, `-mean(D(r))`, and `discriminator_loss`, the hinge loss;
    - `feature_loss`, the mean over `f` in the formula above, if there are features;
    - `real_accuracy`, the fraction of the data's logits that are positive, and `fake_accuracy`, the fraction of the
      reconstructions' logits that are negative.

    To give the discriminator its own learning rate, use a `keras.optimizers.MultiOptimizer` with the names of its
    layers.

    Args:
        encoder: As in `VQVAE`.
        quantizer: As in `VQVAE`.
        decoder: As in `VQVAE`, with a single output.
        discriminator: A Keras model or layer from data to logits, without a sigmoid, such as a model of
            `build_conv_discriminator`. Its output is a tensor `[batch, ...]`, for example with one logit for each
            patch, or a list or dict of such tensors, whose losses are averaged. To return features, too, its output is
            `{"logits": logits, "features": [...]}`. Its inputs have the scale of the encoder's inputs: see `VQVAE`. A
            training step calls it once with `training=True`, for data and reconstructions as one batch, and once in
            inference mode, for the decoder's gradient. Losses that it adds in `call` are not used. Regularizers of its
            weights are.
        adversarial_weight: Weight of the generator's loss, 0 or more. With the default loss of `compile`, it is
            relative to the squared error divided by the variance of the targets, which is `1 - explained_variance`.
            Then it does not depend on the scale of the data, or on the numbers of elements of data and latents. With
            another loss, it is relative to the value of that loss. Defaults to `0.3`.
        start_step: Number of training steps without adversarial terms. In these steps, the model is trained as a
            `VQVAE`, and the discriminator is not trained. Defaults to `0`.
        preprocessing: As in `VQVAE`. The discriminator sees its outputs as data.
        **kwargs: As in `VQVAE`.

    Raises:
        ValueError: If an argument is invalid, the decoder has several outputs, or the discriminator does not accept
            its output or does not return logits.

    Example:

    >>> encoder, decoder = build(input_size=16, embedding_dim=4)
    >>> settings = {"kernel_initializer": "orthogonal", "kernel_constraint": SpectralNorm()}
    >>> hidden = keras.layers.Dense(32, activation="leaky_relu", **settings)
    >>> discriminator = keras.Sequential([keras.Input((16,)), hidden, keras.layers.Dense(1, **settings)])
    >>> model = VQGAN(encoder, VectorQuantizer(num_embeddings=32), decoder, discriminator)
    >>> model.compile(keras.optimizers.Adam(1e-3))
    >>> history = model.fit(keras.random.normal((64, 16)), verbose=0)
    >>> sorted(set(history.history) & {"generator_loss", "discriminator_loss", "real_accuracy", "fake_accuracy"})
    ['discriminator_loss', 'fake_accuracy', 'generator_loss', 'real_accuracy']

    References:

    - [Esser et al., 2021](https://arxiv.org/abs/2012.09841)
    - [Défossez et al., 2022, section 3.4](https://arxiv.org/abs/2210.13438), for the loss of features
    """

    def __init__(
        self,
        encoder: keras.Layer,
        quantizer: Quantizer,
        decoder: keras.Layer,
        discriminator: keras.Layer,
        adversarial_weight: float = 0.3,
        start_step: int = 0,
        preprocessing: keras.Layer | None = None,
        **kwargs: Any,
    ):
        super().__init__(encoder, quantizer, decoder, preprocessing, **kwargs)
        if not isinstance(discriminator, keras.Layer):
            raise ValueError(
                "`discriminator` must be a Keras layer or model, such as one of `build_conv_discriminator`. "
                f"Received: discriminator={discriminator!r}"
            )
        self.discriminator = discriminator
        self.adversarial_weight = validation.non_negative("adversarial_weight", adversarial_weight)
        self.start_step = validation.non_negative_int("start_step", start_step, MAX_START)
        self._game: Averages | None = None
        self._steps = None
        if self.start_step:
            self._steps = self.add_weight((), "zeros", "float32", trainable=False, autocast=False, name="steps")

    def _prepare_training(self, output_shapes: list[Sizes], latent_shape: Sizes) -> None:
        super()._prepare_training(output_shapes, latent_shape)
        if len(output_shapes) != 1:
            raise ValueError(
                "`decoder` must have a single output in `VQGAN`. Use `VQVAE` for several. "
                f"Received: outputs of shapes {output_shapes}"
            )
        shape = output_shapes[0]
        expected = getattr(self.discriminator, "input_shape", None) if self.discriminator.built else None
        # A functional model does not check the shape of symbolic inputs.
        fits, reason, outputs = not isinstance(expected, tuple) or validation.shapes_fit(expected, shape), None, None
        if fits:
            try:
                outputs = self.discriminator(keras.KerasTensor(shape))
            except ValueError as error:
                fits, reason = False, error
        if not fits:
            raise ValueError(
                "`discriminator` must accept the decoder's outputs. Received: outputs of shape "
                f"{shape}, discriminator.input_shape={expected}"
            ) from reason
        game.check_logits(self.discriminator)
        self._game = Averages((*GAME, FEATURE_LOSS) if game.split_outputs(outputs)[1] else GAME, name="game")

    def compute_loss(
        self,
        x: Data = None,
        y: Data = None,
        y_pred: Any = None,
        sample_weight: Data = None,
        training: bool = True,
    ) -> Tensor:
        """Computes the loss of `VQVAE.compute_loss` plus the losses of generator and discriminator.

        `sample_weight` does not affect the losses of generator and discriminator.

        Raises:
            ValueError: If `y_pred` is not the decoder's output, with a target of its shape.
        """
        # First, because updates of the discriminator may let other replicas run, so this replica's losses must be read.
        loss = super().compute_loss(x, y, y_pred, sample_weight, training)
        reconstruction, passes = self._built_parts().reconstruction, self._step.passes
        pairs = reconstruction.pairs(self._targets(x, y, training), y_pred)
        if pairs is None:
            raise ValueError(
                "`y_pred` must be the decoder's output, with a target of its shape. If the `call` of your subclass "
                "returns more, override `compute_loss`, and pass only the reconstruction and its target to "
                "`super().compute_loss`. Received: y_pred of shape "
                f"{keras.tree.map_structure(lambda t: tuple(t.shape), y_pred)}"
            )
        target, output = pairs[0]
        losses = self._play(target, output, training)
        if passes is not None and self._game is not None:
            self._game.update_state(losses, ops.shape(y_pred)[0])
        weight = self.adversarial_weight
        if self._normalizes:
            weight = weight * reconstruction.factor(pairs, passes[-1].latent_shape if passes else None)
        generator = total([losses[name] for name in (GENERATOR_LOSS, FEATURE_LOSS) if name in losses])
        both = weight * generator + losses[DISCRIMINATOR_LOSS]
        if self._steps is not None:
            steps = ops.convert_to_tensor(self._steps)
            start = backend.constants((float(self.start_step),), steps)[0]
            both = both * ops.cast(steps >= start, "float32")
            if training:
                backend.add_to(self._steps, 1.0)
        return loss + both / backend.replicas_in_turns()

    def _play(self, target: Tensor, reconstruction: Tensor, training: bool) -> dict[str, Tensor]:
        """Returns the losses of both players, and the accuracies of the discriminator, by name."""
        parts = (target, ops.stop_gradient(reconstruction))
        # One call for both, because with two calls, updates of the first would change the weights of the second.
        both = self._scaled(ops.concatenate([ops.cast(part, "float32") for part in parts]))
        logits, features = game.split_outputs(self.discriminator(both, training=training))
        discriminator, *accuracies = game.discriminator_loss(logits)
        reconstruction = self._scaled(reconstruction)
        # Last, because the call above may change weights, for example of `SpectralNormalization`.
        with game.constant_weights(self.discriminator):
            fake_logits, fake_features = game.split_outputs(self.discriminator(reconstruction, training=False))
        losses = dict(zip(GAME, (game.generator_loss(fake_logits), discriminator, *accuracies), strict=True))
        return losses | ({FEATURE_LOSS: game.feature_loss(features, fake_features)} if features else {})

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "discriminator": keras.saving.serialize_keras_object(self.discriminator),
            "adversarial_weight": self.adversarial_weight,
            "start_step": self.start_step,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: dict[str, Any] | None = None) -> "VQGAN":
        discriminator = keras.saving.deserialize_keras_object(config["discriminator"], custom_objects)
        return super().from_config({**config, "discriminator": discriminator}, custom_objects)
